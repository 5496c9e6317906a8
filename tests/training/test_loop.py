"""Whole trainings: what is left behind, resuming bit for bit, requests, Ctrl-C, and non-finite numbers."""

import json
import signal

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modules import adapters
from modules.adapters.base import adapter_state
from modules.data.cache import LatentCache
from modules.families import load_class
from modules.training import loop, outputs
from modules.training.feed import Feed
from modules.training.state import latest_state, load_state
from tests.training.runs import Place, ask, equal, wait_for

SMALL = {"rank": 2, "rotation": {"kind": "blocks", "block_size": 4}}


def options_of(method: str, folder: str) -> dict:
    """Small; `folder` is for methods that start from finished adapters."""
    fields = adapters.methods()[method].Config.model_fields
    return {"method": method, **{key: value for key, value in (SMALL | {"folder": folder}).items() if key in fields}}


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_every_method_starts_as_the_base_and_leaves_a_checked_file(place: Place):
    baselines = {}
    for method in adapters.methods():
        options = options_of(method, str(place.runs / min(adapters.methods())))
        assert place.train(method, "--training.steps", "2", adapter=options) == 0, method
        assert any(tensor.abs().sum() > 0 for tensor in place.adapter(method).values())
        assert load_file(place.runs / method / f"{method}.safetensors")
        before, after = place.events(method, "validation")
        baselines[method] = before["baseline"]
        assert before["loss"] == before["baseline"] == after["baseline"] != after["loss"]
    assert max(baselines.values()) - min(baselines.values()) < 1e-6, baselines


def test_nothing_is_encoded_once_the_denoiser_has_come(place: Place, monkeypatch):
    """Prompts of samples too: text encoders and denoiser never have to fit on the device together."""
    family, done = load_class("sdxl"), []

    def record(name: str) -> None:
        inside = getattr(family, name)

        def recorded(model, *given, **named):
            done.append(name)
            return inside(model, *given, **named)

        monkeypatch.setattr(family, name, recorded)

    for name in ("encode_texts", "encode_images", "place"):
        record(name)
    fresh = {"resolution": 16, "cache_folder": str(place.runs / "cache")}
    assert place.train("order", "--samples.enabled", "--samples.negative", "a face", data=fresh) == 0
    assert set(done) == {"encode_texts", "encode_images", "place"} and done[-1] == "place"


@pytest.mark.full
def test_events_tell_the_whole_story_in_order(place: Place):
    # One picture for training and validation: a note, which becomes a warning.
    data = {"resolution": 16, "folders": [str(place.stage / "one")], "validation_folder": str(place.stage / "one")}
    steps = {"--training.steps": "12", "--validation.every": "4", "--samples.every": "8"}
    learning = {"layers": "attention", "include": ["unet.conv_*", "unet.up_blocks.*.resnets.*"]}
    more = ["--samples.enabled", "--saving.state_every=8", "--saving.export_every=8"]
    words = [word for pair in steps.items() for word in pair]
    assert place.train("story", *words, *more, data=data, targets=learning) == 0
    events = place.events("story")
    kinds = [event["event"] for event in events]
    assert set(kinds) == {"warning", "stage", "validation", "sample", "step", "saved", "finished"}
    assert [event["name"] for event in events if event["event"] == "stage"] == ["load", "buckets", "cache", "adapters"]
    assert kinds.index("validation") < kinds.index("sample") < kinds.index("step") < kinds.index("saved")
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 13))
    saved = [(event["what"], event["step"]) for event in events if event["event"] == "saved"]
    assert saved == [("state", 8), ("export", 8), ("state", 12), ("adapter", 12), ("export", 12)]
    assert events[-1] | {"time": ""} == {
        "time": "", "event": "finished", "outcome": "done", "exit_code": 0, "step": 12, "path": "story.safetensors",
    }  # fmt: skip
    assert sum("also training pictures" in event.get("message", "") for event in events) == 1
    assert {event["event"] for event in events[-7:-1]} == {"validation", "sample", "saved"}
    losses = [event["loss"] for event in events if event["event"] == "validation"]
    assert len(losses) == 4 and losses[-1] < 0.98 * losses[0]  # it has learned that picture
    folder = place.runs / "story"
    assert all((folder / event["path"]).stat().st_size for event in events if event["event"] in ("sample", "saved"))
    with Image.open(folder / "samples" / "grid.png") as grid:
        assert grid.width > 2 * 160 and grid.height > 3 * 160
    assert len((folder / "layers.tsv").read_text().splitlines()) > 30 and (folder / "pictures.tsv").exists()
    assert list((folder / "tensorboard").iterdir())


def test_a_finished_run_says_so_and_a_changed_one_is_refused(place: Place, capsys):
    assert place.train("once", "--training.steps", "1") == 0
    capsys.readouterr()
    before = len(place.events("once"))
    assert place.train("once", "--training.steps", "1") == 0
    assert "already finished" in capsys.readouterr().out
    assert place.train("once", "--training.steps", "1", "--training.seed", "3") == 2
    assert "training.seed: 0 -> 3" in capsys.readouterr().err
    assert len(place.events("once")) == before


# -- resuming ---------------------------------------------------------------------------------------------------------

TEN = ("--training.steps", "10")


@pytest.fixture(scope="module")
def ten_steps(stage, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The adapter of ten steps without a break."""
    place = Place(stage, tmp_path_factory.mktemp("ten"))
    assert place.train("whole", *TEN) == 0
    return place.adapter("whole")


@pytest.mark.full
@pytest.mark.parametrize(
    "optimizer, rank",
    [("adamw", 2), ("adamw8bit", 128), ("schedulefree_adamw", 2), ("lora_rite", 2), ("lora_pre", 2)],
)
def test_half_and_half_is_the_whole(place: Place, monkeypatch, optimizer, rank):
    """A rank of 128 gives tensors large enough for 8-bit states."""
    options = {"optimizer": {"name": optimizer}, "adapter": {"method": "wora", "rank": rank}}
    more = ["--training.accumulation", "2", "--validation.every", "1"]
    assert place.train("whole", *more, **options) == 0
    ask(monkeypatch, place, "half", "stop", at=2)
    assert place.train("half", *more, **options) == 130
    assert place.events("half")[-1]["outcome"] == "stopped"
    assert [event["name"] for event in place.events("half", "stage")][-1] == "stopping"
    assert not (place.runs / "half" / "adapter.safetensors").exists()
    # Sample pictures along the way change nothing.
    assert place.train("half", *more, "--samples.enabled", "--samples.every", "1", **options) == 0
    assert [event["step"] for event in place.events("half", "step")] == [1, 2, 3, 4]
    assert equal(place.adapter("whole"), place.adapter("half"))
    for kind, key in (("step", "loss"), ("step", "loss_average"), ("validation", "loss"), ("validation", "baseline")):
        curves = [[event[key] for event in place.events(name, kind)] for name in ("whole", "half")]
        assert curves[0] == curves[1], (kind, key)


@pytest.mark.full
def test_a_killed_run_goes_on_to_the_same_adapter(place: Place, ten_steps):
    more = [*TEN, "--saving.state_every", "2"]
    process = place.start("killed", *more)
    wait_for(process, (place.runs / "killed" / "state" / "step-000002").exists, process.kill)
    process.communicate()
    state = latest_state(place.runs / "killed")
    assert process.returncode == -signal.SIGKILL and state and 2 <= load_state(state).step < 10
    assert place.train("killed", *more) == 0
    assert equal(place.adapter("killed"), ten_steps)


@pytest.mark.full
def test_ctrl_c_saves_and_the_same_command_goes_on(place: Place, ten_steps):
    more = list(TEN)
    process = place.start("halted", *more)
    wait_for(process, lambda: place.stepping("halted"), lambda: process.send_signal(signal.SIGINT))
    process.send_signal(signal.SIGTERM)  # as a launcher does that passes Ctrl-C on
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Stopping after this step" in err and "The same command resumes from" in err and "Traceback" not in err
    assert out == ""
    *_, stopping, saved, last = place.events("halted")
    assert (stopping["event"], stopping["name"], saved["what"]) == ("stage", "stopping", "state")
    assert (last["outcome"], last["exit_code"], last["path"]) == ("stopped", 130, None)
    assert load_state(place.runs / "halted" / "state" / f"step-{last['step']:06d}").step == last["step"] < 10
    assert place.train("halted", *more) == 0
    assert equal(place.adapter("halted"), ten_steps)


def test_requests_are_obeyed_once(place: Place, monkeypatch):
    ask(monkeypatch, place, "asked", "save", at=1)
    ask(monkeypatch, place, "asked", "sample", at=2)
    assert place.train("asked", "--samples.enabled", "--samples.every", "0") == 0
    assert [event["step"] for event in place.events("asked", "saved") if event["what"] == "state"] == [1, 4]
    assert [event["step"] for event in place.events("asked", "sample")] == [0, 0, 2, 2, 4, 4]
    assert not list((place.runs / "asked" / "requests").iterdir())


def test_a_failed_export_loses_no_step(place: Place, monkeypatch):
    def broken(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "export", broken)
        assert place.train("full") == 1
    assert "no space left" in place.events("full", "error")[0]["message"]
    assert place.train("full") == 0
    assert [event["step"] for event in place.events("full", "step")] == [1, 2, 3, 4]


# -- non-finite numbers -----------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_loss_that_is_no_number_stops_before_the_step(place: Place, monkeypatch, capsys):
    more = ["--saving.state_every", "1", "--validation.every", "0"]
    assert place.train("whole", *more) == 0
    get = LatentCache.get
    seen = []

    def poisoned(self, picture, flip, view):
        seen.append(str(picture.path))
        # 2 of the loss before training (`few_samples`) and 2 of validation, then two pictures a step
        return get(self, picture, flip, view) * (float("nan") if len(seen) == 9 else 1.0)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(LatentCache, "get", poisoned)
        assert place.train("poisoned", *more) == 1
    said = capsys.readouterr().err
    assert "Non-finite loss at step 3" in said and seen[8] in said and "Traceback" not in said
    error, end = place.events("poisoned")[-2:]
    assert error["event"] == "error" and seen[8] in error["message"] and seen[9] in error["message"]
    assert (end["outcome"], end["exit_code"], end["step"], end["path"]) == ("failed", 1, 2, None)
    assert load_state(latest_state(place.runs / "poisoned")).step == 2
    assert place.train("poisoned", *more) == 0
    assert equal(place.adapter("poisoned"), place.adapter("whole"))


def test_a_gradient_that_is_no_number_stops_before_the_step(place: Place, monkeypatch):
    average = loop.average

    def poisoned(session, loss, wanted):
        shared = average(session, loss, wanted)
        session.flat.parameters[3].grad.view(-1)[0] = float("inf")
        return shared

    monkeypatch.setattr(loop, "average", poisoned)
    with place.session("wild") as session:
        before = adapter_state(session.adapted)
        with pytest.raises(loop.NotFinite, match="Non-finite gradient at step 1"):
            loop.train(session)
        assert equal(before, adapter_state(session.adapted))
    assert json.loads((place.runs / "wild" / "preset.json").read_text())["name"] == "wild"


# -- gradients --------------------------------------------------------------------------------------------------------


def gradients(place: Place, name: str, *more: str, **sections) -> tuple[list[float], torch.Tensor]:
    """Losses of two steps, and all gradients of the last one."""
    with place.session(name, "--training.max_grad_norm", "0", *more, **sections) as session:
        losses, progress = [], loop.Progress(Feed(session))
        for _ in range(2):
            loss, _, _ = loop.take_step(session, progress)
            losses.append(loss)
            session.step += 1
        return losses, session.flat.gradients.clone()


def test_two_batches_added_up_are_one_of_twice_the_size(place: Place):
    data = {"resolution": 16, "folders": [str(place.stage / "one")]}  # one picture: the order cannot differ
    one, whole = gradients(place, "one", "--training.batch_size", "2", data=data)
    two, added = gradients(place, "two", "--training.batch_size", "1", "--training.accumulation", "2", data=data)
    assert one == pytest.approx(two, rel=1e-5)
    assert whole.norm() > 0
    torch.testing.assert_close(added, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


def test_checkpointing_changes_nothing(place: Place):
    more = ["--targets.text_encoders", "true"]
    kept, expected = gradients(place, "kept", *more)
    again, found = gradients(place, "again", *more, "--training.gradient_checkpointing", "true")
    assert again == pytest.approx(kept, rel=1e-6)
    assert found.shape == expected.shape and expected.norm() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_text_encoders_are_trained_and_resume(place: Place):
    more = ["--targets.text_encoders", "true", "--training.steps", "2"]
    with place.session("start", *more) as session:
        start = adapter_state(session.adapted)
        assert session.texts is None
    assert place.train("texts", *more) == 0
    end = place.adapter("texts")
    changed = {key.split(".")[0] for key in end if not torch.equal(end[key], start[key])}
    assert changed == {"unet", "text_encoder", "text_encoder_2"}


@pytest.mark.full
def test_a_run_on_another_number_of_processes_says_so(place: Place, monkeypatch):
    ask(monkeypatch, place, "moved", "stop", at=1)
    assert place.train("moved") == 130
    path = place.runs / "moved" / "state" / "step-000001"
    facts = load_state(path).facts
    assert facts["processes"] == 1
    monkeypatch.setattr("modules.training.state.load_state", lambda folder: _with_processes(load_state(folder)))
    assert place.train("moved") == 0
    assert "had 3 processes and resumes with 1" in place.events("moved", "warning")[-1]["message"]


def _with_processes(state):
    state.facts["processes"] = 3
    return state
