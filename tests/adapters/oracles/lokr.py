"""LoKr: `W' = W + c kron(first, second)`, written out entry by entry of the small factor."""

import torch

VARIANTS = [
    {"rank": 1, "factor": 2},
    {"rank": 100, "factor": None},  # the large factor is whole
    {"rank": 1, "factor": 3, "alpha": 2.0, "step_size": "raw"},
]


def weight(parameters, W, channels, kernel, options):
    first, whole = parameters["first"], "second" in parameters
    second = parameters["second"] if whole else parameters["up"] @ parameters["down"]
    change = torch.cat([torch.cat([entry * second for entry in row], dim=1) for row in first])
    raw = 1.0 if whole else options.get("alpha", options["rank"]) / options["rank"]
    return W + (raw if options.get("step_size") == "raw" else parameters["scale"]) * change
