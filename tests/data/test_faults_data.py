"""Data folders and caches as they really are: names of any bytes, pipes and devices, pictures that would fill the
memory, and caches that other runs have filled."""

import csv
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modules.data.index import DataProblems, build_index
from modules.data.names import shown
from modules.preset.data_options import Data
from modules.training.command import main
from tests.training.runs import ROOT, Place, draw_pictures, equal, make_base

ODD = {
    "caf\udce9.png": "caf\\xe9.png",
    "caf\\xe9.png": "caf\\\\xe9.png",
    "two\nlines.png": "two\\nlines.png",
    "a\ttab.png": "a\\ttab.png",
    "\x1b[2Jred.png": "\\x1b[2Jred.png",
    "back\u202egnp.png": "back\\u202egnp.png",
    "\u2028line.png": "\\u2028line.png",
    "\x85next.png": "\\u0085next.png",
    "\udcff\udcfe": "\\xff\\xfe",
    "ünï 猫.png": "ünï 猫.png",
}
"""Legal names, and how they are written."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """A tiny base and pictures that are larger than those of most tests: rounding shows in them."""
    folder = tmp_path_factory.mktemp("stage")
    make_base(folder)
    draw_pictures(folder / "pictures", 8, 0)
    draw_pictures(folder / "validation", 2, 1)
    return folder


@pytest.fixture
def place(stage: Path, tmp_path: Path) -> Place:
    return Place(stage, tmp_path)


# -- one adapter, whatever is in the cache ----------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from modules.data import cache
from modules.training.command import main

put, left = cache.Store.put, [int(sys.argv[1])]

def put_and_die(self, key, tensors):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return put(self, key, tensors)

cache.Store.put = put_and_die
main(sys.argv[2:])
"""
"""A training that is killed after so many items of its caches."""


@pytest.mark.full
def test_the_adapter_does_not_depend_on_the_cache(place, tmp_path):
    """Cold, warm, none, half filled by a killed run, and filled by another run with other pictures and batches."""
    section = {"resolution": 32, "caption_dropout": 0.3, "flip": True}

    def command(name: str, folder: str, *more: str, **data) -> list[str]:
        given = {**section, **data, "cache_folder": str(tmp_path / folder)}
        return place.command(name, "--training.steps", "3", *more, data=given)

    def train(name: str, folder: str, *more: str, **data):
        assert main(command(name, folder, *more, **data)) == 0
        return place.adapter(name)

    cold = train("cold", "one")
    assert equal(cold, train("warm", "one"))
    assert equal(cold, train("none", "unused", cache=False))

    killed = [sys.executable, "-c", KILLED, "7", *command("half", "half")]
    assert subprocess.run(killed, cwd=ROOT, check=False, timeout=300).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "half").rglob("*.safetensors"))) == 7
    assert equal(cold, train("half", "half")), "filled in part by a killed run"

    few = tmp_path / "few"
    draw_pictures(few, 3, 0)  # the first of all of them
    (few / "0.txt").write_text("another caption", encoding="utf-8")
    train("other", "shared", "--training.batch_size", "1", folders=[str(few)], validation_folder="")
    assert equal(cold, train("after", "shared")), "filled by another run"


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_are_written_on_one_line_and_never_alike():
    names = [*ODD, *ODD.values(), "a\\\nb", "a\\nb", "a\nb", "\x9b", "\udc9b", "\U000e0001", "\ud83d"]
    written = [shown(name) for name in names]
    assert len(set(written)) == len(set(names))
    for text in written:
        assert text.encode("utf-8") and len(text.splitlines()) == 1 and "\t" not in text and "\x1b" not in text
    assert {name: shown(name) for name in ODD} == ODD


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with everything that a file system may hold beside good pictures."""
    folder = tmp_path / "odd"
    draw_pictures(folder, 1, 3)
    for number, name in enumerate(name for name in ODD if name.endswith(".png")):
        os.link(folder / "0.png", folder / name) if number else draw_one(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"red apple {number}\nface", encoding="utf-8")
    inner = folder / "2_caf\udce9\n"
    inner.mkdir()
    draw_one(inner / "b.png")
    (inner / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "blue heart"}', encoding="utf-8")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "0_pipe.txt")
    os.mkfifo(folder / "pipe_too.txt")
    (folder / "x.png").mkdir()
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "x.png" / "metadata.jsonl")
    return folder


def draw_one(path: Path) -> None:
    pixels = np.random.default_rng(sum(os.fsencode(path.name))).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_whatever_the_file_system_holds_is_trained_on(place, odd, tmp_path):
    """Pipes are never opened: nobody writes into them, so that would last for ever."""
    data = {"resolution": 16, "folders": [str(odd)], "cache_folder": str(tmp_path / "cache"), "validation_folder": ""}
    index_of(odd)
    assert main(place.command("run", "--training.steps", "2", data=data)) == 0
    text = (place.runs / "run" / "pictures.tsv").read_text(encoding="utf-8")
    heading, *rows = csv.reader(text.splitlines(keepends=True), delimiter="\t")
    assert {row[0] for row in rows} == {
        "0.png", "2_caf\\xe9\\n/b.png", *(w for name, w in ODD.items() if name.endswith(".png"))
    }
    assert all(len(row) == len(heading) for row in rows)
    messages = " ".join(event["message"] for event in place.events("run", "warning"))
    for said in ("pipe.png", "0_pipe.txt", "pipe_too.txt", "x.png/metadata.jsonl", "pipes, sockets and devices"):
        assert said in messages


def test_a_name_that_is_not_utf8_is_trained_on(place, tmp_path):
    """Alone: nothing else in the folder is odd."""
    folder = tmp_path / "odd"
    draw_pictures(folder, 1, 3)
    draw_one(folder / "caf\udce9.png")
    (folder / "caf\udce9.txt").write_text("red apple", encoding="utf-8")
    data = {"resolution": 16, "folders": [str(folder)], "cache_folder": str(tmp_path), "validation_folder": ""}
    for more in (["--check"], ["--training.steps", "1"]):
        assert main(place.command("run", *more, data=data)) == 0
    assert "\ncaf\\xe9.png\t" in (place.runs / "run" / "pictures.tsv").read_text(encoding="utf-8")


def within(seconds: float, work):
    """What `work` returns or raises, unless it takes longer."""
    found: list = []

    def working():
        try:
            found.append(work())
        except Exception as error:  # noqa: BLE001  raised again below
            found.append(error)

    thread = threading.Thread(target=working, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"it takes more than {seconds} s"
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def test_events_hold_any_text(place):
    from modules.training.events import Events, read_events

    place.runs.mkdir(exist_ok=True)
    with Events(place.runs) as events:
        events.write("warning", {"message": "caf\udce9 \ud800\n\x1b", "detail": ""})
    (event,) = read_events(place.runs / "events.jsonl")
    assert event["message"] == "caf\udce9 \ud800\n\x1b"
    assert len((place.runs / "events.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    assert "caf\\udce9" in (place.runs / "log.txt").read_text(encoding="utf-8")


def index_of(folder: Path, **options):
    data = Data(folders=(str(folder),), resolution=64).model_copy(update=options)
    return within(60, lambda: build_index(data, "training", 8))


def problems_of(folder: Path, **options) -> list[str]:
    with pytest.raises(DataProblems) as raised:
        index_of(folder, **options)
    for problem in raised.value.problems:
        assert problem.encode("utf-8") and len(problem.splitlines()) == 1
    return raised.value.problems


def test_file_names_as_captions_are_text(folder):
    folder.picture("caf\udce9.png", caption=None)
    (picture,) = index_of(folder.path, missing_captions="filename").pictures
    assert picture.caption == "caf\ufffd"


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"file_name": "a.png", "text": "half \\ud83d"}', "half a surrogate pair"),
        ('{"file_name": "no\\ud83d.png", "text": "x"}', "missing file, no\\ud83d.png"),
        ('{"file_name": "no\\n\\u001b.png", "text": "x"}', "missing file, no\\n\\x1b.png"),
        ('{"file_name": "a\\u0000.png", "text": "x"}', "missing file"),
        ('{"file_name": "' + "a" * 300 + '.png", "text": "x"}', "missing file"),
        ('{"file_name": "pipe.png", "text": "x"}', "not one of the pictures"),
        ("[" * 100_000, "nested too deep"),
        ('{"file_name": "a.png", "text": ' + "9" * 5000 + "}", "line 1"),
    ],
)
def test_lines_of_metadata(folder, line, words):
    folder.picture("a.png")
    os.mkfifo(folder.path / "pipe.png")
    folder.write("metadata.jsonl", line)
    (problem,) = problems_of(folder.path)
    assert "metadata.jsonl line 1" in problem and words in problem


# -- what is no file --------------------------------------------------------------------------------------------------


def test_what_is_no_file_is_never_opened(folder, tmp_path):
    folder.picture("a.png")
    os.mkfifo(folder.path / "pipe.png")
    (folder.path / "linked.png").symlink_to("pipe.png")
    (folder.path / "zeros.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder.path)  # a socket's path has few letters
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
        index = index_of(folder.path)
    assert [picture.name for picture in index.pictures] == ["a.png"]
    (note,) = index.notes
    assert all(name in note for name in ("pipe.png", "linked.png", "zeros.png", "socket.png"))


def test_links_to_nowhere_are_told_of(folder):
    folder.picture("a.png")
    (folder.path / "loop.png").symlink_to("loop.png")
    (folder.path / "gone.png").symlink_to("nowhere.png")
    (folder.path / "a.txt").unlink()
    (folder.path / "a.txt").symlink_to("a.txt")
    problems = problems_of(folder.path, missing_captions="empty")
    assert len(problems) == 3
    circle, nowhere = "is a link that leads back to itself", "is a link to nowhere.png, which does not exist"
    for name, words in (("loop.png", circle), ("gone.png", nowhere), ("a.txt", circle)):
        assert sum(f"/{name}: " in problem and words in problem for problem in problems) == 1


def test_a_pipe_that_took_a_picture_s_place(folder):
    from modules.data.captions import read_text
    from modules.data.opening import open_picture, read_size

    path = folder.path / "pipe.png"
    os.mkfifo(path)
    for read in (open_picture, read_size, read_text):
        with pytest.raises(ValueError, match=r"pipe\.png: (it )?is not a regular file"):
            within(5, partial(read, path))


def test_folders_deeper_than_the_stack(tmp_path):
    """Every name is one letter: a path has at most 4,096 bytes."""
    top = here = tmp_path / "d"
    here.mkdir()
    for _ in range(1010):
        here = here / "d"
        here.mkdir()
    Image.new("RGB", (64, 64)).save(here / "a.png")
    (here / "a.txt").write_text("deep")
    try:
        assert [picture.caption for picture in index_of(top).pictures] == ["deep"]
    finally:
        subprocess.run(["rm", "-r", top], check=True)  # shutil.rmtree calls itself


@pytest.mark.parametrize("given", ["x" * 300, "a/" * 3000, "zero\0byte", "loop", "pictures/a.png/x", "line\nend\udce9"])
def test_folders_that_cannot_be(folder, monkeypatch, given):
    folder.picture("a.png")
    monkeypatch.chdir(folder.path.parent)
    Path("loop").symlink_to("loop")
    data = Data.model_construct(**{**Data(resolution=64).__dict__, "folders": (given,)})
    with pytest.raises(DataProblems) as raised:
        build_index(data, "training", 8)
    (problem,) = raised.value.problems
    assert problem.startswith("data.folders ") and len(problem.splitlines()) == 1 and problem.encode("utf-8")


# -- pictures that are too much ---------------------------------------------------------------------------------------


def png(width: int, height: int, data: bytes = b"", more: bytes = b"") -> bytes:
    """A PNG file with this head, whatever its data are."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bombs(folder: Path) -> dict[str, str]:
    """Files that look small and are not, or are nothing; a word of what is to be said of each."""
    zeros = zlib.compress(bytes(50_000_000), 9)
    text = b"Comment\0\0" + zeros
    Image.new("L", (8, 8)).save(folder / "head.gif")
    gif = (folder / "head.gif").read_bytes()
    content = {
        "wide.png": (png(60_000, 60_000, zeros), "make it smaller"),
        "huge.png": (png(2**31 - 1, 2**31 - 1, zeros), "make it smaller"),
        "none.png": (png(0, 5), "convert it"),
        "text.png": (png(8, 8, zlib.compress(bytes(200)),
                         struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))),
                     "save it again"),
        "empty.png": (b"", "is empty"),
        "empty.jpg": (b"", "is empty"),
        "head.bmp": (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
                     "make it smaller"),
        "head.gif": (gif[:6] + b"\xff" * 4 + gif[10:], "make it smaller"),
    }
    for name, (data, _) in content.items():
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text("a bomb", encoding="utf-8")
    cut = folder / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:5000])
    cut.with_suffix(".txt").write_text("a bomb", encoding="utf-8")
    return {name: words for name, (_, words) in content.items()} | {"cut.jpg": "save it again"}


def test_pictures_that_are_too_much_are_told_of_at_once(place, folder, capsys):
    expected = bombs(folder.path)
    data = {"resolution": 16, "folders": [str(folder.path)], "validation_folder": ""}
    begun = time.monotonic()
    found = problems_of(folder.path)
    assert time.monotonic() - begun < 10
    assert main(place.command("bombs", "--check", "--json", data=data)) == 2
    for problems in (found, json.loads(capsys.readouterr().out)["problems"]):
        assert len(problems) == len(expected)
        for name, words in expected.items():
            assert sum(f"/{name}: " in problem and words in problem for problem in problems) == 1, (name, problems)
