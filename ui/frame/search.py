"""A box that finds settings by name, path or description."""

from dataclasses import dataclass

from PySide6.QtCore import QAbstractListModel, QModelIndex, QPersistentModelIndex, QRect, QSize, Qt, Signal
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import (
    QCompleter,
    QLineEdit,
    QListView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from ui.core.preset.document import Document
from ui.core.preset.field import Field
from ui.widgets import icons, theme

MOST = 12
"""Results that the list shows without scrolling."""

Index = QModelIndex | QPersistentModelIndex


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
        self.line = QLineEdit()
        self.line.setPlaceholderText("Search settings")
        self.line.setAccessibleName("Search settings")
        self.line.setClearButtonEnabled(True)
        self.action = self.line.addAction(icons.icon("search"), QLineEdit.ActionPosition.LeadingPosition)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.line)
        self.setFocusProxy(self.line)
        self.hits = Hits(self)
        self.completer = QCompleter(self.hits, self)
        self.completer.setCompletionMode(QCompleter.CompletionMode.UnfilteredPopupCompletion)
        self.completer.setMaxVisibleItems(MOST)
        self.completer.setWidget(self.line)
        self.list = QListView()
        self.completer.setPopup(self.list)
        self.list.setItemDelegate(Delegate(self.list))
        self.completer.activated[QModelIndex].connect(self.on_activated)  # pyright: ignore[reportIndexIssue]
        self.line.textEdited.connect(self.on_text_edited)
        theme.notifier().changed.connect(self.on_theme_changed)

    def on_text_edited(self, text: str) -> None:
        """Show what has all the words."""
        self.hits.show(found(self.document, text))
        if not self.hits.rowCount():
            self.list.hide()
            return
        width = max(self.width(), self.fontMetrics().averageCharWidth() * 72)
        self.completer.complete(QRect(0, 0, width, self.line.height()))
        self.list.setCurrentIndex(self.hits.index(0))

    def on_activated(self, index: QModelIndex) -> None:
        """Say which setting was picked, and be ready for the next search."""
        path = index.data(Qt.ItemDataRole.UserRole).path
        self.line.clear()
        self.list.hide()
        self.chosen.emit(path)

    def on_theme_changed(self) -> None:
        """Draw in the new colours."""
        self.action.setIcon(icons.icon("search"))


class Hits(QAbstractListModel):
    """The settings that were found."""

    def __init__(self, parent: QWidget):
        super().__init__(parent)
        self.hits: list[Hit] = []

    def show(self, hits: list[Hit]) -> None:
        """Show others."""
        self.beginResetModel()
        self.hits = hits
        self.endResetModel()

    def rowCount(self, parent: Index | None = None) -> int:
        return len(self.hits)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        hit = self.hits[index.row()]
        match role:
            case Qt.ItemDataRole.UserRole:
                return hit
            case Qt.ItemDataRole.DisplayRole:
                return hit.label
            case Qt.ItemDataRole.AccessibleTextRole:
                return f"{hit.section}: {hit.label}. {hit.about}"
        return None


class Delegate(QStyledItemDelegate):
    """Two lines: name and section, and below them what it is."""

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        return QSize(0, option.fontMetrics.height() * 2 + 12)  # pyright: ignore[reportAttributeAccessIssue]

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        hit: Hit = index.data(Qt.ItemDataRole.UserRole)
        style = option.widget.style()  # pyright: ignore[reportAttributeAccessIssue]
        style.drawPrimitive(QStyle.PrimitiveElement.PE_PanelItemViewItem, option, painter, option.widget)  # pyright: ignore
        colors = theme.colors()
        space = option.rect.adjusted(10, 5, -10, -5)  # pyright: ignore[reportAttributeAccessIssue]
        left, right = Qt.AlignmentFlag.AlignLeft, Qt.AlignmentFlag.AlignRight
        metrics = painter.fontMetrics()
        painter.save()
        painter.setPen(colors.text if hit.active else colors.muted)
        painter.drawText(space, left | Qt.AlignmentFlag.AlignTop, hit.label)
        painter.setPen(colors.muted)
        painter.drawText(space, right | Qt.AlignmentFlag.AlignTop, hit.section)
        about = metrics.elidedText(hit.about, Qt.TextElideMode.ElideRight, space.width())
        painter.drawText(space, left | Qt.AlignmentFlag.AlignBottom, about)
        painter.restore()


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
