"""DOFT: `W' = diag(exp(l)) W R^T`."""

from tests.adapters.dense import rotated, rotation

VARIANTS = [
    {"rotation": {"kind": "blocks", "block_size": 4}},
    {"rotation": {"kind": "planes", "planes": 2}},
    {"rotation": {"kind": "planes", "planes": 2}, "step_size": "raw"},
]


def weight(parameters, W, channels, kernel, options):
    turned = rotated(W, rotation(parameters, channels, options["rotation"]), kernel)
    return (parameters["unit"] * parameters["magnitude"]).exp().unsqueeze(1) * turned
