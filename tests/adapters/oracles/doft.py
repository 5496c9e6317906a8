"""DOFT: `W' = diag(exp(l)) W R^T`, or `diag(exp(l)) R W`."""

from tests.adapters.dense import turned

VARIANTS = [
    {"rotation": {"kind": "blocks", "block_size": 4}},
    {"rotation": {"kind": "planes", "planes": 2}},
    {"rotation": {"kind": "planes", "planes": 2}, "step_size": "raw"},
    {"rotation": {"kind": "blocks", "block_size": 4}, "side": "output"},
    {"rotation": {"kind": "planes", "planes": 2}, "side": "output"},
    {"rotation": {"kind": "blocks", "block_size": 4, "map": "neumann_4"}},
    {"rotation": {"kind": "blocks", "block_size": 6, "conv": "kernel", "share": True}},
]


def weight(parameters, W, channels, kernel, options):
    return (parameters["unit"] * parameters["magnitude"]).exp().unsqueeze(1) * turned(parameters, W, kernel, options)
