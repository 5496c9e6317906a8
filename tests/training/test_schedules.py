"""The learning rate over a training."""

import pytest
import torch

from modules.preset.schema import Training
from modules.training import optimizers, schedules


def curve(steps: int, **options) -> list[float]:
    return [schedules.factor(Training(**options), steps, step) for step in range(steps)]


def test_warmup_rises_evenly_to_one():
    assert curve(10, warmup=4, schedule="constant") == [0.25, 0.5, 0.75] + 7 * [1.0]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_falls_to_the_final_rate_at_the_last_step(schedule, warmup):
    values = curve(20, warmup=warmup, schedule=schedule, final_lr=0.1)
    falling = values[max(0, warmup - 1) :]
    assert falling[0] == 1
    assert falling == sorted(falling, reverse=True)
    assert values[-1] == pytest.approx(0.1)


def test_linear_is_straight():
    assert curve(5, warmup=0, schedule="linear", final_lr=0) == [1, 0.75, 0.5, 0.25, 0]


def test_cosine_passes_half_way_in_the_middle():
    assert curve(5, warmup=0, schedule="cosine", final_lr=0)[2] == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_single_step_is_a_full_step(schedule):
    assert curve(1, warmup=0, schedule=schedule) == [1]


def test_apply_scales_each_group_from_its_own_rate():
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [{"params": [p], "lr_scale": scale, "decay": True} for p, scale in zip(params, (1.0, 0.5), strict=True)]
    optimizer = optimizers.AdamW().build(groups, 0.01)
    schedules.apply(optimizer, 0.1)
    schedules.apply(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.0025]


def test_problems():
    free, plain = optimizers.ScheduleFreeAdamW(), optimizers.AdamW()
    assert "training.schedule" in schedules.problems(Training(), free)[0]
    assert schedules.problems(Training(schedule="constant"), free) == []
    assert schedules.problems(Training(), plain) == []


def test_a_warmup_that_is_too_long_is_shortened_and_said():
    options = Training(warmup=50, schedule="constant")
    assert schedules.notes(options, 51) == []
    (note,) = schedules.notes(options, 50)
    assert "training.warmup is 50" in note and "shortened to 5 steps" in note
    assert [schedules.factor(options, 20, step) for step in range(4)] == [0.5, 1, 1, 1]
    assert schedules.factor(options, 5, 0) == 1


@pytest.mark.parametrize("steps, words", [
    (3, "is left out;"), (10, "is shortened to 1 step;"), (50, "is shortened to 5 steps;")
])  # fmt: skip
def test_a_warm_up_that_does_not_fit_is_said_without_a_warm_up_of_no_steps(steps, words):
    (note,) = schedules.notes(Training(warmup=50), steps)
    assert words in note and " 0 steps" not in note
