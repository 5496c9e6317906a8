"""A run that is made longer is the longer run; what follows from the length is planned anew, and said."""

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.kills_runs import OWN, optimizers_on_cpu, rate
from modules.adapters import methods
from modules.adapters.base import Adapter as Base
from modules.adapters.raclora import Adapter, link_after
from modules.preset.schema import Training
from modules.training import schedules
from modules.training.state import states
from tests.adapters.test_raclora import layer
from tests.training.runs import OPTIONS, Place, ask, equal

TWO, FOUR = ("--training.steps", "2"), ("--training.steps", "4")
SMALL = {"rotation": {"kind": "blocks", "block_size": 4}}
ADALORA = {"method": "adalora", "rank": 3, "target_rank": 1, "warmup": 0.3, "final": 0.2, "interval": 1}
RACLORA = {"method": "raclora", "rank": 2, "links": 2}
COSINE = {**OPTIONS["training"], "schedule": "cosine", "final_lr": 0.05}


def training(**changes):
    return {"training": {**OPTIONS["training"], **changes}}


def tensors_of(place: Place, name: str) -> list[bytes]:
    """The last state without what tells of the day: the adapter and the optimizer's state."""
    last = states(place.runs / name)[-1]
    return [(last / file).read_bytes() for file in ("adapter.safetensors", "optimizer.safetensors")]


def exported(place: Place, name: str) -> dict[str, torch.Tensor]:
    return load_file(place.runs / name / f"{name}.safetensors")


def warnings(place: Place, name: str) -> str:
    return "\n".join(event["message"] for event in place.events(name, "warning"))


def assert_same(place: Place, one: str, other: str) -> None:
    assert equal(place.adapter(one), place.adapter(other))
    assert tensors_of(place, one) == tensors_of(place, other)
    assert equal(exported(place, one), exported(place, other))


def independent() -> list[str]:
    """Methods whose course does not depend on the length of a training: every second, and those that need a folder."""
    found = [name for name, module in methods().items() if module.Adapter.replanned.__func__ is Base.replanned.__func__]
    return [name for n, name in enumerate(found) if n % 2 or "folder" in methods()[name].Config.model_fields]


@pytest.mark.full
@pytest.mark.short("wora-adamw")
@pytest.mark.parametrize(
    "method, optimizer",
    [*((method, "adamw") for method in independent()), *(("lora", name) for name in optimizers_on_cpu())],
)
def test_a_lengthened_run_is_the_longer_run(place: Place, method, optimizer):
    fields = methods()[method].Config.model_fields
    adapter = {"method": method, **({"rank": 2} if "rank" in fields else {}), **OWN.get(method, {})}
    if "folder" in fields:  # of finished adapters
        assert place.train("given", *TWO) == 0
        adapter["folder"] = str(place.runs / "pool")
        (place.runs / "pool").mkdir()
        shutil.copy(place.runs / "given" / "given.safetensors", place.runs / "pool")
    options = {"adapter": adapter, "optimizer": {"name": optimizer}, **training(learning_rate=rate(optimizer))}
    assert place.train("longer", *FOUR, **options) == 0
    assert place.train("run", *TWO, **options) == 0
    assert place.train("run", *FOUR, **options) == 0
    assert_same(place, "run", "longer")
    assert [event["step"] for event in place.events("run", "step")] == list(range(1, int(FOUR[1]) + 1))
    assert warnings(place, "run") == warnings(place, "longer")


@pytest.mark.full
def test_epochs_and_a_run_that_was_stopped(place: Place, monkeypatch, capsys):
    """Three steps make an epoch."""
    assert place.train("longer", "--training.epochs", "2") == 0
    with monkeypatch.context() as patch:
        ask(patch, place, "run", "stop", at=1)
        assert place.train("run", "--training.steps", "2") == 130
    for epochs, steps in (("1", 3), ("2", 6)):
        assert place.train("run", "--training.epochs", epochs) == 0
        assert place.events("run")[-1]["step"] == steps
    assert_same(place, "run", "longer")
    capsys.readouterr()
    assert place.train("run", "--training.epochs", "2") == 0
    assert "already finished" in capsys.readouterr().out
    assert place.train("run", "--training.epochs", "1") == 2
    assert "training.epochs: 1 (3 steps), but this run has already done 6 steps" in capsys.readouterr().err


def test_fewer_steps_than_done_are_refused_and_as_many_end_the_run(place: Place, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        ask(patch, place, "run", "stop", at=2)
        assert place.train("run", *FOUR) == 130
    capsys.readouterr()
    assert place.train("run", "--training.steps", "1") == 2
    said = capsys.readouterr().err
    assert "training.steps: 1, but this run has already done 2 steps" in said and "--name" in said
    assert place.train("run", *TWO) == 0
    assert place.train("two", *TWO) == 0
    assert_same(place, "run", "two")


@pytest.mark.full
def test_a_cosine_follows_the_new_schedule_from_there(place: Place, capsys):
    assert place.train("run", *TWO, training=COSINE) == 0
    capsys.readouterr()
    assert place.train("run", *FOUR, training=COSINE) == 0
    said = capsys.readouterr().err
    options = Training.model_validate({**COSINE, "steps": 4})
    wanted = [*(schedules.factor(options, 2, step) for step in range(2)),
              *(schedules.factor(options, 4, step) for step in (2, 3))]
    rates = [event["learning_rate"] for event in place.events("run", "step")]
    assert rates == pytest.approx([options.learning_rate * factor for factor in wanted])
    for words in (said, warnings(place, "run")):
        assert "planned for 2 steps, continues to 4: the learning rate follows the schedule of 4 steps" in words


def test_a_schedule_differs_only_where_its_past_does():
    constant = Training(schedule="constant", warmup=5)
    assert schedules.replanned(constant, 10, 10, 20) == ""
    assert "step 4" in schedules.replanned(constant, 3, 4, 20)  # warm-up longer than the run is shortened
    linear = Training(schedule="linear", warmup=5)
    assert schedules.replanned(linear, 5, 10, 20) == "" != schedules.replanned(linear, 7, 10, 20)


@pytest.mark.short("adapter0-ranks of the layers were final")
@pytest.mark.parametrize("adapter, words", [(ADALORA, "ranks of the layers were final"), (RACLORA, "link 2 of the")])
def test_methods_that_depend_on_the_length_say_how_they_go_on(place: Place, adapter, words, capsys):
    assert place.train("run", *TWO, adapter=adapter) == 0
    before = place.adapter("run")
    capsys.readouterr()
    assert place.train("run", *FOUR, adapter=adapter) == 0
    assert words in capsys.readouterr().err and words in warnings(place, "run")
    after = place.adapter("run")
    for name, tensor in before.items():
        if name.endswith((".kept", ".done", ".link")):
            assert torch.equal(after[name], tensor), name
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items() if name.endswith(".up"))


@pytest.mark.full
def test_before_a_method_has_decided_anything_it_is_the_longer_run(place: Place, monkeypatch):
    """The budget falls from step 4 of 12 on, and from step 2 of 6."""
    late = {**ADALORA, "warmup": 0.34}
    assert place.train("longer", "--training.steps", "12", adapter=late) == 0
    with monkeypatch.context() as patch:
        ask(patch, place, "run", "stop", at=2)
        assert place.train("run", "--training.steps", "6", adapter=late) == 130
    assert place.train("run", "--training.steps", "12", adapter=late) == 0
    assert_same(place, "run", "longer")
    assert warnings(place, "run") == ""


def test_a_finished_link_is_never_begun_again():
    adapter: Any = layer(rank=2, links=4).adapter
    with torch.no_grad():
        for step in range(1, 11):
            adapter.up.fill_(step)
            Adapter.after_step([adapter], step, 10)
        assert adapter.link == 3
        chain = adapter.chain().clone()
        for step in range(11, 41):
            assert Adapter.after_step([adapter], step, 40) == []
    assert link_after(11, 40, 4) == 1 and adapter.link == 3 and torch.equal(adapter.chain(), chain)


@pytest.mark.full
def test_the_old_file_stays_until_the_new_one_is_whole(place: Place, monkeypatch):
    assert place.train("run", *TWO) == 0
    file, adapter = place.runs / "run" / "run.safetensors", place.runs / "run" / "adapter.safetensors"
    before = file.read_bytes(), adapter.read_bytes()

    def broken(*_):
        raise OSError("broken")

    with monkeypatch.context() as patch:
        patch.setattr("modules.export.export.opening.save", broken)
        assert place.train("run", *FOUR) == 1
    assert file.read_bytes() == before[0] and adapter.read_bytes() != before[1]
    assert place.train("run", *FOUR) == 0
    assert file.read_bytes() != before[0]
    assert [event["step"] for event in place.events("run", "step")] == [1, 2, 3, 4]


@pytest.mark.full
@pytest.mark.parametrize("at", [3, 4])
def test_a_crash_on_the_way_is_no_end(place: Place, monkeypatch, at, capsys):
    """Before the first state of the longer run, and after: the last event `finished` is of the shorter one."""
    from modules.training import loop

    class PowerCut(BaseException):
        pass

    assert place.train("longer", *FOUR) == 0
    assert place.train("run", *TWO) == 0
    take_step = loop.take_step

    def cut(session, progress):
        if session.step + 1 == at:
            raise PowerCut
        return take_step(session, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", cut)
        with pytest.raises(PowerCut):
            place.train("run", *FOUR, "--saving.state_every", "1")
    assert place.train("run", *FOUR) == 0
    assert_same(place, "run", "longer")


def test_a_finished_run_without_states_cannot_be_lengthened(place: Place, capsys):
    assert place.train("run", *TWO) == 0
    shutil.rmtree(place.runs / "run" / "state")
    capsys.readouterr()
    assert place.train("run", *FOUR) == 2
    said = capsys.readouterr().err
    assert "training.steps 4" in said and "no training state to continue from" in said
    assert place.train("run", *TWO) == 0
    assert "already finished" in capsys.readouterr().out


@pytest.mark.full
def test_the_run_folder_tells_the_new_length(place: Place):
    assert place.train("run", *TWO) == 0
    assert place.train("run", *FOUR) == 0
    assert json.loads((place.runs / "run" / "preset.json").read_text())["training"]["steps"] == 4
    assert place.events("run")[-1]["step"] == 4
