"""Whatever stands in a file: its value, or one sentence that begins with its name, soon."""

import json
import os
import socket
import time

import pytest

from modules import documents

DEEP = 100_000


def refused(call, *given) -> str:
    """The sentence of a refusal: one line, and quickly there."""
    begun = time.monotonic()
    with pytest.raises(ValueError) as caught:
        call(*given)
    assert time.monotonic() - begun < 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "text", ["[" * DEEP, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP, "[" * 500 + "]" * 500, '{"a": 1, "a": 2}', "", "{",
             "1" * 5000, "nul", '{"a": \x1b}', "\ufeff{}"]
)
def test_json_that_cannot_be_read_is_said_with_its_place(text):
    assert refused(documents.parse_json, text, "there").startswith("there: ")


def test_what_is_given_twice_is_named_and_nothing_else():
    said = refused(documents.parse_json, '{"one": 1, "two": 2, "one": 3, "three": 4}', "there")
    assert "one is given twice" in said and "two" not in said and "three" not in said


def test_json_is_what_the_standard_library_reads():
    values = {"a": [1, 2.5, None, True, "ü"], "b": {"c": {}}}
    assert documents.parse_json(json.dumps(values), "there") == values
    assert documents.parse_json("[NaN]", "there") != [0]
    assert "NaN" in refused(documents.parse_json, "[NaN]", "there", True)


@pytest.mark.parametrize(
    "text", ["a = " + "[" * DEEP, ".".join(["a"] * DEEP) + " = 1", "[" + ".".join(['"a"'] * DEEP) + "]", "a = 1\na = 2",
             "a = " + "1" * 5000, "a"]
)
def test_toml_that_cannot_be_read_is_said_with_its_place(text):
    assert refused(documents.parse_toml, text, "there").startswith("there: ")


def test_toml_is_read():
    text = 'a.b = 1\n[c."d.e"]\nf = "x.y.z"'
    assert documents.parse_toml(text, "there") == {"a": {"b": 1}, "c": {"d.e": {"f": "x.y.z"}}}


def bomb(end: str = "") -> str:
    """YAML of ten lines that means thousands of millions of values."""
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{n}: &a{n} {{{end}: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text", ["[" * DEEP, "{a: " * DEEP, bomb("b"), bomb("<<"), "a: &a [*a]", "a: 1\na: 2", "a: 2020-13-45",
             "a: " + ":".join(["10"] * DEEP), "a: !!python/object/apply:os.system [ls]", "c: !!timestamp x",
             "c: !!bool x", "? [a]\n: 2", "a: \x1b", "- 1\n" * DEEP]
)
def test_yaml_that_cannot_be_read_is_said_with_its_place(text):
    assert refused(documents.parse_yaml, text, "there").startswith("there: ")


def test_small_aliases_of_yaml_are_read():
    text = "a: &x {b: 1}\nc: *x\nd: {<<: *x, b: 2}"
    assert documents.parse_yaml(text, "there") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 2}}


@pytest.fixture
def not_a_file(request, tmp_path):
    """A path at which something else than a file is."""
    path = tmp_path / "x.json"
    match request.param:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            socket.socket(socket.AF_UNIX).bind(str(path))
        case "loop":
            path.symlink_to(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "long":
            return tmp_path / ("x" * 300)
        case "nul":
            return tmp_path / "x\0y"
        case "below a file":
            path.write_text("")
            return path / "y"
    return path


KINDS = ["folder", "pipe", "socket", "loop", "device", "long", "nul", "below a file", "missing"]


@pytest.mark.parametrize("not_a_file", KINDS, indirect=True)
def test_what_is_no_file_is_not_opened(not_a_file, monkeypatch):
    monkeypatch.setattr("pathlib.Path.open", lambda *_: pytest.fail("it was opened"))
    refused(documents.read_json, not_a_file)
    assert not documents.is_file(not_a_file)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe{\0}\0", b"\xfe\xff\0{\0}", b'{"a": "\xe9"}', b"{}\0", b"\0" * 100, b"", b"null", b"[]", b"3"]
)
def test_an_object_is_needed_in_utf8(content, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert refused(documents.read_object, path).startswith(f"{path}: ")


def test_size_is_bounded_before_anything_is_read(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    assert "too large" in refused(documents.read_json, path)


def test_byte_order_marks_and_line_ends_are_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf{\r\n}")
    assert documents.read_object(path) == {}
