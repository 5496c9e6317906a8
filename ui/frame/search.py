"""A box that finds settings by name, path or description."""

from dataclasses import dataclass

from PySide6.QtCore import QModelIndex, QRect, Qt, Signal
from PySide6.QtGui import QStandardItem, QStandardItemModel
from PySide6.QtWidgets import QCompleter, QLineEdit, QListView, QWidget

from ui.core.preset.document import Document
from ui.core.preset.field import Field
from ui.widgets import icons
from ui.widgets.making import down, dressed, with_icon
from ui.widgets.two_lines import BADGE, DETAIL, FAINT, TwoLines

PATH = Qt.ItemDataRole.UserRole
MOST = 12
"""Results that the list shows without scrolling."""


@dataclass(frozen=True)
class Hit:
    """A setting that was found."""

    path: str
    label: str
    section: str
    about: str
    """Description, or which choice it needs."""
    active: bool


class SearchBox(QWidget):
    """A line for words; below it the settings that have them all. Down, Up, Enter, Escape work as in any list."""

    chosen = Signal(str)

    def __init__(self, document: Document):
        super().__init__()
        self.document = document
        text = "Search settings"
        self.line = dressed(QLineEdit(placeholderText=text, clearButtonEnabled=True), name=text)
        with_icon(self.line.addAction(icons.icon("search"), QLineEdit.ActionPosition.LeadingPosition), "search")
        down(self.line, of=self, margins=(0, 0, 0, 0))
        self.setFocusProxy(self.line)
        self.hits = QStandardItemModel(self)
        self.completer = QCompleter(self.hits, self)
        self.completer.setCompletionMode(QCompleter.CompletionMode.UnfilteredPopupCompletion)
        self.completer.setMaxVisibleItems(MOST)
        self.completer.setWidget(self.line)
        self.list = QListView()
        self.completer.setPopup(self.list)
        self.list.setItemDelegate(TwoLines(self.list, badge="muted"))
        self.completer.activated[QModelIndex].connect(self.on_activated)  # pyright: ignore[reportIndexIssue]
        self.line.textEdited.connect(self.on_text_edited)

    def on_text_edited(self, text: str) -> None:
        """Show what has all the words."""
        self.hits.clear()
        self.hits.appendColumn([_item(hit) for hit in found(self.document, text)])
        if not self.hits.rowCount():
            self.list.hide()
            return
        width = max(self.width(), self.fontMetrics().averageCharWidth() * 72)
        self.completer.complete(QRect(0, 0, width, self.line.height()))
        self.list.setCurrentIndex(self.hits.index(0, 0))

    def on_activated(self, index: QModelIndex) -> None:
        """Say which setting was picked, and be ready for the next search."""
        path = index.data(PATH)
        self.line.clear()
        self.list.hide()
        self.chosen.emit(path)


def _item(hit: Hit) -> QStandardItem:
    """Two lines: name and section, and below them what it is."""
    item = QStandardItem(hit.label)
    said = f"{hit.section}: {hit.label}. {hit.about}"
    for role, data in ((PATH, hit.path), (BADGE, hit.section), (DETAIL, hit.about), (FAINT, not hit.active)):
        item.setData(data, role)
    item.setData(said, Qt.ItemDataRole.AccessibleTextRole)
    return item


def found(document: Document, text: str) -> list[Hit]:
    """The settings in whose name, path or description all words of a text occur; the best first."""
    wanted = text.lower().split()
    if not wanted:
        return []
    active = document.schema.fields(document.values)
    titles = {section.path: section.title for section in document.schema.sections(document.values)}
    ranked = []
    for path, fields in document.schema.everything().items():
        field = active.get(path, fields[0])
        title = titles[path.rpartition(".")[0].partition(".")[0]]
        rank = _rank(wanted, field, title)
        if rank is not None:
            about = field.description if path in active else _needs(document, path)
            ranked.append((path not in active, rank, len(ranked), Hit(path, field.label, title, about, path in active)))
    return [hit for *_, hit in sorted(ranked, key=lambda one: one[:3])]


def _rank(wanted: list[str], field: Field, title: str) -> int | None:
    """How well a field fits; None if it does not."""
    name, path, everything = field.label.lower(), field.path.lower(), f"{field.description} {title}".lower()
    if not all(word in name or word in path or word in everything for word in wanted):
        return None
    whole = " ".join(wanted)
    if name.startswith(whole):
        return 0
    if all(word in name for word in wanted):
        return 1
    return 2 if all(word in name or word in path for word in wanted) else 3


def _needs(document: Document, path: str) -> str:
    """Which choice an option needs that the chosen variants do not have."""
    needs = [
        f"{' '.join(tag.split('.')[:-1])} {document.field(tag).label.lower()} {' or '.join(choices)}"
        for tag, choices in document.schema.owners(path).items()
        if document.value(tag) not in choices
    ]
    return f"Only with {' and '.join(needs)}"
