"""The pictures of a set with captions and buckets: read, decoded and checked as a whole before training starts."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from modules.data import references, seen
from modules.data.buckets import nearest
from modules.data.captions import samples_of
from modules.data.folders import exact, number, scaled
from modules.data.looking import Look, Progress, looks, record_of
from modules.data.masks import Mask, excludes_all
from modules.data.pictures import enlargement
from modules.data.references import Fitted, Reference
from modules.data.roots import bucket_sizes
from modules.data.survey import Item, Survey, survey
from modules.preset.data_options import Data

ENLARGED = 2.0
"""Pictures that are enlarged by more than this get a note."""


class DataProblems(ValueError):
    """Everything that is wrong with a set of pictures, at once."""

    def __init__(self, problems: Sequence[str], notes: Sequence[str] = ()):
        self.problems = list(problems)
        """One sentence each: which option, which file, what is wrong, what to do."""
        self.notes = list(notes)
        super().__init__("\n".join(self.problems))


Shape = tuple[tuple[int, int], tuple[tuple[int, int], ...]]
"""A bucket, and the sizes that reference pictures are resized to."""


@dataclass(frozen=True)
class Picture:
    """A training picture at one resolution, without its pixels."""

    path: Path
    name: str
    """Path inside the data folder, with slashes; with several data folders, the folder's name comes first."""
    caption: str
    width: int
    """After the EXIF rotation, like `height`."""
    height: int
    bucket: tuple[int, int]
    """Width and height in training."""
    repeats: float
    """How often an epoch has it; 0.5: every second one."""
    key: str
    """sha256 of its pixels, hex."""
    options: Data = field(default=Data(), repr=False, hash=False)
    """Those that hold for it: of its folder, with `resolution` being its own."""
    role: str = "train"
    """"train" or "regularisation"; "validation" for one that is never trained on."""
    loss_weight: float = 1.0
    """Of its error in training."""
    entry: int = 0
    """Place of its folder in data.folders."""
    mask: Mask | None = None
    focus: tuple[float, float] | None = None
    """The point that a crop around a focus has in its middle, as fractions of width and height."""
    references: tuple[Reference, ...] = ()
    """What it is made from, for a model that edits."""

    @property
    def shape(self) -> Shape:
        """What all pictures of a batch have alike."""
        return self.bucket, tuple(one.size for one in self.references)

    @property
    def is_prior(self) -> bool:
        """Whether it is trained towards what the frozen base predicts for it."""
        return self.role == "regularisation" and self.options.prior_prediction


@dataclass(frozen=True)
class Bucket:
    """One bucket of an epoch, in numbers."""

    size: tuple[int, int]
    pictures: int
    repeats: float
    """How often its pictures are used; on average, where that is not whole."""
    filled: float
    """How many more are used to fill the last batch; likewise."""
    references: tuple[tuple[int, int], ...] = ()
    """The sizes of its pictures' references."""


@dataclass(frozen=True)
class Index:
    """The pictures of a set, folder by folder in the order of their names, and what the user should know about them."""

    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    """Where the captions of each folder come from: sentences."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Names of the pictures that cannot be read, and why; with data.broken "skip"."""
    alike: tuple[tuple[str, str], ...] = ()
    """Names of pictures that look the same: the earlier one and the other."""

    def table(self, batch: int = 1) -> str:
        """The buckets as text; `batch` is the number of pictures in a batch over all processes."""
        lines = [f"{'bucket':>12} {'pictures':>9} {'repeats':>9} {'batches':>9} {'filled up':>9}"]
        totals: list[float] = [0, 0, 0, 0]
        for bucket in bucket_numbers(self.pictures, batch):
            batches = round((bucket.repeats + bucket.filled) / batch)
            row = [bucket.pictures, bucket.repeats, batches, bucket.filled]
            totals = [total + value for total, value in zip(totals, row, strict=True)]
            size = " from ".join(f"{width} x {height}" for width, height in (bucket.size, *bucket.references))
            lines.append(f"{size:>12} " + " ".join(f"{round(value, 2):>9}" for value in row))
        return "\n".join([*lines, f"{'all':>12} " + " ".join(f"{round(value, 2):>9}" for value in totals)])

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


def build_index(
    options: Data,
    which: str,
    bucket_step: int,
    progress: Progress | None = None,
    fitted: Fitted = references.as_it_is,
) -> Index:
    """Read and check all pictures and captions of a set, "training" or "validation"; `fitted`: see `references`.

    Raises DataProblems with everything that is wrong at once.
    """
    found = survey(options, which, bucket_step)
    record = record_of(Path(options.cache_folder), {item.root.path for item in found.items}) if options.cache else None
    answers = looks(seen.paths_of(found), record, progress)
    opened = seen.seen_of(found, answers)
    shown_with = {path: (path, one.size, one.key) for path, one in answers.items() if isinstance(one, Look)}
    masked = seen.look_at_masks([(item, look.size) for item, look in opened], found)
    if found.problems:
        raise DataProblems(found.problems, found.notes)
    pictures = as_pictures(options, [(item, (look.size, look.key)) for item, look in opened], found, masked)
    pictures = _with_references(pictures, [item for item, _ in opened], shown_with, fitted, found)
    if found.problems:
        raise DataProblems(found.problems, found.notes)
    if which == "training" and not any(picture.role == "train" for picture in pictures):
        found.problem("none of the pictures of the role train can be read; the notes list them")
        raise DataProblems(found.problems, found.notes)
    if which == "training" and not any(map(_is_learned, pictures)):
        how = "raise data.folders[].loss_weight, or data.unmasked_weight where masks are black everywhere"
        found.problem(f"no picture has a weight in the loss, so nothing would be learned; {how}")
        raise DataProblems(found.problems, found.notes)
    by_path = {item.path: look for item, look in opened}
    seen.remark_on_notes(by_path, found)
    seen.remark_on_twins(by_path, found)
    alike = seen.remark_on_likeness(by_path, found)
    skipped = tuple((found.names[path], why) for path, why in found.broken.items())
    return Index(tuple(pictures), tuple(found.notes), tuple(found.captions), skipped, alike)


def _with_references(
    pictures: list[Picture],
    items: Sequence[Item],
    looks: Mapping[Path, tuple[Path, references.Size, str]],
    fitted: Fitted,
    found: Survey,
) -> list[Picture]:
    """The pictures with the references of their items; problems for those that the model does not take."""
    owners = {(item.root.entry, item.path): item.references for item in items if item.references}
    made: list[Picture] = []
    for picture in pictures:
        size, own = (picture.width, picture.height), owners.get((picture.entry, picture.path), ())
        try:
            shown = references.of_item(map(looks.__getitem__, own), size, picture.bucket, fitted)
        except ValueError as error:
            found.problem(str(error))
        else:
            made.append(replace(picture, references=shown) if shown else picture)
    equal = [one.path for one in made if any(shown.key == one.key for shown in one.references)]
    found.note([*dict.fromkeys(equal)], "pictures that are one of their own references: they teach to change nothing")
    return made


def _is_learned(picture: Picture) -> bool:
    """Whether a picture has any weight in the loss."""
    return picture.loss_weight > 0 and not excludes_all(picture.mask, picture.options)


def as_pictures(
    options: Data,
    looks: Iterable[tuple[Item, tuple[tuple[int, int], str]]],
    found: Survey,
    masked: Mapping[tuple[int, Path], Mask],
) -> list[Picture]:
    """Every item, with its size and key, at each of its resolutions with each caption; notes on small and extreme ones.
    `masked` as `look_at_masks` gives it.

    Regularisation pictures are repeated as often as data.regularisation_ratio says.
    """
    pictures: list[Picture] = []
    left_out: dict[Path, None] = {}
    for item, (size, key) in looks:
        at_all = _at_resolutions(item, size, key, found.step, masked.get((item.root.entry, item.path)))
        kept = _not_too_large(at_all, item.root.options.max_enlargement)
        left_out |= {item.path: None} if len(kept) < len(at_all) else {}
        pictures += [entry for one in kept for entry in by_caption(one)]
    why = "pictures that are too small for some of the resolutions (data.max_enlargement) are left out there"
    found.note([*left_out], why)
    remark_on_sizes(pictures, found)
    remark_on_focus(pictures, found)
    return _in_proportion(options, pictures)


def _at_resolutions(item: Item, size: tuple[int, int], key: str, step: int, mask: Mask | None) -> list[Picture]:
    """An item of this size in its bucket at each resolution."""
    focus = item.focus or (mask.centre if mask else None)
    return [
        Picture(
            item.path, item.name, item.caption.text, *size, nearest(*size, bucket_sizes(options, step)),
            number(item.repeats * share), key, options, item.root.folder.role, item.root.folder.loss_weight,
            item.root.entry, mask, focus,
        )
        for options, share in item.root.resolutions
    ]


def _not_too_large(pictures: list[Picture], most: float | None) -> list[Picture]:
    """Of a picture at all its resolutions, those for which it is enlarged by at most `most`; where it is so by none,
    the one that needs least."""
    if most is None:
        return pictures
    factors = [enlargement(one.width, one.height, one.bucket) for one in pictures]
    limit = max(most, min(factors))
    return [one for one, factor in zip(pictures, factors, strict=True) if factor <= limit]


def _in_proportion(options: Data, pictures: list[Picture]) -> list[Picture]:
    """The same with the repeats of regularisation pictures as data.regularisation_ratio says."""
    training = sum((exact(one.repeats) for one in pictures if one.role == "train"), Fraction(0))
    others = [exact(one.repeats) for one in pictures if one.role == "regularisation"]
    repeats = iter(scaled(others, training, options.regularisation_ratio))
    return [
        replace(one, repeats=number(next(repeats))) if one.role == "regularisation" else one for one in pictures
    ]


def by_caption(picture: Picture) -> list[Picture]:
    """The picture once for each of its captions that is a sample of its own."""
    captions = samples_of(picture.options, picture.caption)
    if list(captions) == [picture.caption]:  # of most: copies of 100,000 pictures would take seconds
        return [picture]
    return [replace(picture, caption=caption) for caption in captions]


def bucket_numbers(pictures: Iterable[Picture], batch: int) -> list[Bucket]:
    """Every bucket that has pictures, once for each size of references; `batch` is the number of pictures in a batch
    over all processes."""
    numbers = []
    for (size, of_references), group in sorted(by_shape(pictures).items()):
        shown = number(sum((exact(picture.repeats) for picture in group), Fraction(0)))
        numbers.append(Bucket(size, len(group), shown, math.ceil(shown / batch) * batch - shown, of_references))
    return numbers


def by_shape(pictures: Iterable[Picture]) -> dict[Shape, list[Picture]]:
    """Pictures by their bucket and the sizes of their references, in their order."""
    groups: dict[Shape, list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[picture.shape].append(picture)
    return dict(groups)


def overlap(training: Index, validation: Index) -> tuple[str, ...]:
    """Names of validation pictures that are also trained on, by content; their loss is meaningless."""
    keys = {picture.key for picture in training.pictures}
    return tuple(dict.fromkeys(picture.name for picture in validation.pictures if picture.key in keys))


def remark_on_sizes(pictures: Sequence[Picture], found: Survey) -> None:
    """Notes on small and extreme pictures."""
    small: dict[float, dict[Path, None]] = defaultdict(dict)
    extreme: dict[float, dict[Path, None]] = defaultdict(dict)
    for one in pictures:
        most = ENLARGED if one.options.max_enlargement is None else one.options.max_enlargement
        if enlargement(one.width, one.height, one.bucket) > most:
            small[most][one.path] = None
        if one.options.buckets and max(one.width / one.height, one.height / one.width) > one.options.max_aspect:
            extreme[one.options.max_aspect][one.path] = None
    for most, paths in small.items():
        found.note([*paths], f"pictures that are enlarged more than {most:g} times; consider a lower data.resolution")
    for aspect, paths in extreme.items():
        found.note([*paths], f"pictures longer than {aspect:g}:1 are cropped; raise data.max_aspect")


def remark_on_focus(pictures: Sequence[Picture], found: Survey) -> None:
    """A note on pictures without a focus that are to be cropped around one."""
    without = [p.path for p in pictures if p.options.crop == "focus" and p.focus is None]
    found.note(without, "pictures without a mask or a focus in metadata.jsonl are cropped to their middle")
