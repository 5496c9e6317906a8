"""The training objective: noise and timestep of a sample, noising, target and loss weight.

Noise and timestep of a sample are functions of (seed, position) alone, `position` being the sample's index in the whole
training: the same on any number of processes, and after resuming.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from modules.adapters.base import seed_of


def sample_noise(seed: int, position: int, shape: tuple[int, ...], offset: float) -> Tensor:
    """Standard normal noise `shape = (c, h, w)`, float32, plus `offset` times noise that is constant over a channel."""
    generator = torch.Generator().manual_seed(seed_of("noise", seed, position))
    noise = torch.randn(shape, generator=generator)
    return noise + offset * torch.randn(shape[0], 1, 1, generator=generator) if offset else noise


def sample_level(seed: int, position: int, count: int, density: "Density") -> float:
    """The noise level of a sample, in (0, 1): 0 the picture, 1 pure noise.

    Uniform: the middle of one of `count` equal parts. The others: Esser et al. (arXiv 2403.03206), section 3.1.
    """
    generator = torch.Generator().manual_seed(seed_of("timestep", seed, position))
    if density.kind == "uniform":
        return (int(torch.randint(count, (), generator=generator)) + 0.5) / count
    if density.kind == "logit_normal":  # eq. 19
        normal = torch.randn((), generator=generator, dtype=torch.float64)
        return float(torch.sigmoid(density.mean + density.spread * normal))
    u = float(torch.rand((), generator=generator, dtype=torch.float64))
    if density.kind == "mode":  # eq. 20
        return 1 - u - density.mode_scale * (math.cos(math.pi / 2 * u) ** 2 - 1 + u)
    assert density.kind == "cosmap", density.kind
    return 1 - 1 / (math.tan(math.pi / 2 * u) + 1)  # eq. 21


def draw_latents(moments: Tensor, seed: int, position: int) -> Tensor:
    """A draw `(c, h, w)` from an encoded picture's `moments (2c, h, w)`: mean and standard deviation."""
    mean, std = moments.chunk(2)
    generator = torch.Generator().manual_seed(seed_of("latents", seed, position))
    return mean + std * torch.randn(mean.shape, generator=generator)


@dataclass(frozen=True)
class Density:
    """The timestep distribution: how often each noise level is trained on."""

    kind: str
    """"uniform", "logit_normal", "mode" or "cosmap"."""
    mean: float = 0.0
    """Of the logit-normal density: below 0 favours little noise."""
    spread: float = 1.0
    mode_scale: float = 1.29


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

    def parts(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """`1 - s` and `s`, float32."""
        noise = times / self.count
        return (1 - noise).float(), noise.float()

    def snr(self, times: Tensor) -> Tensor:
        """`((1 - s) / s)^2`, float32."""
        signal, noise = self.parts(times)
        return (signal / noise).square()


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


def errors(kind: str, delta: float, predicted: Tensor, wanted: Tensor, parts: Tensor | None = None) -> Tensor:
    """Mean error of each sample, `(n, ...) -> (n)`, in float32 (float64 for predictions in it): "mse", "huber" (linear
    above `delta`, torch's `huber_loss`) or "smooth_l1" (the same divided by `delta`). `parts` are weights of its
    elements, `(n, 1, h, w)` for `(n, c, h, w)`."""
    dtype = torch.float64 if predicted.dtype == torch.float64 else torch.float32
    predicted, wanted = predicted.to(dtype), wanted.to(dtype)
    if kind == "mse":
        each = (predicted - wanted).square()
    elif kind == "huber":
        each = nn.functional.huber_loss(predicted, wanted, reduction="none", delta=delta)
    else:
        assert kind == "smooth_l1", kind
        each = nn.functional.smooth_l1_loss(predicted, wanted, reduction="none", beta=delta)
    if parts is not None:
        each = each * parts.to(dtype)
    return each.flatten(1).mean(1)
