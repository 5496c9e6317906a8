"""LoHa: `W' = W + c (up1 down1) o (up2 down2)`."""

VARIANTS = [{"rank": 2}, {"rank": 4}, {"rank": 2, "alpha": 3.0, "step_size": "raw"}]
"""On most of the layers rank 2 takes the low-rank route, and 4 the dense one."""


def weight(parameters, W, channels, kernel, options):
    first = parameters["up1"] @ parameters["down1"]
    second = parameters["up2"] @ parameters["down2"]
    raw = options.get("alpha", options["rank"]) / options["rank"]
    return W + (raw if options.get("step_size") == "raw" else parameters["factor"]) * first * second
