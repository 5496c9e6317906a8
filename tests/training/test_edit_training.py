"""Trainings on pairs: pictures, and the references that they are made from."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy
import pytest
from PIL import Image

from modules.data.batches import Batches
from modules.families.qwenimage import Model
from modules.preset.data_options import Data
from modules.preset.files import resolve
from modules.preset.folder_options import Folder
from modules.preset.schema import Base
from modules.training import check, reference_checks
from tests import tiny_edit
from tests.training.runs import Place, ask, draw_pictures, equal

pytestmark = pytest.mark.full

SEVERAL = "QwenImageEditPlusPipeline"
OPTIONS = {
    "family": "qwenimage",
    "targets": {"layers": "attention"},
    "adapter": {"method": "lora", "rank": 2},
    "objective": {"min_snr_gamma": None},
    "training": {"steps": 4, "batch_size": 2, "learning_rate": 0.01, "schedule": "constant", "warmup": 0,
                 "gradient_checkpointing": False},
}


def draw_references(folder: Path, count: int, seed: int, sizes=((20, 20), (40, 24))) -> None:
    """Noise pictures in turns of these widths and heights."""
    folder.mkdir(parents=True)
    draw = numpy.random.default_rng(seed)
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        pixels = draw.integers(0, 256, (height, width, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.bmp")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A base that edits, pictures, and two folders of references beside them."""
    folder = tmp_path_factory.mktemp("stage")
    tiny_edit.make_folder(folder, SEVERAL)
    draw_pictures(folder / "pictures", 5, 0)
    draw_pictures(folder / "validation", 1, 1)
    draw_references(folder / "before", 5, 2)
    draw_references(folder / "style", 5, 3, ((24, 24),))
    draw_references(folder / "held", 1, 4)
    return folder


@pytest.fixture
def place(stage, tmp_path, monkeypatch):
    tiny_edit.small(monkeypatch)
    return Place(stage, tmp_path)


def data(stage, **more):
    pictures = {"path": str(stage / "pictures"), "references": [str(stage / "before"), str(stage / "style")], **more}
    held_out = {"path": str(stage / "validation"), "role": "validation", "references": str(stage / "held")}
    return {"resolution": 32, "caption_dropout": 0.3, "folders": [pictures, held_out], "validation_folder": ""}


def examined(place, **sections):
    command = place.command("checked", **{**OPTIONS, **sections})
    return check.examine(resolve(command[1]).preset, "cpu")


def test_half_and_half_is_the_whole_and_what_is_read_is_cached(place, stage, monkeypatch):
    """With samples from references, validation, and captions that change."""
    shown = [str(stage / "held/0.bmp"), str(stage / "style/0.bmp")]
    prompts = [{"prompt": "make it red", "references": shown}, "apple"]
    sections = {**OPTIONS, "data": {**data(stage), "shuffle": True}, "validation": {"draws": 1, "every": 2},
                "samples": {"enabled": True, "steps": 1, "prompts": prompts, "width": 32, "height": 32, "every": 2,
                            "guidance": 2.0}}
    assert place.train("whole", **sections) == 0
    ask(monkeypatch, place, "parts", "stop", at=2)
    assert place.train("parts", **sections) == 130
    encoded, encode = [], Model.encode_reference
    monkeypatch.setattr(Model, "encode_reference", lambda model, image: encoded.append(1) or encode(model, image))
    assert place.train("parts", **sections) == 0
    assert equal(place.adapter("parts"), place.adapter("whole"))
    losses = [[e["loss"] for e in place.events(name, "step")] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    drawn = [sorted(place.runs.glob(f"{name}/samples/step-*.png")) for name in ("whole", "parts")]
    assert len(drawn[0]) == 6 and [p.read_bytes() for p in drawn[0]] == [p.read_bytes() for p in drawn[1]]
    assert len(encoded) == 2 * 2  # of the samples at steps 2 and 4; references of pictures are in the cache
    assert [e["prompt"] for e in place.events("whole", "sample")][:2] == ["make it red", "apple"]


def test_batches_have_references_of_one_size(place, stage):
    found = examined(place, data=data(stage))
    assert not found.problems and found.training is not None
    batches = Batches(found.training, 2, 1, 1, 0, 0)
    shapes = Counter()
    for step in range(12):
        (shape,) = {picture.shape for picture in batches.at(step, 0).pictures}
        shapes[shape] += 1
    assert len(shapes) == 2 and all(bucket == (32, 32) and len(sizes) == 2 for bucket, sizes in shapes)
    assert "32 x 32 from " in found.training.table(2)


@pytest.mark.full
def test_a_changed_reference_is_encoded_again_and_told_of(place, stage, tmp_path, monkeypatch):
    shutil.copytree(stage / "before", tmp_path / "before")
    shutil.copytree(stage / "style", tmp_path / "style")
    folders = [{"path": str(stage / "pictures"), "references": [str(tmp_path / "before"), str(tmp_path / "style")]}]
    sections = {**OPTIONS, "data": {"resolution": 32, "folders": folders, "validation_folder": "",
                                    "cache_folder": str(tmp_path / "cache")}}
    ask(monkeypatch, place, "changed", "stop", at=2)
    assert place.train("changed", **sections) == 130

    def entries():
        kinds = "references", "texts"
        return {path.name for kind in kinds for path in (tmp_path / "cache" / kind).rglob("*.safetensors")}

    before = entries()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "before/0.bmp")
    assert place.train("changed", **sections) == 0
    assert len(entries() - before) >= 2 and before < entries()
    said = json.dumps(place.events("changed", "warning"))
    assert "1 with changed references (0.png)" in said


def test_check_says_what_is_missing_in_a_sentence(place, stage):
    bare = {"resolution": 32, "folders": [str(stage / "pictures")], "validation_folder": ""}
    found = examined(place, data=bare)
    assert not found.problems
    assert len([note for note in found.notes if "is a model that edits" in note]) == 1
    missing = {"enabled": True, "prompts": [{"prompt": "red", "references": "nowhere.png"}]}
    (problem,) = examined(place, data=data(stage), samples=missing).problems
    assert problem.startswith("samples.prompts[0].references: nowhere.png: ")
    (problem,) = examined(place, data=data(stage, flip=True)).problems
    assert "flip is set, but pictures with references are cropped to their middle" in problem


@pytest.mark.parametrize("folders, said", [
    ((("a", 1, "train"), ("b", 0, "train"), ("c", 0, "regularisation")), "b and c have none"),
    ((("a", 0, "train"), ("b", 1, "validation")), "only validation folders have references"),
    ((("a", 1, "train"), ("b", 0, "validation")), ""),
    ((("a", 0, "train"), ("b", 0, "train")), ""),
])  # fmt: skip
def test_a_note_where_references_are_not_learned_from(folders, said):
    given = [Folder(path=path, references=("r",) * count, role=role) for path, count, role in folders]
    plain = ["plain"] if said.startswith("only") else []
    notes = reference_checks.idle(Data(folders=(*given, *plain)))
    assert len(notes) == bool(said) and all(said in note for note in notes)


@pytest.mark.parametrize("name, times", [("QwenImageEditPipeline", 4095), (SEVERAL, 575)])
def test_the_longest_reference_is_said(stage, monkeypatch, name, times):
    """The text encoder of the second sees a smaller picture than the VAE."""
    model = Model.skeleton(Base(path=str(stage / "base")))
    monkeypatch.setattr(Model, "edit_name", name)
    assert min(model.reference_size(times, 1)) > 0
    with pytest.raises(ValueError, match=f"no side is more than {times} times the other"):
        model.reference_size(times + 1, 1)
