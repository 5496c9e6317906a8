"""The presets as a tree: families, in each the presets to begin with, and all others in a closed group."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QTreeWidget, QTreeWidgetItem, QTreeWidgetItemIterator

from ui.core import places
from ui.core.preset.files import Entry
from ui.core.preset.groups import OTHERS, groups, order
from ui.widgets.making import dressed, scrolled
from ui.widgets.two_lines import BAD, BADGE, DETAIL, TwoLines

ENTRY = Qt.ItemDataRole.UserRole + 10


class PresetTree(QTreeWidget):
    """Lists presets; the chosen one is `entry()`."""

    def __init__(self) -> None:
        super().__init__()
        dressed(scrolled(self), name="Presets", headerHidden=True)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        self.setItemDelegate(TwoLines(self))
        self.setIndentation(self.fontMetrics().averageCharWidth() * 2)
        self._words: list[str] = []

    def fill(self, entries: Sequence[Entry], opened: Path | None, chosen: Path | None) -> None:
        """Show these. `opened` is marked as the one being edited; `chosen` becomes the current one, if it is there."""
        scrolled = self.verticalScrollBar().value()
        unfolded = {family for family, item in self._others().items() if item.isExpanded()}
        self.clear()
        made: dict[tuple[str, ...], QTreeWidgetItem] = {}
        for entry in sorted(entries, key=order):
            parent = self.invisibleRootItem()
            for depth in range(len(groups(entry))):
                key = groups(entry)[: depth + 1]
                parent = made.setdefault(key, made.get(key) or _group(parent, key[-1]))
            item = _item(parent, entry, entry.path == opened)
            if entry.path == chosen:
                self.setCurrentItem(item)
        self.expandAll()
        self._fold(unfolded)
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
        before, self._words = self._words, text.lower().split()
        shown = self._narrow(self.invisibleRootItem())
        if bool(before) != bool(self._words):
            self._fold(set())
        current = self.currentItem()
        if shown and (current is None or current.isHidden()):
            self.setCurrentItem(next(item for item in self._presets() if not item.isHidden()))
        return shown

    def _others(self) -> dict[str, QTreeWidgetItem]:
        """The groups that are closed at first, by family."""
        found = self.findItems(OTHERS, Qt.MatchFlag.MatchExactly | Qt.MatchFlag.MatchRecursive)
        return {family.text(0): item for item in found if (family := item.parent())}

    def _fold(self, unfolded: set[str]) -> None:
        """Close these groups, but for those of some families, of the current preset, and of a search."""
        current = self.currentItem()
        inside = current.parent() if current else None
        for family, item in self._others().items():
            item.setExpanded(bool(self._words) or family in unfolded or item is inside)

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
