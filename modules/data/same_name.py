"""Files in a folder of their own that belong to pictures of the same names: masks and reference pictures."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from modules.data.formats import SUFFIXES
from modules.data.names import is_passed_over

ByName = dict[str, list[Path]]
"""Files by the name of the picture that they belong to, without suffix and in one Unicode normal form."""


def name_of(path: Path) -> str:
    """A picture's name as in `ByName`."""
    return unicodedata.normalize("NFC", path.stem)


def by_name(folder: Path, ending: str = "") -> ByName:
    """The picture files in a folder and below it, by their names; `ending`: of names, in lower case, where it is no
    part of the picture's name."""
    found: ByName = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES and not is_passed_over(file.name):
            name = name_of(file)
            found[name[: -len(ending)] if ending and name.lower().endswith(ending) else name].append(file)
    return dict(found)


def nearest(path: Path, folder: Path, files: Sequence[Path]) -> list[Path]:
    """Of the `files` in a folder that have a picture's name those in the sub-folder that is most like its own: one,
    unless it is not clear which."""
    if len(files) < 2:
        return [*files]

    def alike(file: Path) -> int:
        below = file.parent.relative_to(folder).parts
        return len(below) if path.parent.parts[len(path.parent.parts) - len(below) :] == below else -1

    most = max(map(alike, files))
    return [file for file in files if alike(file) == most] if most >= 0 else [*files]
