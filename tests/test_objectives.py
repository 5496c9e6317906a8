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
    latents, kind = torch.rand(4, 8, 8), objectives.Noise(0.1, 0.2, 3)

    def drawn(seed: int, position: int) -> list[torch.Tensor]:
        noise = objectives.sample_noise(seed, position, latents, kind)
        return [noise, objectives.perturbed(noise, seed, position, 0.1) - noise]

    first = drawn(3, 17)
    torch.manual_seed(99)
    for one, again, place, other in zip(first, drawn(3, 17), drawn(3, 18), drawn(4, 17), strict=True):
        assert torch.equal(one, again) and not torch.equal(one, place) and not torch.equal(one, other)


LARGE = torch.zeros(4, 64, 64)


def test_noise_offset_adds_a_constant_per_channel():
    difference = objectives.sample_noise(0, 5, LARGE, objectives.Noise(0.5)) - objectives.sample_noise(0, 5, LARGE)
    torch.testing.assert_close(difference, difference[:, :1, :1].expand_as(difference), atol=1e-6, rtol=0)
    assert difference.abs().max() > 0.01


def test_an_adaptive_offset_grows_with_each_channels_mean():
    latents = torch.tensor([0.0, 0.5, -1.0, 8.0]).view(4, 1, 1).expand(4, 64, 64)
    plain, whole = objectives.sample_noise(0, 5, latents), objectives.sample_noise(0, 5, latents, objectives.Noise(1.0))
    unit = (whole - plain)[:, 0, 0]
    for scale, strengths in ((0.2, [0.1, 0.2, 0.3, 1.7]), (-0.2, [0.1, 0, 0, 0])):
        found = objectives.sample_noise(0, 5, latents, objectives.Noise(0.1, scale)) - plain
        torch.testing.assert_close(found[:, 3, 7], unit * torch.tensor(strengths), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [1, 6])
def test_pyramid_noise_has_unit_variance_and_more_of_low_frequencies(sizes):
    """White noise averaged over 16 x 16 pixels has a standard deviation of 1/16."""
    noise = objectives.sample_noise(0, 3, LARGE, objectives.Noise(pyramid=sizes, discount=0.8))
    assert float(noise.std()) == pytest.approx(1, abs=1e-5)
    coarse = 16 * float(nn.functional.avg_pool2d(noise, 16).std())
    assert (coarse > 3) if sizes > 1 else (0.7 < coarse < 1.3)


def test_pyramid_noise_adds_what_sd_scripts_adds():
    """Its sizes, weights and order, computed here from the same draws."""
    noise = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(1))
    draw, total, place = torch.Generator().manual_seed(8), noise.clone(), 0
    while place < 5:
        ratio = (torch.rand((), generator=draw) * 2 + 2) ** place
        size = [max(1, int(side / ratio)) for side in (9, 5)]
        small = torch.randn(1, 2, *size, generator=draw)
        total += nn.Upsample(size=(9, 5), mode="bilinear")(small)[0] * 0.4**place
        place = 5 if min(size) == 1 else place + 1
    torch.testing.assert_close(objectives.pyramid(noise, 8, 5, 0.4), total / total.std())


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


@pytest.mark.parametrize("slope, center", [(8.0, 0.3), (-3.0, 0.5), (0.0, 0.5), (100.0, 1.5)])
def test_the_sigmoid_density_is_a_sigmoid(slope, center):
    """OneTrainer's weights of the timesteps, drawn from as it does."""
    weights = torch.sigmoid(slope * (torch.linspace(0, 1, 4000, dtype=torch.float64) - center))
    generator = torch.Generator().manual_seed(2)
    theirs = torch.multinomial(weights, 4000, replacement=True, generator=generator) / 4000
    assert ks_distance(levels(objectives.Density("sigmoid", slope=slope, center=center)), theirs.double()) < 0.043


@pytest.mark.parametrize("a, b", [(2.0, 2.0), (0.5, 1.0), (3.0, 0.7)])
def test_the_beta_density_is_torchs(a, b):
    torch.manual_seed(4)
    theirs = torch.distributions.Beta(torch.tensor(a), torch.tensor(b)).sample((4000,)).double()  # pyright: ignore
    assert ks_distance(levels(objectives.Density("beta", a=a, b=b)), theirs) < 0.043


@pytest.mark.parametrize("process", [DIFFUSION, objectives.Flow(3.0), objectives.Flow(growth=(16, 0.1, 64, 0.9))])
def test_bounds_hold_after_the_shift_and_the_widest_change_nothing(process):
    drawn = torch.linspace(0.0005, 0.9995, 300, dtype=torch.float64)
    assert objectives.within(process, drawn, (0, 1), 36) is drawn
    times = process.times(objectives.within(process, drawn, (0.2, 0.7), 36), 36) / process.count
    assert 0.2 <= times.min() < 0.205 and 0.695 < times.max() <= 0.7
    assert (times.diff() >= 0).all()


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


def test_drawn_latents_have_the_moments():
    moments = torch.cat([torch.full((2, 1, 1), 3.0), torch.full((2, 1, 1), 0.5)]).expand(4, 40, 40)
    drawn = objectives.draw_latents(moments, 0, 0)
    assert abs(float(drawn.mean()) - 3) < 0.05 and abs(float(drawn.std()) - 0.5) < 0.05
