"""AdaLoRA: `W' = W + factor * up diag(kept gain) down`."""

import torch

from tests.adapters.dense import pair_factor

VARIANTS = [{"rank": 4, "step_size": "calibrated"}, {"rank": 3, "alpha": 6.0, "step_size": "raw"}]


def weight(parameters, W, channels, kernel, options):
    middle = torch.diag(parameters["gain"] * parameters["kept"])
    return W + pair_factor(parameters, options) * parameters["up"] @ middle @ parameters["down"]
