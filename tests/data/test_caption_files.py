"""Caption files: what is used is told, and what is missing or broken too; several captions of a picture."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from modules.data.batches import Batches
from modules.data.caption_tables import TABLES
from modules.data.captions import as_prompt
from modules.data.index import DataProblems, build_index, overlap
from modules.data.survey import survey
from modules.preset.data_options import Data
from modules.training import fingerprints
from tests.data.conftest import Folder
from tests.data.test_look import ask, bases  # noqa: F401  fixtures


def data_of(folder: Folder, **options) -> Data:
    return Data(**{"folders": (str(folder.path),), "resolution": 64, "missing_captions": "empty"} | options)


def index_of(folder: Folder, **options):
    return build_index(data_of(folder, **options), "training", 32)


def problems_of(folder: Folder, **options) -> list[str]:
    with pytest.raises(DataProblems) as raised:
        index_of(folder, **options)
    for problem in raised.value.problems:
        assert len(problem.splitlines()) == 1 and problem.startswith("data.")
    return raised.value.problems


# -- found automatically, and said ------------------------------------------------------------------------------------


def test_auto_takes_the_first_that_has_a_caption(folder):
    for name in ("txt", "caption", "json", "table", "none"):
        folder.picture(f"{name}.png", caption=None)
    for name in ("txt", "caption", "json"):
        folder.write(f"{name}.json", '{"text": "json"}')
    for name in ("txt", "caption"):
        folder.write(f"{name}.caption", "caption")
    folder.write("txt.txt", "txt")
    folder.write("caption.txt", " \n")
    folder.write("none.json", '{"rating": 5}')
    names = ("txt", "caption", "json", "table")
    folder.write("metadata.csv", "file_name,text\n" + "".join(f"{name}.png,table\n" for name in names))
    index = index_of(folder)
    assert {p.name: p.caption for p in index.pictures} == {
        "txt.png": "txt", "caption.png": "caption", "json.png": "json", "table.png": "table", "none.png": "",
    }  # fmt: skip
    (said,) = index.captions
    assert all(f"1 {w}" in said for w in ("from .txt", "from .caption", "from .json", "from metadata", "empty"))
    for words in (
        [".caption files that are not used", "from .txt files", "txt.caption"],
        [".json files that are not used", "from .txt files", "txt.json"],
        [".json files that are not used", "from .caption files", "caption.json"],
        ["the .txt file and metadata.csv disagree"],
        ["the .json file and metadata.csv disagree", "json.png"],
        [".json files without a caption are ignored", "none.json"],
        ["use the empty caption", "none.png"],
    ):
        assert sum(all(word in note for word in words) for note in index.notes) == 1, (words, index.notes)
    assert not any("caption.txt" in note for note in index.notes), "an empty file is not lying unused"


def test_one_source_alone_reads_no_other(folder):
    folder.picture("a.png", caption="txt")
    folder.write("a.caption", "caption")
    folder.write("a.json", "{")
    folder.write("metadata.jsonl", "{")
    for source in ("txt", "caption"):
        index = index_of(folder, captions=source)
        assert [p.caption for p in index.pictures] == [source]
        assert any("metadata files are not used" in note for note in index.notes)
        other = "caption" if source == "txt" else "txt"
        assert any(f".{other} files that are not used" in note for note in index.notes)
    (problem,) = problems_of(folder, captions="json")
    assert "a.json" in problem and "is not JSON" in problem
    (problem,) = problems_of(folder, captions="metadata")
    assert "metadata.jsonl line 1" in problem


def test_two_metadata_files(folder):
    folder.picture("a.png", caption=None)
    folder.picture("b.png", caption=None)
    folder.write("metadata.jsonl", '{"file_name": "a.png", "text": "first"}')
    folder.write("metadata.json", json.dumps({"a": "second", "b": "only here"}))
    index = index_of(folder)
    assert [p.caption for p in index.pictures] == ["first", "only here"]
    (note,) = index.notes
    assert "metadata.json disagrees with another" in note and "a.png" in note


def test_a_picture_called_metadata(folder):
    folder.picture("metadata.png", caption=None)
    folder.write("metadata.json", '{"caption": "its own"}')
    assert [p.caption for p in index_of(folder).pictures] == ["its own"]


@pytest.mark.parametrize("ending", [".txt", ".caption", ".json", "metadata.jsonl", "metadata.json", "metadata.csv"])
@pytest.mark.parametrize("encoding, byte", [("cp1252", None), ("utf-16", 0), ("shift-jis", None)])
def test_other_encodings_are_refused_with_file_and_byte(folder, ending, encoding, byte):
    folder.picture("a.png", caption=None)
    text = "“café”" if encoding == "cp1252" else "猫 cat"
    name = f"a{ending}" if ending.startswith(".") else ending
    content = {"metadata.csv": f"file_name,text\na.png,{text}"}.get(name, f'{{"file_name": "a.png", "text": "{text}"}}')
    content = text if name in ("a.txt", "a.caption") else content
    encoded = content.encode(encoding)
    folder.write(name, encoded)
    try:
        encoded.decode()
    except UnicodeDecodeError as error:
        first = error.start
    source = "metadata" if name.startswith("metadata") else ending[1:]
    found = [problem for problem in problems_of(folder, captions=source) if name in problem]
    assert len(found) == 1 and "is not UTF-8" in found[0] and f"byte {first}" in found[0]
    assert byte is None or first == byte


BROKEN = {
    "metadata.jsonl": [("{", "line 1"), ('{"text": "x"}', "file_name"), ('{"file_name": "a.png"}', "no caption")],
    "metadata.json": [
        ("{", "is not JSON"), ("5", "is not a list of entries"), ("[5]", "entry 1"), ('{"gone": "x"}', "missing file"),
        ('{"a": 5}', "no caption"), ('{"a": {"caption": ["x", 5]}}', "not a text or a list of texts"),
        ('{"a": "x", "a": "y"}', "metadata.json"), ('{"a": "x", "a.png": "y"}', "second caption"),
        ('{"a": {"text": "x", "caption": "y"}}', "keep one"), ('{"a": {"tags": 5}}', '"tags" is not'),
        ('{"a": "\\ud83d"}', "half a surrogate pair"), ("[" * 100_000, "nested"),
    ],
    "metadata.csv": [
        ("a.png,x", "no columns"), ("", "no columns"), ("file_name,text\ngone.png,x", "line 2"),
        ("file_name,text\n,x", "line 2"), ('file_name,text\na.png,"' + "x" * 200_000 + '"', "is not CSV"),
    ],
    "a.json": [("{", "is not JSON"), ("{}", "no caption"), ("5", "is not a text"), ('{"caption": null}', "no caption")],
}  # fmt: skip


@pytest.mark.parametrize("name, content, words", [(n, *row) for n, rows in BROKEN.items() for row in rows])
def test_broken_files_are_one_sentence_each(folder, name, content, words):
    folder.picture("a.png", caption=None)
    folder.write(name, content)
    source = "metadata" if name in TABLES else "json"
    (problem,) = problems_of(folder, captions=source)
    assert str(folder.path / name) in problem and words in problem


@pytest.mark.parametrize(
    "name, content", [(name, row[0]) for name, rows in BROKEN.items() if name != "metadata.jsonl" for row in rows]
)
def test_files_of_other_programs_do_not_stop_a_training(folder, name, content):
    """With the captions in .txt files, as before these files were read."""
    folder.picture("a.png", caption="a cat")
    folder.write(name, content)
    index = index_of(folder, missing_captions="error")
    assert [p.caption for p in index.pictures] == ["a cat"]
    assert index.notes and all(name in note for note in index.notes)


def test_a_table_that_needs_a_package_says_so(folder, monkeypatch):
    folder.picture("a.png")
    folder.write("metadata.parquet", b"PAR1")
    assert [p.caption for p in index_of(folder).pictures] == ["a thing"], "not needed"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (problem,) = problems_of(folder, captions="metadata")
    assert "metadata.parquet" in problem and "pip install pyarrow" in problem and "metadata.csv" in problem


def test_a_broken_table_of_parquet(folder):
    pytest.importorskip("pyarrow")
    folder.picture("a.png", caption=None)
    folder.write("metadata.parquet", b"PAR1 and nothing else")
    (problem,) = problems_of(folder, captions="metadata")
    assert "metadata.parquet" in problem and "is not a Parquet file" in problem


# -- pictures without a caption ---------------------------------------------------------------------------------------


def listed_only(path: Path, count: int) -> Path:
    """A folder of pictures that are not opened."""
    path.mkdir(parents=True)
    for number in range(count):
        (path / f"{number:04}.png").touch()
    return path


@pytest.mark.full
def test_3000_pictures_without_captions_are_one_short_sentence(tmp_path):
    path = listed_only(tmp_path / "5_sks dog", 3000)
    for number in range(30):
        (path / f"{number:04}.caption").write_text("a dog")
    found = survey(Data(folders=(str(tmp_path),), captions="txt"), "training", 8)
    (problem,) = found.problems
    assert len(problem) < 500 and len(problem.splitlines()) == 1
    for words in (
        "3000: ", "0000.png", "0002.png and 2997 more", "--data.captions caption", ".caption files beside 30 of them",
        '--data.trigger "sks dog" --data.missing_captions empty', "--data.captions foldername", '"sks dog"',
    ):  # fmt: skip
        assert words in problem, words
    (problem,) = survey(Data(folders=(str(tmp_path),)), "training", 8).problems
    assert "2970: " in problem and "beside" not in problem, "auto has read those that are there"


def test_masks_need_no_caption(folder):
    folder.picture("a.png")
    folder.picture("a-masklabel.png", caption=None)
    folder.picture("a-condlabel.png", caption=None)
    found = survey(data_of(folder, missing_captions="error"), "training", 8)
    assert found.problems == []


@pytest.mark.parametrize(
    "caption, options, words",
    [
        ("a [trigger] dog", {"trigger": "sks"}, "data.trigger is empty"),
        ("a {red|blue} dog", {"wildcards": True}, "data.wildcards"),
        ("a ||| dog", {"keep_separator": "|||"}, "data.keep_separator"),
    ],
)
def test_marks_of_other_trainers_that_are_not_used_are_told(folder, caption, options, words):
    folder.picture("a.png", caption=caption)
    (note,) = index_of(folder).notes
    assert words in note and "a.png" in note
    assert index_of(folder, **options).notes == ()


# -- several captions -------------------------------------------------------------------------------------------------

LINES = ["red apple", "green apple", "an apple, on a table"]


def with_lines(folder: Folder, kind: str) -> None:
    folder.picture("a.png", caption="alone")
    folder.picture("b.png", caption=None)
    if kind == "txt":
        folder.write("b.txt", f"{LINES[0]}\r\n\n {LINES[1]}\n{LINES[2]} ")
    else:
        folder.write("b.json", json.dumps({"caption": [LINES[0], "green\napple".replace("\n", " "), LINES[2]]}))


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_lines(folder, kind):
    with_lines(folder, kind)

    def captions(way: str) -> list[tuple[str, str]]:
        return [(p.name, p.caption) for p in index_of(folder, caption_lines=way).pictures]

    assert captions("first") == [("a.png", "alone"), ("b.png", LINES[0])]
    assert captions("each") == [("a.png", "alone"), *(("b.png", line) for line in LINES)]
    assert captions("all")[1][1].split() == " ".join(LINES).split()
    index = index_of(folder, caption_lines="random", caption_dropout=0.0)
    seen = Counter()
    batches = Batches(index, 1, 1, 1, 0, seed=3)
    for step in range(1200):
        batch = batches.at(step, 0)
        seen[batch.pictures[0].name, batch.captions[0]] += 1
    assert seen["a.png", "alone"] == 600 and len(seen) == 4
    assert all(150 < seen["b.png", line] < 250 for line in LINES)
    assert any("each use takes one of them (1: b.png)" in note for note in index.notes)


def test_each_line_is_a_sample_of_its_own(folder, ask):  # noqa: F811
    """In batches, buckets, the run's fingerprint and the window."""
    with_lines(folder, "txt")
    data = data_of(folder, caption_lines="each", caption_dropout=0.0)
    index = build_index(data, "training", 32)
    batches = Batches(index, 2, 1, 1, 0, seed=0)
    seen = Counter(caption for step in range(2) for caption in batches.at(step, 0).captions)
    assert batches.epochs.batches(0) == 2 and seen == Counter([*LINES, "alone"])
    assert len(index.notes) == 1, "a picture is not its own twin"
    assert overlap(index, index) == ("a.png", "b.png")
    before = fingerprints._pictures(index)
    folder.write("b.txt", "\n".join([LINES[0], "changed", LINES[2]]))
    after = fingerprints._pictures(build_index(data, "training", 32))
    assert before.keys() == after.keys() and [name for name in before if before[name] != after[name]] == ["b.png #2"]
    found = ask("pictures", data)
    assert [row["captions"] for row in found["pictures"]] == [["alone"], [LINES[0], "changed", LINES[2]]]
    assert sum(bucket["repeats"] for bucket in found["buckets"]) == 4
    path = str(folder.path / "b.png")
    for line, prompt in enumerate([LINES[0], "changed", LINES[2]]):
        assert {draw["prompt"] for draw in ask("sees", data, path=path, line=line)["draws"]} == {prompt}
    assert "line: 3" in ask("sees", data, path=path, line=3)["error"]
    found = [ask("sees", data_of(folder, caption_lines=way), path=path)["samples"] for way in ("each", "random", "all")]
    assert found == [3, 1, 1]


# -- the window -------------------------------------------------------------------------------------------------------


def test_the_window_knows_where_a_caption_can_be_written(ask, folder):  # noqa: F811
    """To the file that it came from, or to a .txt file that is used instead; never to one that is not read."""
    for name in ("txt", "caption", "json", "bare"):
        folder.picture(f"{name}.png", caption=None)
    folder.write("txt.txt", "x")
    folder.write("caption.caption", "x")
    folder.write("json.json", '{"caption": "x"}')

    def files(**options) -> dict[str, str]:
        rows = ask("pictures", data_of(folder, **options))["pictures"]
        return {Path(row["path"]).stem: Path(row["caption_file"] or "").name for row in rows}

    assert files() == {"txt": "txt.txt", "caption": "caption.caption", "json": "json.txt", "bare": "bare.txt"}
    assert set(files(captions="caption").values()) == {"txt.caption", "caption.caption", "json.caption", "bare.caption"}
    for source in ("json", "metadata", "foldername", "filename", "none"):
        assert set(files(captions=source).values()) == {""}, source
    for options in ({}, {"captions": "caption"}):
        for path in (Path(row["caption_file"]) for row in ask("pictures", data_of(folder, **options))["pictures"]):
            path.write_text("new")
        assert {row["caption"] for row in ask("pictures", data_of(folder, **options))["pictures"]} == {"new"}


def test_the_report_says_where_captions_come_from(folder, ask):  # noqa: F811
    folder.picture("a.png")
    (line,) = ask("pictures", data_of(folder))["captions"]
    assert line == f"captions of {folder.path}: 1 from .txt files"


def test_prompts_of_samples_are_the_first_of_everything():
    data = Data(caption_lines="random", wildcards=True, trigger="sks", shuffle=True)
    assert as_prompt(data, "a {red|blue} [trigger]\nanother") == "a red sks"
    assert as_prompt(Data(trigger="sks"), "a {red|blue} cat\nanother") == "a {red|blue} cat\nanother"
