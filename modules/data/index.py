"""The pictures of a set with captions and buckets: read, decoded and checked as a whole before training starts."""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from modules.data import workers
from modules.data.buckets import nearest
from modules.data.looking import Look, Progress, looks, record_of
from modules.data.pictures import enlargement
from modules.data.survey import Item, Survey, listing, survey
from modules.data.twins import pairs
from modules.preset.data_options import Data

Seen = TypeVar("Seen")

ENLARGED = 2.0
"""Pictures that are enlarged by more than this get a note."""

MOST_SENTENCES = 20
"""Pictures that cannot be read are told of one by one, up to so many."""


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
    skipped: tuple[tuple[str, str], ...] = ()
    """Names of the pictures that cannot be read, and why; with data.broken "skip"."""
    alike: tuple[tuple[str, str], ...] = ()
    """Names of pictures that look the same: the earlier one and the other."""

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
        heading = ["name", "width", "height", "bucket", "repeats", "sha256", "caption"]
        rows = [
            [p.name, p.width, p.height, f"{p.bucket[0]}x{p.bucket[1]}", p.repeats, p.key, p.caption]
            for p in self.pictures
        ]
        return _separated([heading, *rows])

    def skipped_rows(self) -> str:
        """The pictures that cannot be read, in the same way."""
        return _separated([("name", "reason"), *self.skipped])


def _separated(rows: Iterable[Sequence[object]]) -> str:
    """Tab-separated text."""
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    return text.getvalue()


def build_index(options: Data, which: str, bucket_step: int, progress: Progress | None = None) -> Index:
    """Read and check all pictures and captions of a set, "training" or "validation".

    Raises DataProblems with everything that is wrong at once.
    """
    found = survey(options, which, bucket_step)
    roots = {root.path for root in found.roots.values()}
    record = record_of(Path(options.cache_folder), roots) if options.cache else None
    seen = seen_of(found, looks(paths_of(found), record, progress))
    if found.problems:
        raise DataProblems(found.problems, found.notes)
    pictures = tuple(as_picture(item, look.size, found.sizes, look.key) for item, look in seen)
    remark_on_sizes(options, pictures, found)
    by_path = {item.path: look for item, look in seen}
    _remark_on_notes(by_path, found)
    _remark_on_twins(by_path, found)
    alike = _remark_on_likeness(by_path, found)
    skipped = tuple((found.names[path], why) for path, why in found.broken.items())
    return Index(pictures, tuple(found.notes), skipped, alike)


def paths_of(found: Survey) -> list[Path]:
    """The picture files, each once."""
    return list(dict.fromkeys(item.path for item in found.items))


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
    """Each picture with what was seen of it. Pictures that cannot be read are left out: they are problems, or with
    data.broken "skip" noted."""
    found.broken = {path: str(answer) for path, answer in answers.items() if isinstance(answer, ValueError)}
    reasons = list(found.broken.values())
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


def as_picture(item: Item, size: tuple[int, int], sizes: Sequence[tuple[int, int]], key: str) -> Picture:
    """A picture of this size in its bucket, one of `sizes`."""
    bucket = nearest(*size, sizes)
    return Picture(item.path, item.name, item.caption.text, *size, bucket, item.repeats, key)


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
    return tuple(picture.name for picture in validation.pictures if picture.key in keys)


def remark_on_sizes(options: Data, pictures: Sequence[Picture], found: Survey) -> None:
    """Notes on small and extreme pictures."""
    small = [p.path for p in pictures if enlargement(p.width, p.height, p.bucket) > ENLARGED]
    found.note(small, f"pictures that are enlarged more than {ENLARGED:g} times; consider a lower data.resolution")
    extreme = [p.path for p in pictures if max(p.width / p.height, p.height / p.width) > options.max_aspect]
    if options.buckets:
        found.note(extreme, f"pictures longer than {options.max_aspect:g}:1 are cropped; raise data.max_aspect")


def _remark_on_notes(looks: Mapping[Path, Look], found: Survey) -> None:
    """What was noted of single pictures, together."""
    noted: dict[str, list[Path]] = defaultdict(list)
    for path, look in looks.items():
        noted[look.note].append(path)
    for note, paths in noted.items():
        found.note(paths if note else [], note)


def _remark_on_twins(looks: Mapping[Path, Look], found: Survey) -> None:
    """A note on equal pictures."""
    twins: dict[str, list[Path]] = defaultdict(list)
    for path, look in looks.items():
        twins[look.key].append(path)
    same = [", ".join(found.names[path] for path in paths) for paths in twins.values() if len(paths) > 1]
    if same:
        found.notes.append(f"pictures with the same content; all are used ({listing(same, separator='; ')})")


def _remark_on_likeness(looks: Mapping[Path, Look], found: Survey) -> tuple[tuple[str, str], ...]:
    """A note on pictures that look the same; their names, in pairs."""
    paths = list(looks)
    places = pairs([look.signature for look in looks.values()], [look.key for look in looks.values()])
    alike = tuple((found.names[paths[first]], found.names[paths[second]]) for first, second in places)
    if alike:
        names = listing([f"{first} and {second}" for first, second in alike], separator="; ")
        how = "at another size, in another format or slightly cropped"
        found.notes.append(f"pictures that look the same, {how}; all are used ({names})")
    return alike
