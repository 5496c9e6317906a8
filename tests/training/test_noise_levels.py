"""The histogram of noise levels: the draws of a training, at its shift."""

import json

import pytest
import torch

from modules.objectives import Diffusion, Flow
from modules.preset.schema import Objective
from modules.training import noise
from modules.training.look import Bases, answer_one
from modules.training.noise_levels import BINS, DRAWS, histogram

DYNAMIC = Flow(growth=(1024, 0.5, 16384, 1.15))
STEPS = Diffusion(torch.linspace(0.999, 0.001, 1000), "epsilon")


def counted(process=DYNAMIC, sizes=(512,), seed=0, **options) -> list[dict]:
    found = histogram(process, Objective(**options), seed, sizes, 8)
    assert all(sum(one["counts"]) == found["draws"] == DRAWS for one in found["levels"])
    return found["levels"]


def below(level: dict, part: float) -> float:
    """The share of the draws below a noise level."""
    return sum(level["counts"][: round(part * BINS)]) / DRAWS


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_fixed_shift_moves_the_levels_as_it_says(shift):
    (found,) = counted(sizes=(512, 1024), density="uniform", shift=shift)
    assert found["resolutions"] == [512, 1024] and found["shift"] == shift
    for part in (0.2, 0.5, 0.8):  # s = k u / (1 + (k - 1) u) is below it where u is below its inverse
        assert below(found, part) == pytest.approx(part / (shift - (shift - 1) * part), abs=0.04)


def test_a_dynamic_shift_is_that_of_each_resolution():
    small, large = counted(sizes=(1024, 512))
    assert (small["resolutions"], large["resolutions"]) == ([512], [1024])
    assert small["shift"] == pytest.approx(DYNAMIC.shift_of(64 * 64)) and large["mean"] > small["mean"] + 0.05


def test_steps_of_diffusion_are_the_same_at_every_resolution():
    (found,) = counted(STEPS, (64, 512), min_noise=0.25, max_noise=0.75)
    assert found["shift"] is None and found["resolutions"] == [64, 512]
    assert below(found, 0.24) == 0 and below(found, 0.78) == 1 and found["mean"] == pytest.approx(0.5, abs=0.02)


def test_the_draws_are_those_of_the_training():
    objective = Objective(density="sigmoid", min_noise=0.1)
    (found,) = histogram(DYNAMIC, objective, 5, (512,), 8)["levels"]
    drawn = noise.drawn_levels(DYNAMIC, objective, 5, range(DRAWS))
    times = torch.cat([noise.times_of(DYNAMIC, objective, [level], 64 * 64) for level in drawn])
    expected = torch.histc(times / 1000, BINS, 0, 1)
    assert torch.equal(torch.tensor(found["counts"]), expected.long())
    assert found["counts"] != counted(seed=6, density="sigmoid", min_noise=0.1)[0]["counts"]


class Base:
    process, latent_factor = DYNAMIC, 8


@pytest.fixture
def ask(monkeypatch):
    """Ask about a preset on a base that needs no files; the answer."""
    bases = Bases()
    monkeypatch.setattr(bases, "get", lambda wanted: (Base(), "") if wanted.base.path else (None, "no base"))

    def asking(path: str = "some", **objective) -> dict:
        preset = {"family": "any", "base": {"path": path}, "objective": objective,
                  "training": {"seed": 1, "steps": "wrong, and not looked at"},
                  "data": {"resolution": 512, "flip": "wrong, and not looked at"}}
        answers = []
        answer_one(json.dumps({"id": 1, "ask": "noise", "preset": preset}), bases, answers.append)
        return json.loads(json.dumps(answers[0]))

    return asking


def test_it_is_answered_line_by_line(ask):
    own = ask()
    assert ask(shift=3.0)["levels"][0]["shift"] == 3.0
    assert ask() == own, "a question must not change the base"
    assert own["density"] == "logit_normal" and own["levels"][0]["counts"] == counted(seed=1)[0]["counts"]
    assert "no base" in ask(path="")["error"]
    assert "must be below objective.max_noise" in ask(min_noise=0.8, max_noise=0.3)["error"]
    assert "beta_a" in ask(density="beta", beta_a=0)["error"]
