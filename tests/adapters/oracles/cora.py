"""CoRA: `W' = W + (alpha / rank) up down`, or the saved factor in place of the scale."""

from tests.adapters.dense import pair_factor

VARIANTS = [{"rank": 4, "step_size": "calibrated"}, {"rank": 3, "alpha": 6.0, "step_size": "raw", "frozen": False}]


def weight(parameters, W, channels, kernel, options):
    return W + pair_factor(parameters, options) * parameters["up"] @ parameters["down"]
