"""Noise, targets and weights against the diffusers scheduler's own arithmetic."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from torch import nn

from modules import objectives

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
ALPHAS = SCHEDULER.alphas_cumprod
DIFFUSION = objectives.Diffusion(ALPHAS, "epsilon")
UNIFORM = objectives.Density("uniform")
TIMESTEPS = torch.tensor([0, 1, 250, 500, 999])


@pytest.fixture
def latents_and_noise():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(5, 4, 6, 6, generator=generator) for _ in range(2))


def test_add_noise_is_the_schedulers(latents_and_noise):
    latents, noise = latents_and_noise
    ours = objectives.add_noise(latents, noise, DIFFUSION.parts(TIMESTEPS))
    torch.testing.assert_close(ours, SCHEDULER.add_noise(latents, noise, TIMESTEPS))


def test_v_target_is_the_schedulers(latents_and_noise):
    latents, noise = latents_and_noise
    ours = objectives.target("v_prediction", latents, noise, DIFFUSION.parts(TIMESTEPS))
    torch.testing.assert_close(ours, SCHEDULER.get_velocity(latents, noise, TIMESTEPS))


def test_epsilon_target_is_the_noise(latents_and_noise):
    latents, noise = latents_and_noise
    assert objectives.target("epsilon", latents, noise, DIFFUSION.parts(TIMESTEPS)) is noise


@pytest.mark.parametrize("prediction, shift", [("epsilon", 0), ("v_prediction", 1)])
def test_min_snr_weight(prediction, shift):
    snr = compute_snr(SCHEDULER, TIMESTEPS)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr + shift)
    torch.testing.assert_close(objectives.min_snr_weight(prediction, DIFFUSION.snr(TIMESTEPS), 5.0), expected)


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


def levels(density: objectives.Density, count: int = 4000) -> torch.Tensor:
    return torch.tensor([objectives.sample_level(0, n, 10, density) for n in range(count)], dtype=torch.float64)


def test_uniform_levels_are_the_steps_and_equally_many():
    draws = objectives.Diffusion(torch.ones(10), "epsilon").times(levels(UNIFORM, 5000), 1)
    counts = torch.bincount(draws.long(), minlength=10)
    assert counts.min() > 400 and counts.max() < 600


@pytest.mark.parametrize("count", [10, 1000])
def test_the_middle_of_every_part_is_its_step(count):
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    assert objectives.Diffusion(torch.ones(count), "epsilon").times(middles, 1).tolist() == list(range(count))


@pytest.mark.parametrize(
    "density, theirs",
    [
        (objectives.Density("logit_normal", 0.0, 1.0), {"logit_mean": 0.0, "logit_std": 1.0}),
        (objectives.Density("logit_normal", 0.7, 0.5), {"logit_mean": 0.7, "logit_std": 0.5}),
        (objectives.Density("mode", mode_scale=1.29), {"mode_scale": 1.29}),
        (objectives.Density("mode", mode_scale=-0.5), {"mode_scale": -0.5}),
    ],
)
def test_densities_are_those_of_diffusers(density, theirs):
    """Kolmogorov-Smirnov distance of two samples; 0.043 would be the 0.1 % limit for 4,000 draws each."""
    generator = torch.Generator().manual_seed(1)
    other = compute_density_for_timestep_sampling(density.kind, 4000, generator=generator, **theirs).double()
    assert ks_distance(levels(density), other) < 0.043


def test_the_cosine_map_has_its_density():
    """Esser et al., eq. 21: the density of t is 2 / (pi - 2 pi t + 2 pi t^2); diffusers has no such scheme."""
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    density = 2 / (torch.pi - 2 * torch.pi * t + 2 * torch.pi * t**2)
    cumulated = torch.cumulative_trapezoid(density, t)
    drawn = levels(objectives.Density("cosmap")).sort().values
    expected = cumulated[(drawn * 4000).long().clamp(max=3999)]
    assert (expected - (torch.arange(4000) + 0.5) / 4000).abs().max() < 0.03


def ks_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    both = torch.cat([a, b]).sort().values
    shares = [torch.searchsorted(one.sort().values, both, right=True) / len(one) for one in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


# -- rectified flow ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_the_schedulers(shift, latents_and_noise):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    flow, wanted = objectives.Flow(shift), scheduler.timesteps[[0, 400, 900, 990, 999]]
    times = flow.times(torch.tensor([1000, 600, 100, 10, 1], dtype=torch.float64) / 1000, 64)
    torch.testing.assert_close(times.float(), wanted)
    latents, noise = latents_and_noise
    parts = flow.parts(wanted.double())
    torch.testing.assert_close(
        objectives.add_noise(latents, noise, parts), scheduler.scale_noise(latents, wanted, noise)
    )
    noisy, velocity = objectives.add_noise(latents, noise, parts), objectives.target("flow", latents, noise, parts)
    torch.testing.assert_close(noisy - parts[1].view(-1, 1, 1, 1) * velocity, latents, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", [32, 64, 128, 192])
def test_the_shift_that_grows_is_the_schedulers(side):
    """FLUX: 256 to 4096 tokens of 2 x 2 latents, from 0.5 to 1.15."""
    flow = objectives.Flow(growth=(256 * 4, 0.5, 4096 * 4, 1.15))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=1.0)
    mu = calculate_shift(side * side // 4)
    scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.1], mu=mu)
    times = flow.times(torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64), side * side)
    torch.testing.assert_close(times.float(), scheduler.timesteps)


def test_flow_snr():
    flow = objectives.Flow()
    assert flow.snr(torch.tensor([500.0, 200.0])).tolist() == pytest.approx([1.0, 16.0])


# -- the other weights and losses --------------------------------------------------------------------------------------


def test_debiased_weight():
    snr = compute_snr(SCHEDULER, TIMESTEPS)
    torch.testing.assert_close(objectives.debiased_weight(snr), 1 / snr.clamp(min=1e-3).sqrt())


def test_zero_terminal_snr_is_the_schedulers():
    theirs = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    ).alphas_cumprod
    ours = objectives.Diffusion(ALPHAS, "v_prediction").with_zero_terminal_snr().alphas_cumprod
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert ours[-1] == 0


@pytest.mark.parametrize("kind", ["mse", "huber", "smooth_l1"])
def test_losses_are_torchs(kind):
    predicted, wanted = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    theirs = {
        "mse": nn.functional.mse_loss(predicted, wanted),
        "huber": nn.functional.huber_loss(predicted, wanted, delta=0.3),
        "smooth_l1": nn.functional.smooth_l1_loss(predicted, wanted, beta=0.3),
    }
    torch.testing.assert_close(objectives.errors(kind, 0.3, predicted, wanted).mean(), theirs[kind])


def test_drawn_latents_have_the_moments():
    moments = torch.cat([torch.full((2, 1, 1), 3.0), torch.full((2, 1, 1), 0.5)]).expand(4, 40, 40)
    drawn = objectives.draw_latents(moments, 0, 0)
    assert abs(float(drawn.mean()) - 3) < 0.05 and abs(float(drawn.std()) - 0.5) < 0.05


def test_squared_error_is_per_sample_and_float32():
    error = objectives.errors("mse", 1.0, torch.zeros(2, 3, 4, 4, dtype=torch.float16), torch.full((2, 3, 4, 4), 2.0))
    assert error.dtype == torch.float32 and error.tolist() == [4.0, 4.0]
