"""What the window asks about pictures: JSON requests and answers, one per line, by the functions that a training uses.

The format is described in docs/look.md. `scripts/look.py` is the process.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modules import families
from modules.data.batches import flip_at
from modules.data.buckets import GUESSED_STEP, nearest
from modules.data.captions import caption_for, captions_of, entries, whole_caption
from modules.data.index import Picture, Progress, as_picture, bucket_numbers, by_caption, look_at, remark_on_sizes
from modules.data.pictures import enlargement, placement, read_size
from modules.data.survey import SETTINGS, Item, Survey, bucket_sizes, survey
from modules.documents import parse_json
from modules.preset.base_options import Base
from modules.preset.data_options import Data
from modules.preset.problems import sentences
from modules.preset.section import Section
from modules.preset.training_options import Training
from modules.training.command import quiet_libraries

SECTIONS = {"base": ("path", "config"), "training": ("batch_size",)}
"""Of these sections of a preset only some options are read: a wrong value elsewhere must not matter."""

PATIENCE = 60.0
"""Seconds after which a base that could not be read is tried again: the hub may take long to fail."""

PROGRESS_EVERY = 0.2
"""Seconds between progress lines."""

MOST_DRAWS = 1000

Answer = Callable[[dict[str, Any]], None]
"""Called with each answer."""


class Wanted(Section):
    """The part of a preset that the answers depend on."""

    family: str = ""
    """The kind of model."""

    base: Base = Base()
    data: Data = Data()
    training: Training = Training()


@dataclass
class Bases:
    """The bases that were requested, without weights: read once, since that takes seconds."""

    models: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    failures: dict[tuple[str, str, str], tuple[float, str]] = field(default_factory=dict)
    """When it was tried, and why it cannot be read."""

    def get(self, wanted: Wanted) -> tuple[Any, str]:
        """The base, or None and the reason."""
        key = (wanted.family, wanted.base.path, wanted.base.config)
        if key in self.models:
            return self.models[key], ""
        tried, reason = self.failures.get(key, (-PATIENCE, ""))
        if time.monotonic() - tried >= PATIENCE:
            if wanted.family not in families.names():
                return None, f"family: no such family: {wanted.family!r}"
            quiet_libraries()
            model, problems = families.read(wanted.family, wanted.base)
            if model is not None:
                self.models[key] = model
                return model, ""
            reason = "; ".join(problems)
            self.failures[key] = time.monotonic(), reason
        return None, reason


def serve(requests: Iterable[str], answer: Answer) -> None:
    """Answer each request in turn. No request ends the loop, whatever is in it."""
    bases = Bases()
    for line in requests:
        if line.strip():
            answer_one(line, bases, answer)


def answer_one(line: str, bases: Bases, answer: Answer) -> None:
    """Answer one request, with a sentence if it fails."""
    number = None
    try:
        request = _request(line)
        number = request.get("id")
        kind = request.get("ask")
        if kind not in ASKS:
            raise ValueError(f"ask: {kind!r} is not one of {', '.join(ASKS)}")
        found = ASKS[kind](request, bases, _progress(number, answer))
    except ValueError as error:
        found = {"error": str(error)}
    except Exception as error:  # noqa: BLE001  reported to the window; the next request may work
        found = {"error": f"request failed ({error!r})"}
    answer({"id": number, **found})


# -- pictures ---------------------------------------------------------------------------------------------------------


def pictures(request: dict[str, Any], bases: Bases, progress: Progress) -> dict[str, Any]:
    """All pictures of a set and what becomes of them."""
    wanted, which = _wanted(request), _which(request)
    model, reason = bases.get(wanted)
    found = survey(wanted.data, which, model.bucket_step if model else GUESSED_STEP)
    sizes = {item.path: size for item, size in look_at(found, read_size, progress)}
    shown = {
        item.path: as_picture(item, sizes[item.path], found.sizes, key="")
        for item in found.items
        if item.path in sizes and found.sizes
    }
    remark_on_sizes(wanted.data, list(shown.values()), found)
    rows = [_row(item, sizes.get(item.path), shown.get(item.path), found) for item in found.items]
    for row, item in zip(rows, found.items, strict=True):
        row["captions"] = captions_of(wanted.data, item.caption.text)
        longest = [model.cut_off(whole_caption(wanted.data, caption)) for caption in row["captions"]] if model else []
        row["too_long"] = any(longest) if model else None
    samples = [entry for picture in shown.values() for entry in by_caption(wanted.data, picture)]
    return {
        "pictures": rows,
        "captions": found.captions,
        "buckets": [asdict(bucket) for bucket in bucket_numbers(samples, wanted.training.batch_size)],
        "problems": found.problems,
        "notes": found.notes + _guessed(reason),
        "tokens": model.caption_tokens if model else None,
    }


def _row(item: Item, size: tuple[int, int] | None, picture: Picture | None, found: Survey) -> dict[str, Any]:
    """A picture's facts, null where they are not known."""
    return {
        "path": str(item.path),
        "name": item.name,
        "folder": item.folder,
        "caption": item.caption.text,
        "source": item.caption.source,
        "caption_file": str(item.caption.file or ""),
        "width": size[0] if size else None,
        "height": size[1] if size else None,
        "bucket": picture.bucket if picture else None,
        "repeats": item.repeats,
        "problem": found.broken.get(item.path, item.caption.problem),
        "enlarged": enlargement(*size, picture.bucket) if size and picture else None,
    }


def _guessed(reason: str) -> list[str]:
    if not reason:
        return []
    return [
        f"bucket sizes are estimated (multiples of {GUESSED_STEP} px), and caption lengths are not checked: the base "
        f"model cannot be read ({reason})"
    ]


# -- one picture ------------------------------------------------------------------------------------------------------


def sees(request: dict[str, Any], bases: Bases, _: Progress) -> dict[str, Any]:
    """What a training sees of one picture: its bucket, the part that is kept, prompts and flips of some positions."""
    wanted, which, path = _wanted(request), _which(request), Path(_given(request, "path", str))
    seed, draws = _given(request, "seed", int, 0), _given(request, "draws", int, 8)
    if not 0 < draws <= MOST_DRAWS:
        raise ValueError(f"draws: {draws} is not between 1 and {MOST_DRAWS}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    model, reason = bases.get(wanted)
    size = read_size(path)
    bucket = nearest(*size, bucket_sizes(wanted.data, model.bucket_step if model else GUESSED_STEP))
    width, height, top, left = placement(*size, bucket)
    across, down = size[0] / width, size[1] / height
    caption = _given(request, "caption", str, None)
    if caption is None:
        caption = _caption_of(path, wanted.data, which)
    own, line = entries(wanted.data, caption), _given(request, "line", int, 0)
    if not 0 <= line < len(own):
        raise ValueError(f"line: {line} is not one of the {len(own)} captions of this picture, counted from 0")
    return {
        "bucket": bucket,
        "resized": [width, height],
        "crop": [left * across, top * down, bucket[0] * across, bucket[1] * down],
        "captions": captions_of(wanted.data, caption),
        "draws": [
            {"position": position, "prompt": prompt, "flip": flip, "cut": model.cut_off(prompt) if model else ""}
            for position, (prompt, flip) in enumerate(_seen(wanted.data, which, own[line], seed, draws))
        ],
        "notes": _guessed(reason),
    }


def _seen(options: Data, which: str, caption: str, seed: int, draws: int) -> list[tuple[str, bool]]:
    """Prompt and flip at each position. Validation pictures are always seen the same way."""
    if which == "validation":
        return [(whole_caption(options, caption), False)]
    return [(caption_for(options, caption, seed, place), flip_at(options, seed, place)) for place in range(draws)]


def _caption_of(path: Path, options: Data, which: str) -> str:
    """The caption that a picture has in its files."""
    for item in survey(options, which, GUESSED_STEP).items:
        if item.path.resolve() == path.resolve():
            return item.caption.text
    raise ValueError(f"{path}: is not one of the pictures of {SETTINGS[which]}; give a caption")


# -- requests ---------------------------------------------------------------------------------------------------------


ASKS: dict[str, Callable[[dict[str, Any], Bases, Progress], dict[str, Any]]] = {"pictures": pictures, "sees": sees}


def _request(line: str) -> dict[str, Any]:
    request = parse_json(line, "a request, which is one line of JSON")
    if not isinstance(request, dict):
        raise ValueError("a request is a JSON object, in braces")
    return request


def _given(request: dict[str, Any], name: str, kind: type, default: Any = ...) -> Any:
    value = request.get(name, default)
    if value is ...:
        raise ValueError(f"{name}: required")
    if value is not default and type(value) is not kind:
        raise ValueError(f"{name}: {value!r} is not of the type {kind.__name__}")
    return value


def _which(request: dict[str, Any]) -> str:
    which = _given(request, "which", str, "training")
    if which not in SETTINGS:
        raise ValueError(f"which: {which!r} is not one of {', '.join(SETTINGS)}")
    return which


def _wanted(request: dict[str, Any]) -> Wanted:
    """The part of the request's preset that is used."""
    preset = _given(request, "preset", dict)
    values: dict[str, Any] = {name: preset[name] for name in ("family", "data") if name in preset}
    for section, names in SECTIONS.items():
        given = preset.get(section, {})
        values[section] = {name: given[name] for name in names if name in given} if isinstance(given, dict) else given
    try:
        return Wanted.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(sentences(error, Wanted, values))) from error


def _progress(number: Any, answer: Answer) -> Progress:
    """Progress lines for a request, not too many."""
    last = time.monotonic()

    def move(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_EVERY:
            last = time.monotonic()
            answer({"id": number, "progress": [done, total]})

    return move
