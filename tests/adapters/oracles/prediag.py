"""Pre-Diag: `W' = diag(exp(l)) W + s up down`."""

from tests.adapters.dense import along, pair_factor

VARIANTS = [{"rank": 4, "step_size": "calibrated"}, {"rank": 3, "alpha": 6.0, "step_size": "raw"}]


def weight(parameters, W, channels, kernel, options):
    gain = (parameters["unit"] * parameters["magnitude"]).exp()
    return along(gain, kernel, "output") * W + pair_factor(parameters, options) * parameters["up"] @ parameters["down"]
