"""Half a run, a saved state and a fresh start give the same bits as the whole run, whatever the optimizer."""

import json
import logging
import os
import typing
from pathlib import Path

import pytest
import torch

from modules.training import state
from modules.training.optimizers import AdamW, OptimizerOptions
from modules.training.state import latest_state, load_state, prune_states, restore_optimizer, save_state, tidy_states

CLASSES = typing.get_args(typing.get_args(OptimizerOptions)[0])
ON_CPU = [options for options in CLASSES if not options().name.startswith("paged_")]


pytestmark = pytest.mark.usefixtures("forget_accelerate")


def name_of(options) -> str:
    return options().name


class Run:
    """A training of a few tensors, made new each time as by a new process."""

    def __init__(self, options, prepared: bool = False):
        draw = torch.Generator().manual_seed(1)
        large, odd = torch.randn(96, 64, generator=draw), torch.randn(8, 20, generator=draw).T
        pair = [torch.zeros(6, 2), torch.randn(2, 9, generator=draw)]
        values = [large, torch.zeros(80, 64), odd, *pair, torch.zeros(12), torch.tensor(1.0)]
        self.parameters = [torch.nn.Parameter(value) for value in values]
        groups = [
            {"params": self.parameters[:5], "lr_scale": 1.0, "decay": True, "pairs": [(3, 4)], "calibrated": False},
            {"params": self.parameters[5:], "lr_scale": 1.0, "decay": False, "pairs": [], "calibrated": False},
        ]
        self.optimizer = options().build(groups, 0.01)
        if prepared:
            from accelerate import Accelerator

            self.optimizer = Accelerator(cpu=True).prepare(self.optimizer)

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            draw = torch.Generator().manual_seed(100 + step)
            for p in self.parameters:
                p.grad = torch.randn(p.shape, generator=draw) + p.detach()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def tensors(self) -> dict[str, torch.Tensor]:
        return {str(place): p.detach() for place, p in enumerate(self.parameters)}


def small(step: int = 0) -> Run:
    run = Run(AdamW)
    run.train(0, step)
    return run


def save(folder: Path, step: int, run: Run) -> Path:
    return save_state(folder, step, run.tensors(), run.optimizer, {"step": step})


@pytest.mark.parametrize("options", ON_CPU, ids=name_of)
@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "accelerate"])
def test_resume_is_bit_identical(options, prepared, tmp_path):
    whole = Run(options, prepared)
    whole.train(0, 8)

    half = Run(options, prepared)
    half.train(0, 4)
    path = save_state(tmp_path, 4, half.tensors(), half.optimizer, {"lr": 0.1})

    fresh, loaded = Run(options, prepared), load_state(path)
    with torch.no_grad():
        for name, tensor in loaded.adapter.items():
            fresh.parameters[int(name)].copy_(tensor)
    restore_optimizer(fresh.optimizer, loaded)
    fresh.train(loaded.step, 8)

    again = {name: tensor.clone() for name, tensor in loaded.adapter.items()}
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, fresh.tensors()[name]), name
        assert torch.equal(loaded.adapter[name], again[name]), "training has written into the loaded state"
    assert same(
        save_state(tmp_path / "a", 8, whole.tensors(), whole.optimizer, {}),
        save_state(tmp_path / "b", 8, fresh.tensors(), fresh.optimizer, {}),
    )


def same(left: Path, right: Path) -> bool:
    """Whether two states are the same, byte by byte."""
    return all((left / file.name).read_bytes() == file.read_bytes() for file in right.iterdir())


@pytest.mark.parametrize("options", ON_CPU, ids=name_of)
def test_saving_changes_nothing(options, tmp_path):
    quiet, saving = Run(options), Run(options)
    quiet.train(0, 6)
    for step in range(6):
        save_state(tmp_path, step, saving.tensors(), saving.optimizer, {})
        saving.train(step, step + 1)
    assert all(torch.equal(quiet.tensors()[name], tensor) for name, tensor in saving.tensors().items())


def test_tree_of_everything():
    shared = torch.arange(4.0)
    tree = {
        0: {"step": 3, "big": 2**70, "flag": True, "none": None, "text": "é", "tiny": 5e-324, "third": 1 / 3},
        "inf": (float("inf"), [float("-inf"), ()]),
        "bf16": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        "uint8": torch.tensor(7, dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
        "odd": torch.arange(6.0).reshape(2, 3).T,
        "expanded": torch.ones(1).expand(3),
        "shared": [shared, shared],
    }
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(state.flatten(tree, "", tensors, {}), allow_nan=False)
    back = state.unflatten(json.loads(text), tensors)
    assert repr(back) == repr(tree)
    assert list(back) == list(tree)
    assert back["bf16"].dtype == torch.bfloat16
    assert back["odd"].stride() == (1, 3)
    assert back["shared"][0] is back["shared"][1]
    assert sum(name.startswith("shared") for name in tensors) == 1


def test_facts_come_back(tmp_path):
    facts = {"loss": 1 / 3, "seen": [1, 2], "nested": {"a": None, "b": (1, "x")}, "worst": float("inf")}
    run = small()
    assert load_state(save_state(tmp_path, 0, run.tensors(), run.optimizer, facts)).facts == facts


def test_the_optimizer_has_to_be_the_same(tmp_path):
    path = save(tmp_path, 2, small(2))
    from modules.training.optimizers import Lion8bit

    with pytest.raises(ValueError, match="of optimizer AdamW, not of Lion8bit"):
        restore_optimizer(Run(Lion8bit).optimizer, load_state(path))


def test_float16_loss_scale_comes_back(tmp_path):
    from accelerate.optimizer import AcceleratedOptimizer

    def scaled(scale: float):
        run = small()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        run.optimizer = AcceleratedOptimizer(run.optimizer, scaler=scaler)  # pyright: ignore
        return run, scaler

    from accelerate import Accelerator

    Accelerator(cpu=True)
    (old, _), (new, scaler) = scaled(512.0), scaled(2.0)
    restore_optimizer(new.optimizer, load_state(save(tmp_path, 0, old)))
    assert scaler.get_scale() == 512.0


def test_latest_skips_damaged_states(tmp_path, caplog):
    assert latest_state(tmp_path) is None
    old, new = save(tmp_path, 2, small(2)), save(tmp_path, 10, small(3))
    assert latest_state(tmp_path) == new
    damaged = bytearray((new / "optimizer.safetensors").read_bytes())
    damaged[-1] ^= 1
    (new / "optimizer.safetensors").write_bytes(damaged)
    os.utime(new, (0, 0))
    with caplog.at_level(logging.WARNING):
        assert latest_state(tmp_path) == old
    assert "step-000010" in caplog.text
    later = save(tmp_path, 6, small(1))  # the run goes on from step 2
    prune_states(tmp_path, 2)
    assert sorted((tmp_path / "state").iterdir()) == [old, later]


@pytest.mark.parametrize("change", ["digit", "missing file", "cut", "not json"])
def test_damage_of_any_file_is_found(change, tmp_path):
    path = save(tmp_path, 2, small(2))
    text = (path / "state.json").read_text()
    if change == "digit":
        (path / "state.json").write_text(text.replace("0.01", "0.02", 1))
    if change == "missing file":
        (path / "adapter.safetensors").unlink()
    if change == "cut":
        (path / "state.json").write_text(text[: len(text) // 2])
    if change == "not json":
        (path / "state.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="delete it"):
        load_state(path)


def test_prune_keeps_the_newest(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, small())
    prune_states(tmp_path, 2)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["step-000002", "step-000003"]
    prune_states(tmp_path, 5)
    assert len(list((tmp_path / "state").iterdir())) == 2


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("moment", range(12))
def test_a_crash_leaves_the_old_or_the_new_state(moment, tmp_path, monkeypatch):
    """Cut the power before the n-th time that something is written, renamed or deleted, while replacing a state."""
    save(tmp_path, 5, small(1))
    left = [moment]

    def cut_before(function):
        def replacement(*args, **kwargs):
            if left[0] == 0:
                raise PowerCut
            left[0] -= 1
            return function(*args, **kwargs)

        return replacement

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut_before(Path.rename))
        patch.setattr(Path, "write_text", cut_before(Path.write_text))
        patch.setattr(state, "save_file", cut_before(state.save_file))
        patch.setattr(state, "_to_disk", cut_before(state._to_disk))
        patch.setattr(state.shutil, "rmtree", cut_before(state.shutil.rmtree))
        try:
            save(tmp_path, 5, small(2))
            survived = True
        except PowerCut:
            survived = False
    tidy_states(tmp_path)
    path = latest_state(tmp_path)
    assert path is not None
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["step-000005"]
    wanted = [small(2)] if survived else [small(1), small(2)]
    found = load_state(path).adapter
    assert any(all(torch.equal(found[n], t) for n, t in run.tensors().items()) for run in wanted)
