"""Augmentation of the pictures that the demo's judges are trained on: changes that keep a drawing recognizable, and
damage that makes it unrecognizable.

All functions take and give pictures `(n, 3, SIZE, SIZE)` float32 in [0, 1] on white, and draw from `chance` alone.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from scripts.demo_data import SIZE


def uniform(low: float, high: float, shape: tuple[int, ...], chance: Generator) -> Tensor:
    """Random values from [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=chance)


def blur(pictures: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian, `sigma (n)` in pixels; beyond the edge is white. As products with matrices: fast for any width."""
    places = torch.arange(SIZE)
    apart = (places - places[:, None]) / sigma.view(-1, 1, 1, 1)  # (n, 1, SIZE, SIZE)
    mean = torch.exp(-0.5 * apart.square()) / (math.sqrt(2 * math.pi) * sigma.view(-1, 1, 1, 1))
    return mean @ (pictures - 1) @ mean + 1


def blotches(count: int, cells: int, chance: Generator, channels: int = 3) -> Tensor:
    """Smooth noise of unit variance in its `cells` x `cells` grid: (count, channels, SIZE, SIZE)."""
    coarse = torch.randn(count, channels, cells, cells, generator=chance)
    return F.interpolate(coarse, (SIZE, SIZE), mode="bilinear", align_corners=False)


# -- recognizable -----------------------------------------------------------------------------------------------------


def moved(pictures: Tensor, strength: float, chance: Generator) -> Tensor:
    """Rotated, stretched, shifted and bent a little: 12 degrees, an eighth, 5 pixels and 2 pixels at `strength` 1."""
    n = len(pictures)
    angle = strength * uniform(-0.21, 0.21, (n,), chance)
    stretch = 1 + strength * uniform(-0.13, 0.13, (n, 2), chance)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2) * stretch[:, None]
    shift = strength * uniform(-10 / SIZE, 10 / SIZE, (n, 2, 1), chance)
    places = F.affine_grid(torch.cat([turn, shift], 2), [n, 3, SIZE, SIZE], align_corners=False)
    bend = strength * 2 / SIZE * blotches(n, 5, chance, channels=2)
    return F.grid_sample(pictures - 1, places + bend.permute(0, 2, 3, 1), align_corners=False) + 1


def tinted(pictures: Tensor, strength: float, chance: Generator) -> Tensor:
    """Other contrast, saturation, tint and shading; white stays nearly white."""
    n = len(pictures)
    ink = 1 - pictures
    grey = ink.mean(1, keepdim=True)
    ink = grey + (ink - grey) * (1 + strength * uniform(-0.35, 0.25, (n, 1, 1, 1), chance))
    ink = ink * (1 + strength * uniform(-0.2, 0.2, (n, 1, 1, 1), chance))
    ink = ink * (1 + strength * uniform(-0.12, 0.12, (n, 3, 1, 1), chance))
    shade = blotches(n, 2, chance, channels=1) * strength * 0.12
    drawn = (4 * grey).clamp(0, 1)  # paper is not shaded
    return (1 - ink - shade * drawn).clamp(0, 1)


def smeared(pictures: Tensor, strength: float, chance: Generator) -> Tensor:
    """Softer or sharper, with noise and faint blotches, like the output of a small autoencoder and denoiser."""
    n = len(pictures)
    soft = blur(pictures, uniform(0.7, 1.6, (n,), chance))
    pictures = pictures + (soft - pictures) * uniform(-0.4, 1.0, (n, 1, 1, 1), chance)
    grain = torch.randn(pictures.shape, generator=chance) * uniform(0, 0.05, (n, 1, 1, 1), chance)
    for cells, most in ((32, 0.07), (12, 0.06)):
        grain = grain + blotches(n, cells, chance) * uniform(0, most, (n, 1, 1, 1), chance)
    return (pictures + strength * grain).clamp(0, 1)


def changed(pictures: Tensor, strengths: tuple[float, float, float], chance: Generator) -> Tensor:
    """Moved, tinted and smeared with these strengths; one of 0 leaves the pictures as they are."""
    for change, strength in zip((moved, tinted, smeared), strengths, strict=True):
        pictures = change(pictures, strength, chance) if strength else pictures
    return pictures


def varied(pictures: Tensor, strength: float, chance: Generator) -> Tensor:
    """All of the above; still the same drawing."""
    return changed(pictures, (strength, strength, strength), chance)


# -- unrecognizable ---------------------------------------------------------------------------------------------------


def blurred(pictures: Tensor, chance: Generator) -> Tensor:
    """By 5 to 8 pixels: a patch of colour remains."""
    return blur(pictures, uniform(5, 8, (len(pictures),), chance))


def halved(pictures: Tensor, chance: Generator) -> Tensor:
    """White on one side of a line through the middle of what is drawn, which leaves 40 to 60 % of it."""
    places = (torch.arange(SIZE) - SIZE / 2 + 0.5).expand(SIZE, SIZE)
    left = []
    for one in pictures:
        angle = float(uniform(0, 2 * math.pi, (), chance))
        across = math.cos(angle) * places + math.sin(angle) * places.T
        drawn = across[one.amin(0) < 0.9]
        share = float(uniform(0.4, 0.6, (), chance))
        left.append(torch.where(across <= (drawn.quantile(share) if len(drawn) else 0), one, 1.0))
    return torch.stack(left)


def patched(pictures: Tensor, chance: Generator) -> Tensor:
    """White squares of a quarter of the side, in random places, until at most half of what is drawn remains."""
    left = pictures.clone()
    for one in left:
        drawn = (one.amin(0) < 0.9).sum()
        while (one.amin(0) < 0.9).sum() > 0.5 * drawn:
            row, column = torch.randint(-4, SIZE - 12, (2,), generator=chance).clamp(0).tolist()
            one[:, row : row + 16, column : column + 16] = 1
    return left


def noise(pictures: Tensor, chance: Generator) -> Tensor:
    """Nothing but noise: of single pixels or in blotches, in the colours of each picture."""
    n = len(pictures)
    grains = torch.stack([blotches(n, cells, chance) for cells in (SIZE, 32, 16, 8)])
    grain = grains[torch.randint(4, (n,), generator=chance), torch.arange(n)]
    mean, spread = pictures.mean((2, 3), keepdim=True), pictures.std((2, 3), keepdim=True).clamp(0.1)
    return (mean + spread * uniform(0.7, 2.0, (n, 1, 1, 1), chance) * grain).clamp(0, 1)


def scrambled(pictures: Tensor, chance: Generator) -> Tensor:
    """Its 16 tiles in another order, with blotches over the seams."""
    n, side = len(pictures), SIZE // 4
    tiles = pictures.view(n, 3, 4, side, 4, side).transpose(3, 4).reshape(n, 3, 16, side, side)
    order = torch.rand(n, 16, generator=chance).argsort(1)
    tiles = tiles.gather(2, order[:, None, :, None, None].expand_as(tiles))
    mixed = tiles.view(n, 3, 4, 4, side, side).transpose(3, 4).reshape(n, 3, SIZE, SIZE)
    return (mixed + 0.1 * blotches(n, 16, chance)).clamp(0, 1)


DAMAGES: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "blurred": blurred, "half erased": halved, "patches erased": patched, "noise": noise, "scrambled": scrambled,
}
"""Kinds of damage after which a picture is unrecognizable."""


SHARES = (0.1, 0.4, 0.3, 0.1, 0.1)
"""Share of each kind in training: missing parts are the hardest."""


def damaged(pictures: Tensor, chance: Generator) -> Tensor:
    """Each kind on its share of the pictures, in the order of DAMAGES."""
    ends = [round(len(pictures) * sum(SHARES[: i + 1])) for i in range(len(SHARES) - 1)]
    parts = pictures.tensor_split(ends)
    return torch.cat([damage(part, chance) for damage, part in zip(DAMAGES.values(), parts, strict=True)])
