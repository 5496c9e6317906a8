"""ABBA: `W' = W + c (up1 down1) * (up2 down2)`, entry by entry; both sides of the choice between its routes."""

VARIANTS = [
    {"rank": 2},  # as a pair of rank 4
    {"rank": 3, "second_rank": 4},  # as a matrix, which is smaller here
    {"rank": 2, "second_rank": 1, "alpha": 0.5, "step_size": "raw"},
]


def weight(parameters, W, channels, kernel, options):
    first = parameters["first_up"] @ parameters["first_down"]
    second = parameters["second_up"] @ parameters["second_down"]
    factor = options.get("alpha", parameters["factor"])
    return W + factor * first * second
