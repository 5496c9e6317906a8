"""Half a run, a saved state and a fresh start give the same bits as the whole run, whatever the optimizer."""

import json
import os
import shutil
import typing
from pathlib import Path

import pytest
import torch

from modules.disk import DiskFull
from modules.preset.schema import Training
from modules.training import state, trees
from modules.training.finite import check_finite
from modules.training.optimizers import AdamW, OptimizerOptions
from modules.training.state import (
    latest_state,
    load_state,
    newest,
    prune_states,
    put_aside,
    restore_optimizer,
    save_state,
    tidy_states,
)

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
        common = {"lr_scale": 1.0, "calibrated": False}
        groups = [
            {**common, "params": self.parameters[:5], "names": [*"abcde"], "decay": True, "pairs": [(3, 4)]},
            {**common, "params": self.parameters[5:], "names": [*"fg"], "decay": False, "pairs": []},
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
    text = json.dumps(trees.flatten(tree, "", tensors, {}), allow_nan=False)
    back = trees.unflatten(json.loads(text), tensors)
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

    with pytest.raises(ValueError, match="with optimizer AdamW, not Lion8bit"):
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


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def names(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "state").iterdir())


def test_the_last_whole_state_is_the_newest_whatever_the_clock_says(tmp_path):
    assert newest(tmp_path) == (None, [])
    old, new = save(tmp_path, 2, small(2)), save(tmp_path, 10, small(3))
    for place, hour in ((old, 3600), (new, -3600)):
        os.utime(place, (place.stat().st_mtime + hour,) * 2)
    assert newest(tmp_path) == (new, [])
    flip_a_bit(new / "optimizer.safetensors")
    found, (reason,) = newest(tmp_path)
    assert found == latest_state(tmp_path) == old
    assert f"{new} is damaged: checksum mismatch" in reason


def rewritten(change):
    """A state.json with the right checksums and other contents."""

    def damage(path: Path) -> None:
        document = json.loads((path / "state.json").read_text())
        change(document["contents"])
        document["sha256"] = state._text_checksum(document["contents"])
        (path / "state.json").write_text(json.dumps(document))

    return damage


def not_finite(path: Path) -> None:
    """As before there was a check: the parameters are NaN, and all checksums are right."""
    step, run = state.steps_of(path), small(2)
    run.parameters[2].detach()[0, 0] = float("nan")
    shutil.rmtree(path)
    save_state(path.parents[1], step, run.tensors(), run.optimizer, {})


def infinite_moments(path: Path) -> None:
    step, run = state.steps_of(path), small(2)
    run.optimizer.state[run.parameters[1]]["exp_avg_sq"][0, 0] = float("inf")
    shutil.rmtree(path)
    save_state(path.parents[1], step, run.tensors(), run.optimizer, {})


def a_file_for_a_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


def a_folder_for_a_file(path: Path) -> None:
    (path / "adapter.safetensors").unlink()
    (path / "adapter.safetensors").mkdir()


def text(content: str):
    return lambda path: (path / "state.json").write_text(content)


DAMAGES = {
    "digit": lambda path: text((path / "state.json").read_text().replace("0.01", "0.02", 1))(path),
    "cut": lambda path: text((path / "state.json").read_text()[:200])(path),
    "list": text("[1, 2]"),
    "null": text("null"),
    "text for contents": text('{"contents": "x", "sha256": "y"}'),
    "deep": text("[" * 100_000),
    "empty": text(""),
    "not UTF-8": lambda path: (path / "state.json").write_bytes(b"\xff\xfe"),
    "no step": rewritten(lambda contents: contents.pop("step")),
    "another step": rewritten(lambda contents: contents.update(step=3)),
    "no checksum of a file": rewritten(lambda contents: contents["sha256"].pop("adapter.safetensors")),
    "no checksums": rewritten(lambda contents: contents.pop("sha256")),
    "optimizer is null": rewritten(lambda contents: contents.update(optimizer=None)),
    "facts nested wrongly": rewritten(lambda contents: contents.update(facts=["dict", [1]])),
    "missing file": lambda path: (path / "adapter.safetensors").unlink(),
    "shorter file": lambda path: os.truncate(path / "optimizer.safetensors", 100),
    "bit": lambda path: flip_a_bit(path / "adapter.safetensors"),
    "no state.json": lambda path: (path / "state.json").unlink(),
    "not finite": not_finite,
    "infinite moments": infinite_moments,
    "a file for a folder": a_file_for_a_folder,
    "a folder for a file": a_folder_for_a_file,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_any_kind_is_found_and_the_state_before_it_used(damage, tmp_path):
    old, path = save(tmp_path, 1, small(1)), save(tmp_path, 2, small(2))
    DAMAGES[damage](path)
    with pytest.raises(ValueError, match=r"state/step-000002 "):
        load_state(path)
    found, (reason,) = newest(tmp_path)
    assert found == old and str(path) in reason


def test_a_state_with_values_that_are_not_finite_is_not_written(tmp_path):
    run = small(2)
    check_finite(run.tensors(), run.optimizer, 2, Training())
    run.parameters[2].detach()[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="Non-finite values after step 2: 2. They are not saved"):
        check_finite(run.tensors(), run.optimizer, 2, Training())
    run = small(2)
    run.optimizer.state[run.parameters[1]]["exp_avg_sq"][0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="exp_avg_sq"):
        check_finite(run.tensors(), run.optimizer, 2, Training())


def test_texts_come_back_and_are_guarded(tmp_path):
    run = small()
    path = save_state(tmp_path, 0, run.tensors(), run.optimizer, {"a": 1}, {"note.json": "é"})
    assert load_state(path).texts == {"note.json": "é"} and state.read_texts(path) == ({"a": 1}, {"note.json": "é"})
    (path / "note.json").write_text("e")
    for read in (load_state, state.read_texts):
        with pytest.raises(ValueError, match="checksum mismatch"):
            read(path)


def test_prune_keeps_the_last_whole_ones(tmp_path):
    paths = [save(tmp_path, step, small()) for step in (1, 2, 3, 4)]
    for place, path in enumerate(paths):  # each seems older than the one before
        os.utime(path, (1000 - place,) * 2)
    prune_states(tmp_path, 3, paths[-1])
    assert names(tmp_path) == ["step-000002", "step-000003", "step-000004"]
    flip_a_bit(paths[2] / "adapter.safetensors")
    prune_states(tmp_path, 2, paths[-1])
    assert names(tmp_path) == ["step-000002", "step-000003", "step-000004"]  # 3 does not count
    prune_states(tmp_path, 1, paths[-1])
    assert names(tmp_path) == ["step-000004"]
    prune_states(tmp_path, 5, paths[-1])
    assert names(tmp_path) == ["step-000004"]


def test_what_is_put_aside_is_never_chosen_counted_or_deleted_again(tmp_path):
    paths = [save(tmp_path, step, small()) for step in (1, 2, 3, 4)]
    put_aside(paths[3:])
    put_aside([paths[2], paths[1]])
    assert names(tmp_path) == ["step-000001", "step-000003.unusable"]
    assert newest(tmp_path) == (paths[0], [])
    later = save(tmp_path, 5, small())
    prune_states(tmp_path, 2, later)
    tidy_states(tmp_path)
    assert names(tmp_path) == ["step-000001", "step-000003.unusable", "step-000005"]


def test_a_state_in_the_place_of_a_file_or_after_an_interrupted_one(tmp_path):
    (tmp_path / "state").mkdir()
    for name in ("step-000002", "step-000002.partial", "step-000002.replaced", "step-000003.partial"):
        (tmp_path / "state" / name).write_text("a file")
    path = save(tmp_path, 2, small())
    tidy_states(tmp_path)
    assert names(tmp_path) == ["step-000002"] and latest_state(tmp_path) == path


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("broken")])
def test_a_state_that_cannot_be_written_leaves_nothing_behind(error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    old = save(tmp_path, 2, small())
    with monkeypatch.context() as patch:
        patch.setattr(state, "checksum", fail)
        with pytest.raises(DiskFull if isinstance(error, OSError) else ValueError, match="disk is full|broken"):
            save(tmp_path, 4, small())
    assert names(tmp_path) == ["step-000002"] and latest_state(tmp_path) == old


class PowerCut(BaseException):
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
        patch.setattr(state, "to_disk", cut_before(state.to_disk))
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
