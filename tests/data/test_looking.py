"""Sets of pictures as a whole: many of them, broken ones, some that look the same, and what was seen before."""

import json
import os
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from modules.data import looking, twins, workers
from modules.data.index import DataProblems, build_index
from modules.data.looking import Look, look, record_of
from modules.data.opening import content_key, open_picture, read_size
from modules.data.twins import pairs, signature
from modules.preset.data_options import Data
from tests.data.crashing import Nowhere, crash


def data_of(folder, **options) -> Data:
    given = {"resolution": 64, "missing_captions": "empty", "cache_folder": str(folder.path.parent / "cache")} | options
    return Data(folders=(str(folder.path),), **given)


def index_of(folder, progress=None, **options):
    return build_index(data_of(folder, **options), "training", 32, progress)


def smooth(seed: int, size=(240, 160)) -> Image.Image:
    """A picture as photographs are: large shapes, some detail."""
    draw, bicubic = np.random.default_rng(seed), Image.Resampling.BICUBIC
    layers = [
        np.asarray(Image.fromarray(draw.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(size, bicubic))
        for n in (3, 6, 24)
    ]
    return Image.fromarray((0.5 * layers[0] + 0.35 * layers[1] + 0.15 * layers[2]).astype(np.uint8))


# -- workers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Processes and a record from the first picture on."""
    monkeypatch.setattr(workers, "WORTH", 1)
    monkeypatch.setattr(workers, "COUNT", 2)
    monkeypatch.setattr(workers, "CHUNK", 3)
    monkeypatch.setattr(looking, "WORTH", 1)


def test_processes_find_the_same_as_threads(folder, few, monkeypatch):
    for number in range(10):
        folder.picture(f"{number}.png", (20 + number, 30))
    folder.write("cut\udce9.png", (folder.path / "1.png").read_bytes()[:200])
    paths = sorted(folder.path.glob("*.png"))
    found = list(workers.each(look, paths, 2))
    monkeypatch.setattr(workers, "WORTH", 100)
    alone = list(workers.each(look, paths, 2))
    assert [str(one) for one in found] == [str(one) for one in alone]
    assert isinstance(found[-1], ValueError) and "cut\\xe9.png" in str(found[-1])
    assert found[0] == Look((20, 30), content_key(open_picture(paths[0])), signature(open_picture(paths[0])), "")


def test_a_decoder_that_crashes_costs_one_picture(folder, few):
    for number in range(8):
        folder.picture(f"{number}.png")
    paths = sorted(folder.path.glob("*.png"))
    found = list(workers.each(crash, paths, 2))
    assert [isinstance(one, ValueError) for one in found] == [path.name == "3.png" for path in paths]
    assert "3.png" in str(found[3]) and "ended the process" in str(found[3])


def test_where_no_process_starts_the_work_is_done_here(folder, few, capfd):
    for number in range(8):
        folder.picture(f"{number}.png", (20 + number, 30))
    found = list(workers.each(Nowhere(), sorted(folder.path.glob("*.png")), 2))
    assert found == [(20 + number, 30) for number in range(8)]


def test_workers_import_no_torch(folder, few):
    import subprocess
    import sys

    code = workers.PROGRAM.replace("serve()", "import modules.data.looking; assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code, str(workers.ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_workers_end(folder, few):
    import psutil

    for number in range(8):
        folder.picture(f"{number}.png")
    before = set(psutil.Process().children())
    answers = workers.each(read_size, sorted(folder.path.glob("*.png")), 2)
    assert next(answers) == (64, 64)
    assert len(set(psutil.Process().children()) - before) == 2
    answers.close()
    assert not set(psutil.Process().children()) - before


def test_large_pictures_are_looked_at_one_by_one(folder, few, monkeypatch):
    folder.picture("a.png", (32, 32))
    folder.picture("b.png", (200, 100))
    folder.picture("c.png", (40, 32))
    assert [p.name for p in index_of(folder, resolution=32).pictures] == ["a.png", "b.png", "c.png"]
    alone: list = []
    real = looking.workers.each

    def watched(work, paths, *count, **more):
        if work is looking.look_alone:
            alone.extend(path.name for path in paths)
        return real(partial(look, most=3000) if work is look else work, paths, *count, **more)

    monkeypatch.setattr(looking.workers, "each", watched)
    found = looking.looks(sorted(folder.path.glob("*.png")), None)
    assert alone == ["b.png"] and {path.name: one.size for path, one in found.items()} == {
        "a.png": (32, 32), "b.png": (200, 100), "c.png": (40, 32)
    }  # fmt: skip


# -- the record -------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(few, monkeypatch):
    """Names of the pictures that are opened."""
    monkeypatch.setattr(workers, "WORTH", 1000)
    names: list[str] = []
    real = looking.open_with_note

    def counted(path, most=0):
        names.append(path.name)
        return real(path, most)

    monkeypatch.setattr(looking, "open_with_note", counted)
    return names


@pytest.fixture
def later(monkeypatch):
    """The clock, a minute on: what is there now is old enough to be trusted."""
    real = time.time_ns
    monkeypatch.setattr(looking.time, "time_ns", lambda: real() + 60 * 10**9)


def test_what_was_seen_is_not_opened_again(folder, opened, later):
    folder.save("b.png", Image.new("RGB", (64, 64), (9, 9, 9)), icc_profile=b"no profile")
    folder.picture("a.png")
    moves: list = []
    first = index_of(folder)
    assert sorted(opened) == ["a.png", "b.png"]
    again = index_of(folder, progress=lambda *move: moves.append(move))
    assert again == first and len(opened) == 2 and moves == [(2, 2)] and any("profile" in note for note in first.notes)
    folder.picture("c.png")
    assert len(index_of(folder).pictures) == 3 and opened[2:] == ["c.png"]
    keys = [[picture.key for picture in index_of(folder, cache=cache).pictures] for cache in (False, True)]
    assert keys[0] == keys[1] and len(opened) == 6


@pytest.mark.parametrize("how", ["same size and time", "renamed over", "damaged"])
def test_a_changed_picture_is_opened_again(folder, opened, later, how):
    path = folder.save("a.bmp", Image.new("RGB", (64, 64), "red"))
    folder.picture("b.png")
    before = index_of(folder).pictures[0]
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    other = folder.save("z.bmp", Image.new("RGB", (64, 64), "blue"))
    if how == "renamed over":
        other.rename(path)
    elif how == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.write_bytes(other.read_bytes())
    os.utime(path, ns=times)
    if how == "damaged":
        with pytest.raises(DataProblems, match=r"a\.bmp"):
            index_of(folder)
    else:
        after = index_of(folder).pictures[0]
        assert after.name == before.name and after.key != before.key


def test_a_young_picture_is_opened_again(folder, opened):
    """The clock of a file system may be too coarse to show a change just after it was read."""
    folder.picture("a.png")
    index_of(folder)
    index_of(folder)
    assert opened == ["a.png", "a.png"]


@pytest.mark.parametrize("how", ["bit", "cut", "version", "empty", "folder"])
def test_a_damaged_record_is_not_used(folder, opened, later, how, monkeypatch):
    folder.picture("a.png")
    folder.picture("b.png")
    index = index_of(folder)
    record = record_of(folder.path.parent / "cache", [folder.path])
    content = record.read_bytes()
    if how == "bit":
        at = content.index(index.pictures[0].key.encode())
        record.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    elif how == "version":
        monkeypatch.setattr(looking, "FORMAT", looking.FORMAT + 1)
    elif how == "folder":
        record.unlink()
        record.mkdir()
    else:
        record.write_bytes(content[: len(content) // 2] if how == "cut" else b"")
    assert index_of(folder) == index and len(opened) == 4


# -- broken pictures --------------------------------------------------------------------------------------------------


def test_broken_pictures_are_skipped_on_request(folder):
    folder.picture("good.png")
    cut = folder.write("cut.jpg", folder.picture("other.jpg", (200, 200)).read_bytes()[:2000])
    (folder.path / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DataProblems) as raised:
        index_of(folder)
    assert len(raised.value.problems) == 2
    index = index_of(folder, broken="skip")
    assert [picture.name for picture in index.pictures] == ["good.png", "other.jpg"]
    assert [name for name, _ in index.skipped] == ["cut.jpg", "gone.png"]
    assert str(cut) in index.skipped[0][1] and "nowhere.png, which does not exist" in index.skipped[1][1]
    (note,) = [one for one in index.notes if "skipped" in one]
    assert "2: cut.jpg, gone.png" in note and index.skipped[0][1] in note
    assert index.skipped_rows().splitlines()[0] == "name\treason" and len(index.skipped_rows().splitlines()) == 3
    (folder.path / "good.png").write_bytes(b"x")
    (folder.path / "other.jpg").unlink()
    with pytest.raises(DataProblems, match="none of its 3 pictures can be read"):
        index_of(folder, broken="skip")


def test_thousands_of_broken_pictures_are_not_thousands_of_sentences(folder):
    for number in range(100):
        folder.write(f"{number:03}.png", "x")
    with pytest.raises(DataProblems) as raised:
        index_of(folder)
    *first, last = raised.value.problems
    assert len(first) == 20 and "80: 020.png" in last and 'data.broken "skip"' in last


# -- pictures that look the same --------------------------------------------------------------------------------------


def test_the_same_picture_in_other_forms(folder):
    for number in range(12):
        folder.save(f"{number:02}.png", smooth(number))
    folder.save("format.jpg", smooth(0), quality=85)
    folder.save("small.webp", smooth(1).resize((80, 53), Image.Resampling.LANCZOS))
    folder.save("large.png", smooth(2).resize((600, 400), Image.Resampling.LANCZOS))
    folder.save("cropped.png", smooth(3).crop((4, 3, 236, 157)))
    folder.save("copy.png", smooth(4))
    index = index_of(folder)
    assert set(index.alike) == {
        ("00.png", "format.jpg"), ("01.png", "small.webp"), ("02.png", "large.png"), ("03.png", "cropped.png")
    }  # fmt: skip
    (note,) = [one for one in index.notes if "look the same" in one]
    assert "(4: 03.png and cropped.png; " in note
    (same,) = [one for one in index.notes if "same content" in one]
    assert "1: 04.png, copy.png" in same


def test_different_pictures_do_not_look_the_same():
    colours = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue", "white", (250, 250, 244))]
    mirrored = [smooth(1), smooth(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    recoloured = [Image.merge("RGB", smooth(2).split()[turn:] + smooth(2).split()[:turn]) for turn in range(3)]
    images = [*colours, *mirrored, *recoloured, *map(smooth, range(100, 300))]
    assert pairs([signature(image) for image in images], [str(place) for place in range(len(images))]) == []


@pytest.mark.full
def test_pairs_are_found_among_many_and_in_little_time():
    """Not each with each: of these there would be 200 million."""
    draw = np.random.default_rng(0)
    table = draw.integers(0, 256, (20_000, twins.BYTES), dtype=np.uint8)
    table[10_000:10_100] = np.clip(table[:100].astype(int) + draw.integers(-9, 10, (100, twins.BYTES)), 0, 255)
    keys = [str(place) for place in range(len(table))]
    begun = time.process_time()
    found = pairs([row.tobytes() for row in table], keys)
    assert found == [(place, 10_000 + place) for place in range(100)]
    table[:] = table[0]
    assert len(pairs([row.tobytes() for row in table], keys)) == len(table) - 1
    assert pairs([row.tobytes() for row in table], ["same"] * len(table)) == []
    assert time.process_time() - begun < 60


# -- files of others, and names ---------------------------------------------------------------------------------------


def test_files_of_file_managers_are_passed_over(folder):
    folder.picture("a.png")
    for name in ("@eaDir/a.png/SYNOFILE_THUMB_M.jpg", ".thumbnails/a.png", "__MACOSX/._a.png", "sub/@eaDir/b.jpg",
                 "lost+found/c.png", "$RECYCLE.BIN/d.png", "#recycle/e.png", "._a.png", ".b.png", ".@__thumb/a.png"):
        folder.picture(name, caption=None)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "sub/.DS_Store"):
        folder.write(name, "x")
    index = index_of(folder, missing_captions="error")
    assert [picture.name for picture in index.pictures] == ["a.png"]
    (note,) = index.notes
    assert "passed over (14: " in note and "@eaDir" in note


NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize("picture, caption", [(NFC, NFD), (NFD, NFC)])
def test_names_in_another_normal_form(folder, picture, caption):
    folder.picture(f"{picture}/{picture}.png", caption=None)
    folder.write(f"{picture}/{caption}.txt", "a cup")
    folder.picture(f"{picture} listed.png", caption=None)
    folder.write("metadata.jsonl", json.dumps({"file_name": f"{caption} listed.png", "text": "a list"}))
    index = index_of(folder, missing_captions="error")
    assert {p.caption for p in index.pictures} == {"a cup", "a list"} and index.notes == ()


def test_both_normal_forms_beside_each_other(folder):
    if not (folder.picture(f"{NFC}.png") and not (folder.path / f"{NFD}.png").exists()):
        pytest.skip("this file system knows one form only")
    for name in (NFC, NFD):
        folder.picture(f"{name}.png", caption=f"of {name}")
    assert {p.name: p.caption for p in index_of(folder).pictures} == {
        f"{name}.png": f"of {name}" for name in (NFC, NFD)
    }


def test_the_longest_names(folder):
    for name in ("a" * 251, "\u00e9" * 125 + "a", "\udce9" * 251):
        folder.picture(f"{name}.png", caption="long")
    assert [picture.caption for picture in index_of(folder).pictures] == ["long"] * 3
