"""What is in the data folders, without opening a picture: files, captions, repeats, buckets, and what is wrong."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Sequence, Set
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from modules.data import focus, folders, idle_captions, masks, references, roots
from modules.data.caption_files import Caption, read_captions
from modules.data.formats import SUFFIXES, missing
from modules.data.names import REPEATS, is_passed_over, kind_of, listing, shown
from modules.data.roots import SETTING, Root, Said
from modules.preset.data_options import Data

MANY_REPEATS = 100
"""Folders such as 2023_summer get a note: the number is read as repeats."""


@dataclass(frozen=True)
class Item:
    """A picture file, not opened."""

    path: Path
    name: str
    """Path inside its data folder, with slashes; with several data folders, the folder's name comes first. As `shown`
    writes it."""
    root: Root
    """The data folder."""
    caption: Caption
    repeats: Fraction
    """How often an epoch has it, at a resolution with share 1."""
    mask: Path | None = None
    """The file of its mask: the picture's own where its transparency is the mask. None: all of it is trained."""
    focus: tuple[float, float] | None = None
    """The point of the picture that is to be in a crop, as fractions of width and height."""
    references: tuple[Path, ...] = ()
    """The files of its reference pictures."""


@dataclass
class Survey(Said):
    """The picture files of a set in order, the buckets, what is wrong (problems) and what is worth knowing (notes)."""

    step: int = 0
    """Bucket sizes are multiples of it, in pixels; 0 if a resolution is too small for it."""
    items: list[Item] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    """Where the captions of each folder come from: sentences."""
    broken: dict[Path, str] = field(default_factory=dict)
    """Why pictures that were opened cannot be used."""
    skips: bool = False
    """Whether they are left out."""
    lacks: list[Callable[[Container[Path]], str]] = field(default_factory=list)
    """With `skips`, what is wrong where captions are missing, but for pictures that are left out: they need none."""
    names: dict[Path, str] = field(default_factory=dict)
    """Of every file and folder."""

    def note(self, paths: Sequence[Path], sentence: str) -> None:
        """Add one note for all `paths`, none if there are none."""
        if paths:
            self.notes.append(f"{sentence} ({listing([self.names[path] for path in paths])})")

    def lacks_references(self, paths: Sequence[Path], folder: str) -> None:
        """A problem for pictures that have no reference in a folder, which one that cannot be read needs none of."""
        def said(broken: Container[Path]) -> str:
            lacking = [self.names[path] for path in paths if path not in broken]
            return (f"pictures without a reference picture of the same name in {shown(folder)} ({listing(lacking)}); "
                    "add it there, or remove the picture") if lacking else ""

        if self.skips:
            self.lacks.append(said)
        else:
            self.problem(said(()))


def survey(options: Data, which: str, bucket_step: int) -> Survey:
    """List the folders of a set, "training" or "validation"."""
    found = Survey(skips=options.broken == "skip")
    given = roots.read(options, which, found)
    if roots.check_options([options, *(root.options for root in given)], bucket_step, found):
        found.step = bucket_step
    passed_over: list[Path] = []
    listed = {root.entry: _list_files(root, roots.own_places(root, options), passed_over, found) for root in given}
    found.note(passed_over, "hidden files, and thumbnails and recycle bins of file managers are passed over")
    mask_folders, reference_folders = masks.folders(given, found), references.folders(given, found)
    for alike in _by_options(given):
        own = alike[0].options
        files = list(dict.fromkeys(file for root in alike for file in listed[root.entry]))
        files = references.apart(files, reference_folders, given, found)
        paths, mask_files = masks.apart(own, files, mask_folders, found)
        read = read_captions(own, paths, files, found.names, [root.path for root in alike])
        for sentence in read.problems:
            found.problem(sentence)
        if found.skips:
            found.lacks.append(read.lacks)
        elif lacking := read.lacks(()):
            found.problem(lacking)
        found.notes += read.notes
        found.captions += read.sources
        focuses = focus.points(own, paths, files, found)
        others = [file for file in files if file.suffix.lower() not in SUFFIXES and file not in read.known]
        _remark_on_others(others, found)
        kept = set(paths)
        for root in alike:
            mine = [file for file in listed[root.entry] if file in kept]
            repeats = _repeats(mine, root, found)
            shown_with = references.of_pictures(root, mine, reference_folders, found)
            found.items += [
                Item(path, found.names[path], root, read.captions[path], repeats[path], mask_files.get(path),
                     focuses.get(path), shown_with.get(path, ()))
                for path in mine
            ]
    found.notes += idle_captions.notes(found.items) if which == "training" else []
    found.items.sort(key=lambda item: item.root.entry)  # stable: each folder's pictures keep their order
    return found


def _by_options(given: Sequence[Root]) -> list[list[Root]]:
    """The folders, those together that have the same options: what is said about them is said once."""
    groups: dict[Data, list[Root]] = defaultdict(list)
    for root in given:
        groups[root.options].append(root)
    return list(groups.values())


# -- folders ----------------------------------------------------------------------------------------------------------


def _list_files(root: Root, others: Set[Path], passed_over: list[Path], found: Survey) -> list[Path]:
    """The user's files of the root, without the folders `others` in it, sorted by name the same way on every system;
    what else is there is added to `passed_over`."""
    files: list[Path] = []
    devices: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [(root.path, root.prefix)]
    while waiting:
        folder, prefix = waiting.pop()
        inner: dict[Path, str] = {}
        for entry in _entries(folder, seen, found):
            path = folder / entry.name
            found.names[path] = shown(prefix + entry.name)
            is_folder, is_device = kind_of(entry)
            if is_passed_over(entry.name):
                passed_over.append(path)
            elif is_folder:
                inner[path] = f"{prefix}{entry.name}/"
            elif is_device and path.suffix.lower() != ".txt":
                devices.append(path)
            else:
                files.append(path)  # a broken link, or a pipe for a caption: reported when opened
        waiting += [(path, inner[path]) for path in reversed(_read_too([*inner], root, others, found))]
    found.note(sorted(devices), "pipes, sockets and devices are ignored")
    files = sorted(files, key=found.names.__getitem__)
    _remark_on_root(root, files, found)
    return files


def _read_too(inner: Sequence[Path], root: Root, others: Set[Path], found: Survey) -> list[Path]:
    """Which of the folders in a root's folder belong to it."""
    own = [folder for folder in inner if folder.resolve() in others] if others else []
    found.note(own, f"sub-folders of {shown(root.given)} that are entries of {SETTING} themselves; only those count")
    rest = [folder for folder in inner if folder not in own]
    if root.options.recursive:
        return rest
    named = [folder for folder in rest if folder.parent == root.path and REPEATS.match(folder.name)]
    found.note([one for one in rest if one not in named], "sub-folders are ignored (recursive is false)")
    return named


def _entries(folder: Path, seen: set[tuple[int, int]], found: Survey) -> list[os.DirEntry]:
    """What is in a folder, unless it is among those `seen`, to which it is added."""
    try:
        there = folder.stat()
        if (there.st_dev, there.st_ino) in seen:  # a link back to a folder above, or a second link to the same one
            found.note([folder], "links to folders that are already read are ignored")
            return []
        seen.add((there.st_dev, there.st_ino))
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.problem(f"{shown(folder)}: cannot be read ({error.strerror}); check its permissions")
        return []


def _remark_on_others(files: list[Path], found: Survey) -> None:
    """Notes on files that are neither pictures nor captions."""
    needed = missing(file.suffix.lower() for file in files)
    for package, suffixes in needed.items():
        lacking = [file for file in files if file.suffix.lower() in suffixes]
        found.note(lacking, f"{' and '.join(suffixes)} files are left out; to read them: pip install {package}")
    readable = {suffix for suffixes in needed.values() for suffix in suffixes}
    others = [file for file in files if file.suffix.lower() not in readable]
    found.note(others, f"other files are ignored; pictures are {' '.join(SUFFIXES)}")


def _remark_on_root(root: Root, files: list[Path], found: Survey) -> None:
    """What is wrong with a folder as a whole."""
    place = f"{SETTING} {shown(root.given)}"
    if REPEATS.match(root.path.name):
        found.notes.append(f"{place}: the number in its name is ignored; only names of sub-folders set repeats")
    if not any(file.suffix.lower() in SUFFIXES and not masks.is_label(file) for file in files):
        kinds = Counter(shown(file.suffix.lower() or file.name) for file in files)
        there = "; it has " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) if kinds else ""
        packages = " ".join(missing(kinds))
        how = f"; to read these: pip install {packages}" if packages else ""
        found.problems.append(f"{place}: has no pictures{there}; pictures are {' '.join(SUFFIXES)}{how}")


def _repeats(paths: list[Path], root: Root, found: Survey) -> dict[Path, Fraction]:
    """Repeats of each picture: the folder's own, times the number of the innermost sub-folder called `10_name`."""
    numbers: dict[Path, int] = {}
    own, by_folder = folders.exact(root.folder.repeats), {}
    for inner in dict.fromkeys(path.parent for path in paths):
        relative = inner.relative_to(root.path)
        named = [folder for folder in (relative, *relative.parents) if REPEATS.match(folder.name)]
        number = int(named[0].name.split("_")[0]) if named else 1
        by_folder[inner] = number * own
        if named:
            numbers[root.path / named[0]] = number
    repeats: dict[Path, Fraction] = {path: by_folder[path.parent] for path in paths}
    for folder, number in numbers.items():
        if number == 0:
            found.problem(f"{shown(folder)}: has 0 repeats in its name; give 1 or more, or remove the folder")
    many = [folder for folder, number in numbers.items() if number >= MANY_REPEATS]
    found.note(many, f"the folder's name repeats pictures {MANY_REPEATS} times or more in each epoch")
    return repeats
