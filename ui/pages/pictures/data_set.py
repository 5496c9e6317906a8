"""The pictures of a data set as the window knows them: facts, marks, filter, and the list the grid shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QPersistentModelIndex, Qt

from ui.core import places, words

ENLARGED = 2.0
"""Pictures that are enlarged by more than this are marked, as in the trainer's notes."""

NO_CAPTION = {
    "missing": ("no caption", "bad"),
    "empty": ("empty caption", "warning"),
    "filename": ("file name as caption", "warning"),
}
"""Marks of pictures that nobody has written a caption for, by their source."""

Index = QModelIndex | QPersistentModelIndex


@dataclass(frozen=True)
class Picture:
    """One picture as scripts/look.py describes it."""

    path: str
    name: str
    folder: str
    caption: str
    source: str
    """Where the caption is from, as docs/look.md lists; filename, empty or missing when nobody has written one."""
    caption_file: str
    """The text file that the caption is saved to; "" if none would be used."""
    width: int | None
    height: int | None
    bucket: tuple[int, int] | None
    repeats: float
    problem: str
    """Why the picture (then it has no size) or its caption cannot be read; "" when they can."""
    too_long: bool | None
    """Whether the caption is longer than the text encoder reads; None when nobody knows."""
    enlarged: float | None
    entry: int = 0
    """Place of its folder in data.folders; the same file may be in several."""
    role: str = "train"
    loss_weight: float = 1
    mask: str = ""
    """The file of its mask, the picture itself where its transparency is the mask; "" without one."""
    resolutions: Sequence[Mapping[str, Any]] = ()
    """Those at which it is used, each with its bucket."""

    @classmethod
    def understood(cls, entry: Mapping[str, Any]) -> "Picture":
        """The picture in one entry of an answer."""
        values: dict[str, Any] = {one.name: entry.get(one.name) for one in fields(cls)}
        for name in ("path", "caption_file", "mask"):
            values[name] = str(places.full(values[name])) if values[name] else ""
        values["bucket"] = tuple(values["bucket"]) if values["bucket"] else None
        return cls(**values)

    @property
    def key(self) -> tuple[int, str]:
        """What tells it from others: folder and file."""
        return self.entry, self.path

    @property
    def is_own(self) -> bool:
        """Whether the caption is what is written for this picture, not the name that data.captions asks for."""
        return bool(self.caption_file) or self.source == "missing"

    def marks(self) -> list[tuple[str, str]]:
        """What is worth a look, in words, each with the theme colour it has: "bad" or "warning"."""
        found = []
        if self.problem:
            found.append(("caption unreadable" if self.width else "unreadable", "bad"))
        if self.source in NO_CAPTION and self.is_own:
            found.append(NO_CAPTION[self.source])
        if self.too_long:
            found.append(("too long", "warning"))
        if self.enlarged and self.enlarged > ENLARGED:
            found.append((f"enlarged {self.enlarged:.1f}×", "warning"))
        return found

    def sizes(self) -> str:
        """Own size and that of the bucket."""
        if not self.width:
            return "size unknown"
        sizes = [one["bucket"] for one in self.resolutions] or ([self.bucket] if self.bucket else [])
        buckets = ", ".join(f"{width}×{height}" for width, height in dict.fromkeys(map(tuple, sizes)))
        return f"{self.width}×{self.height}" + (f" → {buckets}" if buckets else "")


class PictureModel(QAbstractListModel):
    """The pictures that pass the filter; captions may have edits that are not saved."""

    def __init__(self, edits: Mapping[str, str]):
        """`edits`: unsaved captions by caption file, owned by somebody else."""
        super().__init__()
        self.pictures: list[Picture] = []
        """All of them, in the trainer's order."""
        self.shown: list[Picture] = []
        self._edits = edits
        self._text, self._problems_only = "", False

    def set_pictures(self, pictures: Sequence[Picture]) -> None:
        """Show other pictures."""
        self.beginResetModel()
        self.pictures = list(pictures)
        self._filter()
        self.endResetModel()

    def set_filter(self, text: str, problems_only: bool) -> None:
        """Show those whose name or caption has all words of `text`, or only those with marks among them."""
        if (text, problems_only) == (self._text, self._problems_only):
            return
        self.beginResetModel()
        self._text, self._problems_only = text, problems_only
        self._filter()
        self.endResetModel()

    def row_of(self, key: tuple[int, str]) -> int:
        """Where a picture is shown, -1 when it is not."""
        return next((row for row, picture in enumerate(self.shown) if picture.key == key), -1)

    def update(self, caption_file: str) -> None:
        """The edit of a caption file has changed: paint its pictures again."""
        for row, picture in enumerate(self.shown):
            if picture.caption_file == caption_file:
                self.dataChanged.emit(self.index(row), self.index(row))

    def replace(self, caption_file: str, caption: str) -> None:
        """The caption was saved: its pictures have it now, before the trainer has looked again."""
        source = caption_file.rpartition(".")[2].lower() if caption else "missing"
        new = {
            picture.key: replace(picture, caption=caption, source=source, too_long=None)
            for picture in self.pictures
            if picture.caption_file == caption_file
        }
        self.pictures = [new.get(picture.key, picture) for picture in self.pictures]
        self.shown = [new.get(picture.key, picture) for picture in self.shown]
        self.update(caption_file)

    def caption(self, picture: Picture) -> str:
        """The caption with its unsaved edit."""
        return self._edits.get(picture.caption_file, picture.caption)

    def is_edited(self, picture: Picture) -> bool:
        """Whether there is an unsaved edit."""
        return picture.caption_file in self._edits

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        """Qt: how many are shown."""
        return 0 if parent.isValid() else len(self.shown)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Qt: name, everything in words as tooltip and for screen readers, or the picture itself."""
        if not index.isValid():
            return None
        picture = self.shown[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return picture.name
        if role == Qt.ItemDataRole.UserRole:
            return picture
        if role in (Qt.ItemDataRole.ToolTipRole, Qt.ItemDataRole.AccessibleTextRole):
            marks = [words for words, _ in picture.marks()] + (["caption not saved"] if self.is_edited(picture) else [])
            lines = [picture.name, self.caption(picture) or "(no caption)", facts(picture), ", ".join(marks)]
            return "\n".join(line for line in [*lines, picture.problem] if line)
        return None

    def _filter(self) -> None:
        sought = self._text.lower().split()
        self.shown = [
            picture
            for picture in self.pictures
            if (not self._problems_only or picture.marks() or self.is_edited(picture))
            and all(word in f"{picture.name} {self.caption(picture)}".lower() for word in sought)
        ]


def facts(picture: Picture) -> str:
    """Sizes, repeats, enlargement, role, weight and mask in one line."""
    if not picture.width:
        return ""
    often = "once" if picture.repeats == 1 else f"{words.number(round(picture.repeats, 3))} times"
    parts = [picture.sizes(), f"{often} per epoch"]
    if picture.enlarged and picture.enlarged != 1:
        larger = picture.enlarged > 1
        factor = words.number(round(picture.enlarged, 2))
        parts.append(f"enlarged {factor}×" if larger else f"reduced to {picture.enlarged:.0%}")
    if picture.role == "regularisation":
        parts.append(picture.role)
    if picture.loss_weight != 1:
        parts.append(f"loss weight {words.number(picture.loss_weight)}")
    if picture.mask:
        parts.append("mask: " + ("its transparency" if picture.mask == picture.path else Path(picture.mask).name))
    return ", ".join(parts)
