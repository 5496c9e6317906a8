"""What is in the data folders, without opening a picture: files, captions, repeats, buckets, and what is wrong."""

import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modules.data.buckets import buckets
from modules.data.captions import parse_metadata_line, read_text
from modules.data.formats import SUFFIXES, missing
from modules.data.names import broken_link, companions, composed, is_passed_over, kind_of, shown
from modules.preset.data_options import Data

SETTINGS = {"training": "data.folders", "validation": "data.validation_folder"}
"""The two sets of pictures, and the options with their folders."""

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
    broken: dict[Path, str] = field(default_factory=dict)
    """Why pictures that were opened cannot be used."""
    skips: bool = False
    """Whether they are left out."""
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
    found = Survey(SETTINGS[which], skips=options.broken == "skip")
    found.sizes = _checked_sizes(options, bucket_step, found)
    files: list[Path] = []
    passed_over: list[Path] = []
    for root in _roots(folders_of(options, which), found):
        listed = _list_files(root, passed_over, found)
        _remark_on_root(root, listed, found)
        found.roots |= dict.fromkeys(listed, root)
        files += listed
    found.note(passed_over, "hidden files, and thumbnails and recycle bins of file managers are passed over")
    paths = [file for file in files if file.suffix.lower() in SUFFIXES]
    captions = _captions(options, paths, files, found)
    repeats = _repeats(paths, found)
    _remark_on_others([f for f in files if f.suffix.lower() not in (*SUFFIXES, ".txt") and f.name != METADATA], found)
    found.items = [
        Item(path, found.names[path], found.roots[path].given, captions[path], repeats[path]) for path in paths
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


def listing(names: Sequence[str], most: int = 10, separator: str = ", ") -> str:
    """The number of names, and the first `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)}: {separator.join(names[:most])}{more}"


def _checked_sizes(options: Data, step: int, found: Survey) -> tuple[tuple[int, int], ...]:
    if not options.separator and (options.shuffle or options.part_dropout):
        found.problems.append('data.separator is empty; give the separator between the parts of a caption, such as ","')
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
        there = _looked_at(path)
        if not folder:
            found.problem("one of the folders is empty; remove it")
        elif isinstance(there, FileNotFoundError):
            how = f"give the folder with the pictures, as in --{found.setting} FOLDER"
            found.problems.append(f"{place}: {broken_link(path) or 'no such folder'}; {how}")
        elif isinstance(there, OSError):
            found.problems.append(f"{place}: cannot be read ({there.strerror}); give the folder with the pictures")
        elif not stat.S_ISDIR(there.st_mode):
            found.problems.append(f"{place}: is a file; give the folder it is in")
        else:
            roots.append(Root(folder, path, f"{label}/" if len(folders) > 1 else ""))
    return [root for place, root in enumerate(roots) if not _is_read_already(root, place, roots, found)]


def _looked_at(path: Path) -> os.stat_result | OSError:
    """The status of the path, links followed; or why it cannot be read."""
    try:
        return path.stat()
    except OSError as error:
        return error
    except ValueError:  # a zero byte, which no name has, or half a character
        return FileNotFoundError(0, "No such file or directory")


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


def _list_files(root: Root, passed_over: list[Path], found: Survey) -> list[Path]:
    """The user's files below the root, sorted by name the same way on every system; what else is there is added to
    `passed_over`."""
    files: list[Path] = []
    devices: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [(root.path, root.prefix)]
    while waiting:
        folder, prefix = waiting.pop()
        folders: list[tuple[Path, str]] = []
        for entry in _entries(folder, seen, found):
            path = folder / entry.name
            found.names[path] = shown(prefix + entry.name)
            is_folder, is_device = kind_of(entry)
            if is_passed_over(entry.name):
                passed_over.append(path)
            elif is_folder:
                folders.append((path, f"{prefix}{entry.name}/"))
            elif is_device and path.suffix.lower() != ".txt":
                devices.append(path)
            else:
                files.append(path)  # a broken link, or a pipe for a caption: reported when opened
        waiting += reversed(folders)
    found.note(sorted(devices), "pipes, sockets and devices are ignored")
    return sorted(files, key=found.names.__getitem__)


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
    place = f"{found.setting} {shown(root.given)}"
    if REPEATS.match(root.path.name):
        found.notes.append(f"{place}: the number in its name is ignored; only names of sub-folders set repeats")
    if not any(file.suffix.lower() in SUFFIXES for file in files):
        kinds = Counter(shown(file.suffix.lower() or file.name) for file in files)
        there = "; it has " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) if kinds else ""
        packages = " ".join(missing(kinds))
        how = f"; to read these: pip install {packages}" if packages else ""
        found.problems.append(f"{place}: has no pictures{there}; pictures are {' '.join(SUFFIXES)}{how}")


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
    captions = {path: Caption("", "txt", path.with_suffix(".txt")) for path in paths}
    unowned = []
    for file, pictures in companions([file for file in files if file.suffix.lower() == ".txt"], paths).items():
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
    alike = {composed(path): path for path in paths}
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
                path = _picture_named(file.parent, name, paths, alike)
                if captions.setdefault(path, caption) != caption:
                    raise ValueError(f"is a second caption of {shown(name)}; keep one of them")
                unused |= others
            except ValueError as error:
                found.problem(f"{shown(file)} line {number}: {error}")
        if unused:
            entries = shown(", ".join(sorted(unused)))
            found.notes.append(f"{found.names[file]}: ignored entries ({entries})")
    return captions


def _picture_named(folder: Path, name: str, paths: set[Path], alike: Mapping[str, Path]) -> Path:
    """The picture a line of metadata.jsonl means, in whichever normal form. Raises ValueError when there is none."""
    path = folder / os.path.normpath(name)
    if path in paths:
        return path
    if composed(path) in alike:
        return alike[composed(path)]
    if isinstance(_looked_at(path), OSError):
        raise ValueError(f"names a missing file, {shown(name)}; remove the line or restore the picture")
    raise ValueError(f"names {shown(name)}, which is not one of the pictures here; remove the line")
