"""DoRA: `V = W + s up down`, `W' = V * w exp(l) / ||V||`, the norm along one axis, detached or not."""

from tests.adapters.dense import length, norm, pair_factor

VARIANTS = [
    {"rank": 4, "axis": "input"},
    {"rank": 4, "axis": "output"},
    {"rank": 3, "alpha": 6.0, "axis": "input", "norm_gradient": "full"},
    {"rank": 3, "alpha": 6.0, "axis": "output", "norm_gradient": "full"},
    {"rank": 4, "axis": "output", "magnitude": "absolute"},
]


def weight(parameters, W, channels, kernel, options):
    axis = options["axis"]
    V = W + pair_factor(parameters, options) * parameters["up"] @ parameters["down"]
    divisor = norm(V, kernel, axis)
    if options.get("norm_gradient", "detached") == "detached":
        divisor = divisor.detach()
    return V / divisor * length(W, parameters, kernel, axis, options)
