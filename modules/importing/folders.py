"""The folders of a data set: what another trainer says of each, as options of all and settings of single folders."""

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules.data.formats import SUFFIXES
from modules.data.names import listing, shown
from modules.importing import base
from modules.importing.ledger import Ledger
from modules.preset.folder_options import Folder

SIZES = ("resolutions", "resolution_shares")
"""Settings that belong together: a folder with resolutions of its own has shares of its own."""


AS_THEY_ARE = (
    "shuffle", "keep_tokens", "part_dropout", "drop_never", "drop_only", "caption_dropout", "flip", "crop", "variants",
    "rotation", "brightness", "contrast", "saturation", "hue", "resolution_shares", "repeats", "loss_weight",
)  # fmt: skip
"""Settings that change nothing in a validation folder: its pictures and captions are as they are, once each."""


OF_SOME = {
    "caption_text": lambda plan: True,
    "trigger": lambda plan: True,
    "prior_prediction": lambda plan: plan.role == "regularisation",
}
"""Options that not every folder says something of there, and the folders that mean our default if they say nothing:
what another folder says of them must not hold for these."""


NUMBERED = "where a folder below is called 10_name, its pictures are repeated 10 times here, and not there"
"""What a trainer that reads folders below does otherwise, in a sentence."""


@dataclass
class Plan:
    """A folder as the other trainer has it."""

    key: str
    """Their key of its path."""
    path: str
    role: str = "train"
    own: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """Settings that only a folder has, beside its role: our name to their key and the value."""
    options: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """Options of `data`: our name to their key and the value. `resolutions` is a list, also of a single one."""

    def settings(self) -> dict[str, Any]:
        """All but the repeats, by our names."""
        values = {name: value for name, (_, value) in {**self.own, **self.options}.items() if name != "repeats"}
        return {"path": self.path, "role": self.role, **values}


def write(ledger: Ledger, plans: list[Plan]) -> None:
    """Write data.folders, the options of all folders, and where a folder differs its own settings. Options that a
    folder cannot have for itself are as in the first one, which is said."""
    for plan in plans:
        if plan.role == "validation":
            _as_they_are(ledger, plan)
    plans = _without_twins(ledger, plans)
    _sizes(plans)
    shared, entries = _usual(plans), []
    for number, plan in enumerate(plans):
        entry: dict[str, Any] = {"path": plan.path, **({"role": plan.role} if plan.role != "train" else {})}
        place = f"data.folders[{number}]"
        ledger.note(plan.key, {f"{place}.{name}": value for name, value in entry.items()})
        for name, (key, value) in plan.own.items():
            _own(ledger, key, entry, place, name, value)
        sized = all(plan.options.get(name, (0, shared.get(name)))[1] == shared.get(name) for name in SIZES)
        if not sized and len(plan.options["resolutions"][1]) == 1:  # said shorter, and not as data.resolution
            key, (side,) = plan.options.pop("resolutions")
            plan.options.pop("resolution_shares", None)
            _option(ledger, key, entry, place, "resolution", side, False)
        for name, (key, value) in plan.options.items():
            same = sized if name in SIZES else name in shared and value == shared[name]
            _option(ledger, key, entry, place, name, value, same)
        entries.append(entry)
    for name, value in shared.items():
        if f"data.{name}" not in ledger.values:
            ledger.set({f"data.{name}": value})
    ledger.set({"data.folders": [entry if len(entry) > 1 else entry["path"] for entry in entries]})


def _without_twins(ledger: Ledger, plans: list[Plan]) -> list[Plan]:
    """A folder that comes again with the same settings, as one with the sum of the repeats."""
    found: list[Plan] = []
    for plan in plans:
        twin = next((one for one in found if one.settings() == plan.settings()), None)
        if twin is None:
            found.append(plan)
            continue
        (key, first), (_, second) = (one.own.get("repeats", (one.key, 1.0)) for one in (twin, plan))
        twin.own["repeats"] = (key, first + second)
        ledger.agree(plan.key, "the same folder again: its repeats are added to those of the first")
        left_out(ledger, plan.key.rpartition(".")[0], "the same as in the first entry of this folder")
    return found


def _as_they_are(ledger: Ledger, plan: Plan) -> None:
    for settings in (plan.own, plan.options):
        for name in [name for name in settings if name in AS_THEY_ARE]:
            key, _ = settings.pop(name)
            ledger.drop(key, "no counterpart: pictures and captions of a validation folder are as they are, once each")


def write_alone(ledger: Ledger, plan: Plan) -> None:
    """Write the options of a data set whose folders are not known."""
    _sizes([plan])
    for name, (key, value) in plan.options.items():
        ledger.to(key, f"data.{name}", value)
    if "resolutions" in plan.options:
        ledger.set({"data.resolution": max(plan.options["resolutions"][1])}, plan.key)


def _sizes(plans: list[Plan]) -> None:
    """One resolution each is data.resolution; if a folder has several, all have lists, and shares if one has some."""
    several = any(len(plan.options["resolutions"][1]) > 1 for plan in plans if "resolutions" in plan.options)
    shares = any("resolution_shares" in plan.options for plan in plans)
    for plan in plans:
        if "resolutions" not in plan.options:
            continue
        key, values = plan.options["resolutions"]
        if not several:
            del plan.options["resolutions"]
            plan.options.pop("resolution_shares", None)
            plan.options["resolution"] = (key, values[0])
        elif shares:
            plan.options.setdefault("resolution_shares", (key, [1.0] * len(values)))


def _usual(plans: Iterable[Plan]) -> dict[str, Any]:
    """The options of all folders: those of the first folder that is trained on, and what it has none of, of others,
    unless it is `OF_SOME`."""
    found: dict[str, Any] = {}
    for plan in sorted(plans, key=lambda plan: plan.role != "train"):
        for name, (_, value) in plan.options.items():
            found.setdefault(name, value)
    for name, means_default in OF_SOME.items():
        if any(name not in plan.options and means_default(plan) for plan in plans):
            found.pop(name, None)
    if "resolutions" in found:
        found["resolution"] = max(found["resolutions"])
    return found


def _own(ledger: Ledger, key: str, entry: dict[str, Any], place: str, name: str, value: Any) -> None:
    if value != Folder.model_fields[name].default:
        entry[name] = value
        ledger.note(key, {f"{place}.{name}": value})
    elif ledger.differs(key):
        ledger.agree(key, f"{name} {value} is usual here")


def _option(ledger: Ledger, key: str, entry: dict[str, Any], place: str, name: str, value: Any, same: bool) -> None:
    if same:
        ledger.to(key, f"data.{name}", value)
    elif name in Folder.model_fields:
        entry[name] = value
        ledger.note(key, {f"{place}.{name}": value})
    elif ledger.written(key):
        ledger.change(key, f"All folders are treated alike here; data.{name} is as in the first.")


def resolutions(ledger: Ledger, plan: Plan, key: str, value: Any, drawn: bool = False) -> None:
    """The resolutions of a folder. `drawn`: each use of a picture takes one of them there; else an epoch has every
    picture at each."""
    sizes = base.squares(ledger, key, value)
    found, exact = list(dict.fromkeys(side for side, _ in sizes)), all(exact for _, exact in sizes)
    plan.options["resolutions"] = (key, found)
    if not exact:
        ledger.change(key, "An exact size has no counterpart; buckets of about as many pixels are taken.")
    if drawn and len(found) > 1:
        share = float(f"{1 / len(found):.6g}")
        plan.options["resolution_shares"] = (key, [share] * len(found))
        sentence = (
            "Each use of a picture draws one of these there; here an epoch has a part of the pictures at each, and "
            "other pictures in the next."
        )
        ledger.change(key, sentence)


def remark_on_numbered(ledger: Ledger, plan: Plan) -> None:
    """A sentence if the folder is on this machine, and folders called `10_name` are in it: they are read here, even
    without recursive, and not there."""
    numbered = [name for name, is_folder in _inside(plan.path) if is_folder and re.match(r"\d+_", name)]
    if numbered:
        sentence = "Folders in it whose names begin with a number and _ are read too here, and not there"
        ledger.change(plan.key, f"{sentence} ({listing(numbered)}): rename them.")


def remark_on_loose(ledger: Ledger, plan: Plan) -> None:
    """A sentence if pictures lie in the folder itself, of which only the folders called `10_name` are read there."""
    loose = [name for name, is_folder in _inside(plan.path) if not is_folder and Path(name).suffix.lower() in SUFFIXES]
    if loose:
        sentence = "Pictures that lie in the folder itself are read too here, and not there"
        ledger.change(plan.key, f"{sentence} ({listing(loose)}): move them.")


def _inside(folder: str) -> list[tuple[str, bool]]:
    """The names in a folder, and whether each is a folder itself; none if it is not on this machine."""
    with contextlib.suppress(OSError, ValueError):
        return sorted((shown(path.name), path.is_dir()) for path in Path(folder).iterdir()) if folder else []
    return []


def left_out(ledger: Ledger, place: str, why: str) -> None:
    """Account for all keys of an entry that is not used."""
    for key in [key for key in ledger.given if key.startswith(f"{place}.") and key not in ledger.entries]:
        ledger.drop(key, why)
