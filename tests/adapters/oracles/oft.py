"""OFT: `W' = W R^T` or `R W`, `R` orthogonal on channels or outputs, block-diagonal or in a few planes."""

from tests.adapters.dense import turned

VARIANTS = [
    {"rotation": {"kind": "blocks", "block_size": 4}},
    {"rotation": {"kind": "blocks", "block_size": 11}},  # divides nothing here: lowered to 8
    {"rotation": {"kind": "planes", "planes": 2}},
    {"rotation": {"kind": "blocks", "block_size": 4, "map": "exponential"}},
    {"rotation": {"kind": "blocks", "block_size": 6, "map": "newton_schulz"}, "side": "output"},
    {"rotation": {"kind": "planes", "planes": 2}, "side": "output"},
    {"rotation": {"kind": "blocks", "block_size": 5, "map": "neumann_5", "conv": "kernel", "divisor": "nearest"}},
]


def weight(parameters, W, channels, kernel, options):
    return turned(parameters, W, kernel, options)
