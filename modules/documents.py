"""Reading JSON, TOML and YAML that somebody else wrote: bounded in size and depth, and one sentence for what is wrong.

Every function raises ValueError with one sentence that begins with the file, whatever it is: a folder, a pipe, a
device, text in another encoding, a million brackets, a duplicate key.
"""

import json
import re
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LARGEST = 8 * 2**20
"""Bytes of a JSON file, at most. In memory it may take thirty times as much."""

LARGEST_SETTINGS = 2**20
"""Bytes of TOML, YAML and presets; they are read in Python, a character at a time."""

DEEPEST = 100
"""Levels of mappings and lists within each other. Presets have five."""

LONGEST_NUMBER = 100
"""Characters of a number in YAML, whose numbers to base 60 take quadratic time."""

MOST_NODES = 50_000
"""Values in a YAML file, those that an alias repeats counted each time; settings have hundreds."""

NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
"""YAML's names for numbers."""

OTHERS = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device",
          stat.S_ISBLK: "a device"}
"""What a path may be instead of a file."""

LONG_KEY = re.compile(
    r"""(?<![\w"'-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*)""" f"{{{DEEPEST}}}", re.ASCII
)
"""A TOML key of so many parts, for each of which Python's reader keeps all parts before it."""

ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Other encodings and formats, by the first bytes."""


# -- files ------------------------------------------------------------------------------------------------------------


def check_file(path: Path, what: str = "a file") -> int:
    """The size of the file at `path`, which is not opened: a pipe would block, and a device may do anything.

    Raises ValueError for what is not a regular file; `what` is expected there.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise ValueError(f"{str(path)!r}: is not a path; it has a character that file names cannot have") from None
    if not stat.S_ISREG(found.st_mode):
        kind = next((words for is_it, words in OTHERS.items() if is_it(found.st_mode)), "not a file")
        raise ValueError(f"{path}: is {kind}; give {what}")
    return found.st_size


def is_file(path: Path) -> bool:
    """Whether a regular file is there. False also for what is not a valid path, such as a text of 300 characters."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder is there; likewise."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, largest: int = LARGEST, what: str = "a file") -> bytes:
    """What is in a file of at most `largest` bytes."""
    size = check_file(path, what)
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > largest:
        raise ValueError(f"{path}: is too large for {what} ({max(size, len(content)) / 2**20:.1f} MiB; at most "
                         f"{largest / 2**20:.0f})")
    return content


def read_text(path: Path, largest: int = LARGEST, what: str = "a text file") -> str:
    """What is in a text file: UTF-8, with or without a byte order mark, and every line ended by a newline alone."""
    content = read_bytes(path, largest, what)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        seen = ENCODINGS.get(content[:2], "")
        how = f"it is {seen}" if seen else f"byte {error.start + 1} is {content[error.start]:#04x}"
        raise ValueError(f"{path}: is not UTF-8 text ({how}); save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path}: is damaged or not a text file: it has NUL characters; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# -- languages --------------------------------------------------------------------------------------------------------


def read_json(path: Path, largest: int = LARGEST) -> Any:
    """The value in a JSON file."""
    return parse_json(read_text(path, largest), f"{path}")


def read_object(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The object in a JSON file."""
    return as_object(read_json(path, largest), f"{path}")


def parse_json(text: str, place: str, exact: bool = False) -> Any:
    """The value of a JSON text; `place` is where it comes from, for sentences. NaN and Infinity, which Python and other
    programs write, are read unless the text has to be `exact`."""
    constant = _refused if exact else float
    try:
        found = json.loads(text, object_pairs_hook=_mapping, parse_constant=constant)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}" if text.strip() else "it is empty"
        raise ValueError(f"{place}: is not JSON ({reason})") from None
    except RecursionError:
        raise ValueError(_too_deep(place)) from None
    except ValueError as error:  # a duplicate key, a constant, a number of 5,000 digits
        raise ValueError(f"{place}: {error}") from None
    return _bounded(found, place)


def as_object(value: Any, place: str) -> dict[str, Any]:
    """The same value. Raises ValueError if it is not a mapping."""
    if not isinstance(value, dict):
        raise ValueError(f"{place}: is {_kind(value)}, but an object in braces is expected, as in {{...}}")
    return value


def parse_toml(text: str, place: str) -> dict[str, Any]:
    """The table of a TOML text."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        raise ValueError(f"{place}: reading TOML needs Python 3.11; give the settings as JSON or YAML") from None
    if LONG_KEY.search(text):
        raise ValueError(_too_deep(place))
    try:
        return _bounded(tomllib.loads(text), place)
    except RecursionError:
        raise ValueError(_too_deep(place)) from None
    except ValueError as error:  # TOML's own, or a number of 5,000 digits
        raise ValueError(f"{place}: is not TOML ({error})") from None


def parse_yaml(text: str, place: str) -> Any:
    """The value of a YAML text: plain values only, no objects, no code, and a limit on what aliases repeat."""
    import yaml

    try:
        return _bounded(yaml.load(text, _loader()), place)  # noqa: S506  a safe loader
    except RecursionError:
        raise ValueError(_too_deep(place)) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, or one of ours
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        said = error.problem if isinstance(error, yaml.MarkedYAMLError) else None
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = ": ".join(part for part in (where, " ".join(str(said or "" if mark else error).split())) if part)
        raise ValueError(f"{place}: is not YAML ({reason})") from None
    except (TypeError, AttributeError, KeyError) as error:  # the library does not catch all wrong types
        raise ValueError(f"{place}: is not YAML ({error})") from None


def _loader() -> Any:
    """PyYAML's safe loader that limits what aliases repeat before constructing it, and rejects duplicate keys."""
    import yaml
    from yaml.composer import ComposerError
    from yaml.constructor import ConstructorError

    class Loader(yaml.SafeLoader):
        """Reads plain values."""

        def __init__(self, text: str):
            super().__init__(text)
            self.sizes: dict[int, int] = {}
            """Values in a node, by its identity."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            """A node. Raises ComposerError for one that repeats too much, or contains itself."""
            mark = self.peek_event().start_mark
            is_alias = self.check_event(yaml.AliasEvent)
            node: Any = super().compose_node(parent, index)
            if is_alias and id(node) not in self.sizes:
                raise ComposerError(None, None, "a recursive alias", mark)
            if not is_alias:
                self.sizes[id(node)] = 1 + sum(self.sizes[id(inner)] for inner in _inside(node))
            if node.tag in NUMBERS and len(node.value) > LONGEST_NUMBER:
                raise ComposerError(None, None, f"a number of {len(node.value)} digits", mark)
            if self.sizes[id(node)] > MOST_NODES or len(self.sizes) > MOST_NODES:
                raise ComposerError(None, None, "too many values", mark)
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            """A mapping. Raises ConstructorError for a duplicate key; a merged one may be overridden."""
            names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)
                            and key.tag != "tag:yaml.org,2002:merge")
            twice = _twice(names)
            if twice:
                raise ConstructorError(None, None, twice, node.start_mark)
            return super().construct_mapping(node, deep)

    return Loader


def _inside(node: Any) -> Iterable[Any]:
    """The nodes right inside of one of YAML's."""
    if isinstance(node.value, str):
        return ()
    return (inner for entry in node.value for inner in (entry if isinstance(entry, tuple) else (entry,)))


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(_twice(Counter(name for name, _ in pairs)))
    return found


def _twice(names: Counter[str]) -> str:
    """A sentence about duplicate names; empty if there are none."""
    found = [name for name, count in names.items() if count > 1]
    if not found:
        return ""
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{', '.join(name[:80] for name in found[:3])}{more} is given twice in one section; keep one"


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _bounded(value: Any, place: str) -> Any:
    """The same value. Raises ValueError for one that is nested too deeply."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level if isinstance(outer, dict | list)
                 for inner in (outer.values() if isinstance(outer, dict) else outer) if isinstance(inner, dict | list)]
        if not level:
            return value
    raise ValueError(_too_deep(place))


def _too_deep(place: str) -> str:
    return f"{place}: is damaged or of another kind: its values are nested more than {DEEPEST} levels deep"


def _kind(value: Any) -> str:
    if value is None or value == "":
        return "nothing"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), f"a {type(value).__name__}")
