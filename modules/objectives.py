"""The training objective: noise and timestep of a sample, noising, target and loss weight; `losses` has the losses.

Noise and timestep of a sample are functions of (seed, position) alone, `position` being the sample's index in the whole
training: the same on any number of processes, and after resuming.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy
import torch
from torch import Tensor, nn

from modules.adapters.base import seed_of


@dataclass(frozen=True)
class Noise:
    """How a sample's noise differs from a standard normal one."""

    offset: float = 0.0
    """Strength of noise that is constant over a channel."""
    adaptive: float = 0.0
    """Added to the offset for each unit of the channel's mean in the picture, without its sign."""
    pyramid: int = 0
    """Sizes of coarser and coarser noise that are added."""
    discount: float = 0.3
    """Of each size against the one before."""
    perturbation: float = 0.0
    """Strength of noise that only the network's input has."""


PLAIN = Noise()


def sample_noise(seed: int, position: int, latents: Tensor, kind: Noise = PLAIN) -> Tensor:
    """The noise of a sample with `latents (c, h, w)`, float32 of their shape, but for the perturbation.

    Noise offset: crosslabs.org, "Diffusion with offset noise" (2023); its adaptive strength: kohya-ss/sd-scripts.
    """
    generator = torch.Generator().manual_seed(seed_of("noise", seed, position))
    noise, channels = torch.randn(latents.shape, generator=generator), latents.shape[0]
    if kind.offset or kind.adaptive:
        strength = kind.offset
        if kind.adaptive:
            strength = (kind.offset + kind.adaptive * latents.mean((1, 2), keepdim=True).abs()).clamp(min=0)
        noise = noise + strength * torch.randn(channels, 1, 1, generator=generator)
    if kind.pyramid:
        noise = pyramid(noise, seed_of("pyramid", seed, position), kind.pyramid, kind.discount)
    return noise


def pyramid(noise: Tensor, seed: int, sizes: int, discount: float) -> Tensor:
    """`noise (c, h, w)` and coarser noise of up to so many sizes, each 2 to 4 times smaller than the one before and
    `discount` times as strong, scaled to a standard deviation of 1.

    Whitaker, "Multi-resolution noise for diffusion model training" (2023), as in kohya-ss/sd-scripts
    (`pyramid_noise_like`), which scales whole batches.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = noise.shape[1:]
    for place in range(sizes):
        ratio = (2 + 2 * float(torch.rand((), generator=generator))) ** place
        size = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = torch.randn(1, noise.shape[0], *size, generator=generator)
        noise = noise + discount**place * nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        if 1 in size:
            break
    return noise / noise.std()


def perturbed(noise: Tensor, seed: int, position: int, strength: float) -> Tensor:
    """The noise `(c, h, w)` of a sample's input, whose target has `noise` itself (Ning et al. 2023, arXiv 2301.11706:
    input perturbation)."""
    generator = torch.Generator().manual_seed(seed_of("perturbation", seed, position))
    return noise + strength * torch.randn(noise.shape, generator=generator)


def sample_level(seed: int, position: int, count: int, density: "Density") -> float:
    """The noise level of a sample, in (0, 1): 0 the picture, 1 pure noise.

    Uniform: the middle of one of `count` equal parts. logit_normal, mode, cosmap: Esser et al. (arXiv 2403.03206),
    section 3.1. sigmoid: the density is `1 / (1 + exp(-slope (t - center)))`, as OneTrainer has it.
    """
    drawn = seed_of("timestep", seed, position)
    if density.kind == "beta":
        return float(numpy.random.default_rng(drawn).beta(density.a, density.b))
    generator = torch.Generator().manual_seed(drawn)
    if density.kind == "uniform":
        return (int(torch.randint(count, (), generator=generator)) + 0.5) / count
    if density.kind == "logit_normal":  # eq. 19
        normal = torch.randn((), generator=generator, dtype=torch.float64)
        return float(torch.sigmoid(density.mean + density.spread * normal))
    u = float(torch.rand((), generator=generator, dtype=torch.float64))
    if density.kind == "mode":  # eq. 20
        return 1 - u - density.mode_scale * (math.cos(math.pi / 2 * u) ** 2 - 1 + u)
    if density.kind == "sigmoid":
        return _sigmoid_quantile(u, density.slope, density.center)
    assert density.kind == "cosmap", density.kind
    return 1 - 1 / (math.tan(math.pi / 2 * u) + 1)  # eq. 21


def _sigmoid_quantile(u: float, slope: float, center: float) -> float:
    """The value in (0, 1) below which the part `u` of the density `sigmoid(slope (t - center))` lies. Its integral is
    `log(1 + exp(slope (t - center))) / slope`."""
    if abs(slope) < 1e-6:
        return u

    def integral(t: float) -> float:
        power = slope * (t - center)
        return max(power, 0.0) + math.log1p(math.exp(-abs(power)))

    wanted = integral(0) + u * (integral(1) - integral(0))
    power = wanted + math.log(-math.expm1(-wanted))  # the inverse of log(1 + exp(power))
    return min(1.0, max(0.0, center + power / slope))


def draw_latents(moments: Tensor, seed: int, position: int) -> Tensor:
    """A draw `(c, h, w)` from an encoded picture's `moments (2c, h, w)`: mean and standard deviation."""
    mean, std = moments.chunk(2)
    generator = torch.Generator().manual_seed(seed_of("latents", seed, position))
    return mean + std * torch.randn(mean.shape, generator=generator)


@dataclass(frozen=True)
class Density:
    """The timestep distribution: how often each noise level is trained on."""

    kind: str
    """"uniform", "logit_normal", "mode", "cosmap", "sigmoid" or "beta"."""
    mean: float = 0.0
    """Of the logit-normal density: below 0 favours little noise."""
    spread: float = 1.0
    mode_scale: float = 1.29
    slope: float = 5.0
    """Of the sigmoid density: above 0 favours much noise."""
    center: float = 0.5
    a: float = 1.0
    b: float = 1.0
    """Of the beta density, whose mean is `a / (a + b)`."""


class Process(Protocol):
    """The noise process of a model family. A time is the network's timestep input, `(n)` float64."""

    count: int
    """Timesteps of the network."""

    prediction: str
    """The base's prediction type: "epsilon", "v_prediction" or "flow"."""

    predictions: tuple[str, ...]
    """The prediction types of this process."""

    density: str
    """The usual timestep distribution."""

    def times(self, levels: Tensor, area: int) -> Tensor:
        """Times `(n)` of noise levels `(n)` in (0, 1), float64, for latents of `area` = height * width."""
        ...

    def level_of(self, noise: float, area: int) -> float:
        """The level whose time has this part of all noise: `noise` of `count`."""
        ...

    def parts(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of picture and noise at these times: two `(n)`."""
        ...

    def snr(self, times: Tensor) -> Tensor:
        """Signal-to-noise ratio `(n)` of powers."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """Noise in discrete steps that keeps the variance (Ho et al. 2020): `sqrt(a) x + sqrt(1 - a) e`."""

    alphas_cumprod: Tensor
    """float32 `(steps)`."""
    prediction: str
    predictions: tuple[str, ...] = ("epsilon", "v_prediction")
    density: str = "uniform"

    @property
    def count(self) -> int:
        """Timesteps of the network."""
        return len(self.alphas_cumprod)

    def times(self, levels: Tensor, area: int) -> Tensor:
        """The steps that the levels fall into; whole numbers."""
        return (levels * self.count).floor().clamp(max=self.count - 1)

    def level_of(self, noise: float, area: int) -> float:
        """The same."""
        return noise

    def parts(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """`sqrt(a)` and `sqrt(1 - a)`, float32."""
        alphas = self.alphas_cumprod[times.long()]
        return alphas.sqrt(), (1 - alphas).sqrt()

    def snr(self, times: Tensor) -> Tensor:
        """`a / (1 - a)`, float32."""
        alphas = self.alphas_cumprod[times.long()]
        return alphas / (1 - alphas)

    def with_zero_terminal_snr(self) -> "Diffusion":
        """The same with pure noise in the last step (Lin et al. 2024, arXiv 2305.08891, algorithm 1)."""
        from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

        alphas = self.alphas_cumprod
        betas = 1 - alphas / torch.cat([torch.ones(1, dtype=alphas.dtype), alphas[:-1]])
        return replace(self, alphas_cumprod=torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0))


@dataclass(frozen=True)
class Flow:
    """A straight path (rectified flow, Liu et al. 2022): `(1 - s) x + s e`; the network predicts `e - x`.

    A time is `1000 s`. Levels are shifted towards noise, `s = k u / (1 + (k - 1) u)` (Esser et al., eq. 23), because
    large pictures need more of it: `k` is fixed, or `exp(m)` with `m` growing linearly with the picture (FLUX).
    """

    shift: float = 1.0
    growth: tuple[float, float, float, float] | None = None
    """`(latents, m, latents, m)`: two points of the line, by height * width of the latents. None: `shift` is used."""
    count: int = 1000
    prediction: str = "flow"
    predictions: tuple[str, ...] = ("flow",)
    density: str = "logit_normal"

    def with_shift(self, shift: float) -> "Flow":
        """The same with this `k` for pictures of any size."""
        return replace(self, shift=shift, growth=None)

    def shift_of(self, area: int) -> float:
        """`k` for latents of `area` = height * width."""
        if self.growth is None:
            return self.shift
        small, low, large, high = self.growth
        return math.exp(low + (high - low) * (area - small) / (large - small))

    def times(self, levels: Tensor, area: int) -> Tensor:
        """`1000 s` of the shifted levels."""
        shift = self.shift_of(area)
        return self.count * shift * levels / (1 + (shift - 1) * levels)

    def level_of(self, noise: float, area: int) -> float:
        """`u = s / (k - (k - 1) s)`."""
        shift = self.shift_of(area)
        return noise / (shift - (shift - 1) * noise)

    def parts(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """`1 - s` and `s`, float32."""
        noise = times / self.count
        return (1 - noise).float(), noise.float()

    def snr(self, times: Tensor) -> Tensor:
        """`((1 - s) / s)^2`, float32."""
        signal, noise = self.parts(times)
        return (signal / noise).square()


def within(process: Process, levels: Tensor, bounds: tuple[float, float], area: int) -> Tensor:
    """Levels `(n)` in (0, 1) moved to those whose times have between `bounds` of all noise, for latents of `area`."""
    if bounds == (0, 1):
        return levels
    least, most = (process.level_of(bound, area) for bound in bounds)
    return least + (most - least) * levels


def add_noise(latents: Tensor, noise: Tensor, parts: tuple[Tensor, Tensor]) -> Tensor:
    """Picture and noise `(n, c, h, w)` mixed by these factors `(n)` (DDPM, eq. 4, or a point of the straight path)."""
    signal, rest = (part.view(-1, 1, 1, 1) for part in parts)
    return signal * latents + rest * noise


def target(prediction: str, latents: Tensor, noise: Tensor, parts: tuple[Tensor, Tensor]) -> Tensor:
    """The prediction target: the noise `e`; `v = sqrt(a) e - sqrt(1 - a) x` (Salimans & Ho 2022, app. D);
    or the flow `e - x`."""
    if prediction == "epsilon":
        return noise
    if prediction == "flow":
        return noise - latents
    signal, rest = (part.view(-1, 1, 1, 1) for part in parts)
    return signal * noise - rest * latents


def min_snr_weight(prediction: str, snr: Tensor, gamma: float) -> Tensor:
    """Loss weights `(n)`: `min(snr, gamma) / snr` for epsilon, `/ (snr + 1)` for v (Hang et al., arXiv 2303.09556)."""
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def debiased_weight(snr: Tensor) -> Tensor:
    """Loss weights `(n)`: `1 / sqrt(snr)`, snr at least 0.001 (Yu et al., arXiv 2310.08442)."""
    return snr.clamp(min=1e-3).rsqrt()
