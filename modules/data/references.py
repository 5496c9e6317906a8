"""Reference pictures: what pictures of a data set are made from, for models that edit. Where they are, and which part
of them a model gets.

A reference has its picture's name and is in a folder of its own. It is never a picture of the data set.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from modules.data.names import looked_at, shown
from modules.data.opening import content_key, open_picture
from modules.data.pictures import placement
from modules.data.roots import SETTING, Root
from modules.data.same_name import by_name, name_of, nearest
from modules.preset.data_options import Data
from modules.preset.folder_options import Folder
from training_presets.sentences import enumerated

if TYPE_CHECKING:
    from modules.data.survey import Survey

Size = tuple[int, int]
"""Width and height in pixels."""

Fitted = Callable[[int, int], Size]
"""The size that a model's pipeline resizes a reference picture of this width and height to. Raises ValueError with the
end of a sentence for one that it does not take."""

SAME_SHAPE = 0.01
"""By how much the ratio of sides of a reference may differ from its picture's, besides rounding to whole pixels, where
both are to be cropped alike."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom."""


@dataclass(frozen=True)
class Reference:
    """A reference picture, without its pixels."""

    path: Path
    key: str
    """sha256 of its pixels, hex."""
    size: Size
    """What it is resized to for the model."""
    box: Box | None = None
    """The part of it that is used; None: all."""

    @property
    def content(self) -> tuple:
        """What the model's view of it depends on."""
        return self.key, self.box, self.size

    def image(self) -> Image.Image:
        """The part that is used, in RGB. Raises ValueError if it cannot be read, or has changed."""
        opened = open_picture(self.path)
        if content_key(opened) != self.key:
            raise ValueError(
                f"{shown(self.path)}: has changed since training started; start again, and do not edit reference "
                "pictures meanwhile"
            )
        return opened.crop(self.box) if self.box else opened


def as_it_is(width: int, height: int) -> Size:
    """Of a model that is not known."""
    return width, height


def most(options: Data) -> int:
    """The largest number of references that pictures have."""
    return max((len(one.references) for one in options.folders if isinstance(one, Folder)), default=0)


# -- finding ----------------------------------------------------------------------------------------------------------


def folders(roots: Sequence[Root], found: "Survey") -> dict[str, Path]:
    """The folders of references, as they are given, that can be read; a problem for each of the others."""
    known: dict[str, Path] = {}
    for root in roots:
        if root.folder.references:
            found.problems += _unfit(root)
        places: set[Path] = set()
        for given in root.folder.references:
            folder, place = Path(given), f"{SETTING}[{root.entry}].references {shown(given)}"
            if not given.strip():  # Path would take it for the current folder
                found.problems.append(f"{SETTING}[{root.entry}].references: one of the folders is empty; remove it")
            elif isinstance(looked_at(folder), OSError) or not folder.is_dir():
                found.problems.append(f"{place}: no such folder; give the folder with the reference pictures")
            elif folder.resolve() in places:
                found.problems.append(f"{place}: is given twice; remove one of them")
            elif root.path.resolve().is_relative_to(folder.resolve()):
                found.problems.append(f"{place}: has the pictures themselves; give a folder with references alone")
            else:
                known[given] = folder
                places.add(folder.resolve())
    found.problems = list(dict.fromkeys(found.problems))
    return known


def _unfit(root: Root) -> list[str]:
    """Options of a folder with references that would change the pictures without them."""
    options = root.options
    wanted = {
        "flip": options.flip, "rotation": options.rotation, "brightness": options.brightness,
        "contrast": options.contrast, "saturation": options.saturation, "hue": options.hue,
    } if root.folder.role != "validation" else {}
    crop = options.crop == "focus" or options.crop != "centre" and root.folder.role != "validation"
    names = [name for name, value in wanted.items() if value] + (["crop"] if crop else [])
    if not names:
        return []
    have = "is" if len(names) == 1 else "are"
    plain = ", ".join(f'"{name}": {json.dumps(Data.model_fields[name].default)}' for name in names)
    return [f"{SETTING} {shown(root.given)}: {enumerated(names, 'and')} {have} set, but pictures with references are "
            f"cropped to their middle and never varied; give this folder's entry {plain}"]


def apart(
    files: Sequence[Path], known: Mapping[str, Path], roots: Sequence[Root], found: "Survey"
) -> list[Path]:
    """The files that are not in a folder of references, unless that is one of the `roots` too: pictures may be made
    from those of another folder."""
    owned = [root.path.resolve() for root in roots]
    places = [folder.resolve() for folder in known.values()]
    places = [place for place in places if not any(own.is_relative_to(place) for own in owned)]
    if not places:
        return [*files]
    inside = {file for file in files if any(file.resolve().is_relative_to(place) for place in places)}
    found.note(sorted(inside), "files in folders of reference pictures are no pictures of the data set")
    return [file for file in files if file not in inside]


def of_pictures(
    root: Root, paths: Sequence[Path], known: Mapping[str, Path], found: "Survey"
) -> dict[Path, tuple[Path, ...]]:
    """The reference files of a folder's pictures, in the order of its folders of references; a problem for pictures
    without one or with several in a folder, and a note on references without a picture."""
    references: dict[Path, tuple[Path, ...]] = {}
    for given in root.folder.references:
        if given not in known:
            continue
        names, used, lacking = by_name(known[given]), set[Path](), []
        for path in paths:
            fitting = nearest(path, known[given], names.get(name_of(path), []))
            if len(fitting) > 1:
                listed = ", ".join(map(shown, fitting))
                found.problem(f"{found.names[path]}: has several reference pictures in one folder ({listed}); keep one "
                              "of them")
            elif not fitting:
                lacking.append(path)
            used |= {*fitting}
            references[path] = (*references.get(path, ()), *fitting[:1])
        if lacking:
            found.lacks_references(lacking, given)
        unused = [file for files in names.values() for file in files if file not in used]
        found.names |= {file: shown(file) for file in unused}
        found.note(unused, "reference pictures without a picture of the same name are not used")
    return references


# -- looking ----------------------------------------------------------------------------------------------------------


def of_item(
    found: Iterable[tuple[Path, Size, str]], size: Size, bucket: Size, fitted: Fitted
) -> tuple[Reference, ...]:
    """The references, given as path, size and key, of a picture of this `size` in its bucket. Raises ValueError, naming
    the file, for one that the model does not take."""
    return tuple(_of_one(path, own, key, size, bucket, fitted) for path, own, key in found)


def _of_one(path: Path, own: Size, key: str, size: Size, bucket: Size, fitted: Fitted) -> Reference:
    box = _box(own, size, bucket)
    width, height = (box[2] - box[0], box[3] - box[1]) if box else own
    try:
        return Reference(path, key, fitted(width, height), box)
    except ValueError as error:
        raise ValueError(f"{shown(path)}: {error}") from error


def _box(own: Size, size: Size, bucket: Size) -> Box | None:
    """The part of a reference of its `own` size that is the part of its picture, of this `size`, that is in the bucket.
    None: all of it, or it has another shape than its picture."""
    nearly = SAME_SHAPE + 1 / min(*own, *size)
    if abs(own[0] * size[1] / (own[1] * size[0]) - 1) > nearly:
        return None
    width, height, top, left = placement(*size, bucket)
    across, down = own[0] / width, own[1] / height
    box = (
        round(left * across), round(top * down),
        max(1, round((left + bucket[0]) * across)), max(1, round((top + bucket[1]) * down)),
    )
    return None if box == (0, 0, *own) else box


def read(paths: Iterable[str], fitted: Fitted) -> tuple[Reference, ...]:
    """The reference pictures of a prompt, all of each. Raises ValueError, naming the file, for what is wrong."""
    found = []
    for given in paths:
        if not given.strip():
            raise ValueError("one of the files is empty; remove it")
        path = Path(given)
        opened = open_picture(path)
        found.append(_of_one(path, opened.size, content_key(opened), opened.size, opened.size, fitted))
    return tuple(found)
