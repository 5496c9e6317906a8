"""Files with another trainer's settings: JSON, TOML, YAML, or a command line as it was pasted."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = {".json": "JSON", ".toml": "TOML", ".yaml": "YAML", ".yml": "YAML"}
"""Endings of files and the languages they promise. All others are taken for a command line."""

LARGEST = 16 * 2**20
"""Bytes. No settings are larger; a model file given by mistake is."""

LIST_FLAGS = ("network_args", "optimizer_args", "lr_scheduler_args", "text_encoder_lr", "base_weights")
"""Arguments that take several words."""


@dataclass
class Document:
    """What stands in a file."""

    path: Path
    kind: str
    """"JSON", "TOML", "YAML" or "command line"."""
    values: dict[str, Any]
    script: str = ""
    """File name of the program that a command line starts."""
    others: list[str] = field(default_factory=list)
    """Words of a command line that are not of the program, such as accelerate's."""


def read(path: Path) -> Document:
    """The settings in a file. Raises ValueError, in one sentence, for what is not readable as what it should be."""
    text = read_text(path)
    kind = KINDS.get(path.suffix.lower(), "")
    if not kind:
        kind = "JSON" if text.lstrip()[:1] in ("{", "[") else "command line"
    if kind == "JSON" and text.lstrip()[:1] == '"' or kind == "command line":
        return command_line(path, _json(path, text) if kind == "JSON" else text)
    values = {"JSON": _json, "TOML": _toml, "YAML": _yaml}[kind](path, text)
    if isinstance(values, list) and all(isinstance(word, str) for word in values) and values:
        return command_line(path, shlex.join(values))
    if isinstance(values, dict) and isinstance(values.get("args"), list):  # a debugger's launch file
        return command_line(path, shlex.join([str(values.get("program", "")), *map(str, values["args"])]))
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{path}: there are no settings in it, but {_shape(values)}; give a trainer's saved settings")
    return Document(path, kind, values)


def read_text(path: Path) -> str:
    """A file's text. Raises ValueError for what is no text file."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the file with the settings")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: is too large for settings ({path.stat().st_size / 2**20:.0f} MiB)")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error}); give a JSON, TOML, YAML or text file") from None
    if "\0" in text or not text.strip():
        raise ValueError(f"{path}: is {'empty' if not text.strip() else 'no text file'}; give a trainer's settings")
    return text


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None


def _toml(path: Path, text: str) -> Any:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        raise ValueError(f"{path}: reading TOML needs Python 3.11; give the settings as JSON or YAML") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: is not TOML ({error})") from None


def _yaml(path: Path, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        place = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = f"line {place.line + 1}, column {place.column + 1}" if place else " ".join(str(error).split())
        raise ValueError(f"{path}: is not YAML ({where})") from None


def _shape(values: Any) -> str:
    return {list: "a list", str: "a text", dict: "nothing", type(None): "nothing"}.get(type(values), "a single value")


def command_line(path: Path, text: str) -> Document:
    """The arguments in a pasted command: lines joined, comments, variables and the launcher's own words set aside.

    A flag without a value means true. Raises ValueError where no program's arguments are found.
    """
    words = split_command(path, text)
    scripts = [at for at, word in enumerate(words) if word.lower().endswith(".py")]
    first = scripts[-1] + 1 if scripts else 0
    values: dict[str, Any] = {}
    others, name = launcher_words(words[: max(0, first - 1)]), ""
    for word in words[first:]:
        if re.match(r"--\w", word):
            name, equals, given = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in values:
                raise ValueError(f"{path}: --{name} is given twice; keep one")
            values[name] = [given] if equals else []
        elif name:
            values[name].append(word)
        else:
            others.append(word)
    found = {name: _plain(path, name, given) for name, given in values.items()}
    if not found:
        raise ValueError(f"{path}: is neither JSON nor a command with arguments such as --network_dim 16")
    script = re.split(r"[/\\]", words[first - 1])[-1] if scripts else ""
    return Document(path, "command line", found, script, others)


def launcher_words(words: list[str]) -> list[str]:
    """The arguments of what starts the program, each with its value."""
    found: list[str] = []
    for word in words:
        if word.startswith("-"):
            found.append(word)
        elif found:
            found[-1] += f" {word}"
    return found


def split_command(path: Path, text: str) -> list[str]:
    """The words of a command; line ends behind a backslash (sh), caret (cmd) or backtick (PowerShell) join lines."""
    text = re.sub(r"[ \t]*[\\^`][ \t]*\r?\n", " ", text)
    lines = [line for line in text.splitlines() if line.strip() and not re.match(r"\s*(#|::|rem\b)", line, re.I)]
    try:
        lexer = shlex.shlex(" ".join(lines), posix=True, punctuation_chars=False)
        lexer.whitespace_split = True
        lexer.commenters = ""
        if re.search(r"[A-Za-z]:\\|\\\\", text):  # Windows paths: a backslash is no escape
            lexer.escape = ""
        return list(lexer)
    except ValueError as error:
        reason = str(error).lower().rstrip(".")
        raise ValueError(f"{path}: is not a whole command ({reason}); copy all of it") from None


def _plain(path: Path, name: str, given: list[str]) -> Any:
    """The value of a flag: true without words, a list where it may have several."""
    if name in LIST_FLAGS:
        return given
    if len(given) > 1:
        more = " ".join(given[1:])
        raise ValueError(f"{path}: --{name} has more than one value ({more}); put texts with spaces in quotes")
    return given[0] if given else True
