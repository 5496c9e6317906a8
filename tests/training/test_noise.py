"""What a preset may say about noise: sentences for what does not apply, and models that follow the rest."""

import re
from types import SimpleNamespace

import pytest
import torch

from modules.families import load_class
from modules.objectives import Diffusion, Flow
from modules.preset.schema import Base, Objective
from modules.training import noise
from tests import tiny_chroma, tiny_flux, tiny_sd3
from tests.preset import shipped

EPSILON = Diffusion(torch.linspace(0.99, 0.01, 1000), "epsilon")
V = Diffusion(torch.linspace(0.99, 0.01, 1000), "v_prediction")
FLOW = Flow(shift=3.0)


def problems(process, **options) -> list[str]:
    if isinstance(process, Flow):
        options = {"min_snr_gamma": None, **options}
    return noise.problems(Objective(**options), process)


GOOD = [
    (EPSILON, {}),
    (EPSILON, {"prediction": "v_prediction", "zero_terminal_snr": True}),
    (EPSILON, {"debiased": True, "min_snr_gamma": None}),
    (EPSILON, {"density": "mode", "mode_scale": 0.5, "loss": "huber", "loss_delta": 0.3}),
    (V, {"zero_terminal_snr": True}),
    (EPSILON, {"loss": "mix", "mix_l1": 1.0, "mix_huber": 0.5, "loss_delta": 0.3, "delta_schedule": "snr"}),
    (EPSILON, {"density": "beta", "beta_a": 0.5, "min_noise": 0.1, "max_noise": 0.2, "loss": "pseudo_huber"}),
    (FLOW, {}),
    (FLOW, {"shift": 1.5, "density_mean": 0.5, "density_spread": 2.0}),
    (FLOW, {"prediction": "flow", "density": "cosmap", "loss": "smooth_l1", "noise_offset": 0.1}),
]


@pytest.mark.parametrize("process, options", GOOD)
def test_what_applies_is_taken(process, options):
    assert problems(process, **options) == []


BAD = [
    (EPSILON, {"shift": 3.0}, ["shift: 3.0", "diffusion model", "set it to null"]),
    (EPSILON, {"prediction": "flow"}, ["prediction", "cannot predict flow", "auto or epsilon or v_prediction"]),
    (EPSILON, {"zero_terminal_snr": True}, ["zero_terminal_snr", "objective.prediction to v_prediction"]),
    (EPSILON, {"debiased": True}, ["debiased", "objective.min_snr_gamma to null"]),
    (EPSILON, {"density_mean": 0.5}, ["density_mean: 0.5", "uniform", "logit_normal", "leave density_mean at 0"]),
    (FLOW, {"min_snr_gamma": 5.0}, ["min_snr_gamma: 5.0", "rectified-flow", "set it to null"]),
    (FLOW, {"debiased": True}, ["debiased: true", "rectified-flow", "set it to false"]),
    (FLOW, {"zero_terminal_snr": True}, ["zero_terminal_snr: true", "set it to false"]),
    (FLOW, {"prediction": "epsilon"}, ["prediction", "rectified-flow", "auto or flow"]),
    (FLOW, {"mode_scale": 1.0}, ["mode_scale: 1.0", "logit_normal", "objective.density to mode"]),
    (FLOW, {"density": "mode", "density_spread": 2.0}, ["density_spread: 2.0", "mode", "at 1"]),
    (FLOW, {"loss_delta": 0.5}, ["loss_delta: 0.5", "huber", "pseudo_smooth_l1", "mix_huber", "at 0.1"]),
    (FLOW, {"delta_schedule": "snr"}, ["delta_schedule: snr", "huber", "at constant"]),
    (FLOW, {"mix_l1": 1.0}, ["mix_l1: 1.0", "objective.loss to mix"]),
    (FLOW, {"loss": "mix"}, ["loss: mix has no part", "mix_huber"]),
    (FLOW, {"beta_a": 3.0, "density": "sigmoid"}, ["beta_a: 3.0", "objective.density to beta"]),
    (EPSILON, {"min_noise": 0.5, "max_noise": 0.5}, ["min_noise: 0.5", "objective.max_noise, which is 0.5"]),
]


@pytest.mark.parametrize("process, options, words", BAD)
def test_what_does_not_apply_is_one_sentence(process, options, words):
    (problem,) = problems(process, **options)
    assert re.match(rf"objective\.{words[0].partition(':')[0]}: ", problem) and "\n" not in problem
    assert all(word in problem for word in words), problem


def test_everything_wrong_is_said_at_once():
    found = problems(FLOW, min_snr_gamma=5.0, zero_terminal_snr=True, mode_scale=1.0, loss_delta=0.5)
    assert len(found) == 4


@pytest.mark.short(*shipped.FEW)
@pytest.mark.parametrize("name", shipped.NAMES)
def test_shipped_presets_suit_their_bases(name):
    preset = shipped.resolved(name).preset
    flow = preset.objective.min_snr_gamma is None
    assert noise.problems(preset.objective, FLOW if flow else EPSILON) == []


# -- models follow ----------------------------------------------------------------------------------------------------


def test_what_the_preset_leaves_open_stays_the_bases_own():
    model = SimpleNamespace(process=FLOW)  # any wish would be asked of the model, which has no answer
    noise.prepare(model, Objective(min_snr_gamma=None))
    assert model.process is FLOW


MAKERS = {"sd3": tiny_sd3.make_folder, "flux": tiny_flux.make_folder, "chroma": tiny_chroma.make_folder}


@pytest.fixture(scope="module", params=MAKERS)
def flow(request, tmp_path_factory):
    """A fresh model of a rectified flow."""
    folder = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    return load_class(request.param).load(Base(path=str(folder)), torch.device("cpu"), torch.float32)


@pytest.mark.full
@pytest.mark.parametrize("shift", [1.0, 2.0, 6.0])
def test_a_shift_holds_for_training_and_sampling(flow, shift):
    noise.prepare(flow, Objective(min_snr_gamma=None, shift=shift))
    levels, seen = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), []
    for area in (16, 4096, 100_000):  # however large the picture
        torch.testing.assert_close(flow.process.times(levels, area), 1000 * shift * levels / (1 + (shift - 1) * levels))

    class Watched(type(flow.pipeline.scheduler)):
        def step(self, output, timestep, *args, **options):
            seen.append((float(timestep), float(self.sigmas[len(seen)]), self.shift))
            return super().step(output, timestep, *args, **options)

    scheduler = flow.pipeline.scheduler
    flow.pipeline.scheduler = Watched.from_config(scheduler.config)
    flow.sample(["red apple"], "", 16, 16, steps=4, guidance=3.0, seed=0)
    flow.pipeline.scheduler = scheduler
    assert len(seen) == 4 and all(used == shift for _, _, used in seen)
    times = torch.tensor([time for time, _, _ in seen], dtype=torch.float64)
    # the picture is where training put it: the scheduler's own noise of these steps is the process'
    torch.testing.assert_close(flow.process.parts(times)[1], torch.tensor([sigma for _, sigma, _ in seen]))
    plain = times / (shift * 1000 - (shift - 1) * times)  # the shift undone: pure noise first, then evenly down
    steps = plain.diff()
    torch.testing.assert_close(plain[0], torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(steps, steps[:1].expand(3), rtol=1e-4, atol=1e-5)
