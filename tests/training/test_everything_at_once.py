"""All that can be said about pictures and captions, said at once: a run is the same however it is interrupted."""

import json
from collections import Counter
from pathlib import Path

import numpy
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from modules.training import due, loop
from modules.training.state import BEST, latest_state, states, steps_of
from tests.tiny_sd15 import make_folder
from tests.training import pair
from tests.training.runs import Place, ask, draw_pictures, equal
from tests.training.test_due import dues, shows
from tests.training.test_processes import close

pytestmark = pytest.mark.usefixtures("forget_accelerate")

STEPS = 5
SIZES = [(40, 40), (64, 32), (32, 64), (48, 40)]
LONG = ", ".join(f"{{red|blue}}_{letter}{letter}" for letter in "abcdefghijklmnop")
CAPTION = f"{{3::red|blue}}_one, [trigger] ||| (apple:1.3), face, {LONG}\na {{big|small}} heart, face, [trigger]"
"""Two lines; the first has more than 75 tokens and less than 150."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """A tiny base and folders as people have them: masks, a broken picture, classes, another kind of captions."""
    folder = tmp_path_factory.mktemp("stage")
    make_folder(folder, short=True)
    for name, count in (("own", 4), ("class/4_a dog", 3), ("more/2_few", 2), ("held", 2)):
        draw_pictures(folder / name, count, len(name))
    for number, size in enumerate(SIZES):
        path = folder / "own" / f"{number}.png"
        pixels = numpy.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(f"{CAPTION}, {number}", encoding="utf-8")
        mask = numpy.zeros((size[1], size[0]), dtype=numpy.uint8)
        mask[size[1] // 3 :, : size[0] // 2] = 255
        if number:
            Image.fromarray(mask).save(path.with_name(f"{number}-masklabel.png"))
    (folder / "own" / "cut.png").write_bytes((folder / "own" / "0.png").read_bytes()[:200])
    (folder / "own" / "cut.txt").write_text("red", encoding="utf-8")
    for number in range(2):
        path = folder / "more" / "2_few" / f"{number}.txt"
        path.unlink()
        path.with_suffix(".json").write_text(json.dumps(["red face, a, b", "blue face, c, d"]), encoding="utf-8")
    return folder


def everything(place: Place, variants: int = 3, **more) -> dict:
    """The sections of a preset in which all of it is on. `variants` are those of the first folder."""
    data = {
        "folders": [
            {"path": str(place.stage / "own"), "repeats": 0.75, "loss_weight": 2, "flip": True, "masks": "files",
             "crop": "random", "rotation": 8, "brightness": 0.2, "contrast": 0.1, "saturation": 0.2, "hue": 0.05,
             "variants": variants},
            {"path": str(place.stage / "class"), "role": "regularisation", "loss_weight": 0.5, "captions": "foldername",
             "prior_prediction": True, "trigger": ""},
            {"path": str(place.stage / "more"), "repeats": 0.25, "resolution": 48, "caption_lines": "each",
             "crop": "random", "variants": 0, "prefix": "a", "recursive": False},
            {"path": str(place.stage / "held"), "role": "validation"},
        ],
        "validation_folder": "", "resolutions": [16, 32], "resolution_shares": [1, 0.5], "max_enlargement": 4,
        "regularisation_ratio": 0.5, "trigger": "sks", "suffix": "style", "broken": "skip",
        "caption_lines": "random", "wildcards": True, "shuffle": True, "keep_separator": "|||", "part_dropout": 0.2,
        "drop_never": ["face"], "caption_dropout": 0.1, "underscores": True, "emphasis": True, "caption_tokens": 150,
        "encode_ahead": 2, "unmasked_weight": 0.1, "unmasked_probability": 0.2, "normalize_mask": True,
    }  # fmt: skip
    sections = {
        "family": "sd15",
        "targets": {"layers": "unet.mid_block.*, unet.down_blocks.1.attentions.*.attn?.to_*"},
        "training": {
            "steps": STEPS, "batch_size": 2, "accumulation": 2, "learning_rate": 0.01,
            "schedule": "cosine_with_restarts", "warmup_share": 0.4, "gradient_checkpointing": False,
            "ema": "main_memory", "ema_decay": 0.6, "ema_start": 1,
        },
        "objective": {
            "density": "sigmoid", "min_noise": 0.1, "max_noise": 0.9, "noise_offset": 0.1, "adaptive_offset": 0.1,
            "pyramid_noise": 3, "perturbation": 0.1, "loss": "mix", "mix_mse": 0.5, "mix_log_cosh": 0.1,
            "mix_huber": 0.5, "delta_schedule": "snr",  # no l1: at a prior's zero its sign is that of a rounding
        },
        "validation": {"every": 1, "every_unit": "epochs", "draws": 1},
        "samples": {"enabled": True, "every": 11, "every_unit": "minutes", "steps": 1,
                    "prompts": ["(red:1.4) [trigger] face"], "negative": "green"},
        "saving": {"state_every": 7, "state_every_unit": "minutes", "keep_states": 2, "export_every": 1,
                   "export_every_unit": "epochs", "keep_exports": 2, "keep_best": True},
    }  # fmt: skip
    return {**sections, "data": {**data, **more}}


CLIP_SKIP = ("--base.clip_skip", "2")


def train(place: Place, name: str, monkeypatch, sections: dict) -> int:
    """Train with a clock that shows three minutes for each step."""
    with monkeypatch.context() as patch:
        shows(patch, *range(0, 300, 3))
        return place.train(name, *CLIP_SKIP, **sections)


class Killed(BaseException):
    """Instead of the signal."""


def kill(patch, at: int) -> None:
    """End the run while step `at` is under way, with nothing saved."""
    inside = loop.take_step

    def killed(session, progress):
        if session.step + 1 == at:
            raise Killed  # the steps since the last state are done again
        return inside(session, progress)

    patch.setattr(loop, "take_step", killed)


def told(place: Place, name: str) -> dict:
    """What the events of a run say of what was learned and made, without times and places. A step that was done twice
    has to be told alike."""
    fields = {
        "step": ("epoch", "loss", "loss_average", "learning_rate", "grad_norm", "adapter"),
        "validation": ("loss", "baseline"),
        "sample": ("prompt",),
        "due": ("minute",),
    }
    found: dict = {}
    for event in place.events(name):
        kind, what = event["event"], event.get("what")
        if kind in fields:
            facts = [event[field] for field in fields[kind]]
            if kind == "sample":
                facts.append((place.runs / name / event["path"]).read_bytes())
            assert found.setdefault((kind, event["step"], event.get("path"), what), facts) == facts, event
        elif kind == "saved" and what != "state":  # an interruption has one of its own
            found[kind, event["step"], what] = event["path"].replace(name, "")
    return found


def kept(place: Place, name: str) -> tuple[dict[str, dict[str, Tensor]], list[int], list[str]]:
    """What a finished run has kept: its files' tensors, the steps of its best states, and its tables."""
    folder = place.runs / name
    files = sorted(folder.glob("*.safetensors"))
    tensors = {path.name.replace(name, ""): load_file(path) for path in files}
    best = [steps_of(path) for path in states(folder / BEST)]
    tables = [(folder / table).read_text(encoding="utf-8") for table in ("pictures.tsv", "broken.tsv")]
    return tensors, best, tables


@pytest.mark.full
@pytest.mark.parametrize("variants", [3, 0])
def test_a_run_that_is_stopped_and_killed_is_the_whole_run(place: Place, monkeypatch, variants):
    sections = everything(place, variants)
    assert train(place, "whole", monkeypatch, sections) == 0
    with monkeypatch.context() as patch:
        ask(patch, place, "parts", "stop", at=2)
        assert train(place, "parts", monkeypatch, sections) == 130
    with monkeypatch.context() as patch:
        kill(patch, 5)
        with pytest.raises(Killed):
            train(place, "parts", monkeypatch, sections)
    assert dues(place, "parts")[-1][:2] == ("sample", 4) and latest_state(place.runs / "parts").name == "step-000003"
    assert train(place, "parts", monkeypatch, sections) == 0
    assert equal(place.adapter("whole"), place.adapter("parts"))
    assert told(place, "whole") == told(place, "parts")
    (files, *others), (again, *others_again) = kept(place, "whole"), kept(place, "parts")
    assert files.keys() == again.keys() and all(equal(files[one], again[one]) for one in files)
    assert others == others_again
    assert not any("have changed" in event["message"] for event in place.events("parts", "warning"))


@pytest.mark.full
@pytest.mark.parametrize("change", [{"cache": False}, {"encode_ahead": 100}], ids=lambda change: next(iter(change)))
def test_what_only_saves_time_changes_nothing(place: Place, monkeypatch, change):
    for name, more in (("one", {}), ("other", change)):
        assert train(place, name, monkeypatch, everything(place, **more)) == 0
    assert equal(place.adapter("one"), place.adapter("other"))
    assert told(place, "one") == told(place, "other")


@pytest.mark.full
def test_each_part_is_in_the_result(place: Place):
    """Without any one of them, another adapter is trained: none is on in name only."""

    def learn(name: str, **more) -> dict[str, Tensor]:
        sections = everything(place, **more)
        quiet = {"samples": {"enabled": False}, "validation": {}, "saving": {"state_every": 0}}
        assert place.train(name, *CLIP_SKIP, **{**sections, **quiet}) == 0, more
        return place.adapter(name)

    whole = learn("all")
    usual = {"wildcards": False, "shuffle": False, "part_dropout": 0, "underscores": False, "emphasis": False,
             "caption_tokens": 75, "unmasked_probability": 0, "normalize_mask": False, "unmasked_weight": 1,
             "caption_lines": "first", "suffix": "", "trigger": "", "resolutions": [16], "regularisation_ratio": 1.0,
             "keep_separator": "", "drop_never": []}  # fmt: skip
    own = ("repeats", "loss_weight", "masks", "rotation", "hue", "prior_prediction", "captions", "resolution", "prefix")
    changes = [{name: value} for name, value in usual.items()]
    folders = everything(place)["data"]["folders"]
    changes += [{"folders": [{k: v for k, v in one.items() if k != name} for one in folders]} for name in own]
    for number, change in enumerate(changes):
        more = {"resolution_shares": []} if "resolutions" in change else {}
        assert not equal(learn(f"{number}", **change, **more), whole), change


@pytest.mark.full
def test_two_processes_are_one_with_twice_the_batch(place: Place, monkeypatch):
    """Minutes go by in every step; plain steps of the optimizer, see `test_processes`."""
    more = ("--training.steps", "4", "--optimizer.eps", "1.0", *CLIP_SKIP)
    monkeypatch.setattr(due, "MINUTE", 1e-6)
    command = place.command("two", *more, "--training.batch_size", "1", **everything(place))
    codes, said = pair.train(command, place.runs)
    assert codes == [0, 0], said
    assert place.train("one", *more, **everything(place)) == 0
    close(place.adapter("two"), place.adapter("one"))
    losses, made, files = [], [], []
    for name in ("one", "two"):
        losses.append([event["loss"] for kind in ("step", "validation") for event in place.events(name, kind)])
        made.append({(event["event"], event["what"], event["step"]) for event in place.events(name)
                     if event.get("what", "best") != "best"})  # rounding may decide which of two alike is the best
        tensors, _, tables = kept(place, name)
        files.append((tensors.keys(), tables))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert made[0] == made[1] and files[0] == files[1]


def test_epochs_and_cached_latents_are_as_stated(place: Place, tmp_path):
    """Counted over epochs, by folder and resolution, and the files in the cache."""
    data = everything(place, cache_folder=str(tmp_path / "cache"))["data"]
    sections = {**everything(place), "data": data}
    one = ("--training.batch_size", "1", "--training.accumulation", "1", "--samples.enabled", "false", *CLIP_SKIP)
    epochs = 8
    with place.session("run", *one, **sections) as session:
        batches = sum(session.batches.epochs.batches(epoch) for epoch in range(epochs))
        shown = [picture for step in range(batches) for picture in session.batches.at(step, 0).pictures]
        encoded = {(picture.path, picture.bucket) for picture in session.index.pictures if picture.entry < 2}
        held = {(picture.path, picture.bucket) for picture in session.validation.pictures}
    found = Counter((picture.entry, picture.options.resolution) for picture in shown)
    # 4 pictures 0.75 times; 2 in a folder 2_few, a quarter of them, each of 2 lines; and half as many of the class.
    expected = {(0, 16): 4 * 0.75, (0, 32): 4 * 0.75 * 0.5, (2, 48): 2 * 2 * 0.25 * 2}
    total = sum(expected.values())
    expected |= {(1, 16): 0.5 * total / 1.5, (1, 32): 0.5 * total / 3}
    assert found.keys() == expected.keys()
    for place_and_size, often in expected.items():
        assert found[place_and_size] == pytest.approx(epochs * often, abs=1), place_and_size
    files = len(list((tmp_path / "cache" / "latents").glob("*/*.safetensors")))
    own = sum(path.parent.name == "own" for path, _ in encoded)
    assert own == 8 and files == own * 3 * 2 + (len(encoded) - own) + len(held)
