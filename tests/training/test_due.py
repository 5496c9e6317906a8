"""What is due every N steps, epochs or minutes, which files are kept, and that no clock decides what is learned."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open

from modules.training import best, clock, due, loop, state
from modules.training.clock import Clock
from tests.training import pair
from tests.training.runs import Place, ask, equal

STEPS = ("--training.steps", "6")


class Minutes:
    """A clock that shows how many steps were begun, in minutes, whatever time it is."""

    def __init__(self, *reads: float):
        self.reads = list(reads)

    def monotonic(self) -> float:
        return 60.0 * self.reads.pop(0)


def shows(monkeypatch, *reads: float) -> None:
    """What the clock shows at the start and in each step after it, in minutes."""
    monkeypatch.setattr(clock, "time", Minutes(*reads))


def steps_of(place: Place, name: str, kind: str) -> list[int]:
    """The steps with events of a kind, or with files that were saved of one."""
    events = place.events(name)
    return sorted({e["step"] for e in events if kind in (e["event"], e.get("what")) and e["event"] != "due"})


def dues(place: Place, name: str) -> list[tuple[str, int, float]]:
    return [(event["what"], event["step"], event["minute"]) for event in place.events(name, "due")]


# -- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_epoch", [1, 3, 5, 7, 2.5])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_multiple_of_epochs_is_passed_once_in_the_first_step_that_reaches_it(per_epoch, number):
    preset = SimpleNamespace(
        validation=SimpleNamespace(every=number, every_unit="epochs"),
        samples=SimpleNamespace(every=0, every_unit="epochs"),
        saving=SimpleNamespace(export_every=0, export_every_unit="steps", state_every=0, state_every_unit="steps"),
    )
    batches = SimpleNamespace(epoch=lambda step: step / per_epoch)
    session: Any = SimpleNamespace(preset=preset, steps=60, step=0, clock=Clock(), batches=batches)
    found = []
    for session.step in range(1, 61):
        found += [session.step] * due.is_due(session, "validation")
    wanted = []
    for multiple in range(1, 100):
        step = next((step for step in range(1, 60) if step / per_epoch >= multiple * number), None)
        wanted += [step] if step is not None and step not in wanted else []
    assert found == wanted


def test_epochs_in_a_run(place: Place):
    more = ["--validation.every", "1", "--validation.every_unit", "epochs", "--saving.export_every", "1",
            "--saving.export_every_unit", "epochs", "--saving.keep_exports", "1"]  # fmt: skip
    assert place.train("epochs", *STEPS, *more) == 0
    epoch = {event["step"]: event["epoch"] for event in place.events("epochs", "step")}
    passed = [step for step in range(1, 6) if int(epoch[step]) > int(epoch.get(step - 1, 0))]
    assert passed and steps_of(place, "epochs", "validation") == [0, *passed, 6]
    assert steps_of(place, "epochs", "export") == [*passed, 6]
    assert not place.events("epochs", "due"), "an epoch follows from the step"


@pytest.mark.full
def test_the_clock_says_when_and_it_is_an_event_before_it_is_made(place: Place, monkeypatch):
    minutes = ["--validation.every", "10", "--validation.every_unit", "minutes", "--saving.state_every", "15",
               "--saving.state_every_unit", "minutes"]  # fmt: skip
    shows(monkeypatch, 0, 4, 9, 10, 12, 31, 50)
    assert place.train("clock", *STEPS, *minutes, saving={}) == 0
    assert dues(place, "clock") == [("validation", 3, 10.0), ("validation", 5, 30.0), ("state", 5, 30.0)]
    assert steps_of(place, "clock", "validation") == [0, 3, 5, 6] and steps_of(place, "clock", "state") == [5, 6]
    kinds = [event["event"] for event in place.events("clock")]
    assert kinds[kinds.index("due") + 1] == "validation"
    monkeypatch.undo()
    assert place.train("plain", *STEPS) == 0
    assert equal(place.adapter("clock"), place.adapter("plain")), "the clock has changed what is learned"


@pytest.mark.full
def test_what_was_due_is_made_by_the_run_that_resumes_and_the_clock_asks_no_second_time(place: Place, monkeypatch):
    minutes = ["--validation.every", "10", "--validation.every_unit", "minutes", "--saving.state_every", "2"]

    class Killed(BaseException):
        pass

    def killed(session):
        if session.step == 3:
            raise Killed
        return inside(session)

    inside = loop.validate
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", killed)
        shows(patch, 0, 4, 8, 11, 12)
        with pytest.raises(Killed):
            place.train("killed", *STEPS, *minutes, saving={})
    assert dues(place, "killed") == [("validation", 3, 10.0)]
    assert steps_of(place, "killed", "validation") == [0] and steps_of(place, "killed", "state") == [2]
    shows(monkeypatch, 100, 101, 103, 112, 113)  # 8 minutes until the state, so 9, 11, 20, 21
    assert place.train("killed", *STEPS, *minutes, saving={}) == 0
    assert dues(place, "killed") == [("validation", 3, 10.0), ("validation", 5, 20.0)]
    assert steps_of(place, "killed", "validation") == [0, 3, 5, 6]
    monkeypatch.undo()
    assert place.train("plain", *STEPS) == 0
    assert equal(place.adapter("killed"), place.adapter("plain"))


@pytest.mark.full
def test_a_run_that_is_stopped_where_something_is_due_makes_it_when_it_resumes(place: Place, monkeypatch):
    minutes = ["--validation.every", "10", "--validation.every_unit", "minutes"]
    with monkeypatch.context() as patch:
        ask(patch, place, "stopped", "stop", at=3)
        shows(patch, 0, 4, 8, 11)
        assert place.train("stopped", *STEPS, *minutes) == 130
    assert steps_of(place, "stopped", "state") == [3] and steps_of(place, "stopped", "validation") == [0]
    shows(monkeypatch, 100, 101, 102, 103)
    assert place.train("stopped", *STEPS, *minutes) == 0
    assert dues(place, "stopped") == [("validation", 3, 10.0)]
    assert steps_of(place, "stopped", "validation") == [0, 3, 6]


def test_only_the_main_process_reads_the_clock(monkeypatch):
    shows(monkeypatch)  # a read would fail
    other: Any = SimpleNamespace(clock=Clock(), accelerator=SimpleNamespace(is_main_process=False))
    assert due.by_clock(other) == [False] * len(due.KINDS)


# -- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_last_exported_files_are_kept(place: Place):
    assert place.train("kept", *STEPS, "--saving.export_every", "1", "--saving.keep_exports", "2") == 0
    folder = place.runs / "kept"
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names == ["adapter.safetensors", "kept-step-000004.safetensors", "kept-step-000005.safetensors",
                     "kept.safetensors"]  # fmt: skip
    tables = sorted(path.name for path in folder.glob("*.errors.tsv"))
    assert tables == ["kept-step-000004.errors.tsv", "kept-step-000005.errors.tsv", "kept.errors.tsv"]


BEST = ("--validation.every", "1", "--saving.keep_best", "--saving.state_every", "1")


def told(monkeypatch, losses: dict[int, float]) -> None:
    """Validations find these losses, by step."""
    inside = loop.validate

    def validate(session):
        inside(session)
        session.measured = (session.step, losses[session.step])

    monkeypatch.setattr(loop, "validate", validate)


def kept(place: Place, name: str) -> tuple[list[int], int]:
    """The steps of the best states, and of the best file."""
    folder = place.runs / name
    with safe_open(folder / f"{name}-best.safetensors", "pt") as file:
        step = int(file.metadata()["gimbal.step"])
    steps = [state.steps_of(path) for path in state.states(folder / state.BEST)]
    return steps, step


def test_the_best_is_kept_apart_from_the_last_states(place: Place, monkeypatch):
    told(monkeypatch, {0: 0.1, 1: 3.0, 2: 1.0, 3: 2.0, 4: float("nan"), 5: 1.0, 6: 2.0})
    assert place.train("best", *STEPS, *BEST, saving={"keep_states": 1}) == 0
    assert kept(place, "best") == ([2], 2)
    assert [state.steps_of(path) for path in state.states(place.runs / "best")] == [6]
    (folder,) = state.states(place.runs / "best" / state.BEST)
    assert state.load_state(folder).facts[best.LOSS] == 1.0
    assert steps_of(place, "best", "best") == [1, 2]


@pytest.mark.full
@pytest.mark.parametrize("function", ["validate", "export_now", "_save"])
def test_the_best_survives_a_kill_at_any_point_and_the_old_one_stays_until_the_new_one_is_whole(
    place: Place, monkeypatch, function
):
    told(monkeypatch, {0: 9.0, 1: 3.0, 2: 4.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 2.0})

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        owner = loop if function == "validate" else best
        inside = vars(owner)[function]

        def killed(session, *given):
            result = inside(session, *given) if function == "validate" else None
            if session.step == 3:
                raise Killed
            return inside(session, *given) if function != "validate" else result

        patch.setattr(owner, function, killed)
        with pytest.raises(Killed):
            place.train("torn", *STEPS, *BEST, saving={})
    assert [state.steps_of(path) for path in state.states(place.runs / "torn" / state.BEST)] == [1]
    # The events have the loss that was really measured: the run that resumes at step 3 compares that.
    lines = (place.runs / "torn" / "events.jsonl").read_text().splitlines()
    for number, line in enumerate(lines):
        event = json.loads(line)
        if event["event"] == "validation" and event["step"] == 3:
            lines[number] = json.dumps({**event, "loss": 1.0})
    (place.runs / "torn" / "events.jsonl").write_text("\n".join(lines) + "\n")
    assert place.train("torn", *STEPS, *BEST, saving={}) == 0
    assert kept(place, "torn") == ([3], 3)


@pytest.mark.full
def test_two_processes_agree_on_what_the_clock_of_one_says_and_on_the_best(place: Place, monkeypatch):
    """Each step is minutes long."""
    monkeypatch.setattr(due, "MINUTE", 1e-6)
    units = [word for section in ("validation.every", "saving.export_every")
             for word in (f"--{section}", "1", f"--{section}_unit", "minutes")]  # fmt: skip
    command = place.command("two", "--training.steps", "3", "--training.batch_size", "1", "--saving.keep_best",
                            "--saving.keep_exports", "1", *units)  # fmt: skip
    codes, said = pair.train(command, place.runs)
    assert codes == [0, 0], said
    assert [(what, step) for what, step, _ in dues(place, "two")] == [
        ("validation", 1), ("export", 1), ("validation", 2), ("export", 2)
    ]  # fmt: skip
    assert steps_of(place, "two", "validation") == [0, 1, 2, 3]
    losses = {event["step"]: event["loss"] for event in place.events("two", "validation") if event["step"]}
    best_step = min(losses, key=lambda step: losses[step])
    assert kept(place, "two") == ([best_step], best_step)
    assert sorted(path.name for path in (place.runs / "two").glob("two-step-*.safetensors")) == [
        "two-step-000002.safetensors"
    ]
