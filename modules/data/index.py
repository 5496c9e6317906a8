"""The pictures of a folder with captions and buckets: read, decoded and checked as a whole before training starts."""

import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from modules.data.buckets import buckets, nearest
from modules.data.captions import parse_metadata_line, read_text
from modules.data.pictures import SUFFIXES, content_key, enlargement, open_picture
from modules.preset.schema import Data

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""

ENLARGED = 2.0
"""Pictures that are enlarged by more than this get a note."""

MANY_REPEATS = 100
"""Folders such as 2023_summer get a note: the number is read as repeats."""

METADATA = "metadata.jsonl"
WORKERS = min(8, os.cpu_count() or 1)
REPEATS = re.compile(r"(\d+)_")


class DataProblems(ValueError):
    """Everything that is wrong with a folder of pictures, at once."""

    def __init__(self, problems: Sequence[str], notes: Sequence[str] = ()):
        self.problems = list(problems)
        """One sentence each: which file, what is wrong, what to do."""
        self.notes = list(notes)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Picture:
    """A training picture, without its pixels."""

    path: Path
    name: str
    """Path inside the data folder, with slashes."""
    caption: str
    width: int
    """After the EXIF rotation, like `height`."""
    height: int
    bucket: tuple[int, int]
    """Width and height in training."""
    repeats: int
    """How often an epoch shows it."""
    key: str
    """sha256 of its pixels, hex."""


@dataclass(frozen=True)
class Index:
    """The pictures of a folder, in the order of their names, and what the user should know about them."""

    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()

    def table(self, batch: int = 1) -> str:
        """The buckets as text; `batch` is the number of pictures in a batch over all processes."""
        lines = [f"{'bucket':>12} {'pictures':>9} {'repeats':>9} {'batches':>9} {'filled up':>9}"]
        totals = [0, 0, 0, 0]
        for (width, height), pictures in sorted(by_bucket(self.pictures).items()):
            shown = sum(picture.repeats for picture in pictures)
            row = [len(pictures), shown, -(-shown // batch), -shown % batch]
            totals = [total + value for total, value in zip(totals, row, strict=True)]
            lines.append(f"{f'{width} x {height}':>12} " + " ".join(f"{value:>9}" for value in row))
        return "\n".join([*lines, f"{'all':>12} " + " ".join(f"{value:>9}" for value in totals)])

    def rows(self) -> str:
        """All pictures as tab-separated text with a heading, for the run folder."""
        text = io.StringIO()
        table = csv.writer(text, delimiter="\t", lineterminator="\n")
        table.writerow(["name", "width", "height", "bucket", "repeats", "sha256", "caption"])
        for p in self.pictures:
            table.writerow([p.name, p.width, p.height, f"{p.bucket[0]}x{p.bucket[1]}", p.repeats, p.key, p.caption])
        return text.getvalue()


def build_index(options: Data, folder: str, bucket_step: int, progress: Progress | None = None) -> Index:
    """Read and check all pictures and captions in `folder` (the training or validation folder of `options`).

    Raises DataProblems with everything that is wrong at once.
    """
    found = _Findings(_setting(options, folder), Path(folder))
    sizes = _bucket_sizes(options, bucket_step, found)
    if not found.check_folder(folder):
        raise DataProblems(found.problems, found.notes)
    files = found.list_files()
    paths = [file for file in files if file.suffix.lower() in SUFFIXES]
    looks = dict(zip(paths, _look_at(paths, found, progress), strict=True))
    captions = _captions(options, paths, files, found)
    repeats = _repeats(paths, found)
    _remark_on_files(paths, files, found)
    if found.problems:
        raise DataProblems(found.problems, found.notes)
    pictures = tuple(
        Picture(
            path, found.name(path), captions[path], width, height, nearest(width, height, sizes), repeats[path], key
        )
        for path, look in looks.items()
        if look is not None
        for width, height, key in [look]
    )
    _remark_on_pictures(options, pictures, found)
    return Index(pictures, tuple(found.notes))


def by_bucket(pictures: Iterable[Picture]) -> dict[tuple[int, int], list[Picture]]:
    """Pictures by their bucket, in their order."""
    groups: dict[tuple[int, int], list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[picture.bucket].append(picture)
    return dict(groups)


def overlap(training: Index, validation: Index) -> tuple[str, ...]:
    """Names of validation pictures that are trained on too, by content; their loss says nothing."""
    keys = {picture.key for picture in training.pictures}
    return tuple(picture.name for picture in validation.pictures if picture.key in keys)


def listing(names: Sequence[str], most: int = 10) -> str:
    """Names with their number in front, the first `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)}: {', '.join(names[:most])}{more}"


@dataclass
class _Findings:
    """What was found wrong (problems) or worth knowing (notes) while a folder is read."""

    setting: str
    root: Path
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def note(self, paths: Sequence[Path], sentence: str) -> None:
        """One note for all `paths`, none if there are none."""
        if paths:
            self.notes.append(f"{sentence} ({listing([self.name(path) for path in paths])})")

    def check_folder(self, folder: str) -> bool:
        if not folder:
            self.problems.append(f"{self.setting} is empty; give the folder with the pictures (--data FOLDER)")
        elif not self.root.exists():
            how = f"give the folder with the pictures, as in --{self.setting} FOLDER"
            self.problems.append(f"{self.setting} {folder}: there is no such folder; {how}")
        elif not self.root.is_dir():
            self.problems.append(f"{self.setting} {folder}: is a file; give the folder it is in")
        return bool(folder) and self.root.is_dir()

    def list_files(self) -> list[Path]:
        """All visible files below the root, sorted by name the same way on every system."""
        files: list[Path] = []
        hidden: list[Path] = []
        self._walk(self.root, set(), files, hidden)
        self.note(sorted(hidden), "hidden files and folders are not read")
        return sorted(files, key=self.name)

    def _walk(self, folder: Path, seen: set[Path], files: list[Path], hidden: list[Path]) -> None:
        if folder.resolve() in seen:  # a link back to a folder above, or a second link to the same one
            self.note([folder], "a linked folder that was read already is not read again")
            return
        seen.add(folder.resolve())
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            self.problems.append(f"{folder}: cannot be read ({error.strerror}); check its permissions")
            return
        for entry in entries:
            if entry.name.startswith("."):
                hidden.append(entry)
            elif entry.is_dir():
                self._walk(entry, seen, files, hidden)
            else:
                files.append(entry)


def _setting(options: Data, folder: str) -> str:
    """The name of the option that `folder` comes from."""
    return "data.folder" if folder == options.folder else "data.validation_folder"


def _bucket_sizes(options: Data, step: int, found: _Findings) -> tuple[tuple[int, int], ...]:
    if not options.separator and (options.shuffle or options.part_dropout):
        found.problems.append('data.separator is empty; give what stands between the parts of a caption, such as ","')
    try:
        sizes = buckets(options.resolution, step, options.max_aspect, options.buckets)
    except ValueError as error:
        found.problems.append(str(error))
        return ()
    if options.resolution % step:
        side = buckets(options.resolution, step, 1, False)[0][0]
        found.notes.append(f"data.resolution {options.resolution} is not a multiple of {step}; {side} is used")
    return sizes


def _look_at(paths: list[Path], found: _Findings, progress: Progress | None) -> list[tuple[int, int, str] | None]:
    """Width, height and content key of each picture; None, and a problem, for those that cannot be read."""

    def look(path: Path) -> tuple[int, int, str] | str:
        try:
            picture = open_picture(path)
        except ValueError as error:
            return str(error)
        return *picture.size, content_key(picture)

    looks: list[tuple[int, int, str] | None] = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for done, seen in enumerate(pool.map(look, paths), start=1):
            if isinstance(seen, str):
                found.problems.append(seen)
            looks.append(None if isinstance(seen, str) else seen)
            if progress is not None:
                progress(done, len(paths))
    return looks


def _captions(options: Data, paths: list[Path], files: list[Path], found: _Findings) -> dict[Path, str]:
    """The caption of each picture."""
    texts = _text_files(paths, files, found)
    listed = _metadata(set(paths), files, found)
    differing = [path for path in paths if texts.get(path) and listed.get(path, texts[path]) != texts[path]]
    found.note(differing, f"the .txt file and {METADATA} disagree; the .txt file is used")
    captions = {path: texts.get(path) or listed.get(path, "") for path in paths}
    # A caption file that cannot be read has its own problem already.
    missing = [path for path in paths if not captions[path] and texts.get(path, "") is not None]
    if missing and options.missing_captions == "error":
        names = listing([found.name(path) for path in missing], most=len(missing))
        found.problems.append(
            f"{found.setting} {found.root}: pictures without a caption ({names}); write one into a .txt file of the "
            'same name, or set data.missing_captions to "empty" or "filename"'
        )
    elif options.missing_captions == "filename":
        captions |= {path: path.stem for path in missing}
        found.note(missing, "pictures without a caption get their file name as caption")
    else:
        found.note(missing, "pictures without a caption get the empty caption")
    several = [path for path in paths if "\n" in captions[path]]
    found.note(several, "captions with several lines; all lines together are the caption")
    return captions


def _text_files(paths: list[Path], files: list[Path], found: _Findings) -> dict[Path, str | None]:
    """The content of the .txt file beside each picture that has one; None, and a problem, where it is not readable."""
    owners: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        owners[path.with_suffix("")].append(path)
    texts: dict[Path, str | None] = {}
    unowned = []
    for file in files:
        if file.suffix.lower() != ".txt":
            continue
        pictures = owners[file.with_suffix("")]
        if not pictures:
            unowned.append(file)
            continue
        if len(pictures) > 1:
            found.note(pictures, f"{found.name(file)} is the caption of several pictures")
        try:
            text = read_text(file)
        except ValueError as error:
            found.problems.append(str(error))
            text = None
        texts |= dict.fromkeys(pictures, text)
    found.note(unowned, ".txt files without a picture of the same name are not used")
    return texts


def _metadata(paths: set[Path], files: list[Path], found: _Findings) -> dict[Path, str]:
    """Captions from all metadata.jsonl files; file names in them are relative to their own folder."""
    captions: dict[Path, str] = {}
    for file in files:
        if file.name != METADATA:
            continue
        unused: set[str] = set()
        try:
            lines = read_text(file).split("\n")
        except ValueError as error:
            found.problems.append(str(error))
            continue
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                name, caption, others = parse_metadata_line(line)
                path = _picture_named(file.parent, name, paths)
                if captions.setdefault(path, caption) != caption:
                    raise ValueError(f"gives {name} a second caption; leave one of them")
                unused |= others
            except ValueError as error:
                found.problems.append(f"{file} line {number}: {error}")
        if unused:
            found.notes.append(f"{found.name(file)}: entries that are not used ({', '.join(sorted(unused))})")
    return captions


def _picture_named(folder: Path, name: str, paths: set[Path]) -> Path:
    """The picture a line of metadata.jsonl means. Raises ValueError when there is none."""
    path = folder / os.path.normpath(name)
    if path in paths:
        return path
    if path.exists():
        raise ValueError(f"names {name}, which is not one of the pictures here; take the line out")
    raise ValueError(f"names a missing file, {name}; take the line out or bring the picture back")


def _repeats(paths: list[Path], found: _Findings) -> dict[Path, int]:
    """How often each picture is shown: the number of the innermost folder called `10_name`, 1 without one."""
    numbers: dict[Path, int] = {}
    repeats: dict[Path, int] = {}
    for path in paths:
        named = [parent for parent in path.relative_to(found.root).parents if REPEATS.match(parent.name)]
        number = int(named[0].name.split("_")[0]) if named else 1
        repeats[path] = number
        if named:
            numbers[found.root / named[0]] = number
    for folder, number in numbers.items():
        if number == 0:
            found.problems.append(f"{folder}: its name says 0 repeats; give 1 or more, or take the folder out")
    many = [folder for folder, number in numbers.items() if number >= MANY_REPEATS]
    found.note(many, f"the folder's name says that pictures repeat {MANY_REPEATS} times or more in each epoch")
    return repeats


def _remark_on_files(paths: list[Path], files: list[Path], found: _Findings) -> None:
    """Empty folders, and notes on what is not read."""
    others = [f for f in files if f.suffix.lower() not in (*SUFFIXES, ".txt") and f.name != METADATA]
    found.note(others, f"files of other kinds are not read; pictures are {' '.join(SUFFIXES)}")
    if REPEATS.match(found.root.name):
        found.notes.append(f"{found.setting} {found.root}: only its sub-folders' names repeat pictures, not its own")
    if not paths:
        kinds = Counter(file.suffix.lower() or file.name for file in files)
        there = "; it has " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) if kinds else ""
        found.problems.append(
            f"{found.setting} {found.root}: there are no pictures in it{there}; pictures are {' '.join(SUFFIXES)}"
        )


def _remark_on_pictures(options: Data, pictures: Sequence[Picture], found: _Findings) -> None:
    """Notes on small, extreme and equal pictures."""
    small = [p.path for p in pictures if enlargement(p.width, p.height, p.bucket) > ENLARGED]
    found.note(small, f"pictures that are enlarged more than {ENLARGED:g} times; a lower data.resolution suits them")
    extreme = [p.path for p in pictures if max(p.width / p.height, p.height / p.width) > options.max_aspect]
    if options.buckets:
        found.note(extreme, f"pictures longer than {options.max_aspect:g}:1 are cropped; raise data.max_aspect")
    twins: dict[str, list[Path]] = defaultdict(list)
    for picture in pictures:
        twins[picture.key].append(picture.path)
    for same in twins.values():
        if len(same) > 1:
            found.note(same, "pictures with the same content, all kept")
