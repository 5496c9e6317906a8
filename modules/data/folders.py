"""The entries of data.folders: which pictures they are, and what their own settings make of the options of all."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from modules.data.names import shown
from modules.preset.data_options import Data
from modules.preset.folder_options import Folder
from modules.printable import short

ROLES = {"training": ("train", "regularisation"), "validation": ("validation",)}
"""The roles of the folders of a set."""

OF_FOLDERS = ("path", "role", "repeats", "loss_weight", "references")
"""Settings that a folder has and the data set has not. All others are laid over the options of the same name."""


OF_TRAINING = (
    *("repeats", "loss_weight", "resolution_shares", "shuffle", "part_dropout", "caption_dropout", "flip"),
    *("rotation", "brightness", "contrast", "saturation", "hue", "variants", "prior_prediction"),
)
"""Settings without effect on pictures for validation."""


class Shown(Protocol):
    """A picture of a folder, as `modules.data.index.Picture`."""

    @property
    def path(self) -> Path: ...
    @property
    def repeats(self) -> float: ...


def entries(options: Data, which: str) -> list[tuple[int, Folder]]:
    """The folders of a set, "training" or "validation", each with its place in data.folders. A plain text is a folder
    without settings."""
    folders = [Folder(path=one) if isinstance(one, str) else one for one in options.folders]
    return [(place, folder) for place, folder in enumerate(folders) if folder.role in ROLES[which]]


def without_validation(options: Data) -> Data:
    """The same without folders of that role."""
    kept = [one for one in options.folders if isinstance(one, str) or one.role != "validation"]
    return options.model_copy(update={"folders": tuple(kept)})


def folder_options(options: Data, folder: Folder) -> Data:
    """The options of a folder: its own settings laid over those of the data set."""
    own = {name: value for name, value in folder if name not in OF_FOLDERS and value is not None}
    if "resolution" in own and "resolutions" not in own:
        own |= {"resolutions": ()}
    if "resolutions" in own or "resolution" in own:  # shares of other resolutions say nothing about these
        own = {"resolution_shares": (), **own}
    return options.model_copy(update=own) if own else options


def at_resolutions(options: Data) -> list[tuple[Data, Fraction]]:
    """The options at each resolution, as if it were the only one, with its share."""
    if not options.resolutions:
        return [(options, Fraction(1))]
    shares = options.resolution_shares
    if len(shares) != len(options.resolutions):  # where some are given, `problems` says so
        shares = [1.0] * len(options.resolutions)
    alone = {"resolutions": (), "resolution_shares": ()}
    return [
        (options.model_copy(update={**alone, "resolution": resolution}), exact(share))
        for resolution, share in zip(options.resolutions, shares, strict=True)
    ]


def exact(number: float | Fraction) -> Fraction:
    """The fraction that a decimal number means: 3/10 for 0.3. Sums of it are exact."""
    return Fraction(number).limit_denominator(1_000_000)


def number(value: Fraction | float) -> float:
    """A whole number where it is one."""
    return int(value) if value == int(value) else float(value)


def problems(options: Data) -> list[str]:
    """Why resolutions and shares do not fit together; each sentence begins with the option's name."""
    given, shares = options.resolutions, options.resolution_shares
    found = []
    if shares and len(shares) != len(given):
        found.append(
            f"data.resolution_shares has {len(shares)} values, but data.resolutions has {len(given)}; give one for each"
        )
    if len(set(given)) != len(given):
        twice = next(one for one in given if given.count(one) > 1)
        found.append(f"data.resolutions has {twice} twice; remove one of them, and raise its data.resolution_shares")
    return found


def unused(folder: Folder) -> list[str]:
    """Settings of a validation folder that only training uses."""
    if folder.role != "validation":
        return []
    plain = Folder(path=folder.path)
    given, usual = dict(folder), dict(plain)
    return [name for name in OF_TRAINING if given[name] != usual[name]]


def values_of(options: Data, folder: Folder) -> dict[str, Any]:
    """The values that hold in a folder, by their names, as JSON data."""
    own, given = folder_options(options, folder).model_dump(mode="json"), dict(folder)
    return {name: given[name] if name in OF_FOLDERS else own[name] for name in Folder.model_fields}


def line_about(options: Data, folder: Folder, pictures: Sequence[Shown]) -> str:
    """A folder in a line: its role, its `pictures`, and the values that hold in it where they are not what is usual."""
    own, usual = values_of(options, folder), Data().model_dump(mode="json")
    words = [folder.role, f"{len({picture.path for picture in pictures})} pictures"]
    if folder.role != "validation":
        words += [f"{float(sum(exact(picture.repeats) for picture in pictures)):g} per epoch"]
        words += [f"repeats {folder.repeats:g}", f"loss weight {folder.loss_weight:g}"]
    words += [f"references {', '.join(map(shown, folder.references))}"] if folder.references else []
    resolutions = at_resolutions(folder_options(options, folder))
    for one, share in resolutions:
        often = f" x {float(share):g}" if share != 1 and folder.role != "validation" else ""
        words.append(f"{one.resolution} px{often}")
    told = {*OF_FOLDERS, "resolution", "resolutions", "resolution_shares"}
    told |= set(OF_TRAINING) if folder.role == "validation" else set()
    words += [f"{name} {_short(value)}" for name, value in own.items() if name not in told and value != usual[name]]
    return f"{shown(folder.path)}: {', '.join(words)}"


def _short(value: Any) -> str:
    return short(json.dumps(value, ensure_ascii=False))


def scaled(repeats: Sequence[Fraction], training: Fraction, ratio: float | None) -> list[Fraction]:
    """Repeats of regularisation pictures so that an epoch has `ratio` of them per `training` sample."""
    total = sum(repeats, Fraction(0))
    factor = Fraction(1) if ratio is None or not total else exact(ratio) * training / total
    return [one * factor for one in repeats]
