"""The folders of a set of pictures: which can be read, which options hold in each, and which belong to another."""

import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from modules.data import caption_files, folders
from modules.data.buckets import buckets
from modules.data.names import broken_link, looked_at, shown
from modules.preset.data_options import Data
from modules.preset.folder_options import Folder
from training_presets.sentences import enumerated

SETTING = "data.folders"
"""The option with the folders of pictures."""


@dataclass
class Said:
    """What is wrong with a set of pictures (problems), and what is worth knowing (notes)."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, sentence: str) -> None:
        """Add a reason why these pictures cannot be trained on."""
        self.problems.append(f"{SETTING}: {sentence}")


@dataclass(frozen=True)
class Root:
    """One data folder."""

    folder: Folder
    """As in the preset."""
    path: Path
    prefix: str
    """In front of its pictures' names."""
    entry: int
    """Its place in data.folders."""
    options: Data
    """Those that hold for its pictures."""

    @property
    def given(self) -> str:
        """Its path, as in the preset."""
        return self.folder.path

    @cached_property
    def resolutions(self) -> list[tuple[Data, Fraction]]:
        """The options at each resolution, and its share."""
        return folders.at_resolutions(self.options)


def read(options: Data, which: str, said: Said) -> list[Root]:
    """The folders of a set, "training" or "validation", that can be read; a problem for each of the others."""
    given = folders.entries(options, which)
    if which == "training" and not any(folder.role == "train" for _, folder in given):
        what = "has no folder of the role train" if options.folders else "is empty"
        said.problems.append(f"{SETTING} {what}; give the folder with the pictures (--data FOLDER)")
    roots: list[Root] = []
    for (entry, folder), label in zip(given, labels([one.path for _, one in given]), strict=True):
        path, place = Path(folder.path), f"{SETTING} {shown(folder.path)}"
        there = looked_at(path)
        if not folder.path:
            said.problem("one of the folders is empty; remove it")
        elif isinstance(there, FileNotFoundError):
            how = "give the folder with the pictures, as in --data FOLDER"
            if folder.path.lstrip().startswith("{"):
                how = 'settings of a folder are JSON with double quotes, as in {"path": "FOLDER", "repeats": 2}'
            elif folder.path.startswith("~"):
                how = "~ is known to shells alone; write the whole path"
            said.problems.append(f"{place}: {broken_link(path) or 'no such folder'}; {how}")
        elif isinstance(there, OSError):
            said.problems.append(f"{place}: cannot be read ({there.strerror}); give the folder with the pictures")
        elif not stat.S_ISDIR(there.st_mode):
            said.problems.append(f"{place}: is a file; give the folder it is in")
        else:
            prefix = f"{label}/" if len(given) > 1 else ""
            roots.append(Root(folder, path, prefix, entry, folders.folder_options(options, folder)))
        if unused := folders.unused(folder):
            have = "has" if len(unused) == 1 else "have"
            said.notes.append(f"{place}: has the role validation, so {enumerated(unused, 'and')} {have} no effect")
        if folder.role != "validation" and not folder.loss_weight:
            said.notes.append(f"{place}: has loss_weight 0, so its pictures are not learned")
    roots = [root for place, root in enumerate(roots) if not _is_read_already(root, place, roots, said)]
    _remark_on_twins(roots, said)
    return roots


def _remark_on_twins(roots: Sequence[Root], said: Said) -> None:
    """Notes on folders that are given several times, with different settings."""
    given: dict[Path, list[str]] = defaultdict(list)
    for root in roots:
        given[root.path.resolve()].append(root.given)
    for same in given.values():
        if len(same) > 1:
            times = f"is given {len(same)} times with different settings; its pictures are used with each"
            said.notes.append(f"{SETTING} {shown(same[0])}: {times}")


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


def _is_read_already(root: Root, place: int, roots: Sequence[Root], said: Said) -> bool:
    """Whether a folder is among the others twice, or inside another that is read in the same way: its pictures would be
    counted twice. One inside another with other settings is left to its own entry, see `own_places`."""
    full = root.path.resolve()
    for other_place, other in enumerate(roots):
        if not _is_alike(root, other):
            continue
        other_full = other.path.resolve()
        if full == other_full and other_place < place:
            same = "is given twice" if root.given == other.given else f"is the same folder as {shown(other.given)}"
            how = "remove one of them, or give them different settings"
            said.problems.append(f"{SETTING} {shown(root.given)}: {same}; {how}")
            return True
        if full != other_full and full.is_relative_to(other_full) and other.options.recursive:
            inside = f"is inside {shown(other.given)}, whose sub-folders are also read"
            said.problems.append(f"{SETTING} {shown(root.given)}: {inside}; remove one of them")
            return True
    return False


def _is_alike(root: Root, other: Root) -> bool:
    """Whether the same values hold in two folders, so that giving both says nothing new."""
    own, others = dict(root.folder), dict(other.folder)
    same = all(own[name] == others[name] for name in folders.OF_FOLDERS if name != "path")
    return same and root.options == other.options


def own_places(root: Root, options: Data) -> set[Path]:
    """Sub-folders of a folder that have entries of their own in data.folders, of whatever role: those hold there."""
    full = root.path.resolve()
    given = [folder.path for which in folders.ROLES for _, folder in folders.entries(options, which) if folder.path]
    inside = {Path(path).resolve() for path in given}
    return {path for path in inside if path != full and path.is_relative_to(full)}


def check_options(all_options: Sequence[Data], step: int, said: Said) -> bool:
    """What is wrong with the options of the data set and of each folder, once. Returns whether there are buckets."""
    wrong: list[str] = []
    notes: list[str] = []
    fit = True
    for options in all_options:
        wrong += caption_files.problems(options)
        if unfit := folders.problems(options):
            fit, wrong = False, wrong + unfit
            continue
        for one, _ in folders.at_resolutions(options):
            try:
                bucket_sizes(one, step)
            except ValueError as error:
                fit = False
                wrong.append(str(error))
                continue
            if one.resolution % step:
                side = buckets(one.resolution, step, 1, False)[0][0]
                notes.append(f"data.resolution {one.resolution} is not a multiple of {step}; {side} is used")
    said.problems += dict.fromkeys(wrong)
    said.notes += dict.fromkeys(notes)
    return fit


def bucket_sizes(options: Data, step: int) -> tuple[tuple[int, int], ...]:
    """The buckets of these options. Raises ValueError if data.resolution is too small for any."""
    return buckets(options.resolution, step, options.max_aspect, options.buckets)
