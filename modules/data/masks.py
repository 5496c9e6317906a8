"""Masks: which parts of a picture are trained. Where they are, how they are read, and how they follow the picture to
the latents' grid.

A mask is white where a picture is trained and black where it is not, or a picture's own transparency. It is never a
picture of the data set.
"""

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from modules.data.formats import SUFFIXES
from modules.data.names import looked_at, shown
from modules.data.opening import open_mask
from modules.data.pictures import placement
from modules.data.roots import Root
from modules.data.same_name import by_name, name_of, nearest
from modules.preset.data_options import Data

if TYPE_CHECKING:
    from modules.data.augment import View
    from modules.data.survey import Survey

MASK, CONDITION = "-masklabel", "-condlabel"
"""How the names of masks and of pictures for ControlNets end in OneTrainer's folders."""

WORDS = ("none", "alpha", "files")
"""Of data.masks; anything else is a folder."""

SAME_SHAPE = 0.01
"""By how much the ratio of sides of a mask may differ from its picture's, besides rounding to whole pixels."""

OPAQUE = "pictures without transparency; all of the picture is trained"
"""A note on pictures whose masks are to be their transparency."""

POINTS = 2
"""Along each side of a pixel of a rotated crop, at which the mask is read."""


@dataclass(frozen=True)
class Mask:
    """A picture's mask, without its values."""

    path: Path
    """The mask's file; the picture itself where its transparency is the mask."""
    alpha: bool
    size: tuple[int, int]
    """Width and height."""
    key: str
    """sha256 of its values, hex."""
    share: float
    """Its mean: 1 where everything is white."""
    centre: tuple[float, float]
    """The middle of the white part, as fractions of width and height; of a mask without any, of the picture."""


# -- finding ----------------------------------------------------------------------------------------------------------


def is_label(path: Path) -> bool:
    """Whether a file's name is that of a mask or of a ControlNet's picture."""
    return path.stem.lower().endswith((MASK, CONDITION))


def folders(roots: Sequence[Root], found: "Survey") -> dict[str, Path]:
    """The folders with masks that data.masks names for any of the folders with pictures; a problem for each that is not
    there, or is not one of masks alone."""
    found_there: dict[str, Path] = {}
    for word in sorted({root.options.masks for root in roots} - set(WORDS)):
        near = difflib.get_close_matches(word.lower(), WORDS, 1)
        if not isinstance(looked_at(Path(word)), OSError) and Path(word).is_dir():
            if any(root.path.resolve().is_relative_to(Path(word).resolve()) for root in roots):
                found.problems.append(f"data.masks: {word} has the pictures themselves; give a folder with masks alone")
            else:
                found_there[word] = Path(word)
        else:
            hint = f"did you mean {near[0]}?" if near else "give none, alpha, files, or the folder with the masks"
            found.problems.append(f"data.masks: {word!r} is neither none, alpha or files nor a folder; {hint}")
    return found_there


def apart(
    options: Data, files: Sequence[Path], known: dict[str, Path], found: "Survey"
) -> tuple[list[Path], dict[Path, Path]]:
    """The picture files that are no masks, and the mask file of each that has one: the picture itself where its
    transparency is to be the mask. `known` are all `folders`. Problems and notes go to `found`."""
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    places = [folder.resolve() for folder in known.values()]
    inside = {file for file in images if any(file.resolve().is_relative_to(place) for place in places)}
    labels = [file for file in images if is_label(file) and file not in inside]
    pictures = [file for file in images if not is_label(file) and file not in inside]
    masks: dict[Path, Path] = {}
    if options.masks == "alpha":
        masks = {path: path for path in pictures}
    elif options.masks == "files":
        beside = {_plain(file): file for file in sorted(labels, key=_is_png) if file.stem.lower().endswith(MASK)}
        masks = {path: beside[path.with_suffix("")] for path in pictures if path.with_suffix("") in beside}
    elif options.masks in known:
        folder = known[options.masks]
        names = by_name(folder, MASK)
        for path in pictures:
            if (file := _named(path, folder, names.get(name_of(path), []), found)) is not None:
                masks[path] = file
    _remark(options, labels, inside, pictures, masks, found)
    return pictures, masks


def _is_png(file: Path) -> bool:
    return file.suffix.lower() == ".png"


def _plain(file: Path) -> Path:
    """A mask file's picture, without its suffix."""
    return file.with_name(file.stem[: -len(MASK)])


def _named(path: Path, folder: Path, files: Sequence[Path], found: "Survey") -> Path | None:
    """A picture's mask among those of its name."""
    best = nearest(path, folder, files)
    if len(best) > 1:
        listed = ", ".join(shown(file) for file in files)
        found.problem(f"{found.names[path]}: has several masks ({listed}); keep one of them")
    return best[0] if len(best) == 1 else None


def _remark(
    options: Data,
    labels: Sequence[Path],
    inside: set[Path],
    pictures: Sequence[Path],
    masks: dict[Path, Path],
    found: "Survey",
) -> None:
    """Notes on mask files without a picture and the other way round."""
    used, owners = set(masks.values()), {path.with_suffix("") for path in pictures if labels}
    unused = [file for file in labels if file.stem.lower().endswith(MASK) and file not in used]
    off = [file for file in unused if _plain(file) in owners and options.masks != "files"]
    found.note(off, "mask files are not pictures, and are ignored because data.masks is not files")
    lost = [file for file in unused if _plain(file) not in owners]
    found.note(lost, "mask files without a picture of the same name are ignored")
    found.note([f for f in labels if f.stem.lower().endswith(CONDITION)], "ControlNets' files (-condlabel) are ignored")
    found.note(sorted(inside), "files in the folder of data.masks are masks, not pictures")
    stems = {path.stem for path in pictures if not _is_in_masks(path)}
    like = [path for path in pictures if _is_in_masks(path) and path.stem in stems]
    found.note(like, "pictures of the same names as others, in a folder whose name ends with masks, are trained; if "
               "they are masks, give that folder as data.masks")
    bare = [path for path in pictures if options.masks != "none" and path not in masks]
    found.note(bare, "pictures without a mask; all of the picture is trained")


def _is_in_masks(path: Path) -> bool:
    """Whether a picture is in a folder whose name says that it has masks."""
    return re.fullmatch(r"(.*[\W_])?masks?", path.parent.name, re.IGNORECASE) is not None


# -- reading ----------------------------------------------------------------------------------------------------------


def look(path: Path, picture: Path, size: tuple[int, int]) -> Mask | None:
    """What is in the mask file of a picture of this width and height; None for a picture without transparency. Raises
    ValueError, naming the file, if it cannot be read or has another shape."""
    alpha = path == picture
    image = open_mask(path, alpha)
    if image is None:
        return None
    width, height = image.size
    nearly = SAME_SHAPE + 1 / min(*image.size, *size)
    if abs(width * size[1] / (height * size[0]) - 1) > nearly:
        raise ValueError(
            f"{shown(path)}: the mask has {width} x {height} px and {shown(picture)} has {size[0]} x {size[1]}, which "
            "is another shape; make the mask as large as the picture, or remove it"
        )
    values = np.asarray(image, dtype=np.float64) / 255
    return Mask(path, alpha, image.size, _key(image), float(values.mean()), _centre(values))


def remark(masks: Sequence[tuple[Path, Mask, tuple[int, int], Data]], found: "Survey") -> None:
    """Notes on masks, each with its picture, that one's width and height, and options."""
    found.note([p for p, mask, size, _ in masks if mask.size != size], "masks are resized to their pictures' size")
    found.note([p for p, mask, _, _ in masks if mask.share == 1], "masks that are white everywhere have no effect")
    black = [(path, options.unmasked_weight) for path, mask, _, options in masks if mask.share == 0]
    for weight in sorted({weight for _, weight in black}):
        what = f"at data.unmasked_weight {weight:g}" if weight else "not at all, because data.unmasked_weight is 0"
        sentence = f"pictures whose masks are black everywhere are trained {what}"
        found.note([path for path, own in black if own == weight], sentence)


def excludes_all(mask: Mask | None, options: Data) -> bool:
    """Whether nothing of a picture with this mask is ever trained."""
    return mask is not None and mask.share == options.unmasked_weight == options.unmasked_probability == 0


def weights(options: Data, shares: Tensor) -> Tensor:
    """Weights of the errors `(1, h, w)` for a mask's values from 0 to 1: at least `unmasked_weight`; divided by their
    mean with `normalize_mask`. A crop without any weight stays without."""
    found = shares.clamp(min=options.unmasked_weight)
    mean = found.mean()
    return found / mean if options.normalize_mask and mean > 0 else found


def read(mask: Mask) -> np.ndarray:
    """The mask's values `(h, w)` from 0 to 255, float64. Raises ValueError if it cannot be read, or has changed."""
    image = open_mask(mask.path, mask.alpha)
    if image is None or _key(image) != mask.key:
        path = shown(mask.path)
        raise ValueError(f"{path}: has changed since training started; start again, and do not edit masks meanwhile")
    return np.asarray(image, dtype=np.float64)


def _key(image: Image.Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def _centre(values: np.ndarray) -> tuple[float, float]:
    total = values.sum()
    if total == 0:
        return 0.5, 0.5
    height, width = values.shape
    across = float(values.sum(0) @ (np.arange(width) + 0.5) / total / width)
    down = float(values.sum(1) @ (np.arange(height) + 0.5) / total / height)
    return across, down


# -- geometry ---------------------------------------------------------------------------------------------------------


def placed(
    values: np.ndarray, size: tuple[int, int], bucket: tuple[int, int], view: "View | None", cell: int
) -> np.ndarray:
    """A mask's `values (h, w)` where its picture of this `size` goes in the bucket, averaged over cells of `cell` x
    `cell` pixels: `(bucket height / cell, bucket width / cell)` float64.

    Averages are over the exact areas. Those of a rotated crop are over `POINTS` points along each side of a pixel.
    """
    if view is None:
        *resized, top, left = placement(*size, bucket)
    else:
        resized, top, left = view.resized, view.top, view.left
    scales = values.shape[1] / resized[0], values.shape[0] / resized[1]
    if view is None or view.angle == 0:
        rows, columns = (np.arange(0, side + 1, cell) for side in (bucket[1], bucket[0]))
        return _averages(_averages(values, (top + rows) * scales[1]).T, (left + columns) * scales[0]).T
    across, down = view.sources(bucket, POINTS)
    columns = np.clip((across * scales[0]).astype(int), 0, values.shape[1] - 1)
    rows = np.clip((down * scales[1]).astype(int), 0, values.shape[0] - 1)
    height, width = bucket[1] // cell, bucket[0] // cell
    return values[rows, columns].reshape(height, cell * POINTS, width, cell * POINTS).mean((1, 3))


def _averages(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Means of `values (n, ...)` between consecutive `edges`, which may be fractions of a row: `(edges - 1, ...)`."""
    sums = np.zeros((len(values) + 1, *values.shape[1:]))
    np.cumsum(values, 0, out=sums[1:])
    whole = np.minimum(edges.astype(int), len(values) - 1)
    part = (edges - whole).reshape(-1, *[1] * (values.ndim - 1))
    upto = sums[whole] + part * values[whole]
    return np.diff(upto, axis=0) / np.diff(edges).reshape(part[1:].shape)
