"""What is learned from a noised picture: noise and time steps of a sample, noising, target and loss weight.

Noise and time step of a sample are functions of (seed, position) alone, `position` being the sample's running number
in the whole training: the same on any number of processes, and after a resume.
"""

import torch
from torch import Tensor

from modules.adapters.base import seed_of


def sample_noise(seed: int, position: int, shape: tuple[int, ...], offset: float) -> Tensor:
    """Standard normal noise `shape = (c, h, w)`, float32, plus `offset` times noise that is constant over a channel."""
    generator = torch.Generator().manual_seed(seed_of("noise", seed, position))
    noise = torch.randn(shape, generator=generator)
    return noise + offset * torch.randn(shape[0], 1, 1, generator=generator) if offset else noise


def sample_timestep(seed: int, position: int, count: int) -> int:
    """A uniform time step in `[0, count)`."""
    generator = torch.Generator().manual_seed(seed_of("timestep", seed, position))
    return int(torch.randint(count, (), generator=generator))


def draw_latents(moments: Tensor, seed: int, position: int) -> Tensor:
    """A draw `(c, h, w)` from an encoded picture's `moments (2c, h, w)`: mean and standard deviation."""
    mean, std = moments.chunk(2)
    generator = torch.Generator().manual_seed(seed_of("latents", seed, position))
    return mean + std * torch.randn(mean.shape, generator=generator)


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """`sqrt(a) x + sqrt(1 - a) e` with `a (n)` the cumulated alphas of the samples' time steps (DDPM, eq. 4)."""
    signal = alphas_cumprod.view(-1, 1, 1, 1)
    return signal.sqrt() * latents + (1 - signal).sqrt() * noise


def target(prediction: str, latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """What the network should predict: the noise, or `v = sqrt(a) e - sqrt(1 - a) x` (Salimans & Ho 2022, app. D)."""
    if prediction == "epsilon":
        return noise
    signal = alphas_cumprod.view(-1, 1, 1, 1)
    return signal.sqrt() * noise - (1 - signal).sqrt() * latents


def min_snr_weight(prediction: str, alphas_cumprod: Tensor, gamma: float) -> Tensor:
    """Loss weights `(n)`: `min(snr, gamma) / snr` for epsilon, `/ (snr + 1)` for v (Hang et al., arXiv 2303.09556)."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def squared_error(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of each sample, `(n, ...) -> (n)`, in float32."""
    return (predicted.float() - wanted.float()).square().flatten(1).mean(1)
