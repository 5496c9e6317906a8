"""Files with another trainer's settings: JSON, TOML, YAML, or a command line as it was pasted."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules import documents

KINDS = {".json": "JSON", ".toml": "TOML", ".yaml": "YAML", ".yml": "YAML"}
"""Endings of files and the languages they promise. All others are taken for a command line."""

LARGEST = {"JSON": documents.LARGEST}
"""Bytes by language, where more than for all others. No settings are larger; a model file given by mistake is."""

WHAT = "a file with a trainer's settings"

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
        return command_line(path, documents.parse_json(text, f"{path}") if kind == "JSON" else text)
    parse = {"JSON": documents.parse_json, "TOML": documents.parse_toml, "YAML": documents.parse_yaml}[kind]
    values = parse(text, f"{path}")
    if isinstance(values, list) and all(isinstance(word, str) for word in values) and values:
        return command_line(path, shlex.join(values))
    if isinstance(values, dict) and isinstance(values.get("args"), list):  # a debugger's launch file
        return command_line(path, shlex.join([str(values.get("program", "")), *map(str, values["args"])]))
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{path}: there are no settings in it, but {_shape(values)}; give a trainer's saved settings")
    return Document(path, kind, values)


def read_text(path: Path) -> str:
    """A file's text. Raises ValueError for what is no text file."""
    text = documents.read_text(path, LARGEST.get(KINDS.get(path.suffix.lower(), ""), documents.LARGEST_SETTINGS), WHAT)
    if not text.strip():
        raise ValueError(f"{path}: is empty; give a trainer's settings")
    return text


def _shape(values: Any) -> str:
    return {list: "a list", str: "a text", dict: "nothing", type(None): "nothing"}.get(type(values), "a single value")


def command_line(path: Path, text: str) -> Document:
    """The arguments in a pasted command: lines joined, comments, variables and the launcher's own words set aside.

    A flag without a value means true. Raises ValueError where no program's arguments are found.
    """
    words = split_command(path, text)
    scripts = [at for at, word in enumerate(words) if word.lower().endswith(".py")]
    first = scripts[-1] + 1 if scripts else 0
    others = launcher_words(words[: max(0, first - 1)])
    found = arguments(path, words[first:], others)
    if not found:
        raise ValueError(f"{path}: is neither JSON nor a command with arguments such as --network_dim 16")
    script = re.split(r"[/\\]", words[first - 1])[-1] if scripts else ""
    return Document(path, "command line", found, script, others)


def arguments(path: Path, words: list[str], others: list[str] | None = None) -> dict[str, Any]:
    """Values by name of `--name value`; words before the first name are added to `others`. Raises ValueError for a
    name given twice, or with more values than it has."""
    values: dict[str, Any] = {}
    name = ""
    for word in words:
        if re.match(r"--\w", word):
            name, equals, given = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in values:
                raise ValueError(f"{path}: --{name} is given twice; keep one")
            values[name] = [given] if equals else []
        elif name:
            values[name].append(word)
        elif others is not None:
            others.append(word)
        else:
            raise ValueError(f"{path}: {word!r} is no argument such as --network_dim 16; correct it")
    return {name: _plain(path, name, given) for name, given in values.items()}


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
        more = " ".join(given[1:])[:80]
        raise ValueError(f"{path}: --{name} has more than one value ({more}); put texts with spaces in quotes")
    return given[0] if given else True
