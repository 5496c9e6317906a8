"""Reading a folder: what is found, what is refused, what is remarked on."""

import csv
import io
import json
import re

import pytest
from PIL import Image
from pydantic import ValidationError

from modules.data.index import DataProblems, build_index, overlap
from modules.data.roots import labels
from modules.preset.data_options import Data
from tests.data.conftest import Folder


def index_of(folder, step=32, progress=None, **options):
    data = Data(folders=(str(folder.path),), **({"resolution": 64} | options))
    return build_index(data, "training", step, progress)


def problems_of(folder, **options):
    with pytest.raises(DataProblems) as raised:
        index_of(folder, **options)
    return raised.value.problems


def test_all_pictures_in_order(folder):
    for name in ("b.png", "a.JPG", "sub/c.webp", "a b é.png"):
        folder.picture(name, caption=f"caption of {name}")
    seen = []
    index = index_of(folder, progress=lambda done, total: seen.append((done, total)))
    assert [p.name for p in index.pictures] == ["a b é.png", "a.JPG", "b.png", "sub/c.webp"]
    assert all(p.caption == f"caption of {p.name}" for p in index.pictures)
    assert seen == [(n, 4) for n in range(1, 5)]
    assert index.notes == ()


def test_buckets_lose_nothing(folder):
    sizes = [(64, 64), (300, 100), (100, 300), (1, 40), (40, 1), (120, 80), (33, 64)]
    for number, size in enumerate(sizes):
        folder.picture(f"{number}.png", size)
    index = index_of(folder, resolution=128)
    assert [(p.width, p.height) for p in index.pictures] == sizes
    assert {p.bucket for p in index.pictures} == {(128, 128), (160, 96), (96, 160)}
    assert {p.bucket for p in index_of(folder, resolution=128, buckets=False).pictures} == {(128, 128)}


def test_size_after_rotation(folder):
    exif = Image.Exif()
    exif[0x0112] = 8
    folder.save("a.jpg", Image.new("RGB", (160, 96)), exif=exif)
    (picture,) = index_of(folder, resolution=128).pictures
    assert (picture.width, picture.height, picture.bucket) == (96, 160, (96, 160))


def test_kohya_folders(folder):
    for name in ("a.png", "10_cat/b.png", "3_dog/c.png", "3_dog/close/d.png", "5_x/2_y/e.png", "plain/f.png"):
        folder.picture(name)
    repeats = {p.name: p.repeats for p in index_of(folder).pictures}
    assert repeats == {
        "a.png": 1, "10_cat/b.png": 10, "3_dog/c.png": 3, "3_dog/close/d.png": 3, "5_x/2_y/e.png": 2, "plain/f.png": 1
    }  # fmt: skip


def test_metadata(folder):
    folder.picture("a.png", caption=None)
    folder.picture("sub/b.png", caption=None)
    folder.picture("sub/c.png", caption="from txt")
    folder.picture("d.png", caption="same")
    lines = [("a.png", "one"), ("sub/b.png", "two"), ("sub/c.png", "from metadata"), ("d.png", "same")]
    text = "\n".join(json.dumps({"file_name": name, "text": text, "score": 1}) for name, text in lines) + "\n\n"
    folder.write("metadata.jsonl", text)
    index = index_of(folder)
    assert [p.caption for p in index.pictures] == ["one", "same", "two", "from txt"]
    assert len(index.notes) == 2
    assert any("disagree" in note and "sub/c.png" in note and "d.png" not in note for note in index.notes)
    assert any("score" in note for note in index.notes)


def test_metadata_in_a_subfolder(folder):
    folder.picture("sub/b.png", caption=None)
    folder.write("sub/metadata.jsonl", '\ufeff{"file_name": "./b.png", "caption": "two"}')
    assert [p.caption for p in index_of(folder).pictures] == ["two"]


def test_all_problems_at_once(folder):
    good = folder.picture("good.jpg", (200, 200))
    folder.write("text.png", "not a picture")
    folder.write("text.txt", "a caption")
    folder.write("cut.jpg", good.read_bytes()[:3000])
    folder.picture("bare1.png", caption=None)
    folder.picture("sub/bare2.png", caption="")
    folder.picture("latin.png").with_suffix(".txt").write_bytes("café".encode("latin-1"))
    folder.picture("0_zero/z.png")
    folder.write(
        "metadata.jsonl",
        '{"file_name": "good.jpg", "text": "a thing"}\n{oops\n{"file_name": "gone.png", "text": "x"}\n'
        '{"file_name": "latin.txt", "text": "x"}\n{"file_name": "good.jpg", "text": "other"}\n',
    )
    found = problems_of(folder, separator="", shuffle=True, resolution=16)
    assert all(re.match(r"data\.(separator|resolution|folders)[: ]", problem) for problem in found), found
    expected = [
        ["data.separator"],
        ["data.resolution 16", "32"],
        ["cut.jpg", "damaged"],
        ["text.png", "convert it"],
        ["latin.txt", "UTF-8"],
        ["metadata.jsonl line 2", "JSON"],
        ["metadata.jsonl line 3", "gone.png", "missing file"],
        ["metadata.jsonl line 4", "latin.txt", "not one of the pictures"],
        ["metadata.jsonl line 5", "good.jpg", "second caption"],
        ["3: ", "bare1.png", "sub/bare2.png", "cut.jpg", "data.missing_captions"],
        ["0_zero", "0 repeats"],
    ]
    assert len(found) == len(expected)
    for words in expected:
        assert sum(all(word in problem for word in words) for problem in found) == 1, words


@pytest.mark.parametrize("policy, captions", [("empty", ["", ""]), ("filename", ["a_b", "c.d"])])
def test_missing_captions(folder, policy, captions):
    folder.picture("a_b.png", caption=None)
    folder.picture("c.d.png", caption=" \n")
    (problem,) = problems_of(folder)
    assert "a_b.png" in problem and "c.d.png" in problem
    index = index_of(folder, missing_captions=policy)
    assert [p.caption for p in index.pictures] == captions
    assert len(index.notes) == 1 and "a_b.png" in index.notes[0]


def test_nothing_to_train_on(folder):
    (problem,) = problems_of(folder)
    assert "no pictures" in problem and problem.startswith("data.folders ") and str(folder.path) in problem
    folder.write("a.heic", "x")
    folder.write("a.txt", "x")
    (problem,) = problems_of(folder)
    assert "1 .heic" in problem and ".png" in problem
    missing = str(folder.path / "no")
    for paths, reason in [((), "is empty"), ((missing,), "no such folder"), (("", missing), "is empty; remove")]:
        with pytest.raises(DataProblems, match=reason):
            build_index(Data(folders=paths), "training", 32)
    with pytest.raises(DataProblems, match=r"data\.folders .*is a file"):
        build_index(Data(folders=({"path": str(folder.path / "a.txt"), "role": "validation"},)), "validation", 32)


def test_notes(folder):
    folder.picture("a.png")
    folder.save("copy.png", Image.open(folder.path / "a.png"))
    folder.picture("tiny.png", (20, 20))
    folder.picture("long.png", (640, 128))
    folder.picture("2023_summer/lines.png", caption="one\ntwo")
    folder.picture("pair.png", caption="both")
    folder.picture("pair.jpg", caption="both")
    folder.write("README.txt", "hello")
    folder.write("old.psd", "x")
    folder.write(".DS_Store", "x")
    (folder.path / "loop").symlink_to(folder.path, target_is_directory=True)
    notes = index_of(folder, resolution=70).notes
    expected = [
        ["data.resolution 70", "64 is used"],
        ["same content", "a.png", "copy.png"],
        ["enlarged", "tiny.png"],
        ["cropped", "long.png"],
        ["several lines", "lines.png"],
        ["several pictures", "pair.png", "pair.jpg"],
        [".txt files without", "README.txt"],
        ["other files are ignored", "old.psd"],
        ["hidden", ".DS_Store"],
        ["repeat", "2023_summer"],
        ["already read", "loop"],
    ]
    assert len(notes) == len(expected)
    for words in expected:
        assert sum(all(word in note for word in words) for note in notes) == 1, words


def test_a_linked_folder_is_read(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (64, 64)).save(elsewhere / "a.png")
    (elsewhere / "a.txt").write_text("a thing")
    (folder.path / "2_link").symlink_to(elsewhere, target_is_directory=True)
    assert [(p.name, p.repeats) for p in index_of(folder).pictures] == [("2_link/a.png", 2)]


def test_several_folders_are_one_set(tmp_path):
    folders = [Folder(tmp_path / name) for name in ("cats", "dogs", "more", "more/dogs")]
    for number, one in enumerate(folders[:2] + folders[3:]):
        one.picture("a.png", caption=f"caption {number}")
    folders[1].picture("3_x/b.png", caption="bare")
    folders[1].write("notes.txt", "x")
    data = Data(folders=tuple(str(folders[place].path) for place in (1, 0, 3)), resolution=64)
    index = build_index(data, "training", 32)
    assert [(p.name, p.caption, p.repeats) for p in index.pictures] == [
        (f"{tmp_path.name}/dogs/3_x/b.png", "bare", 3), (f"{tmp_path.name}/dogs/a.png", "caption 1", 1),
        ("cats/a.png", "caption 0", 1), ("more/dogs/a.png", "caption 2", 1),
    ]  # fmt: skip
    text, twins = index.notes
    assert "dogs/notes.txt" in text and "same content" in twins and "cats/a.png, more/dogs/a.png" in twins


def test_names_of_folders_tell_them_apart():
    assert labels(["a/b", "a/c"]) == ["b", "c"]
    assert labels(["a/x", "b/x", "c"]) == ["a/x", "b/x", "c"]
    assert labels(["a", "a", "b"]) == ["a", "a", "b"]
    assert labels([]) == [] and len(set(labels(["/", "/a"]))) == 2


@pytest.mark.parametrize(
    "given, words",
    [
        (["{0}", "{0}"], "is given twice"),
        (["{0}", "{0}/../pictures"], "is the same folder as {0}"),
        (["{0}", "{0}/sub"], "{0}/sub: is inside {0}, whose sub-folders are also read"),
        (["{0}/sub", "{0}"], "{0}/sub: is inside {0}, whose sub-folders are also read"),
        (["{0}", ""], "one of the folders is empty"),
    ],
)
def test_folders_that_are_there_twice(folder, given, words):
    folder.picture("a.png")
    folder.picture("sub/b.png")
    data = Data(folders=tuple(one.format(folder.path) for one in given), resolution=64)
    with pytest.raises(DataProblems) as raised:
        build_index(data, "training", 32)
    (problem,) = raised.value.problems
    assert problem.startswith("data.folders") and words.format(folder.path) in problem


def test_every_folder_s_problems_come_at_once(folder, tmp_path):
    folder.write("broken.png", "x")
    data = Data(folders=(str(tmp_path / "no"), str(folder.path), str(tmp_path / "nowhere")), resolution=64)
    with pytest.raises(DataProblems) as raised:
        build_index(data, "training", 32)
    problems = raised.value.problems
    assert len(problems) == 4 and all(problem.startswith(("data.folders ", "data.folders:")) for problem in problems)


def test_one_text_is_one_folder():
    assert Data.model_validate({"folders": "a b"}).folders == ("a b",)
    assert Data.model_validate({"folders": ""}).folders == ()
    with pytest.raises(ValidationError):
        Data.model_validate({"folders": 5})


def test_tables(folder):
    for number in range(3):
        folder.picture(f"5_x/{number}.png", (128, 128), caption='a "b"\tc')
    folder.picture("w.png", (160, 96))
    index = index_of(folder, resolution=128)
    lines = [line.split() for line in index.table(4).splitlines()]
    assert lines[1:] == [
        ["128", "x", "128", "3", "15", "4", "1"],
        ["160", "x", "96", "1", "1", "1", "3"],
        ["all", "4", "16", "5", "4"],
    ]
    heading, *rows = csv.reader(io.StringIO(index.rows()), delimiter="\t")
    assert len(rows) == 4 and all(len(row) == len(heading) for row in rows)
    assert rows[0][:5] == ["5_x/0.png", "128", "128", "128x128", "5"] and rows[0][-1] == 'a "b"\tc'


def test_overlap(folder):
    folder.picture("a.png")
    for name in ("b.png", "b.txt"):
        folder.write(f"valid/{name}", (folder.picture("b.png") if name == "b.png" else folder.path / name).read_bytes())
    validation = {"path": str(folder.path / "valid"), "role": "validation"}
    data = Data.model_validate({"folders": [str(folder.path), validation], "resolution": 64})
    training, held = (build_index(data, which, 32) for which in ("training", "validation"))
    assert overlap(training, held) == ("b.png",) and [one.name for one in training.pictures] == ["a.png", "b.png"]
