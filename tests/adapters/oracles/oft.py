"""OFT: `W' = W R^T`, `R` orthogonal on the channels, block-diagonal or in a few planes."""

from tests.adapters.dense import rotated, rotation

VARIANTS = [
    {"rotation": {"kind": "blocks", "block_size": 4}},
    {"rotation": {"kind": "blocks", "block_size": 11}},  # divides nothing here: lowered to 8
    {"rotation": {"kind": "planes", "planes": 2}},
]


def weight(parameters, W, channels, kernel, options):
    return rotated(W, rotation(parameters, channels, options["rotation"]), kernel)
