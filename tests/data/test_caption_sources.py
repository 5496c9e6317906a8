"""Every source of captions says the same: files beside pictures, metadata files, names."""

import csv
import io
import json
import os
import unicodedata
from pathlib import Path

import pytest

from modules.data.captions import caption_for
from modules.data.index import build_index
from modules.preset.data_options import Data
from tests.data.conftest import Folder
from tests.data.test_caption_files import data_of, index_of, problems_of

CAPTIONS = {
    "a.png": "a cat, sitting",
    "sub/b.c.png": 'says "hi", and\nin a second line; café',
    "猫.png": "{{braces}}, 猫 | <tag>",
    "d.jpg": "",
}
"""By picture; one is empty."""


def written(folder: Folder, make) -> None:
    """Pictures, with their captions where `make(folder, name, caption)` puts them."""
    for name, caption in CAPTIONS.items():
        folder.picture(name, caption=None)
        make(folder, name, caption)


def beside(ending: str, content):
    """Writes a file beside each picture."""
    return lambda folder, name, caption: folder.write(str(Path(name).with_suffix(ending)), content(caption))


def table(kind: str, content, key=lambda name: name, sub=""):
    """Writes one file with all of them, by `content` of a list of file names and captions."""

    def write(folder: Folder) -> None:
        written(folder, lambda *_: None)
        folder.write(f"{sub}metadata.{kind}", content([(key(name), caption) for name, caption in CAPTIONS.items()]))

    return write


def rows_of(entries, first="file_name", text="text") -> list[dict]:
    return [{first: name, text: caption} for name, caption in entries]


def as_csv(delimiter: str):
    def content(entries) -> str:
        text = io.StringIO()
        rows = csv.writer(text, delimiter=delimiter)
        rows.writerows([("file_name", "text", "seen"), *((*entry, 5) for entry in entries)])
        return text.getvalue()

    return content


def as_parquet(entries) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names, captions = zip(*entries, strict=True)
    buffer = io.BytesIO()
    captions = [caption or None for caption in captions]
    parquet.write_table(pyarrow.table({"file_name": names, "text": captions, "seen": [5] * len(names)}), buffer)
    return buffer.getvalue()


def jsonl(first="file_name", text="text"):
    return lambda entries: "\n".join(map(json.dumps, rows_of(entries, first, text)))


SOURCES = {
    "txt": ("txt", beside(".txt", lambda text: text + " \n")),
    "TXT": ("txt", beside(".TXT", lambda text: text)),
    "caption": ("caption", beside(".caption", lambda text: "\ufeff" + text)),
    "json caption": ("json", beside(".json", lambda text: json.dumps({"caption": text, "score": 2}))),
    "json text": ("json", beside(".json", lambda text: json.dumps({"text": text}, ensure_ascii=False))),
    "json alone": ("json", beside(".json", json.dumps)),
    "json list": ("json", beside(".json", lambda text: json.dumps(text.split("\n")))),
    "json tags": ("json", beside(".json", lambda text: json.dumps({"caption": "", "tags": text} if "\n" not in text
                                                                 else {"captions": text.split("\n"), "tags": []}))),
    "jsonl": ("metadata", table("jsonl", jsonl())),
    "jsonl of sd-scripts": ("metadata", table("jsonl", jsonl("image_path", "caption"))),
    "json records": ("metadata", table("json", lambda entries: json.dumps(rows_of(entries)))),
    "json of sd-scripts": ("metadata", table(
        "json",
        lambda entries: json.dumps({name: {"caption": text, "train_resolution": [64, 64]} for name, text in entries}),
        lambda name: str(Path(name).with_suffix("")),
    )),
    "json of names": ("metadata", table("json", lambda entries: json.dumps(dict(entries)))),
    "json of windows": ("metadata", table("json", lambda entries: json.dumps(dict(entries)),
                                          lambda name: name.replace("/", "\\"))),
    "json in a sub-folder": ("metadata", table("json", lambda entries: json.dumps(dict(entries)),
                                               lambda name: f"../{name}", "sub/")),
    "csv": ("metadata", table("csv", as_csv(","))),
    "csv of a spreadsheet": ("metadata", table("csv", lambda entries: "\ufeff" + as_csv(";")(entries))),
    "parquet": ("metadata", table("parquet", as_parquet)),
}  # fmt: skip
"""The source, and what writes CAPTIONS."""


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_makes_the_same_index(folder, tmp_path, kind):
    source, write = SOURCES[kind]
    if source == "metadata":
        write(folder)
    else:
        written(folder, write)
    for captions in ("auto", source):
        index = index_of(folder, captions=captions)
        assert {picture.name: picture.caption for picture in index.pictures} == CAPTIONS
        (said,) = index.captions
        words = "metadata files" if source == "metadata" else f".{source} files"
        assert f"3 from {words}, 1 empty" in said and str(folder.path) in said
    plain = Folder(tmp_path / "plain")
    written(plain, SOURCES["txt"][1])
    assert [(p.name, p.caption, p.bucket, p.key, p.repeats) for p in index.pictures] == [
        (p.name, p.caption, p.bucket, p.key, p.repeats) for p in index_of(plain).pictures
    ]


@pytest.mark.parametrize("form, other", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize(
    "file, content",
    [
        ("é.txt", "a cat"),
        ("é.caption", "a cat"),
        ("é.json", '"a cat"'),
        ("metadata.jsonl", '{"file_name": "é.png", "text": "a cat"}'),
        ("metadata.json", '{"é": {"caption": "a cat"}}'),
    ],
)
def test_names_in_another_unicode_normal_form(folder, form, other, file, content):
    """As file systems and archives change them."""
    folder.picture(unicodedata.normalize(form, "é.png"), caption=None)
    folder.write(unicodedata.normalize(other, file), unicodedata.normalize(other, content))
    assert [p.caption for p in index_of(folder).pictures] == ["a cat"]


def test_whole_paths_in_metadata(folder):
    """As sd-scripts writes them with --full_path, also where the folder was given as a relative path."""
    folder.picture("a.png", caption=None)
    folder.write("metadata.json", json.dumps({str(folder.path / "a.png"): {"caption": "whole"}}))
    relative = os.path.relpath(folder.path)
    (picture,) = build_index(data_of(folder, folders=(relative,)), "training", 32).pictures
    assert picture.caption == "whole"


@pytest.mark.parametrize("tags", ["1girl, red_hair", ["1girl", "red_hair"], {"1girl": 0.9, "red_hair": 0.5}])
def test_tags_follow_the_caption(folder, tags):
    for name, entry in {"a": {"tags": tags}, "b": {"caption": "a girl\nsmiling", "tags": tags}}.items():
        folder.picture(f"{name}.png", caption=None)
        folder.write(f"{name}.json", json.dumps(entry))
    assert [p.caption for p in index_of(folder).pictures] == ["1girl, red_hair", "a girl\nsmiling, 1girl, red_hair"]
    each = [p.caption for p in index_of(folder, caption_lines="each").pictures]
    assert each == ["1girl, red_hair", "a girl, 1girl, red_hair", "smiling, 1girl, red_hair"]


@pytest.mark.parametrize(
    "options, captions",
    [
        ({"captions": "foldername"}, ["pictures", "sks dog", "sks dog", "plain_name", "猫 x"]),
        ({"captions": "filename"}, ["top", "a_b", "deep", "c", "d"]),
        ({"captions": "text", "caption_text": " a dog "}, ["a dog"] * 5),
        ({"captions": "none", "missing_captions": "error"}, [""] * 5),
        ({"captions": "caption", "caption_text": "a dog"}, ["a dog"] * 5),
        ({"captions": "txt"}, ["off"] * 5),
    ],
)
def test_names_and_texts_as_captions(folder, options, captions):
    """With .txt files that are switched off, as in kohya_ss' presets with caption_extension ".none-use-foldername"."""
    for name in ("0top.png", "10_sks dog/a_b.png", "10_sks dog/deeper/deep.png", "plain_name/c.png", "3_猫 x/d.png"):
        folder.picture(name.replace("0top", "top"), caption="off")
    names = ["top.png", "10_sks dog/a_b.png", "10_sks dog/deeper/deep.png", "plain_name/c.png", "3_猫 x/d.png"]
    index = index_of(folder, **options)
    found = {picture.name: picture.caption for picture in index.pictures}
    assert [found[name] for name in names] == captions
    unused = [note for note in index.notes if ".txt files that are not used" in note]
    assert len(unused) == (options["captions"] != "txt") and all("5: " in note for note in unused)


def test_the_folder_itself_may_be_the_numbered_one(tmp_path, monkeypatch):
    inner = Folder(tmp_path / "7_sks cat")
    inner.picture("a.png", caption=None)
    assert [p.caption for p in index_of(inner, captions="foldername").pictures] == ["sks cat"]
    monkeypatch.chdir(inner.path)
    (picture,) = build_index(data_of(inner, folders=(".",), captions="foldername"), "training", 32).pictures
    assert picture.caption == "sks cat"


def test_a_text_for_all_has_to_be_given(folder):
    folder.picture("a.png")
    assert any(p.startswith("data.caption_text is empty") for p in problems_of(folder, captions="text"))
    assert any(p.startswith("data.keep_separator") for p in problems_of(folder, keep_separator=" ,"))


def test_each_folder_has_its_own_source(tmp_path):
    """And says so; what one folder has of lines, marks and alternatives is no other's."""
    first, second = Folder(tmp_path / "5_sks dog"), Folder(tmp_path / "second")
    first.picture("a.png", caption="off")
    second.picture("b.png", caption="{one|two}\nthree")
    folders = (
        {"path": str(first.path), "captions": "foldername"},
        {"path": str(second.path), "caption_lines": "each", "wildcards": True},
    )
    index = build_index(Data(folders=folders, resolution=64, caption_dropout=0.0), "training", 32)
    assert [p.caption for p in index.pictures] == ["sks dog", "{one|two}", "three"]
    assert [line.rpartition(": ")[2] for line in index.captions] == ["1 from the folder's name", "1 from .txt files"]
    second_picture = index.pictures[1]
    seen = {caption_for(second_picture.options, second_picture.caption, 0, place) for place in range(30)}
    assert seen == {"one", "two"}
