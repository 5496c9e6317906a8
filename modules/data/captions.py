"""Captions: how they are read from files, and how they are changed each time a picture is used."""

import json
from pathlib import Path
from random import Random

from modules.adapters.base import seed_of
from modules.data.names import broken_link, shown
from modules.preset.data_options import Data

CAPTION_KEYS = ("text", "caption")
"""Names of the caption in metadata.jsonl."""


def caption_for(options: Data, caption: str, seed: int, position: int) -> str:
    """The caption as used for the sample at `position` of the run with `seed`: a pure function.

    `caption_dropout` replaces all of it, trigger included. Otherwise the trigger comes first (once, also when the
    caption already begins with it), then the first `keep_tokens` parts, then the rest, dropped and shuffled. Without
    shuffling and dropping of parts the caption's own text stays unchanged, to the byte.
    """
    draw = Random(seed_of("caption", seed, position))
    if draw.random() < options.caption_dropout:
        return ""
    if not options.shuffle and not options.part_dropout:
        return caption if _has_trigger(options, caption) else _with_trigger(options, caption)
    if _has_trigger(options, caption):
        caption = caption[len(options.trigger) :]
    parts = [part for part in map(str.strip, caption.split(options.separator)) if part]
    kept, rest = parts[: options.keep_tokens], parts[options.keep_tokens :]
    rest = [part for part in rest if draw.random() >= options.part_dropout]
    if options.shuffle:
        draw.shuffle(rest)
    return _with_trigger(options, _glue(options).join(kept + rest))


def whole_caption(options: Data, caption: str) -> str:
    """The caption with the trigger, and with nothing dropped or shuffled: for validation pictures."""
    plain = options.model_copy(update={"shuffle": False, "part_dropout": 0.0, "caption_dropout": 0.0})
    return caption_for(plain, caption, 0, 0)


def _has_trigger(options: Data, caption: str) -> bool:
    return caption == options.trigger or caption.startswith(options.trigger + (options.separator or " "))


def _with_trigger(options: Data, caption: str) -> str:
    return _glue(options).join(part for part in (options.trigger, caption) if part)


def _glue(options: Data) -> str:
    """The text between parts: the separator and a space, unless it ends with white space itself."""
    return options.separator if options.separator[-1:].isspace() else options.separator + " "


def read_text(path: Path) -> str:
    """The text of a file without white space around it. Raises ValueError, naming the file, if it is not UTF-8."""
    place = shown(path)
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block
            raise ValueError(f"{place}: is not a regular file; replace it with a text file")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        if why := broken_link(path):
            raise ValueError(f"{place}: {why}; restore that, or remove the link") from error
        raise ValueError(f"{place}: cannot be read ({error.strerror}); check its permissions") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: is not UTF-8 text (byte {error.start}); save it in the encoding UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{place}: is not UTF-8 text (it has zero bytes); save it in the encoding UTF-8")
    return text.strip()


def parse_metadata_line(line: str) -> tuple[str, str, set[str]]:
    """File name, caption and the names of unused entries of one line of metadata.jsonl.

    Raises ValueError saying what is wrong with the line.
    """
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg}, column {error.colno})") from error
    except RecursionError:
        raise ValueError("is nested too deep") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise ValueError('has no "file_name"; write {"file_name": "a.png", "text": "the caption"}')
    texts = [entry[key] for key in CAPTION_KEYS if key in entry]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError('has no caption; write {"file_name": "a.png", "text": "the caption"}')
    if len(set(texts)) > 1:
        raise ValueError('has a "text" and a different "caption"; keep one of them')
    try:
        texts[0].encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a surrogate pair in its caption ({texts[0][error.start]!a}); remove it") from error
    return entry["file_name"], texts[0].strip(), entry.keys() - {"file_name", *CAPTION_KEYS}
