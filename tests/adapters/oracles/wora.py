"""WoRA: `V = beta W + alpha s up down`, `W' = V * w exp(l) / ||V||`, the gradient through the norm included."""

from tests.adapters.dense import along, length, norm, pair_factor

VARIANTS = [
    {"rank": 4, "axis": "input"},
    {"rank": 4, "axis": "output"},
    {"rank": 3, "alpha": 6.0, "axis": "input", "channel_beta": True},
    {"rank": 3, "alpha": 6.0, "axis": "output", "channel_beta": True},
    {"rank": 4, "axis": "input", "learn_weights": False},
    {"rank": 4, "axis": "output", "learn_weights": False},
    {"rank": 4, "axis": "input", "step_size": "calibrated"},
    {"rank": 4, "axis": "input", "magnitude": "absolute", "first_alpha": 8.0, "init": "published",
     "decay_weights": True},
    {"rank": 4, "axis": "output", "channel_alpha": True, "channel_beta": True},
]


def weight(parameters, W, channels, kernel, options):
    axis = options["axis"]
    scale = pair_factor(parameters, options)
    alpha, beta = 1.0, W.new_ones(())
    if options.get("learn_weights", True):
        alpha, beta = (parameters["weight_unit"] * parameters[name] for name in ("alpha", "beta"))
        alpha, beta = (along(one, kernel, axis) if one.dim() else one for one in (alpha, beta))
    V = beta * W + alpha * scale * parameters["up"] @ parameters["down"]
    magnitude = length(W, parameters, kernel, axis, options)
    return V / norm(V, kernel, axis) * magnitude
