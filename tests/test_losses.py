"""Loss functions against torch's and the formulas of their sources."""

import math

import pytest
import torch
from torch import nn

from modules import losses
from modules.losses import THRESHOLDED, Loss
from modules.objectives import Diffusion, Flow

DIFFUSION = Diffusion(torch.linspace(0.999, 0.001, 1000), "epsilon")


def pair(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return tuple(scale * torch.randn(3, 4, 5, 5, generator=draw) for _ in range(2))  # pyright: ignore


@pytest.mark.parametrize("kind", ["mse", "l1", "huber", "smooth_l1"])
def test_losses_are_torchs(kind):
    predicted, wanted = pair()
    theirs = {
        "mse": nn.functional.mse_loss(predicted, wanted),
        "l1": nn.functional.l1_loss(predicted, wanted),
        "huber": nn.functional.huber_loss(predicted, wanted, delta=0.3),
        "smooth_l1": nn.functional.smooth_l1_loss(predicted, wanted, beta=0.3),
    }
    torch.testing.assert_close(losses.errors(Loss(kind, 0.3), predicted, wanted).mean(), theirs[kind])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_log_cosh_and_the_smooth_forms_are_their_formulas(scale):
    """In float64, and where cosh would overflow."""
    predicted, wanted = (one.double() for one in pair(scale))
    d = predicted - wanted
    log_cosh = torch.where(d.abs() < 300, d.clamp(-300, 300).cosh().log(), d.abs() - math.log(2))
    huber = 2 * 0.3 * ((d**2 + 0.3**2).sqrt() - 0.3)
    for kind, each in (("log_cosh", log_cosh), ("pseudo_huber", huber), ("pseudo_smooth_l1", huber / 0.3)):
        torch.testing.assert_close(losses.errors(Loss(kind, 0.3), predicted, wanted), each.flatten(1).mean(1))


def test_a_mix_is_the_weighted_sum_and_one_kind_alone_is_that_kind():
    predicted, wanted = pair()
    parts = (("mse", 0.5), ("l1", 2.0), ("log_cosh", 0.0), ("huber", 3.0))
    expected = sum(weight * losses.errors(Loss(kind, 0.2), predicted, wanted) for kind, weight in parts)
    torch.testing.assert_close(losses.errors(Loss("mix", 0.2, mix=parts), predicted, wanted), expected)
    alone = losses.errors(Loss("mix", mix=(("mse", 0.0), ("l1", 1.0))), predicted, wanted)
    assert torch.equal(alone, losses.errors(Loss("l1"), predicted, wanted))


@pytest.mark.parametrize("kind", THRESHOLDED)
def test_each_sample_has_its_own_threshold(kind):
    predicted, wanted = pair()
    deltas = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    found = losses.errors(Loss(kind, 7.0), predicted, wanted, deltas=deltas)
    for place, delta in enumerate(deltas.tolist()):
        own = losses.errors(Loss(kind, delta), predicted[place : place + 1], wanted[place : place + 1])
        torch.testing.assert_close(found[place : place + 1], own)


def test_the_thresholds_are_those_of_sd_scripts():
    times = torch.tensor([0.0, 10.0, 500.0, 999.0], dtype=torch.float64)
    exponential = losses.thresholds(Loss("huber", 0.1, "exponential"), DIFFUSION, times)
    torch.testing.assert_close(exponential, torch.exp(math.log(0.1) / 1000 * times))
    alphas = DIFFUSION.alphas_cumprod[times.long()].double()
    sigmas = ((1 - alphas) / alphas) ** 0.5
    expected = (1 - 0.1) / (1 + sigmas) ** 2 + 0.1
    torch.testing.assert_close(losses.thresholds(Loss("huber", 0.1, "snr"), DIFFUSION, times), expected)


@pytest.mark.parametrize("schedule", ["exponential", "snr"])
def test_thresholds_of_a_flow_fall_from_one_to_delta(schedule):
    times = torch.linspace(0, 1000, 11, dtype=torch.float64)
    found = losses.thresholds(Loss("pseudo_huber", 0.2, schedule), Flow(3.0), times)
    assert found is not None and found[0] == 1 and float(found[-1]) == pytest.approx(0.2)
    assert (found.diff() < 0).all()


def test_nothing_is_computed_where_no_threshold_is_used():
    times = torch.tensor([1.0])
    for loss in (Loss("mse", 0.1, "snr"), Loss("huber"), Loss("mix", 0.1, "snr", (("huber", 0.0), ("mse", 1.0)))):
        assert losses.thresholds(loss, DIFFUSION, times) is None


def test_squared_error_is_per_sample_and_float32():
    error = losses.errors(Loss(), torch.zeros(2, 3, 4, 4, dtype=torch.float16), torch.full((2, 3, 4, 4), 2.0))
    assert error.dtype == torch.float32 and error.tolist() == [4.0, 4.0]
