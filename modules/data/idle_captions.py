"""Options of captions that have no effect because no caption has anything for them: known when all are read."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from modules.data.captions import is_marked, tag
from modules.data.captions_found import Caption
from modules.data.names import shown
from modules.data.roots import Root
from modules.preset.data_options import Data


class Captioned(Protocol):
    """A picture, as `modules.data.survey.Item`."""

    @property
    def root(self) -> Root: ...
    @property
    def caption(self) -> Caption: ...


def notes(items: Sequence[Captioned]) -> list[str]:
    """Sentences about options that do nothing for any of the training pictures."""
    found = []
    own = [item.caption.source == "text" for item in items if item.root.options.caption_text.strip()]
    if own and not any(own):
        found.append("data.caption_text has no effect, because every picture has a caption of its own")
    found += _without(items, "keep_separator", lambda options, text: options.keep_separator in text, "this mark")
    for name, least, what in (("shuffle", 2, "parts to shuffle"), ("part_dropout", 1, "a part to drop")):
        has = partial(_has_parts, least)
        found += _without(items, name, has, f"{what} behind its first ones (data.keep_tokens)")
    for name in ("drop_never", "drop_only"):
        found += _unknown_tags(items, name)
    return found


def _without(
    items: Sequence[Captioned], name: str, has: Callable[[Data, str], bool], what: str
) -> list[str]:
    """A note where an option is on, and none of the captions that it holds for has what it needs."""
    there = [(item.root.options, item.caption.text) for item in items if dict(item.root.options)[name]]
    if not there or any(has(options, text) for options, text in there):
        return []
    return [f"data.{name} has no effect, because no caption has {what}"]


def _has_parts(least: int, options: Data, text: str) -> bool:
    """Whether a caption has so many parts that are not kept."""
    if is_marked(options, text):
        return True
    parts = f"{options.prefix} {text} {options.suffix}".split(options.separator or None)
    return len(parts) >= options.keep_tokens + least


def _unknown_tags(items: Sequence[Captioned], name: str) -> list[str]:
    """A note on tags of a list that are in none of the captions."""
    there = [(dict(item.root.options)[name], tag(_whole(item))) for item in items]
    tags = dict.fromkeys(one for given, _ in there for one in given)
    unknown = [one for one in tags if not any(one in given and tag(one) in text for given, text in there)]
    listed = shown(", ".join(unknown))
    return [f"data.{name}: no caption has these parts: {listed}; check their spelling"] if unknown else []


def _whole(item: Captioned) -> str:
    options = item.root.options
    return " ".join((options.trigger, options.prefix, item.caption.text, options.suffix))
