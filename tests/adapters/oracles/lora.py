"""LoRA: `W' = W + (alpha / rank) up down`, minus what the pair starts with where that is not zero."""

from tests.adapters.dense import pair_factor

VARIANTS = [
    {"rank": 4},
    {"rank": 3, "alpha": 6.0},
    {"rank": 4, "step_size": "calibrated"},
    {"rank": 3, "alpha": 6.0, "init": "inilora"},
    {"rank": 4, "init": "inilora", "step_size": "calibrated"},
]


def weight(parameters, W, channels, kernel, options):
    scale = pair_factor(parameters, options)
    product = parameters["up"] @ parameters["down"]
    if "first_up" in parameters:
        product = product - parameters["first_up"] @ parameters["first_down"]
    return W + scale * product
