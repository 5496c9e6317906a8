"""Noise, targets and weights against the diffusers scheduler's own arithmetic."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from modules import objectives

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
ALPHAS = SCHEDULER.alphas_cumprod
TIMESTEPS = torch.tensor([0, 1, 250, 500, 999])


@pytest.fixture
def latents_and_noise():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(5, 4, 6, 6, generator=generator) for _ in range(2))


def test_add_noise_is_the_schedulers(latents_and_noise):
    latents, noise = latents_and_noise
    ours = objectives.add_noise(latents, noise, ALPHAS[TIMESTEPS])
    torch.testing.assert_close(ours, SCHEDULER.add_noise(latents, noise, TIMESTEPS))


def test_v_target_is_the_schedulers(latents_and_noise):
    latents, noise = latents_and_noise
    ours = objectives.target("v_prediction", latents, noise, ALPHAS[TIMESTEPS])
    torch.testing.assert_close(ours, SCHEDULER.get_velocity(latents, noise, TIMESTEPS))


def test_epsilon_target_is_the_noise(latents_and_noise):
    latents, noise = latents_and_noise
    assert objectives.target("epsilon", latents, noise, ALPHAS[TIMESTEPS]) is noise


@pytest.mark.parametrize("prediction, shift", [("epsilon", 0), ("v_prediction", 1)])
def test_min_snr_weight(prediction, shift):
    snr = compute_snr(SCHEDULER, TIMESTEPS)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr + shift)
    torch.testing.assert_close(objectives.min_snr_weight(prediction, ALPHAS[TIMESTEPS], 5.0), expected)


def test_draws_depend_on_seed_and_position_only():
    shape = (4, 8, 8)
    first = objectives.sample_noise(3, 17, shape, 0.1)
    torch.manual_seed(99)
    assert torch.equal(first, objectives.sample_noise(3, 17, shape, 0.1))
    assert not torch.equal(first, objectives.sample_noise(3, 18, shape, 0.1))
    assert not torch.equal(first, objectives.sample_noise(4, 17, shape, 0.1))


def test_noise_offset_adds_a_constant_per_channel():
    difference = objectives.sample_noise(0, 5, (4, 64, 64), 0.5) - objectives.sample_noise(0, 5, (4, 64, 64), 0.0)
    torch.testing.assert_close(difference, difference[:, :1, :1].expand_as(difference), atol=1e-6, rtol=0)
    assert difference.abs().max() > 0.01


def test_timesteps_are_uniform():
    draws = torch.tensor([objectives.sample_timestep(0, n, 10) for n in range(5000)])
    counts = torch.bincount(draws, minlength=10)
    assert counts.min() > 400 and counts.max() < 600


def test_drawn_latents_have_the_moments():
    moments = torch.cat([torch.full((2, 1, 1), 3.0), torch.full((2, 1, 1), 0.5)]).expand(4, 40, 40)
    drawn = objectives.draw_latents(moments, 0, 0)
    assert abs(float(drawn.mean()) - 3) < 0.05 and abs(float(drawn.std()) - 0.5) < 0.05


def test_squared_error_is_per_sample_and_float32():
    error = objectives.squared_error(torch.zeros(2, 3, 4, 4, dtype=torch.float16), torch.full((2, 3, 4, 4), 2.0))
    assert error.dtype == torch.float32 and error.tolist() == [4.0, 4.0]
