"""What is seen of the pictures of a survey when they are opened: what cannot be read, what is alike, and masks."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from modules.data import masks, workers
from modules.data.looking import Look, Progress
from modules.data.masks import Mask
from modules.data.names import listing
from modules.data.survey import Item, Survey
from modules.data.twins import pairs

Seen = TypeVar("Seen")

MOST_SENTENCES = 20
"""Pictures that cannot be read are told of one by one, up to so many."""

THREADS = min(8, os.cpu_count() or 1)
"""That read masks, which are small."""


def paths_of(found: Survey) -> list[Path]:
    """The picture files, each once, and then those of reference pictures."""
    pictures = dict.fromkeys(item.path for item in found.items)
    return list(pictures | dict.fromkeys(path for item in found.items for path in item.references))


def look_at(
    found: Survey, look: Callable[[Path], Seen], progress: Progress | None = None
) -> list[tuple[Item, Seen]]:
    """The result of `look` for each picture, as `seen_of` gives it."""
    paths, answers = paths_of(found), {}
    for path, answer in zip(paths, workers.each(look, paths), strict=True):
        answers[path] = answer
        if progress is not None:
            progress(len(answers), len(paths))
    return seen_of(found, answers)


def seen_of(found: Survey, answers: Mapping[Path, Seen | ValueError]) -> list[tuple[Item, Seen]]:
    """Each picture with what was seen of it. Pictures that cannot be read, or whose references cannot, are left out:
    they are problems, or with data.broken "skip" noted."""
    of_references = {item.path: answers[path] for item in found.items for path in item.references
                     if isinstance(answers[path], ValueError)}
    answers = {path: of_references.get(path, answers[path]) for path in dict.fromkeys(one.path for one in found.items)}
    found.broken = {path: str(answer) for path, answer in answers.items() if isinstance(answer, ValueError)}
    reasons = list(found.broken.values())
    for sentence in filter(None, (lacks(found.broken) for lacks in found.lacks)):
        found.problem(sentence)
    if found.skips and len(reasons) < len(answers):
        how = f"pictures that cannot be read are skipped, as data.broken says; {_first(reasons)}"
        found.note(list(found.broken), how)
    elif found.skips and reasons:
        found.problem(f"none of its {len(reasons)} pictures can be read; {_first(reasons)}")
    else:
        for reason in reasons[:MOST_SENTENCES]:
            found.problem(reason)
        if more := list(found.broken)[MOST_SENTENCES:]:
            names = listing([found.names[path] for path in more])
            found.problem(f'further pictures cannot be read ({names}); with data.broken "skip" they are left out')
    seen = []
    for item in found.items:
        answer = answers[item.path]
        if not isinstance(answer, ValueError):
            seen.append((item, answer))
    return seen


def _first(reasons: Sequence[str]) -> str:
    return f"the first: {reasons[0]}" if reasons else ""


def look_at_masks(
    looks: Iterable[tuple[Item, tuple[int, int]]], found: Survey
) -> dict[tuple[int, Path], Mask]:
    """The masks of the items of these widths and heights, by folder and path; those that cannot be used are
    problems."""
    items = [(item, size) for item, size in looks if item.mask is not None]

    def look_or_say(item: Item, size: tuple[int, int]) -> Mask | None | ValueError:
        assert item.mask is not None
        try:
            return masks.look(item.mask, item.path, size)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(look_or_say, *zip(*items, strict=True))) if items else []
    for error in dict.fromkeys(str(answer) for answer in answers if isinstance(answer, ValueError)):
        found.problem(error)
    pairs = list(zip(items, answers, strict=True))
    found.note([item.path for (item, _), mask in pairs if mask is None], masks.OPAQUE)
    known = [(item, size, mask) for (item, size), mask in pairs if isinstance(mask, Mask)]
    masks.remark([(item.path, mask, size, item.root.options) for item, size, mask in known], found)
    return {(item.root.entry, item.path): mask for item, _, mask in known}


def remark_on_notes(looks: Mapping[Path, Look], found: Survey) -> None:
    """What was noted of single pictures, together."""
    noted: dict[str, list[Path]] = defaultdict(list)
    for path, look in looks.items():
        noted[look.note].append(path)
    for note, paths in noted.items():
        found.note(paths if note else [], note)


def remark_on_twins(looks: Mapping[Path, Look], found: Survey) -> None:
    """A note on equal pictures."""
    twins: dict[str, list[Path]] = defaultdict(list)
    for path, look in looks.items():
        twins[look.key].append(path)
    same = [", ".join(found.names[path] for path in paths) for paths in twins.values() if len(paths) > 1]
    if same:
        found.notes.append(f"pictures with the same content; all are used ({listing(same, separator='; ')})")


def remark_on_likeness(looks: Mapping[Path, Look], found: Survey) -> tuple[tuple[str, str], ...]:
    """A note on pictures that look the same; their names, in pairs."""
    paths = list(looks)
    places = pairs([look.signature for look in looks.values()], [look.key for look in looks.values()])
    alike = tuple((found.names[paths[first]], found.names[paths[second]]) for first, second in places)
    if alike:
        names = listing([f"{first} and {second}" for first, second in alike], separator="; ")
        how = "at another size, in another format or slightly cropped"
        found.notes.append(f"pictures that look the same, {how}; all are used ({names})")
    return alike
