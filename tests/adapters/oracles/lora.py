"""LoRA: `W' = W + (alpha / rank) up down`."""

VARIANTS = [{"rank": 4}, {"rank": 3, "alpha": 6.0}]


def weight(parameters, W, channels, kernel, options):
    scale = options.get("alpha", options["rank"]) / options["rank"]
    return W + scale * parameters["up"] @ parameters["down"]
