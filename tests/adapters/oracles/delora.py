"""DeLoRA: `W' = W + b / r (up normalised down - the same at the start) diag(||W|| per channel)`."""

import torch

from tests.adapters.dense import norm

VARIANTS = [
    {"rank": 4},
    {"rank": 3, "bound": 2.0, "step_size": "raw"},
    {"rank": 3, "form": "peft", "step_size": "raw"},
]


def product(up, down):
    """`sum_i up_i down_i^T / (|up_i| |down_i|)`."""
    lengths = up.norm(dim=0).clamp(min=1e-4) * down.norm(dim=1).clamp(min=1e-4)
    return up @ torch.diag(1 / lengths) @ down


def weight(parameters, W, channels, kernel, options):
    change = product(parameters["up"], parameters["down"])
    if options.get("form", "original") == "original":
        change = change - product(parameters["up_start"], parameters["down_start"])
    bound = parameters["unit"] * parameters["strength"]
    return W + bound / options["rank"] * change * norm(W, kernel, "input")
