"""RAC-LoRA: `W' = W + factor * sum_t up_t down_t`; up_t is what is done, and for the link under way what is trained."""

from tests.adapters.dense import pair_factor

VARIANTS = [
    {"rank": 4, "links": 3, "step_size": "calibrated"},
    {"rank": 3, "links": 2, "alpha": 6.0, "step_size": "raw"},
]


def weight(parameters, W, channels, kernel, options):
    rank = options["rank"]
    for t in range(options["links"]):
        link = slice(t * rank, (t + 1) * rank)
        up = parameters["done"][:, link] + (parameters["up"] if parameters["link"] == t else 0)
        W = W + pair_factor(parameters, options) * up @ parameters["down"][link]
    return W
