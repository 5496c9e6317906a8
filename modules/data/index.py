"""The pictures of a set with captions and buckets: read, decoded and checked as a whole before training starts."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from modules.data.buckets import nearest
from modules.data.captions import entries
from modules.data.pictures import content_key, enlargement, open_picture
from modules.data.survey import Item, Survey, survey
from modules.preset.data_options import Data

Progress = Callable[[int, int], None]
"""Called with the number done and the total."""

Seen = TypeVar("Seen")

ENLARGED = 2.0
"""Pictures that are enlarged by more than this get a note."""

WORKERS = min(8, os.cpu_count() or 1)


class DataProblems(ValueError):
    """Everything that is wrong with a set of pictures, at once."""

    def __init__(self, problems: Sequence[str], notes: Sequence[str] = ()):
        self.problems = list(problems)
        """One sentence each: which option, which file, what is wrong, what to do."""
        self.notes = list(notes)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Picture:
    """A training picture, without its pixels."""

    path: Path
    name: str
    """Path inside the data folder, with slashes; with several data folders, the folder's name comes first."""
    caption: str
    width: int
    """After the EXIF rotation, like `height`."""
    height: int
    bucket: tuple[int, int]
    """Width and height in training."""
    repeats: int
    """How often an epoch has it."""
    key: str
    """sha256 of its pixels, hex."""


@dataclass(frozen=True)
class Bucket:
    """One bucket of an epoch, in numbers."""

    size: tuple[int, int]
    pictures: int
    repeats: int
    """How often its pictures are used."""
    filled: int
    """How many more are used to fill the last batch."""


@dataclass(frozen=True)
class Index:
    """The pictures of a set, folder by folder in the order of their names, and what the user should know about them."""

    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    """Where the captions of each folder come from: sentences."""

    def table(self, batch: int = 1) -> str:
        """The buckets as text; `batch` is the number of pictures in a batch over all processes."""
        lines = [f"{'bucket':>12} {'pictures':>9} {'repeats':>9} {'batches':>9} {'filled up':>9}"]
        totals = [0, 0, 0, 0]
        for bucket in bucket_numbers(self.pictures, batch):
            batches = (bucket.repeats + bucket.filled) // batch
            row = [bucket.pictures, bucket.repeats, batches, bucket.filled]
            totals = [total + value for total, value in zip(totals, row, strict=True)]
            size = f"{bucket.size[0]} x {bucket.size[1]}"
            lines.append(f"{size:>12} " + " ".join(f"{value:>9}" for value in row))
        return "\n".join([*lines, f"{'all':>12} " + " ".join(f"{value:>9}" for value in totals)])

    def rows(self) -> str:
        """All pictures as tab-separated text with a heading, for the run folder."""
        text = io.StringIO()
        table = csv.writer(text, delimiter="\t", lineterminator="\n")
        table.writerow(["name", "width", "height", "bucket", "repeats", "sha256", "caption"])
        for p in self.pictures:
            table.writerow([p.name, p.width, p.height, f"{p.bucket[0]}x{p.bucket[1]}", p.repeats, p.key, p.caption])
        return text.getvalue()


def build_index(options: Data, which: str, bucket_step: int, progress: Progress | None = None) -> Index:
    """Read and check all pictures and captions of a set, "training" or "validation".

    Raises DataProblems with everything that is wrong at once.
    """
    found = survey(options, which, bucket_step)
    looks = look_at(found, _size_and_key, progress)
    if found.problems:
        raise DataProblems(found.problems, found.notes)
    alone = [as_picture(item, size, found.sizes, key) for item, (size, key) in looks]
    remark_on_sizes(options, alone, found)
    _remark_on_twins(alone, found)
    pictures = tuple(entry for picture in alone for entry in by_caption(options, picture))
    return Index(pictures, tuple(found.notes), tuple(found.captions))


def look_at(
    found: Survey, look: Callable[[Path], Seen], progress: Progress | None = None
) -> list[tuple[Item, Seen]]:
    """The result of `look` for each picture; those for which it raises ValueError are left out, and are problems."""

    def look_or_say(item: Item) -> Seen | ValueError:
        try:
            return look(item.path)
        except ValueError as error:
            return error

    seen: list[tuple[Item, Seen]] = []
    with ThreadPoolExecutor(WORKERS) as pool:
        answers = zip(found.items, pool.map(look_or_say, found.items), strict=True)
        for done, (item, answer) in enumerate(answers, start=1):
            if isinstance(answer, ValueError):
                found.broken[item.path] = str(answer)
                found.problem(str(answer))
            else:
                seen.append((item, answer))
            if progress is not None:
                progress(done, len(found.items))
    return seen


def as_picture(item: Item, size: tuple[int, int], sizes: Sequence[tuple[int, int]], key: str) -> Picture:
    """A picture of this size in its bucket, one of `sizes`."""
    bucket = nearest(*size, sizes)
    return Picture(item.path, item.name, item.caption.text, *size, bucket, item.repeats, key)


def by_caption(options: Data, picture: Picture) -> list[Picture]:
    """The picture once for each of its captions that is a sample of its own."""
    return [replace(picture, caption=caption) for caption in entries(options, picture.caption)]


def bucket_numbers(pictures: Iterable[Picture], batch: int) -> list[Bucket]:
    """Every bucket that has pictures; `batch` is the number of pictures in a batch over all processes."""
    numbers = []
    for size, group in sorted(by_bucket(pictures).items()):
        shown = sum(picture.repeats for picture in group)
        numbers.append(Bucket(size, len(group), shown, -shown % batch))
    return numbers


def by_bucket(pictures: Iterable[Picture]) -> dict[tuple[int, int], list[Picture]]:
    """Pictures by their bucket, in their order."""
    groups: dict[tuple[int, int], list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[picture.bucket].append(picture)
    return dict(groups)


def overlap(training: Index, validation: Index) -> tuple[str, ...]:
    """Names of validation pictures that are also trained on, by content; their loss is meaningless."""
    keys = {picture.key for picture in training.pictures}
    return tuple(dict.fromkeys(picture.name for picture in validation.pictures if picture.key in keys))


def remark_on_sizes(options: Data, pictures: Sequence[Picture], found: Survey) -> None:
    """Notes on small and extreme pictures."""
    small = [p.path for p in pictures if enlargement(p.width, p.height, p.bucket) > ENLARGED]
    found.note(small, f"pictures that are enlarged more than {ENLARGED:g} times; consider a lower data.resolution")
    extreme = [p.path for p in pictures if max(p.width / p.height, p.height / p.width) > options.max_aspect]
    if options.buckets:
        found.note(extreme, f"pictures longer than {options.max_aspect:g}:1 are cropped; raise data.max_aspect")


def _remark_on_twins(pictures: Sequence[Picture], found: Survey) -> None:
    """Notes on equal pictures."""
    twins: dict[str, list[Path]] = defaultdict(list)
    for picture in pictures:
        twins[picture.key].append(picture.path)
    for same in twins.values():
        if len(same) > 1:
            found.note(same, "pictures with the same content; all are used")


def _size_and_key(path: Path) -> tuple[tuple[int, int], str]:
    picture = open_picture(path)
    return picture.size, content_key(picture)
