"""Noise levels, noise and losses of other trainers."""

import pytest
import torch

from modules import losses
from modules.objectives import Diffusion, Flow
from tests.importing.test_import_aitoolkit import job
from tests.importing.test_import_kohya import COMMAND, GUI
from tests.importing.test_import_onetrainer import FLUX, SDXL

DIFFUSION = Diffusion(torch.linspace(0.999, 0.001, 1000), "epsilon")


def kohya(*words: str) -> str:
    return COMMAND.rstrip() + " " + " ".join(words)


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
@pytest.mark.parametrize("schedule, scale", [("constant", 2.0), ("exponential", 1.0), ("snr", 3.0)])
def test_huber_losses_of_sd_scripts_are_theirs(imported, kind, schedule, scale):
    """The formulas of `get_huber_threshold_if_needed` and `conditional_loss`; snr has no scale there."""
    words = (f"--loss_type={kind}", f"--huber_schedule={schedule}", "--huber_c=0.2", f"--huber_scale={scale}")
    own = imported(kohya(*words), "txt").preset.objective
    loss = losses.Loss(own.loss, own.loss_delta, own.delta_schedule)
    times = torch.tensor([5.0, 400.0, 990.0], dtype=torch.float64)
    alphas = DIFFUSION.alphas_cumprod[times.long()].double()
    theirs = {
        "constant": torch.full((3,), 0.2 * scale, dtype=torch.float64),
        "exponential": 0.2 ** (times / 1000),
        "snr": 0.8 / (1 + ((1 - alphas) / alphas).sqrt()) ** 2 + 0.2,
    }[schedule].view(3, 1, 1, 1)
    predicted, wanted = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    expected = 2 * (((predicted - wanted) ** 2 + theirs**2).sqrt() - theirs) * (theirs if kind == "huber" else 1)
    found = losses.errors(loss, predicted, wanted, deltas=losses.thresholds(loss, DIFFUSION, times))
    torch.testing.assert_close(found, expected.flatten(1).mean(1))


def test_noise_of_sd_scripts(imported, of):
    words = ("--adaptive_noise_scale=0.005", "--multires_noise_iterations=6", "--multires_noise_discount=0.4",
             "--ip_noise_gamma=0.1", "--min_timestep=100", "--max_timestep=900", "--loss_type=l1")  # fmt: skip
    result = imported(kohya(*words), "txt")
    own = result.preset.objective
    assert (own.noise_offset, own.adaptive_offset, own.pyramid_noise, own.pyramid_discount) == (0.03, 0.005, 6, 0.4)
    assert (own.perturbation, own.min_noise, own.max_noise, own.loss) == (0.1, 0.1, 0.9, "l1")
    assert not [entry.key for entry in result.found.dropped if "noise" in entry.key or "timestep" in entry.key]
    alone = imported(kohya("--adaptive_noise_scale=0.005").replace("--noise_offset=0.03", ""), "txt")
    assert "there is no noise_offset" in of(alone.found, "adaptive_noise_scale").sentence


def test_losses_of_onetrainer_are_a_mix(imported):
    both = imported({**SDXL, "mse_strength": 0.5, "mae_strength": 0.25, "huber_strength": 2.0, "huber_delta": 0.3})
    own = both.preset.objective
    assert (own.loss, own.mix_mse, own.mix_l1, own.mix_log_cosh, own.mix_huber) == ("mix", 0.5, 0.25, 0, 2)
    assert own.loss_delta == 0.3
    for name, kind in (("mae", "l1"), ("log_cosh", "log_cosh"), ("huber", "huber")):
        alone = imported({**SDXL, "mse_strength": 0.0, f"{name}_strength": 1.0})
        assert alone.preset.objective.loss == kind


def test_noise_levels_of_onetrainer(imported, of):
    values = {**SDXL, "timestep_distribution": "SIGMOID", "noising_weight": 7.0, "noising_bias": -0.1}
    own = imported(values).preset.objective
    assert (own.density, own.sigmoid_slope, own.sigmoid_center) == ("sigmoid", 7, 0.4)
    values = {**SDXL, "timestep_distribution": "BETA", "noising_weight": 0.6, "noising_bias": 1.0,
              "perturbation_noise_weight": 0.1}  # fmt: skip
    result = imported(values)
    own = result.preset.objective
    assert (own.density, own.beta_a, own.beta_b, own.perturbation) == ("beta", 0.6, 1, 0.1)
    assert "in the target too" in of(result.found, "perturbation_noise_weight").sentence


def test_bounds_of_onetrainer_are_shifted_as_there(imported):
    """`timestep = T shift t / ((shift - 1) t + T)` of levels drawn between the bounds."""
    values = {**FLUX, "timestep_shift": 3.0, "min_noising_strength": 0.2, "max_noising_strength": 0.6}
    own = imported(values).preset.objective
    times = Flow(3.0).times(torch.tensor([0.2, 0.6], dtype=torch.float64), 1) / 1000
    assert [own.min_noise, own.max_noise] == pytest.approx(times.tolist())


def test_bounds_of_aitoolkit_count_from_pure_noise(imported, of):
    train = {"min_denoising_steps": 100, "max_denoising_steps": 799, "timestep_type": "linear"}
    own = imported(job(train=train)).preset.objective
    assert (own.min_noise, own.max_noise) == (0.2, 0.9)
    squeezed = imported(job(train={**train, "timestep_type": "sigmoid", "loss_type": "pseudo_huber"}))
    assert "squeezed" in of(squeezed.found, "train.min_denoising_steps").sentence
    assert (squeezed.preset.objective.loss, squeezed.preset.objective.loss_delta) == ("pseudo_smooth_l1", 0.01)


def test_the_window_of_sd_scripts_passes_on_one_kind_of_noise(imported, of):
    fields = {"noise_offset": 0.05, "adaptive_noise_scale": 0.01, "multires_noise_iterations": 6,
              "multires_noise_discount": 0.2, "lr_scheduler": "cosine_with_restarts",
              "lr_scheduler_num_cycles": ""}  # fmt: skip
    for kind, offset, adaptive, sizes in (("Original", 0.05, 0.01, 0), ("Multires", 0, 0, 6)):
        result = imported({**GUI, **fields, "noise_offset_type": kind})
        own = result.preset.objective
        assert (own.noise_offset, own.adaptive_offset, own.pyramid_noise) == (offset, adaptive, sizes)
        assert own.pyramid_discount == (0.2 if sizes else 0.3) and result.preset.training.cycles == 8
        dropped = "noise_offset" if sizes else "multires_noise_iterations"
        assert f"noise_offset_type is {kind}" in of(result.found, dropped).sentence
