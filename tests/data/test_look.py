"""What the window is shown of the data is what a training does with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modules.data.batches import Batches
from modules.data.captions import whole_caption
from modules.data.index import build_index
from modules.data.opening import open_picture
from modules.data.pictures import fit
from modules.preset.schema import Base, Data
from modules.training.look import Bases, answer_one, serve
from tests.data.conftest import Folder
from tests.tiny_sdxl import make_folder

ROOT = Path(__file__).parents[2]
STEP = 8  # of the tiny base, and the guess


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A reader of bases that has read a tiny one, and that one's place."""
    place = tmp_path_factory.mktemp("stage") / "base"
    make_folder(place.parent)
    return Bases(), str(place)


@pytest.fixture
def ask(bases):
    """Ask about the data of a preset; the one answer that is not progress."""

    def asking(what: str, data: Data, base: str = bases[1], batch: int = 3, **more) -> dict:
        preset = {
            "family": "sdxl",
            "base": Base(path=base).model_dump(mode="json"),
            "data": data.model_dump(mode="json"),
            "training": {"batch_size": batch, "steps": "wrong, and not looked at"},
            "adapter": None,
        }
        answers = []
        answer_one(json.dumps({"id": 7, "ask": what, "preset": preset, **more}), bases[0], answers.append)
        answers = [json.loads(json.dumps(answer)) for answer in answers if "progress" not in answer]
        assert len(answers) == 1 and answers[0]["id"] == 7
        return answers[0]

    return asking


@pytest.fixture
def data(folder, tmp_path) -> Data:
    """Two folders with every way to caption, repeat and turn a picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    folder.picture("10_x/wide.png", (300, 111), caption="wide, red, one, two, three")
    folder.picture("10_x/2_y/tall.jpg", (90, 200), caption=None).with_suffix(".TXT").write_text(" tall \n")
    folder.picture("bare.webp", caption=None)
    folder.picture("listed.png", caption="")
    folder.write("metadata.jsonl", '{"file_name": "listed.png", "text": "from metadata"}')
    folder.save("turned.jpg", Image.new("RGB", (160, 96)), exif=exif)
    folder.picture("pair.png", (40, 40), caption="both")
    folder.picture("pair.jpg", (40, 40), caption="both")
    second = Folder(tmp_path / "second")
    second.picture("wide.png", (201, 100), caption="x " * 100)
    folders = (str(folder.path), str(second.path))
    return Data(folders=folders, resolution=64, missing_captions="filename", shuffle=True, flip=True, trigger="sks")


def test_pictures_are_those_of_a_training(ask, data):
    found, index = ask("pictures", data), build_index(data, "training", STEP)
    names = ("name", "caption", "width", "height", "bucket", "repeats")
    assert [[row[name] for name in names] for row in found["pictures"]] == [
        [p.name, p.caption, p.width, p.height, list(p.bucket), p.repeats] for p in index.pictures
    ]
    assert [row["path"] for row in found["pictures"]] == [str(p.path) for p in index.pictures]
    assert {row["folder"] for row in found["pictures"]} == set(data.folders)
    assert set(found["notes"]) <= set(index.notes) and found["problems"] == []
    table = [line.replace(" x ", "x").split() for line in index.table(3).splitlines()[1:-1]]
    assert [[f"{b['size'][0]}x{b['size'][1]}", b["pictures"], b["repeats"], b["filled"]] for b in found["buckets"]] == [
        [size, int(pictures), int(repeats), int(filled)] for size, pictures, repeats, _, filled in table
    ]
    shown = sum(bucket["repeats"] + bucket["filled"] for bucket in found["buckets"])
    assert shown == 3 * Batches(index, 3, 1, 1, 0, seed=0).epochs.batches(0)


def test_where_captions_come_from_and_go_to(ask, data, folder):
    rows = {row["name"].split("/")[-1]: row for row in ask("pictures", data)["pictures"]}
    sources = {name: row["source"] for name, row in rows.items()}
    assert sources == {
        "wide.png": "txt", "tall.jpg": "txt", "bare.webp": "filename", "listed.png": "metadata", "turned.jpg": "txt",
        "pair.png": "txt", "pair.jpg": "txt",
    }  # fmt: skip
    assert rows["bare.webp"]["caption_file"] == str(folder.path / "bare.txt")
    assert rows["tall.jpg"]["caption_file"].endswith("tall.TXT") and rows["tall.jpg"]["caption"] == "tall"
    for policy, source in (("error", "missing"), ("empty", "empty")):
        found = ask("pictures", data.model_copy(update={"missing_captions": policy}))
        assert [row["name"] for row in found["pictures"] if row["source"] == source] == ["pictures/bare.webp"]
        assert len(found["problems"]) == (policy == "error")


def test_captions_that_are_cut(ask, data):
    found = ask("pictures", data)
    assert found["tokens"] and [row["name"] for row in found["pictures"] if row["too_long"]] == ["second/wide.png"]
    path = str(Path(data.folders[1]) / "wide.png")
    (first, *_) = ask("sees", data.model_copy(update={"caption_dropout": 0.0}), path=path)["draws"]
    assert first["cut"] and first["prompt"].startswith("sks, x x") and first["prompt"].endswith(first["cut"])
    assert first["chunks"] == []


def test_where_chunks_begin(ask, data):
    """The same base reads captions of several lengths, one question after the other."""
    longer = data.model_copy(update={"caption_dropout": 0.0, "caption_tokens": 150, "shuffle": False})
    assert ask("pictures", longer)["tokens"] == 150
    prompt = " ".join("x" * 160)
    path = str(Path(data.folders[1]) / "wide.png")
    plain = longer.model_copy(update={"trigger": "", "part_dropout": 0.0})
    first = ask("sees", plain, path=path, caption=prompt)["draws"][0]
    assert first["chunks"] == [2 * 75] and first["cut"] == " ".join("x" * 10)
    read = ask("sees", plain.model_copy(update={"caption_tokens": 225}), path=path, caption=prompt)["draws"][0]
    assert (read["chunks"], read["cut"]) == ([150, 300], "")
    assert ask("pictures", data)["tokens"] == 75


def test_draws_are_those_of_a_training(ask, data):
    index = build_index(data, "training", STEP)
    batches = Batches(index, 2, 1, 1, 0, seed=5)
    seen = [batches.at(step, 0) for step in range(6)]
    for batch in seen:
        for picture, position, caption, flip in zip(
            batch.pictures, batch.positions, batch.captions, batch.flips, strict=True
        ):
            draw = ask("sees", data, path=str(picture.path), seed=5, draws=12)["draws"][position]
            assert (draw["position"], draw["prompt"], draw["flip"]) == (position, caption, flip)
    assert len({caption for batch in seen for caption in batch.captions}) > 4


def test_validation_pictures_are_seen_in_one_way(ask, folder):
    path = folder.picture("a.png", caption="one, two")
    validation = {"path": str(folder.path), "role": "validation"}
    data = Data(folders=(validation,), resolution=64, shuffle=True, caption_dropout=1.0, trigger="sks")
    assert [row["caption"] for row in ask("pictures", data, which="validation")["pictures"]] == ["one, two"]
    (draw,) = ask("sees", data, path=str(path), which="validation")["draws"]
    wanted = {"position": 0, "prompt": whole_caption(data, "one, two"), "flip": False, "chunks": [], "cut": ""}
    assert draw.items() >= {**wanted, "variant": None}.items()
    assert ask("pictures", Data(), which="validation")["problems"] == []
    assert "data.folders has no folder of the role train" in ask("pictures", data)["problems"][0]


@pytest.mark.parametrize("size", [(300, 111), (90, 200), (40, 40), (64, 64), (65, 97)])
def test_the_crop_is_the_part_that_is_trained_on(ask, folder, size):
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    waves = np.stack([127 + 120 * np.sin(x / 9), 127 + 120 * np.cos(y / 7), (x + y) % 256], -1)
    path = folder.save("a.png", Image.fromarray(waves.astype(np.uint8)))
    found = ask("sees", Data(folders=(str(folder.path),), resolution=64), path=str(path))
    bucket, (left, top, width, height) = tuple(found["bucket"]), found["crop"]
    assert left >= 0 and top >= 0 and left + width <= size[0] + 1e-9 and top + height <= size[1] + 1e-9
    picture = open_picture(path)
    part = picture.resize(bucket, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
    ours = torch.from_numpy(np.array(part)).permute(2, 0, 1) / 127.5 - 1
    off = (ours - fit(picture, bucket)[0]).abs() * 127.5  # of 255 shades
    assert off.max() < 2.01 and off.mean() < 0.05
    assert found["resized"][0] >= bucket[0] and found["resized"][1] >= bucket[1]


def test_an_edited_caption_is_shown_before_it_is_saved(ask, data):
    path = str(Path(data.folders[0]) / "bare.webp")
    plain = data.model_copy(update={"shuffle": False, "caption_dropout": 0.0})
    assert {draw["prompt"] for draw in ask("sees", plain, path=path)["draws"]} == {"sks, bare"}
    assert {draw["prompt"] for draw in ask("sees", plain, path=path, caption="new")["draws"]} == {"sks, new"}
    assert {draw["prompt"] for draw in ask("sees", plain, path=path, caption="")["draws"]} == {"sks"}


def test_what_is_broken_is_said_and_the_rest_is_shown(ask, data, folder):
    folder.write("broken.png", "not a picture")
    folder.picture("latin.png").with_suffix(".txt").write_bytes("café".encode("latin-1"))
    found = ask("pictures", data, base="nowhere")
    rows = {row["name"]: row for row in found["pictures"]}
    broken, latin = rows["pictures/broken.png"], rows["pictures/latin.png"]
    assert "is not a PNG" in broken["problem"] and broken["width"] is broken["bucket"] is broken["enlarged"] is None
    assert "UTF-8" in latin["problem"] and latin["width"] == 64
    assert sum(bool(row["problem"]) for row in rows.values()) == 2
    assert all(problem.startswith("data.folders:") for problem in found["problems"]) and len(found["problems"]) == 2
    assert found["tokens"] is None and {row["too_long"] for row in rows.values()} == {None}
    assert "base.path: nowhere" in found["notes"][-1] and "multiples of 8 px" in found["notes"][-1]
    small = ask("pictures", data.model_copy(update={"resolution": 16, "buckets": False}), base="nowhere")
    assert small["buckets"][0]["size"] == [16, 16]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"ask": "nothing"}, "ask: 'nothing' is not one of pictures, sees"),
        ({"path": None}, "path: None is not of the type str"),
        ({"path": "no.png"}, "no.png: no such file"),
        ({"path": __file__, "caption": ""}, "is not a PNG"),
        ({"draws": 0}, "draws: 0 is not between 1 and 1000"),
        ({"seed": "x"}, "seed: 'x' is not of the type int"),
        ({"which": "both"}, "which: 'both' is not one of training, validation"),
        ({"preset": {"data": {"resolution": 5, "folders": 3}}}, "data.folders: 3 is not a list; data.resolution: 5"),
        ({"preset": {"data": {"folder": "x"}}}, "data.folder: unknown; did you mean folders?"),
        ({"preset": 5}, "preset: 5 is not of the type dict"),
    ],
)
def test_a_broken_request_is_answered_with_a_sentence(folder, change, words):
    request = {"id": 1, "ask": "sees", "path": str(folder.picture("a.png")), "preset": {}, **change}
    answers = []
    serve([json.dumps(request)], answers.append)
    assert len(answers) == 1 and answers[0]["id"] == 1 and words in answers[0]["error"]


def test_a_picture_of_another_folder_needs_a_caption(ask, data, tmp_path):
    path = Folder(tmp_path / "third").picture("a.png")
    assert "is not one of the training pictures of data.folders" in ask("sees", data, path=str(path))["error"]
    assert ask("sees", data, path=str(path), caption="x")["bucket"] == [64, 64]


@pytest.mark.full
def test_the_process_answers_one_line_each_and_ends_with_its_input(folder):
    path = str(folder.picture("ä.png"))
    preset = {"data": {"folders": [str(folder.path)], "resolution": 64}, "family": "nothing"}
    requests = [
        json.dumps({"id": "a", "ask": "pictures", "preset": preset}),
        "{oops",
        "",
        "[1]",
        json.dumps({"id": 3, "ask": "sees", "preset": preset, "path": path, "draws": 2}, ensure_ascii=False),
    ]
    done = subprocess.run(
        [sys.executable, "scripts/look.py"], cwd=ROOT, input="\n".join(requests).encode(), capture_output=True,
        timeout=120, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=True,
    )  # fmt: skip
    first, broken, other, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["id"] == "a" and [row["path"] for row in first["pictures"]] == [path]
    assert "no such family: 'nothing'" in first["notes"][-1]
    assert broken["id"] is None and "line of JSON" in broken["error"] and "object" in other["error"]
    assert last["id"] == 3 and len(last["draws"]) == 2


def test_the_role_and_sizes_of_each_picture_are_told(ask, folder, tmp_path):
    """What the rows say is what the index of a training has, entry by entry and resolution by resolution."""
    folder.picture("a.png", (64, 64))
    folder.picture("small.png", (20, 20))
    other = Folder(tmp_path / "reg")
    other.picture("b.png", (64, 32))
    entries = [
        str(folder.path),
        {"path": str(other.path), "role": "regularisation", "loss_weight": 0.5, "trigger": "tom"},
        {"path": str(folder.path), "repeats": 0.5, "resolution": 48},
        {"path": str(other.path), "role": "validation"},
    ]
    data = Data(folders=entries, resolutions=(32, 64), resolution_shares=(1, 0.5), max_enlargement=2, caption_dropout=0)
    rows, index = ask("pictures", data)["pictures"], build_index(data, "training", STEP)
    assert [(row["entry"], row["role"], row["loss_weight"]) for row in rows] == [
        (0, "train", 1.0), (0, "train", 1.0), (1, "regularisation", 0.5), (2, "train", 1.0), (2, "train", 1.0)
    ]  # fmt: skip
    told = [(row["path"], row["entry"], one["resolution"], tuple(one["bucket"]), one["repeats"])
            for row in rows for one in row["resolutions"]]  # fmt: skip
    assert told == [(str(p.path), p.entry, p.options.resolution, p.bucket, p.repeats) for p in index.pictures]
    assert len(told) == 2 + 1 + 2 + 1 + 1  # small.png at 32 px only, and at 48 px for want of a smaller one
    assert rows[0]["repeats"] == 1.5 and rows[3]["repeats"] == 0.5
    held = ask("pictures", data, which="validation")["pictures"]
    assert [(row["entry"], row["role"]) for row in held] == [(3, "validation")]

    picture = str(folder.path / "a.png")
    assert [ask("sees", data, path=picture, **more)["resolution"] for more in (
        {}, {"resolution": 64}, {"entry": 2}, {"entry": 0, "resolution": 32}
    )] == [32, 64, 48, 32]  # fmt: skip
    assert ask("sees", data, path=picture, resolution=64)["bucket"] == [64, 64]
    assert "resolution: 99 is not one of those" in ask("sees", data, path=picture, resolution=99)["error"]
    for caption, typed in (("a thing", {}), ("typed", {"caption": "typed"})):
        draws = ask("sees", data, path=str(other.path / "b.png"), **typed)["draws"]
        assert {draw["prompt"] for draw in draws} == {f"tom, {caption}"}
        assert ask("sees", data, path=picture, entry=2, **typed)["resolution"] == 48
