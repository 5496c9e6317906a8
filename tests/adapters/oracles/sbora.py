"""SBoRA: `W' = W + c up E^T` or `W + c E down`, E of unit vectors."""

import torch

from tests.adapters.dense import pair_factor

VARIANTS = [
    {"rank": 3, "side": "input", "step_size": "calibrated"},
    {"rank": 3, "side": "output", "step_size": "calibrated"},
    {"rank": 2, "side": "input", "alpha": 5.0, "step_size": "raw"},
]


def weight(parameters, W, channels, kernel, options):
    columns = options["side"] == "input"
    E = torch.eye(W.shape[1 if columns else 0], dtype=W.dtype)[:, parameters["places"].long()]
    change = parameters["change"]
    return W + pair_factor(parameters, options) * (change @ E.t() if columns else E @ change)
