"""The learning rate over a training."""

import pytest
import torch
from transformers import optimization as transformers

from modules.preset.schema import Training
from modules.training import optimizers, schedules


def curve(steps: int, **options) -> list[float]:
    return [schedules.factor(Training(**options), steps, step) for step in range(steps)]


def test_warmup_rises_evenly_to_one():
    assert curve(10, warmup=4, schedule="constant") == [0.25, 0.5, 0.75] + 7 * [1.0]


FALLING = ["linear", "cosine", "polynomial", "warmup_stable_decay", "rex"]


@pytest.mark.parametrize("schedule", FALLING)
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


def after_warmup(made, warmup: int, steps: int) -> list[float]:
    """A library's schedule over a rate of 1, without its warm-up."""
    return [made.lr_lambdas[0](step) for step in range(warmup, steps)]


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_shapes_are_those_of_transformers_with_their_warm_up_and_end(warmup):
    """Their end, which is a step after the last one, is our last step; their warm-up begins one step earlier."""
    steps, end = 23, 22
    theirs = {
        "cosine": transformers.get_cosine_with_min_lr_schedule_with_warmup(unit(), warmup, end, 1.5, min_lr_rate=0.1),
        "cosine_with_restarts": transformers.get_cosine_with_hard_restarts_schedule_with_warmup(unit(), warmup, end, 3),
        "polynomial": transformers.get_polynomial_decay_schedule_with_warmup(unit(), warmup, end, 0.1, 3.0),
        "inverse_sqrt": transformers.get_inverse_sqrt_schedule(unit(), warmup, None if warmup else 7),
        "warmup_stable_decay": transformers.get_wsd_schedule(unit(), warmup, 5, end, min_lr_ratio=0.1),
    }
    options = {
        "cosine": {"cycles": 1.5, "final_lr": 0.1},
        "cosine_with_restarts": {"cycles": 3, "final_lr": 0},
        "polynomial": {"power": 3, "final_lr": 0.1},
        "inverse_sqrt": {} if warmup else {"timescale": 7},
        "warmup_stable_decay": {"decay_share": 5 / steps, "final_lr": 0.1},
    }
    for name, made in theirs.items():
        own = curve(steps, schedule=name, warmup=warmup, **options[name])[warmup:]
        assert own == pytest.approx(after_warmup(made, warmup, steps)), name


def unit() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1)], lr=1.0)


def test_restarts_are_full_and_fall_to_the_final_rate():
    values = curve(21, warmup=0, schedule="cosine_with_restarts", final_lr=0.1)
    assert [n for n, value in enumerate(values) if value == 1] == [0, 10]
    assert values[-1] == pytest.approx(0.1) and 0.1 < values[9] < 0.2


@pytest.mark.parametrize("curved", [0.0, 0.5, 0.9])
def test_rex_is_that_of_the_paper_and_of_onetrainer(curved):
    """Both write it with the part that is left, `(1 - p) / ((1 - c) + c (1 - p))`."""
    values = curve(11, warmup=0, schedule="rex", rex_curve=curved, final_lr=0)
    left = [1 - n / 10 for n in range(11)]
    assert values == pytest.approx([one / ((1 - curved) + curved * one) for one in left])


def test_the_inverse_square_root_does_not_depend_on_the_length():
    short, long = (curve(steps, schedule="inverse_sqrt", warmup=4) for steps in (30, 300))
    assert long[:30] == short and long[4 + 3 * 4] == pytest.approx(0.5)


def test_a_warm_up_may_be_a_share_of_all_steps():
    for steps in (10, 30):
        assert curve(steps, warmup_share=0.3, warmup=2) == curve(steps, warmup=3 * steps // 10)
    assert curve(10, warmup_share=0)[0] == 1
    assert schedules.notes(Training(warmup=50, warmup_share=0.1), 20) == []


@pytest.mark.parametrize("schedule", ["constant", "inverse_sqrt", *FALLING])
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
