"""What is in the data folders, without opening a picture: files, captions, repeats, buckets, and what is wrong."""

import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from modules.data import focus, folders, masks, roots
from modules.data.captions import parse_metadata_line, read_text
from modules.data.names import shown
from modules.data.pictures import SUFFIXES
from modules.data.roots import SETTING, Root, Said, looked_at
from modules.preset.data_options import Data

MANY_REPEATS = 100
"""Folders such as 2023_summer get a note: the number is read as repeats."""

METADATA = "metadata.jsonl"
REPEATS = re.compile(r"(\d+)_")


@dataclass(frozen=True)
class Caption:
    """A picture's caption."""

    text: str
    source: str
    """Where it comes from: "txt", "metadata" or "filename"; "empty" or "missing" when there is none, depending on
    data.missing_captions."""
    file: Path
    """The .txt file beside the picture, whether there is one or not."""
    problem: str = ""
    """Why that file cannot be read."""


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


@dataclass
class Survey(Said):
    """The picture files of a set in order, the buckets, what is wrong (problems) and what is worth knowing (notes)."""

    step: int = 0
    """Bucket sizes are multiples of it, in pixels; 0 if a resolution is too small for it."""
    items: list[Item] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    """Why pictures that were opened cannot be used."""
    names: dict[Path, str] = field(default_factory=dict)
    """Of every file and folder."""

    def note(self, paths: Sequence[Path], sentence: str) -> None:
        """Add one note for all `paths`, none if there are none."""
        if paths:
            self.notes.append(f"{sentence} ({listing([self.names[path] for path in paths])})")


def survey(options: Data, which: str, bucket_step: int) -> Survey:
    """List the folders of a set, "training" or "validation"."""
    found = Survey()
    given = roots.read(options, which, found)
    if roots.check_options([options, *(root.options for root in given)], bucket_step, found):
        found.step = bucket_step
    listed = {root.entry: _list_files(root, given, found) for root in given}
    mask_folders = masks.folders(given, found)
    for alike in _by_options(given):
        own = alike[0].options
        files = list(dict.fromkeys(file for root in alike for file in listed[root.entry]))
        paths, mask_files = masks.apart(own, files, mask_folders, found)
        captions, focuses = _captions(own, paths, files, found), focus.points(own, paths, files, found)
        others = [f for f in files if f.suffix.lower() not in (*SUFFIXES, ".txt") and f.name != METADATA]
        found.note(others, f"other files are ignored; pictures are {' '.join(SUFFIXES)}")
        kept = set(paths)
        for root in alike:
            mine = [file for file in listed[root.entry] if file in kept]
            repeats = _repeats(mine, root, found)
            found.items += [
                Item(path, found.names[path], root, captions[path], repeats[path], mask_files.get(path),
                     focuses.get(path))
                for path in mine
            ]
    found.items.sort(key=lambda item: item.root.entry)  # stable: each folder's pictures keep their order
    return found


def _by_options(given: Sequence[Root]) -> list[list[Root]]:
    """The folders, those together that have the same options: what is said about them is said once."""
    groups: dict[Data, list[Root]] = defaultdict(list)
    for root in given:
        groups[root.options].append(root)
    return list(groups.values())


def listing(names: Sequence[str], most: int = 10) -> str:
    """The number of names, and the first `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)}: {', '.join(names[:most])}{more}"


# -- folders ----------------------------------------------------------------------------------------------------------


def _list_files(root: Root, given: Sequence[Root], found: Survey) -> list[Path]:
    """All visible files of the root, sorted by name the same way on every system."""
    files: list[Path] = []
    hidden: list[Path] = []
    devices: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting, others = [root.path], roots.own_places(root, given)
    while waiting:
        folder = waiting.pop()
        inner: list[Path] = []
        for entry in _entries(folder, seen, found):
            found.names[entry] = shown(root.prefix + entry.relative_to(root.path).as_posix())
            there = looked_at(entry)
            if entry.name.startswith("."):
                hidden.append(entry)
            elif not isinstance(there, OSError) and stat.S_ISDIR(there.st_mode):
                inner.append(entry)
            elif isinstance(there, OSError) or stat.S_ISREG(there.st_mode) or entry.suffix.lower() == ".txt":
                files.append(entry)  # a broken link, or a pipe for a caption: reported when opened
            else:
                devices.append(entry)
        waiting += reversed(_read_too(inner, root, others, found))
    found.note(sorted(hidden), "hidden files and folders are ignored")
    found.note(sorted(devices), "pipes, sockets and devices are ignored")
    files = sorted(files, key=found.names.__getitem__)
    _remark_on_root(root, files, found)
    return files


def _read_too(inner: Sequence[Path], root: Root, others: Mapping[Path, Root], found: Survey) -> list[Path]:
    """Which of the folders in a root's folder belong to it."""
    own = [folder for folder in inner if folder.resolve() in others] if others else []
    found.note(own, f"sub-folders of {shown(root.given)} that are entries of {SETTING} themselves; only those count")
    rest = [folder for folder in inner if folder not in own]
    if root.options.recursive:
        return rest
    named = [folder for folder in rest if folder.parent == root.path and REPEATS.match(folder.name)]
    found.note([one for one in rest if one not in named], "sub-folders are ignored (recursive is false)")
    return named


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
    place = f"{SETTING} {shown(root.given)}"
    if REPEATS.match(root.path.name):
        found.notes.append(f"{place}: the number in its name is ignored; only names of sub-folders set repeats")
    if not any(file.suffix.lower() in SUFFIXES and not masks.is_label(file) for file in files):
        kinds = Counter(shown(file.suffix.lower() or file.name) for file in files)
        there = "; it has " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) if kinds else ""
        found.problems.append(f"{place}: has no pictures{there}; pictures are {' '.join(SUFFIXES)}")


def _repeats(paths: list[Path], root: Root, found: Survey) -> dict[Path, Fraction]:
    """Repeats of each picture: the folder's own, times the number of the innermost sub-folder called `10_name`."""
    numbers: dict[Path, int] = {}
    repeats: dict[Path, Fraction] = {}
    for path in paths:
        named = [parent for parent in path.relative_to(root.path).parents if REPEATS.match(parent.name)]
        number = int(named[0].name.split("_")[0]) if named else 1
        repeats[path] = number * folders.exact(root.folder.repeats)
        if named:
            numbers[root.path / named[0]] = number
    for folder, number in numbers.items():
        if number == 0:
            found.problem(f"{shown(folder)}: has 0 repeats in its name; give 1 or more, or remove the folder")
    many = [folder for folder, number in numbers.items() if number >= MANY_REPEATS]
    found.note(many, f"the folder's name repeats pictures {MANY_REPEATS} times or more in each epoch")
    return repeats


# -- captions ---------------------------------------------------------------------------------------------------------


def _captions(options: Data, paths: list[Path], files: list[Path], found: Survey) -> dict[Path, Caption]:
    """The caption of each picture."""
    texts = _text_files(paths, files, found)
    listed = _metadata(set(paths), files, found)
    differing = [path for path in listed if texts[path].text and listed[path] != texts[path].text]
    found.note(differing, f"the .txt file and {METADATA} disagree; the .txt file is used")
    captions = {path: _caption(options, path, texts[path], listed.get(path, "")) for path in paths}
    missing = [path for path in paths if captions[path].source in ("filename", "empty", "missing")]
    if missing and options.missing_captions == "error":
        names = listing([found.names[path] for path in missing], most=len(missing))
        found.problem(
            f"pictures without a caption ({names}); write one into a .txt file of the same name, or set "
            'data.missing_captions to "empty" or "filename"'
        )
    elif options.missing_captions == "filename":
        found.note(missing, "pictures without a caption use their file name as caption")
    else:
        found.note(missing, "pictures without a caption use the empty caption")
    several = [path for path in paths if "\n" in captions[path].text]
    found.note(several, "captions with several lines; all lines are used")
    return captions


def _caption(options: Data, path: Path, file: Caption, listed: str) -> Caption:
    """A picture's caption, from its .txt file and its line in metadata.jsonl."""
    if file.text or file.problem:
        return file
    if listed:
        return replace(file, text=listed, source="metadata")
    if options.missing_captions == "filename":
        # No tokenizer takes bytes that are not UTF-8.
        return replace(file, text=os.fsencode(path.stem).decode("utf-8", "replace"), source="filename")
    return replace(file, source="empty" if options.missing_captions == "empty" else "missing")


def _text_files(paths: list[Path], files: list[Path], found: Survey) -> dict[Path, Caption]:
    """The text of the .txt file beside each picture, "" where there is none."""
    owners: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        owners[path.with_suffix("")].append(path)
    captions = {path: Caption("", "txt", path.with_suffix(".txt")) for path in paths}
    unowned = []
    for file in files:
        if file.suffix.lower() != ".txt":
            continue
        pictures = owners[file.with_suffix("")]
        if not pictures:
            unowned.append(file)
            continue
        if len(pictures) > 1:
            found.note(pictures, f"{found.names[file]} is the caption of several pictures")
        try:
            caption = Caption(read_text(file), "txt", file)
        except ValueError as error:
            found.problem(str(error))
            caption = Caption("", "txt", file, str(error))
        captions |= dict.fromkeys(pictures, caption)
    found.note(unowned, ".txt files without a picture of the same name are ignored")
    return captions


def _metadata(paths: set[Path], files: list[Path], found: Survey) -> dict[Path, str]:
    """Captions from all metadata.jsonl files; file names in them are relative to their own folder."""
    captions: dict[Path, str] = {}
    for file in files:
        if file.name != METADATA:
            continue
        unused: set[str] = set()
        try:
            lines = read_text(file).split("\n")
        except ValueError as error:
            found.problem(str(error))
            continue
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                name, caption, others = parse_metadata_line(line)
                path = _picture_named(file.parent, name, paths)
                if captions.setdefault(path, caption) != caption:
                    raise ValueError(f"is a second caption of {shown(name)}; keep one of them")
                unused |= others
            except ValueError as error:
                found.problem(f"{shown(file)} line {number}: {error}")
        if unused:
            entries = shown(", ".join(sorted(unused)))
            found.notes.append(f"{found.names[file]}: ignored entries ({entries})")
    return captions


def _picture_named(folder: Path, name: str, paths: set[Path]) -> Path:
    """The picture a line of metadata.jsonl means. Raises ValueError when there is none."""
    path = folder / os.path.normpath(name)
    if path in paths:
        return path
    if isinstance(looked_at(path), OSError):
        raise ValueError(f"names a missing file, {shown(name)}; remove the line or restore the picture")
    raise ValueError(f"names {shown(name)}, which is not one of the pictures here; remove the line")
