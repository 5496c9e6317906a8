"""What is in the data folders, without opening a picture: files, captions, repeats, buckets, and what is wrong."""

import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modules.data import caption_files
from modules.data.buckets import buckets
from modules.data.caption_files import Caption, read_captions
from modules.data.names import listing, looked_at, shown
from modules.data.pictures import SUFFIXES
from modules.preset.data_options import Data

SETTINGS = {"training": "data.folders", "validation": "data.validation_folder"}
"""The two sets of pictures, and the options with their folders."""

MANY_REPEATS = 100
"""Folders such as 2023_summer get a note: the number is read as repeats."""

REPEATS = re.compile(r"(\d+)_")


@dataclass(frozen=True)
class Item:
    """A picture file, not opened."""

    path: Path
    name: str
    """Path inside its data folder, with slashes; with several data folders, the folder's name comes first. As `shown`
    writes it."""
    folder: str
    """The data folder, as in the preset."""
    caption: Caption
    repeats: int
    """How often an epoch has it."""


@dataclass(frozen=True)
class Root:
    """One data folder."""

    given: str
    """As in the preset."""
    path: Path
    prefix: str
    """In front of its pictures' names."""


@dataclass
class Survey:
    """The picture files of a set in order, the buckets, what is wrong (problems) and what is worth knowing (notes)."""

    setting: str
    items: list[Item] = field(default_factory=list)
    sizes: tuple[tuple[int, int], ...] = ()
    """The buckets; none if data.resolution is too small for any."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    """Where the captions of each folder come from: sentences."""
    broken: dict[Path, str] = field(default_factory=dict)
    """Why pictures that were opened cannot be used."""
    names: dict[Path, str] = field(default_factory=dict)
    """Of every file and folder."""
    roots: dict[Path, Root] = field(default_factory=dict)
    """Of every file."""

    def problem(self, sentence: str) -> None:
        """Add a reason why these pictures cannot be trained on."""
        self.problems.append(f"{self.setting}: {sentence}")

    def note(self, paths: Sequence[Path], sentence: str) -> None:
        """Add one note for all `paths`, none if there are none."""
        if paths:
            self.notes.append(f"{sentence} ({listing([self.names[path] for path in paths])})")


def survey(options: Data, which: str, bucket_step: int) -> Survey:
    """List the folders of a set, "training" or "validation"."""
    found = Survey(SETTINGS[which])
    found.sizes = _checked_sizes(options, bucket_step, found)
    files: list[Path] = []
    for root in _roots(folders_of(options, which), found):
        listed = _list_files(root, found)
        _remark_on_root(root, listed, found)
        found.roots |= dict.fromkeys(listed, root)
        files += listed
    paths = [file for file in files if file.suffix.lower() in SUFFIXES]
    read = read_captions(options, paths, files, found.names, list(dict.fromkeys(r.path for r in found.roots.values())))
    for sentence in read.problems:
        found.problem(sentence)
    found.notes += read.notes
    found.captions += read.sources
    repeats = _repeats(paths, found)
    others = [file for file in files if file.suffix.lower() not in SUFFIXES and file not in read.known]
    found.note(others, f"other files are ignored; pictures are {' '.join(SUFFIXES)}")
    found.items = [
        Item(path, found.names[path], found.roots[path].given, read.captions[path], repeats[path]) for path in paths
    ]
    return found


def folders_of(options: Data, which: str) -> tuple[str, ...]:
    """The folders of a set, "training" or "validation"."""
    if which == "training":
        return options.folders
    return (options.validation_folder,) if options.validation_folder else ()


def bucket_sizes(options: Data, step: int) -> tuple[tuple[int, int], ...]:
    """The buckets of these options. Raises ValueError if data.resolution is too small for any."""
    return buckets(options.resolution, step, options.max_aspect, options.buckets)


def _checked_sizes(options: Data, step: int, found: Survey) -> tuple[tuple[int, int], ...]:
    found.problems += caption_files.problems(options)
    try:
        sizes = bucket_sizes(options, step)
    except ValueError as error:
        found.problems.append(str(error))
        return ()
    if options.resolution % step:
        side = buckets(options.resolution, step, 1, False)[0][0]
        found.notes.append(f"data.resolution {options.resolution} is not a multiple of {step}; {side} is used")
    return sizes


# -- folders ----------------------------------------------------------------------------------------------------------


def _roots(folders: Sequence[str], found: Survey) -> list[Root]:
    """The folders that can be read; a problem for each of the others."""
    if not folders and found.setting == SETTINGS["training"]:
        found.problems.append(f"{found.setting} is empty; give the folder with the pictures (--data FOLDER)")
    roots: list[Root] = []
    for folder, label in zip(folders, labels(folders), strict=True):
        path, place = Path(folder), f"{found.setting} {shown(folder)}"
        there = looked_at(path)
        if not folder:
            found.problem("one of the folders is empty; remove it")
        elif isinstance(there, FileNotFoundError):
            how = f"give the folder with the pictures, as in --{found.setting} FOLDER"
            found.problems.append(f"{place}: no such folder; {how}")
        elif isinstance(there, OSError):
            found.problems.append(f"{place}: cannot be read ({there.strerror}); give the folder with the pictures")
        elif not stat.S_ISDIR(there.st_mode):
            found.problems.append(f"{place}: is a file; give the folder it is in")
        else:
            roots.append(Root(folder, path, f"{label}/" if len(folders) > 1 else ""))
    return [root for place, root in enumerate(roots) if not _is_read_already(root, place, roots, found)]


def labels(folders: Sequence[str]) -> list[str]:
    """A short name for each folder: the last parts of its path, as many as make it unique."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]  # noqa: PTH100  resolve() would follow links
    names = []
    for one in parts:
        count = 1
        while any(other != one and other[-count:] == one[-count:] for other in parts):
            count += 1
        names.append("/".join(one[-count:]))
    return names


def _is_read_already(root: Root, place: int, roots: Sequence[Root], found: Survey) -> bool:
    """Whether a folder is among the others twice, or inside another: its pictures would be counted twice."""
    full = root.path.resolve()
    for other_place, other in enumerate(roots):
        other_full = other.path.resolve()
        if full == other_full and other_place < place:
            same = "is given twice" if root.given == other.given else f"is the same folder as {shown(other.given)}"
            found.problems.append(f"{found.setting} {shown(root.given)}: {same}; remove one of them")
            return True
        if full != other_full and full.is_relative_to(other_full):
            inside = f"is inside {shown(other.given)}, whose sub-folders are also read"
            found.problems.append(f"{found.setting} {shown(root.given)}: {inside}; remove one of them")
            return True
    return False


def _list_files(root: Root, found: Survey) -> list[Path]:
    """All visible files below the root, sorted by name the same way on every system."""
    files: list[Path] = []
    hidden: list[Path] = []
    devices: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [root.path]
    while waiting:
        folder = waiting.pop()
        folders: list[Path] = []
        for entry in _entries(folder, seen, found):
            found.names[entry] = shown(root.prefix + entry.relative_to(root.path).as_posix())
            there = looked_at(entry)
            if entry.name.startswith("."):
                hidden.append(entry)
            elif not isinstance(there, OSError) and stat.S_ISDIR(there.st_mode):
                folders.append(entry)
            elif isinstance(there, OSError) or stat.S_ISREG(there.st_mode) or entry.suffix.lower() == ".txt":
                files.append(entry)  # a broken link, or a pipe for a caption: reported when opened
            else:
                devices.append(entry)
        waiting += reversed(folders)
    found.note(sorted(hidden), "hidden files and folders are ignored")
    found.note(sorted(devices), "pipes, sockets and devices are ignored")
    return sorted(files, key=found.names.__getitem__)


def _entries(folder: Path, seen: set[tuple[int, int]], found: Survey) -> list[Path]:
    """What is in a folder, unless it is among those `seen`, to which it is added."""
    try:
        there = folder.stat()
        if (there.st_dev, there.st_ino) in seen:  # a link back to a folder above, or a second link to the same one
            found.note([folder], "links to folders that are already read are ignored")
            return []
        seen.add((there.st_dev, there.st_ino))
        return sorted(folder.iterdir())
    except OSError as error:
        found.problem(f"{shown(folder)}: cannot be read ({error.strerror}); check its permissions")
        return []


def _remark_on_root(root: Root, files: list[Path], found: Survey) -> None:
    """What is wrong with a folder as a whole."""
    place = f"{found.setting} {shown(root.given)}"
    if REPEATS.match(root.path.name):
        found.notes.append(f"{place}: the number in its name is ignored; only names of sub-folders set repeats")
    if not any(file.suffix.lower() in SUFFIXES for file in files):
        kinds = Counter(shown(file.suffix.lower() or file.name) for file in files)
        there = "; it has " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) if kinds else ""
        found.problems.append(f"{place}: has no pictures{there}; pictures are {' '.join(SUFFIXES)}")


def _repeats(paths: list[Path], found: Survey) -> dict[Path, int]:
    """Repeats of each picture: the number of the innermost folder called `10_name`, 1 without one."""
    numbers: dict[Path, int] = {}
    repeats: dict[Path, int] = {}
    for path in paths:
        root = found.roots[path].path
        named = [parent for parent in path.relative_to(root).parents if REPEATS.match(parent.name)]
        number = int(named[0].name.split("_")[0]) if named else 1
        repeats[path] = number
        if named:
            numbers[root / named[0]] = number
    for folder, number in numbers.items():
        if number == 0:
            found.problem(f"{shown(folder)}: has 0 repeats in its name; give 1 or more, or remove the folder")
    many = [folder for folder, number in numbers.items() if number >= MANY_REPEATS]
    found.note(many, f"the folder's name repeats pictures {MANY_REPEATS} times or more in each epoch")
    return repeats
