"""LoRA: `W' = W + (alpha / rank) up down`."""

from tests.adapters.dense import pair_factor

VARIANTS = [{"rank": 4}, {"rank": 3, "alpha": 6.0}, {"rank": 4, "step_size": "calibrated"}]


def weight(parameters, W, channels, kernel, options):
    scale = pair_factor(parameters, options)
    return W + scale * parameters["up"] @ parameters["down"]
