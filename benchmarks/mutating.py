"""Damage to files, as crashes, bad disks, other programs and people who mean no good leave it. Everything follows from
a random generator."""

import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

Bytes = Callable[[bytes, random.Random], bytes]

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3.5, 10**18, -(10**18), 10**400, 1e308, float("nan"), float("inf"), "", "x", "1", "-3",
    "nan", "x" * 5000, "\x1b[2J\x07", "\u202egnp", "\ud800", "\0", "../../x", "/", "~nobody/x", "a\nb", [], [[]], {},
    [None], [1, "x"], {"a": {"b": {"c": []}}}, [1] * 200, ["x"] * 3, {"": None}, "2026-11-22T12:00:00",
    "0001-01-01T00:00:00+00:00", "9999-99-99",
)  # fmt: skip
"""Values in the place of others."""


# -- bytes ------------------------------------------------------------------------------------------------------------


def flip(content: bytes, draw: random.Random) -> bytes:
    """Some bits are others."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 3, 20))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(content: bytes, draw: random.Random) -> bytes:
    """The end is missing."""
    return content[: draw.randrange(len(content))]


def zero(content: bytes, draw: random.Random) -> bytes:
    """A block of zeros, as a power cut leaves it."""
    start, end = _span(content, draw)
    return content[:start] + bytes(end - start) + content[end:]


def drop(content: bytes, draw: random.Random) -> bytes:
    """A part is missing."""
    start, end = _span(content, draw)
    return content[:start] + content[end:]


def repeat(content: bytes, draw: random.Random) -> bytes:
    """A part is there twice, or often."""
    start, end = _span(content, draw)
    return content[:end] + content[start:end] * draw.choice((1, 1, 2, 50)) + content[end:]


def insert(content: bytes, draw: random.Random) -> bytes:
    """Something stands where nothing should."""
    at = draw.randrange(len(content) + 1)
    what = draw.choice((b"\xff\xfe", b"\0", b"\x1b]0;x\x07", b"[" * 2000, b'{"a":' * 2000, b"\xed\xa0\x80",
                        b"\r", b"\n", b"9" * 5000, b"&a *a ", b'"', b"}", b"\xef\xbb\xbf"))  # fmt: skip
    return content[:at] + what + content[at:]


def recode(content: bytes, draw: random.Random) -> bytes:
    """The text in another encoding, or with a mark or other line ends."""
    text = content.decode("utf-8", "replace")
    return draw.choice((
        text.encode("utf-16"), text.encode("utf-8-sig"), text.encode("utf-32"), text.replace("\n", "\r\n").encode(),
        text.encode("latin-1", "replace") + b"\xe9",
    ))  # fmt: skip


def replace_all(content: bytes, draw: random.Random) -> bytes:
    """Something else altogether."""
    deep = draw.choice((200, 5000, 100_000))
    return draw.choice((
        b"", b"null", b"[]", b"{}", b"3", b'"x"', b"\0" * 300, b"[" * deep, b'{"a":' * deep, b"a: " * 30 + b"1",
        b"[" * 300 + b"]" * 300, b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x80\x04.", b"a = " + b"[" * deep,
        draw.randbytes(300), b"---\n...\n", b"\n" * 1000,
    ))  # fmt: skip


BYTES: tuple[Bytes, ...] = (flip, truncate, zero, drop, repeat, insert, recode, replace_all)


def _span(content: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(content))
    return start, min(len(content), start + draw.choice((1, 4, 20, 200)))


# -- values -----------------------------------------------------------------------------------------------------------


def mutated_json(text: str, draw: random.Random) -> str:
    """A JSON text with some values or names changed; some as texts, since no library writes them."""
    if draw.random() < 0.1:
        return _with_twin(text, draw)
    value = json.loads(text)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        value = mutated(value, draw)
    written = json.dumps(value)
    return written.replace('"DEEP"', draw.choice(("[" * 300 + "]" * 300, "[" * 30_000 + "]" * 30_000)))


def mutated(value: Any, draw: random.Random) -> Any:
    """The value with one change, somewhere within it."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(sorted(value))
        kind = draw.random()
        if kind < 0.12:
            return {other: inner for other, inner in value.items() if other != name}
        if kind < 0.2:
            other = draw.choice(("", "x", "\x1b[2J", "\ud800", "__metadata__", "__class__", name + "_", "x" * 3000))
            return {**{one: inner for one, inner in value.items() if one != name}, other: value[name]}
        return {**value, name: mutated(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        kind = draw.random()
        if kind < 0.15:
            return value[:at] + value[at + 1 :]
        if kind < 0.3:
            return value[:at] + [value[at]] * draw.choice((2, 300)) + value[at:]
        return [*value[:at], mutated(value[at], draw), *value[at + 1 :]]
    return "DEEP" if draw.random() < 0.05 else draw.choice(HOSTILE)


def _with_twin(text: str, draw: random.Random) -> str:
    """The text with one of its names twice."""
    places = [at for at, letter in enumerate(text) if letter == "{"]
    at = draw.choice(places) + 1 if places else 0
    return f'{text[:at]}"a": 1, "a": 2{"" if text[at : at + 1] == "}" else ","} {text[at:]}'


def json_bytes(content: bytes, draw: random.Random) -> bytes:
    """A JSON file with other values."""
    return mutated_json(content.decode(), draw).encode("utf-8", "surrogatepass")


def json_lines(content: bytes, draw: random.Random) -> bytes:
    """A file of JSON lines with other values in some of them."""
    lines = content.decode().splitlines()
    for _ in range(draw.choice((1, 3))):
        at = draw.randrange(len(lines))
        lines[at] = mutated_json(lines[at], draw) if lines[at].startswith("{") else lines[at]
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")


def json_header(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file with another header."""
    length = int.from_bytes(content[:8], "little")
    header = json_bytes(content[8 : 8 + length], draw)
    told = draw.choice((len(header),) * 6 + (0, 1, 2**63, 2**31, len(header) - 1, len(header) + 1))
    return told.to_bytes(8, "little") + header + content[8 + length :]


# -- places -----------------------------------------------------------------------------------------------------------


def as_folder(path: Path) -> None:
    """A folder of the same name."""
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    """A pipe that nobody writes to."""
    path.unlink()
    os.mkfifo(path)


def as_loop(path: Path) -> None:
    """A link to itself."""
    path.unlink()
    path.symlink_to(path)


def as_device(path: Path) -> None:
    """An endless file."""
    path.unlink()
    path.symlink_to("/dev/zero")


def as_socket(path: Path) -> None:
    """A socket, where its name is short enough for one."""
    path.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def as_nothing(path: Path) -> None:
    """No file."""
    path.unlink()


def as_hole(path: Path) -> None:
    """A file of a terabyte, of zeros that take no room."""
    os.truncate(path, 1 << 40)


def parent_as_file(path: Path) -> None:
    """A file in the place of the folder."""
    folder = path.parent
    shutil.rmtree(folder)
    folder.write_text("x")


PLACES: tuple[Callable[[Path], None], ...] = (
    as_folder, as_pipe, as_loop, as_device, as_socket, as_nothing, as_hole, parent_as_file,
)  # fmt: skip


def damage(path: Path, own: tuple[Bytes, ...], draw: random.Random) -> str:
    """Change the file at `path` in some way; its name. `own`: what is known of its language."""
    kind = draw.random()
    if kind < 0.06:
        change = draw.choice(PLACES)
        change(path)
        return change.__name__
    how: Bytes = draw.choice(own if own and kind < 0.6 else BYTES)
    path.write_bytes(how(path.read_bytes() or b" ", draw))
    return how.__name__
