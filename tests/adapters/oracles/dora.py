"""DoRA: `V = W + s up down`, `W' = V * w exp(l) / ||V||`, the norm along one axis, detached or not."""

from tests.adapters.dense import along, norm, pair_factor

VARIANTS = [
    {"rank": 4, "axis": "input"},
    {"rank": 4, "axis": "output"},
    {"rank": 3, "alpha": 6.0, "axis": "input", "norm_gradient": "full"},
    {"rank": 3, "alpha": 6.0, "axis": "output", "norm_gradient": "full"},
]


def weight(parameters, W, channels, kernel, options):
    axis = options["axis"]
    V = W + pair_factor(parameters, options) * parameters["up"] @ parameters["down"]
    length = norm(V, kernel, axis)
    if options.get("norm_gradient", "detached") == "detached":
        length = length.detach()
    gain = (parameters["unit"] * parameters["magnitude"]).exp()
    return V / length * norm(W, kernel, axis) * along(gain, kernel, axis)
