"""What the window asks about pictures and noise levels: JSON requests and answers, one per line, by the functions that
a training uses.

The format is described in docs/look.md. `scripts/look.py` is the process.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from modules import families
from modules.data import masks
from modules.data.batches import flip_at
from modules.data.buckets import GUESSED_STEP, nearest
from modules.data.captions import caption_for, captions_of, samples_of, whole_caption
from modules.data.folders import ROLES, at_resolutions, entries, exact, folder_options, number
from modules.data.index import Picture, as_pictures, bucket_numbers
from modules.data.looking import Progress
from modules.data.opening import read_size
from modules.data.pictures import enlargement, placement
from modules.data.roots import SETTING, bucket_sizes
from modules.data.seen import look_at, look_at_masks
from modules.data.survey import Item, Survey, survey
from modules.documents import parse_json
from modules.families.base import Reading
from modules.preset.base_options import Base
from modules.preset.data_options import Data
from modules.preset.problems import sentences
from modules.preset.section import Section
from modules.preset.training_options import Objective, Training
from modules.training import noise_levels, preview
from modules.training.command import quiet_libraries

OF_BASE = ("path", "config")
"""Options of a base that say what to read of it."""

PATIENCE = 60.0
"""Seconds after which a base that could not be read is tried again: the hub may take long to fail."""

PROGRESS_EVERY = 0.2
"""Seconds between progress lines."""

MOST_DRAWS = 1000

Answer = Callable[[dict[str, Any]], None]
"""Called with each answer."""

W = TypeVar("W", bound="Wanted")


class Wanted(Section):
    """The part of a preset that the answers depend on."""

    family: str = ""
    """The kind of model."""

    base: Base = Base()
    data: Data = Data()
    training: Training = Training()

    whole: ClassVar[tuple[str, ...]] = ("family", "data")
    parts: ClassVar[dict[str, tuple[str, ...]]] = {"base": OF_BASE, "training": ("batch_size",)}
    """Of these sections only some options are read: a wrong value elsewhere must not matter."""


class WantedNoise(Wanted):
    """The same for noise levels."""

    objective: Objective = Objective()

    whole: ClassVar[tuple[str, ...]] = ("family", "objective")
    parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "base": OF_BASE, "data": ("resolution", "resolutions"), "training": ("seed",)
    }


@dataclass
class Bases:
    """The bases that were requested, without weights: read once, since that takes seconds."""

    models: dict[tuple[str, ...], Any] = field(default_factory=dict)
    failures: dict[tuple[str, ...], tuple[float, str]] = field(default_factory=dict)
    """When it was tried, and why it cannot be read."""

    def get(self, wanted: Wanted) -> tuple[Any, str]:
        """The base, which reads captions as wanted, or None and the reason."""
        model, reason = self._read(wanted)
        if model is not None:
            model.use_reading(Reading.of(wanted.base, wanted.data))
        return model, reason

    def _read(self, wanted: Wanted) -> tuple[Any, str]:
        base = wanted.base
        key = (wanted.family, base.path, base.config, *base.texts, base.vae)
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
    looks = look_at(found, read_size, progress)
    sizes = {item.path: size for item, size in looks}
    masked = look_at_masks(looks, found)
    shown = as_pictures(wanted.data, [(item, (size, "")) for item, size in looks], found, masked) if found.step else []
    uses: dict[tuple[Path, int], list[Picture]] = {}
    for picture in shown:
        uses.setdefault((picture.path, picture.entry), []).append(picture)
    rows = []
    for item in found.items:
        rows.append(_row(item, sizes.get(item.path), uses.get((item.path, item.root.entry), []), found))
        options = item.root.options
        rows[-1]["captions"] = captions_of(options, item.caption.text)
        cut = [model.cut_off(whole_caption(options, caption)) for caption in rows[-1]["captions"]] if model else []
        rows[-1]["too_long"] = any(cut) if model else None
    return {
        "pictures": rows,
        "captions": found.captions,
        "buckets": [asdict(bucket) for bucket in bucket_numbers(shown, wanted.training.batch_size)],
        "problems": found.problems,
        "notes": found.notes + _guessed(reason),
        "tokens": model.caption_tokens if model else None,
    }


def _row(item: Item, size: tuple[int, int] | None, shown: list[Picture], found: Survey) -> dict[str, Any]:
    """A picture's facts, null where they are not known; `shown` are its uses, one for each resolution."""
    first = shown[0] if shown else None
    return {
        "path": str(item.path),
        "name": item.name,
        "folder": item.root.given,
        "entry": item.root.entry,
        "role": item.root.folder.role,
        "loss_weight": item.root.folder.loss_weight,
        "caption": item.caption.text,
        "source": item.caption.source,
        "caption_file": str(item.caption.file or ""),
        "width": size[0] if size else None,
        "height": size[1] if size else None,
        "mask": str(first.mask.path) if first and first.mask else None,
        "bucket": first.bucket if first else None,
        "repeats": number(sum((exact(one.repeats) for one in shown), Fraction(0))) if shown else number(item.repeats),
        "resolutions": [
            {
                "resolution": one.options.resolution,
                "bucket": one.bucket,
                "repeats": one.repeats,
                "enlarged": enlargement(one.width, one.height, one.bucket),
            }
            for one in {one.options.resolution: one for one in shown}.values()
        ],
        "problem": found.broken.get(item.path, item.caption.problem),
        "enlarged": max((enlargement(one.width, one.height, one.bucket) for one in shown), default=None),
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
    size, caption = read_size(path), _given(request, "caption", str, None)
    options, item, caption = _item_of(path, wanted.data, which, _given(request, "entry", int, None), caption)
    resolution = _given(request, "resolution", int, None)
    step = model.bucket_step if model else GUESSED_STEP
    alone = [one for one, _ in at_resolutions(options) if resolution in (None, one.resolution)]
    if not alone:
        raise ValueError(f"resolution: {resolution} is not one of those at which this picture is trained")
    bucket = nearest(*size, bucket_sizes(alone[0], step))
    width, height, top, left = placement(*size, bucket)
    across, down = size[0] / width, size[1] / height
    own, line = samples_of(options, caption), _given(request, "line", int, 0)
    if not 0 <= line < len(own):
        raise ValueError(f"line: {line} is not one of the {len(own)} captions of this picture, counted from 0")
    picture = _picture(path, size, bucket, alone[0], item)
    cell = (model.latent_factor if model else GUESSED_STEP) if _given(request, "pixels", bool, False) else None
    return {
        "bucket": bucket,
        "resolution": alone[0].resolution,
        "resized": [width, height],
        "crop": [left * across, top * down, bucket[0] * across, bucket[1] * down],
        "captions": captions_of(options, caption),
        "samples": len(own),
        "draws": [
            {**draw, **_read(model, draw["prompt"])} for draw in _draws(picture, which, own[line], seed, draws, cell)
        ],
        "variants": [] if which == "validation" else preview.all_variants(picture, cell),
        "notes": _guessed(reason),
    }


def _read(model: Any, prompt: str) -> dict[str, Any]:
    """What the text encoders make of a prompt: where further chunks begin, and what they do not read."""
    if model is None:
        return {"chunks": [], "cut": ""}
    starts = model.token_starts(prompt)
    return {"chunks": starts[: model.caption_tokens][model.chunk_tokens :: model.chunk_tokens],
            "cut": model.cut_off(prompt)}


def _picture(path: Path, size: tuple[int, int], bucket: tuple[int, int], options: Data, item: Item | None) -> Picture:
    """The picture as a training has it."""
    mask = masks.look(item.mask, path, size) if item and item.mask else None
    focus = item.focus if item and item.focus else mask.centre if mask else None
    picture = Picture(path, path.name, "", *size, bucket, 1, "", options, mask=mask, focus=focus)
    return preview.with_key(picture) if preview.needs_content(picture) else picture


def _draws(
    picture: Picture, which: str, caption: str, seed: int, draws: int, cell: int | None
) -> list[dict[str, Any]]:
    """What is seen at each position. Validation pictures are always seen the same way."""
    options = picture.options
    if which == "validation":
        plain = {"position": 0, "prompt": whole_caption(options, caption), "flip": False}
        return [{**plain, **preview.seen_always(picture, cell)}]
    found = []
    for place in range(draws):
        flip = flip_at(options, seed, place)
        said = {"position": place, "prompt": caption_for(options, caption, seed, place), "flip": flip}
        found.append({**said, **preview.seen_at(picture, seed, place, flip, cell)})
    return found


def _item_of(
    path: Path, options: Data, which: str, entry: int | None, caption: str | None
) -> tuple[Data, Item | None, str]:
    """The options that hold for a picture, what is known of it, and its caption in its files, if none is given.
    `entry`: of data.folders, where it is in several; otherwise the first.

    A picture that is in none of the folders has the options of the data set.
    """
    own = _options_of(path, options, which, entry)
    if caption is not None and own.masks == "none" and own.crop != "focus":
        return own, None, caption  # no need to list all files
    for item in survey(options, which, GUESSED_STEP).items:
        if item.path.resolve() == path.resolve() and entry in (None, item.root.entry):
            return item.root.options, item, item.caption.text if caption is None else caption
    if caption is None:
        raise ValueError(f"{path}: is not one of the {which} pictures of {SETTING}; give a caption")
    return own, None, caption


def _options_of(path: Path, options: Data, which: str, entry: int | None) -> Data:
    """The options of the innermost folder that the path is in."""
    above = path.resolve().parents
    depths = {
        place: (len(full.parts), folder)
        for place, folder in entries(options, which)
        if entry in (None, place) and (full := Path(folder.path).resolve()) in above
    }
    if not depths:
        return options
    innermost = max(depths.values(), key=lambda one: one[0])[1]  # of equals, the first
    return folder_options(options, innermost)


# -- noise levels -----------------------------------------------------------------------------------------------------


def noise(request: dict[str, Any], bases: Bases, _: Progress) -> dict[str, Any]:
    """How often a training draws each noise level, at each of its resolutions."""
    wanted = _wanted(request, WantedNoise)
    model, reason = bases.get(wanted)
    if model is None:
        raise ValueError(f"the base model cannot be read ({reason})")
    resolutions = [one.resolution for one, _ in at_resolutions(wanted.data)]
    return noise_levels.histogram(
        model.process, wanted.objective, wanted.training.seed, resolutions, model.latent_factor
    )


# -- requests ---------------------------------------------------------------------------------------------------------


ASKS: dict[str, Callable[[dict[str, Any], Bases, Progress], dict[str, Any]]] = {
    "pictures": pictures, "sees": sees, "noise": noise,
}


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
    if which not in ROLES:
        raise ValueError(f"which: {which!r} is not one of {', '.join(ROLES)}")
    return which


def _wanted(request: dict[str, Any], kind: type[W] = Wanted) -> W:
    """The part of the request's preset that is used."""
    preset = _given(request, "preset", dict)
    values: dict[str, Any] = {name: preset[name] for name in kind.whole if name in preset}
    for section, names in kind.parts.items():
        given = preset.get(section, {})
        values[section] = {name: given[name] for name in names if name in given} if isinstance(given, dict) else given
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(sentences(error, kind, values))) from error


def _progress(number: Any, answer: Answer) -> Progress:
    """Progress lines for a request, not too many."""
    last = time.monotonic()

    def move(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_EVERY:
            last = time.monotonic()
            answer({"id": number, "progress": [done, total]})

    return move
