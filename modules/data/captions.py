"""Captions: what is done to them each time a picture is used, as pure functions; and text files."""

import re
from pathlib import Path
from random import Random

from modules.adapters.base import seed_of
from modules.data.names import broken_link, shown
from modules.data.wildcards import expanded
from modules.preset.data_options import Data

TRIGGER = "[trigger]"
"""Stands in captions and prompts for data.trigger, as in ai-toolkit."""

SHORT = 3
"""Parts of a caption up to this many characters keep their underscores: most are emoticons such as ^_^. Taggers do the
same."""


def caption_for(options: Data, caption: str, seed: int, position: int) -> str:
    """The caption as used for the sample at `position` of the run with `seed`: a pure function.

    `caption_dropout` replaces all of it, trigger included. Otherwise a line is chosen where `caption_lines` is random,
    and an alternative for each pair of braces; prefix and suffix are put around it and count as its parts. The trigger
    comes first (once, also when the caption already begins with it), unless it replaces `[trigger]`; then the first
    `keep_tokens` parts, then the rest, dropped and shuffled. Without any of this the caption's own text stays
    unchanged, to the byte.
    """
    draw = Random(seed_of("caption", seed, position))
    if draw.random() < options.caption_dropout:
        return ""
    if options.caption_lines == "random":
        caption = Random(seed_of("caption line", seed, position)).choice(lines(caption))
    if options.wildcards:
        caption = expanded(caption, Random(seed_of("wildcards", seed, position)))
    return _arranged(options, caption, draw)


def whole_caption(options: Data, caption: str) -> str:
    """The caption with the trigger, with nothing dropped or shuffled, and the first of its lines and alternatives: for
    validation pictures."""
    plain = options.model_copy(update={"shuffle": False, "part_dropout": 0.0})
    return _arranged(plain, _first(options, caption), Random(0))


def as_prompt(options: Data, caption: str) -> str:
    """The caption as the prompt of a sample: its own text, with the first of its lines and alternatives."""
    return filled_in(options, _first(options, caption))


def filled_in(options: Data, text: str) -> str:
    """The text with the trigger instead of `[trigger]`. Without a trigger, what divides it from the rest goes too."""
    if options.trigger or TRIGGER not in text:
        return text.replace(TRIGGER, options.trigger)
    divider = rf"\s*{re.escape(options.separator)}\s*|\s" if options.separator else r"\s"
    return re.sub(rf"{re.escape(TRIGGER)}(?:{divider})?", "", text)


def samples_of(options: Data, caption: str) -> list[str]:
    """The captions of the samples that a picture with this caption becomes."""
    if options.caption_lines == "each":
        return lines(caption)
    return lines(caption)[:1] if options.caption_lines == "first" else [caption]


def captions_of(options: Data, caption: str) -> list[str]:
    """All texts that a training may take of this caption, before anything is put in front, shuffled or dropped: its
    lines, or all of it."""
    return lines(caption) if options.caption_lines == "random" else samples_of(options, caption)


def lines(caption: str) -> list[str]:
    """The lines of a caption that have text; the empty one if there is none."""
    return [line for line in map(str.strip, caption.split("\n")) if line] or [""]


def glue(options: Data) -> str:
    """The text between parts: the separator and a space, unless it ends with white space itself."""
    return options.separator if options.separator[-1:].isspace() else options.separator + " "


def _first(options: Data, caption: str) -> str:
    if options.caption_lines == "random":
        caption = lines(caption)[0]
    return expanded(caption, None) if options.wildcards else caption


def _arranged(options: Data, caption: str, draw: Random) -> str:
    """The caption with trigger, prefix and suffix, and its parts as they are kept, dropped and shuffled."""
    leads = _has_trigger(options, caption)
    rest = caption[len(options.trigger) :] if leads else caption
    if options.prefix.strip() or options.suffix.strip():
        rest = _framed(options, rest, leads)
    divided = options.shuffle or options.part_dropout > 0 or is_marked(options, rest)
    if divided:
        rest = glue(options).join(_parts(options, rest, draw))
    elif options.underscores:
        rest = options.separator.join(_spaced(part) for part in _split(options, rest))
    said = filled_in(options, rest)
    if leads and not divided:
        return options.trigger + said
    return said if TRIGGER in rest and not leads else _with_trigger(options, said)


def _framed(options: Data, rest: str, leads: bool) -> str:
    """A caption, or what follows the trigger in it, with prefix and suffix around it."""
    inner = rest.removeprefix(options.separator).strip() if leads else rest
    framed = " ".join(part for part in (options.prefix.strip(), inner, options.suffix.strip()) if part)
    return glue(options) + framed if leads else framed


def _parts(options: Data, text: str, draw: Random) -> list[str]:
    """The parts of a caption: those that are kept at the front, the others dropped and shuffled, and those that are
    kept at the end. `keep_separator` divides them as in sd-scripts."""
    if is_marked(options, text):
        front, middle, *last = (_clean(options, part) for part in text.split(options.keep_separator, 2))
    else:
        parts, last = _clean(options, text), []
        front, middle = parts[: options.keep_tokens], parts[options.keep_tokens :]
    never, only = (set(map(tag, names)) for names in (options.drop_never, options.drop_only))
    middle = [
        part for part in middle
        if draw.random() >= options.part_dropout or tag(part) in never or only and tag(part) not in only
    ]  # fmt: skip
    if options.shuffle:
        draw.shuffle(middle)
    return front + middle + [part for parts in last for part in parts]


def _clean(options: Data, text: str) -> list[str]:
    """The parts of a text, without those that are empty."""
    parts = [part for part in map(str.strip, _split(options, text)) if part]
    return [_spaced(part) for part in parts] if options.underscores else parts


def _split(options: Data, text: str) -> list[str]:
    return text.split(options.separator) if options.separator else [text]


def _spaced(part: str) -> str:
    """A part of a caption with spaces for underscores."""
    return part.replace("_", " ") if len(part.strip()) > SHORT else part


def tag(part: str) -> str:
    """A part as it is compared with those of a list: upper case and underscores make no difference."""
    return part.strip().replace("_", " ").casefold()


def is_marked(options: Data, text: str) -> bool:
    """Whether the text has the mark of the parts that are kept."""
    return bool(options.keep_separator) and options.keep_separator in text


def _has_trigger(options: Data, caption: str) -> bool:
    """Whether the caption begins with the trigger."""
    if not options.trigger or not caption.startswith(options.trigger):
        return False
    rest = caption[len(options.trigger) :]
    return (
        not rest
        or rest.startswith(options.separator or " ")
        or is_marked(options, rest) and rest.lstrip().startswith(options.keep_separator)
    )


def _with_trigger(options: Data, caption: str) -> str:
    return glue(options).join(part for part in (options.trigger, caption) if part)


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
