"""Ways of drawing (styles) that a demo base learns beside the plain pictures, each generated from its index.

A base with a single style cannot learn another from 32 pictures: it memorizes them, and all else degrades. One with
many styles has learned to separate style and subject, which an adapter can use. None of the ways imitates Noto.

All functions take and give `(n, 4, SIZE, SIZE)` float32 in [0, 1], red, green, blue and opacity, unless they say so.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from scripts.demo_augment import blur, moved, uniform
from scripts.demo_data import MOTION, SIZE

Numbers = dict[str, Tensor]
"""Parameters of ways, by name, each of shape `(count, ...)`."""


def ways(count: int, seed: int = 11) -> Numbers:
    """`count` ways of drawing."""
    chance = torch.Generator().manual_seed(seed)

    def some(low: float, high: float, *shape: int, often: float = 1.0) -> Tensor:
        value = uniform(low, high, (count, *shape), chance)
        return value * (torch.rand(count, *(1 for _ in shape), generator=chance) < often)

    return {
        "hue": some(-0.5, 0.5, often=0.6), "saturation": some(-0.7, 0.5, often=0.8),
        "gamma": some(-0.5, 0.5, often=0.7),
        "tint": some(-0.12, 0.12, 3, often=0.6), "angle": some(0, 2 * math.pi), "slope": some(-0.45, 0.45, often=0.7),
        "place": some(-0.5, 0.5, 2), "glow": some(-0.5, 0.5, often=0.6), "rim": some(-1.2, 0.8, often=0.7),
        "lines": some(-3.0, 1.0, often=0.5), "soft": some(-0.8, 1.0, often=0.6), "sigma": some(0.8, 2.0),
    }


def drawn(pictures: Tensor, way: Numbers) -> Tensor:
    """Each picture in its way, on white: `(n, 3, SIZE, SIZE)`."""
    colours, opaque = pictures[:, :3], pictures[:, 3:]
    given = {name: value.view(len(pictures), -1, 1, 1) for name, value in way.items()}
    grey = colours.mean(1, keepdim=True)
    steps = sum(F.pad(grey.diff(dim=d).abs(), pad) for d, pad in ((2, (0, 0, 0, 1)), (3, (0, 1, 0, 0))))
    soft = 1 - blur(1 - colours, way["sigma"])
    colours = colours + (soft - colours) * given["soft"]
    colours = turned(colours, given["hue"])
    colours = grey + (colours - grey) * (1 + given["saturation"])
    colours = colours.clamp(0.002, 1) ** given["gamma"].exp() + given["tint"]
    light = 1 + shade(given) + given["rim"] * (1 - blur(opaque, torch.full((len(pictures),), 2.0))).clamp(0, 1)
    colours = (colours * light + given["lines"] * steps).clamp(0, 1)
    return colours * opaque + 1 - opaque


def shade(way: Numbers) -> Tensor:
    """A slope of light across the picture and a glow around a place, `(n, 1, SIZE, SIZE)`."""
    place = torch.linspace(-1, 1, SIZE)
    x, y = place.view(1, 1, 1, -1), place.view(1, 1, -1, 1)
    across = x * way["angle"].cos() + y * way["angle"].sin()
    apart = (x - way["place"][:, :1]).square() + (y - way["place"][:, 1:]).square()
    return way["slope"] * across + way["glow"] * (torch.exp(-2.5 * apart) - 0.35)


def turned(colours: Tensor, angle: Tensor) -> Tensor:
    """Colours rotated about the grey axis by `angle (n, 1, 1, 1)` in radians; `(n, 3, SIZE, SIZE)`."""
    mean = colours.mean(1, keepdim=True)
    across = (colours.roll(1, 1) - colours.roll(-1, 1)) / math.sqrt(3)
    return mean + (colours - mean) * angle.cos() + across * angle.sin()


def varied(pictures: Tensor, numbers: Tensor, table: Numbers, chance: Generator) -> Tensor:
    """Pictures in the ways of those indices, each in proportions of its own: `(n, 3, SIZE, SIZE)`."""
    way = {name: value[numbers] for name, value in table.items()}
    return moved(bent(drawn(pictures, way), chance), MOTION, chance).clamp(0, 1)


def bent(pictures: Tensor, chance: Generator) -> Tensor:
    """Pictures on white in other proportions: stretched by up to a sixteenth, and bent smoothly by up to 2.5 pixels."""
    n = len(pictures)
    scale = torch.diag_embed(1 + uniform(-0.06, 0.06, (n, 2), chance))
    places = F.affine_grid(torch.cat([scale, torch.zeros(n, 2, 1)], 2), [n, 3, SIZE, SIZE], align_corners=False)
    bend = uniform(-2.5 / SIZE, 2.5 / SIZE, (n, 2, 4, 4), chance)
    bend = F.interpolate(bend, (SIZE, SIZE), mode="bicubic", align_corners=True)
    return F.grid_sample(pictures - 1, places + bend.permute(0, 2, 3, 1), align_corners=False) + 1
