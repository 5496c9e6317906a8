"""NEAT: `(W' - W)^T = c h up^T` with `h = f(W^T mixing)`, then encoders, then decoders with shortcuts."""

VARIANTS = [{"rank": 4}, {"rank": 3, "depth": 2}, {"rank": 4, "depth": 1, "step_size": "raw"}]


def weight(parameters, W, channels, kernel, options):
    h = (W.t() @ (parameters["unit"] * parameters["mixing"])).clamp(min=0)
    depth, shortcuts = options.get("depth", 0), []
    for n in range(depth):
        shortcuts.append(h)
        h = (h @ (parameters["inner_unit"] * parameters[f"encoders.{n}"]).t()).clamp(min=0)
    for n in range(depth):
        h = (h @ (parameters["inner_unit"] * parameters[f"decoders.{n}"]).t()).clamp(min=0) + shortcuts[depth - 1 - n]
    return W + (parameters["factor"] * h @ parameters["up"].t()).t()
