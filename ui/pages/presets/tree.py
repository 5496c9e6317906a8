"""The presets as a tree: family, method, presets. All names come from the files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QTreeWidget, QTreeWidgetItem, QTreeWidgetItemIterator

from ui.core import places
from ui.core.preset.files import Entry
from ui.widgets.two_lines import BAD, BADGE, DETAIL, TwoLines

ENTRY = Qt.ItemDataRole.UserRole + 10
UNREADABLE, UNNAMED = "Cannot be read", "not given"


class PresetTree(QTreeWidget):
    """Lists presets; the chosen one is `entry()`."""

    def __init__(self) -> None:
        super().__init__()
        self.setHeaderHidden(True)
        self.setItemDelegate(TwoLines(self))
        self.setIndentation(self.fontMetrics().averageCharWidth() * 2)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollMode(QTreeWidget.ScrollMode.ScrollPerPixel)
        self.setAccessibleName("Presets")
        self._words: list[str] = []

    def fill(self, entries: Sequence[Entry], opened: Path | None, chosen: Path | None) -> None:
        """Show these. `opened` is marked as the one being edited; `chosen` becomes the current one, if it is there."""
        scrolled = self.verticalScrollBar().value()
        self.clear()
        groups: dict[tuple[str, ...], QTreeWidgetItem] = {}
        for entry in sorted(entries, key=_place):
            parent = self.invisibleRootItem()
            for depth in range(len(_place(entry)[1])):
                key = _place(entry)[1][: depth + 1]
                parent = groups.setdefault(key, groups.get(key) or _group(parent, key[-1]))
            item = _item(parent, entry, entry.path == opened)
            if entry.path == chosen:
                self.setCurrentItem(item)
        self.expandAll()
        self.narrow(" ".join(self._words))
        self.verticalScrollBar().setValue(scrolled)
        current = self.currentItem()
        if current:
            self.scrollToItem(current)

    def entry(self) -> Entry | None:
        """The chosen preset; None when there is none, or a group is chosen."""
        item = self.currentItem()
        return item.data(0, ENTRY) if item else None

    def narrow(self, text: str) -> int:
        """Show only presets that have all words of `text` somewhere; how many these are."""
        self._words = text.lower().split()
        shown = self._narrow(self.invisibleRootItem())
        current = self.currentItem()
        if shown and (current is None or current.isHidden()):
            self.setCurrentItem(next(item for item in self._presets() if not item.isHidden()))
        return shown

    def _presets(self) -> Iterator[QTreeWidgetItem]:
        """From top to bottom."""
        item = QTreeWidgetItemIterator(self, QTreeWidgetItemIterator.IteratorFlag.NoChildren)
        while item.value():
            yield item.value()
            item += 1

    def _narrow(self, item: QTreeWidgetItem) -> int:
        shown = 0
        for child in [item.child(index) for index in range(item.childCount())]:
            assert child is not None
            entry: Entry | None = child.data(0, ENTRY)
            matches = self._narrow(child) if entry is None else int(self._matches(entry))
            child.setHidden(not matches)
            shown += matches
        return shown

    def _matches(self, entry: Entry) -> bool:
        own = "own" if entry.kind == "own" else ""
        texts = (entry.name, entry.family, entry.method, entry.description, entry.problem, own)
        return all(word in " ".join(texts).lower() for word in self._words)


def _place(entry: Entry) -> tuple[bool, tuple[str, ...], str]:
    """What presets are sorted by: readable ones first, the groups they are in, their name."""
    unreadable = not entry.family and bool(entry.problem)
    groups = (UNREADABLE,) if unreadable else (entry.family or UNNAMED, entry.method or UNNAMED)
    return unreadable, groups, entry.name.lower()


def _group(parent: QTreeWidgetItem, text: str) -> QTreeWidgetItem:
    item = QTreeWidgetItem(parent, [text])
    font = item.font(0)
    font.setBold(True)
    item.setFont(0, font)
    return item


def _item(parent: QTreeWidgetItem, entry: Entry, opened: bool) -> QTreeWidgetItem:
    item = QTreeWidgetItem(parent, [entry.name])
    badge = ", ".join(["own"] * (entry.kind == "own") + ["open"] * opened)
    problem = entry.problem.removeprefix(f"{places.shown(entry.path)}: ")
    below = problem or entry.description or "No description."
    for role, data in ((DETAIL, below), (BADGE, badge), (BAD, bool(entry.problem)), (ENTRY, entry)):
        item.setData(0, role, data)
    item.setToolTip(0, below)
    item.setData(0, Qt.ItemDataRole.AccessibleTextRole, ", ".join(filter(None, (entry.name, badge, below))))
    return item
