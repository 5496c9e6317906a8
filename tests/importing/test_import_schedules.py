"""Schedules and moving averages of other trainers: the same curves, and what differs is said."""

import math

import pytest
import torch
from transformers import get_scheduler

from modules.training import schedules
from tests.importing.test_import_kohya import COMMAND
from tests.importing.test_import_onetrainer import SDXL


@pytest.mark.parametrize("kind, given, theirs", [
    ("constant_with_warmup", {}, {}),
    ("linear", {}, {}),
    ("cosine", {"lr_scheduler_min_lr_ratio": 0.3}, {}),
    ("cosine_with_restarts", {"lr_scheduler_num_cycles": 3}, {"num_cycles": 3}),
    ("polynomial", {"lr_scheduler_power": 3}, {"power": 3}),
    ("inverse_sqrt", {"lr_scheduler_timescale": 40}, {"timescale": 40}),
    ("cosine_with_min_lr", {"lr_scheduler_num_cycles": 3, "lr_scheduler_min_lr_ratio": 0.2},
     {"num_cycles": 1.5, "min_lr_rate": 0.2}),
    ("warmup_stable_decay", {"lr_decay_steps": 300, "lr_scheduler_min_lr_ratio": 0.1},
     {"num_decay_steps": 300, "min_lr_ratio": 0.1}),
    ("warmup_stable_decay", {"lr_decay_steps": 0.3}, {"num_decay_steps": 300}),
])  # fmt: skip
def test_schedules_of_kohya_are_theirs(imported, kind, given, theirs):
    """The curve after the warm-up, as sd-scripts has it from transformers; ours ends a step earlier, and so may each
    restart."""
    text = COMMAND.replace("--lr_scheduler=cosine", f"--lr_scheduler={kind}").replace("=1500", "=1000")
    text = text.rstrip() + " " + " ".join(f"--{key}={value}" for key, value in given.items())
    training = imported(text, "txt").preset.training
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-4)
    made = get_scheduler(kind, optimizer, 100, 1000, theirs)
    differences = [abs(schedules.factor(training, 1000, step) - made.lr_lambdas[0](step)) for step in range(100, 1000)]
    assert sum(differences) / 900 < 4e-3 and sorted(differences)[-5] < 0.02


def test_schedules_that_are_not_theirs_are_said(imported, of):
    text = COMMAND.replace("--lr_scheduler=cosine", "--lr_scheduler=warmup_stable_decay")
    result = imported(text, "txt")
    assert result.preset.training.schedule == "constant" and "never falls" in of(result.found, "lr_scheduler").sentence
    text = COMMAND.replace("--lr_scheduler=cosine", "--lr_scheduler_type=some.RexAnnealingWarmRestarts")
    assert imported(text, "txt").preset.training.schedule == "rex"


@pytest.mark.parametrize("kind, place", [("OFF", "none"), ("GPU", "device"), ("CPU", "main_memory")])
def test_the_moving_average(imported, of, kind, place):
    result = imported({**SDXL, "ema": kind, "ema_decay": 0.99, "ema_update_step_interval": 3, "learning_rate": 1e-4})
    training = result.preset.training
    decay, every = (0.99, 3) if kind != "OFF" else (0.999, 1)
    assert (training.ema, training.ema_decay, training.ema_every) == (place, decay, every)
    assert of(result.found, "ema_decay").part == ("dropped" if kind == "OFF" else "mapped")
    assert result.preset.samples.ema and result.preset.export.ema


def test_a_schedule_free_optimizer_has_no_second_average(imported, of):
    result = imported({**SDXL, "ema": "GPU", "optimizer": {"optimizer": "SCHEDULE_FREE_ADAMW"}})
    assert result.preset.training.ema == "none" and "no second average" in of(result.found, "ema").sentence


@pytest.mark.parametrize("kind, cycles, expected", [
    ("LINEAR", 1, lambda p: 1 - p),
    ("COSINE", 1, lambda p: (1 + math.cos(math.pi * p)) / 2),
    ("COSINE_WITH_RESTARTS", 2.5, lambda p: (1 + math.cos(2 * math.pi * 2.5 * p)) / 2),
    ("COSINE_WITH_HARD_RESTARTS", 3, lambda p: (1 + math.cos(math.pi * (3 * p % 1))) / 2),
    ("REX", 1, lambda p: (1 - p) / (0.1 + 0.9 * (1 - p))),
    ("ADAFACTOR", 1, lambda p: 1),
])  # fmt: skip
def test_schedules_of_onetrainer_are_theirs(imported, kind, cycles, expected):
    """As `modules/util/lr_scheduler_util.py` has them, by the part `p` of the steps that is done."""
    values = {**SDXL, "learning_rate_scheduler": kind, "learning_rate_cycles": cycles,
              "learning_rate_min_factor": 0.1, "learning_rate_warmup_steps": 0}  # fmt: skip
    training = imported(values).preset.training
    for step in range(0, 1001, 77):
        p = min(step, 999.999) / 1000
        lowest = 0.1 if kind != "ADAFACTOR" else 0
        assert schedules.factor(training, 1001, step) == pytest.approx(lowest + (1 - lowest) * expected(p), abs=2e-3)
