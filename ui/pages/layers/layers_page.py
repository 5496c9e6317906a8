"""The layers page: what the targets match, its size, and patterns that match nothing."""

from collections.abc import Sequence

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, Qt, Signal
from PySide6.QtGui import QAction
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QPushButton,
    QTreeView,
    QVBoxLayout,
    QWidget,
)

from ui.core import words
from ui.core.check import Check, Findings
from ui.core.preset.document import Document
from ui.pages.layers.block_tree import NUMBERS, LayerModel
from ui.widgets import theme

EXCLUDE = "targets.exclude"
CONCERNED = ("targets", "family", "base", "adapter", "export")
"""Sections whose problems keep layers from being listed as they should."""

MOST = 5
"""So many problems are shown at once."""

FEW = 40
"""So many layers are shown unfolded."""


class LayersPage(QWidget):
    """A tree of the matched layers, with what is wrong above it."""

    show_field = Signal(str)
    """Path of the option that a problem is about."""

    def __init__(self, document: Document, check: Check, parent: QWidget | None = None):
        super().__init__(parent)
        self._document, self._check = document, check
        self._findings: Findings | None = None
        self.model = LayerModel()
        self.state = QLabel(self)
        self.totals = QLabel(self, wordWrap=True)
        self.problems = _Problems(self)
        self.filter = QLineEdit(self, clearButtonEnabled=True)
        self.filter.setAccessibleName("Filter layers")
        self.filter.setPlaceholderText("Filter by name or kind")
        self.tree = QTreeView(self, uniformRowHeights=True)
        self.tree.setAccessibleName("Layers")
        self.exclude_layers = QAction("Exclude this layer", self)
        self.exclude_block = QAction("Exclude this block", self)
        self.excluded = QLabel(self, wordWrap=True)
        theme.set_role(self.excluded, "muted")
        self._lay_out()
        document.changed.connect(self.on_document_changed)
        check.started.connect(self.on_started)
        check.finished.connect(self.on_finished)
        self.filter.textChanged.connect(self.on_filter)
        self.tree.selectionModel().selectionChanged.connect(self.on_selection_changed)
        self.exclude_layers.triggered.connect(self.on_exclude_layers)
        self.exclude_block.triggered.connect(self.on_exclude_block)
        self.problems.show_field.connect(self.show_field)
        self._show_excluded()
        self.on_selection_changed()
        self._show_state("Not checked yet.", "muted")
        if check.findings is not None:
            self.on_finished(check.findings)
        elif check.running:
            self.on_started()

    def on_document_changed(self, path: str) -> None:
        """The preset has changed; the window asks for the check."""
        if not path or path.startswith("targets"):
            self._show_excluded()

    def on_started(self) -> None:
        """The preset has changed, a check is under way."""
        old = self._findings is not None
        self._show_state("The list is from before the last change; checking…" if old else "Checking…", "muted")

    def on_finished(self, findings: Findings) -> None:
        """The trainer has answered."""
        if findings.failed:
            self._show_state(f"The check failed: {findings.failed}", "problem")
            return
        self._findings = findings
        by_path = findings.by_path(self._document.schema.fields(self._document.values))
        concerned = [
            (path, sentence)
            for path, sentences in by_path.items()
            for sentence in sentences
            if path.split(".")[0] in CONCERNED or (not path and not findings.layers)
        ]
        self.problems.set_problems(concerned)
        self._show_state("" if findings.layers else "No layers are matched.", "muted")
        self._show_totals(findings)
        self._show_layers()

    def on_filter(self) -> None:
        """Other layers are sought."""
        self._show_layers()

    def on_selection_changed(self) -> None:
        """What can be excluded depends on what is selected."""
        layers, blocks = self._selected()
        self.exclude_layers.setEnabled(bool(layers))
        self.exclude_layers.setText("Exclude these layers" if len(layers) > 1 else "Exclude this layer")
        self.exclude_block.setEnabled(bool(blocks))
        self.exclude_block.setText("Exclude these blocks" if len(blocks) > 1 else "Exclude this block")
        for button, action in ((self._layer_button, self.exclude_layers), (self._block_button, self.exclude_block)):
            button.setText(action.text())
            button.setEnabled(action.isEnabled())

    def on_exclude_layers(self) -> None:
        """Leave out the selected layers."""
        self._exclude(self._selected()[0])

    def on_exclude_block(self) -> None:
        """Leave out the blocks of the selected rows."""
        self._exclude([f"{name}.*" for name in self._selected()[1]])

    def _exclude(self, patterns: Sequence[str]) -> None:
        """One undo step for all patterns."""
        old = list(self._document.value(EXCLUDE) or [])
        self._document.seal()
        self._document.set(EXCLUDE, [*old, *(pattern for pattern in patterns if pattern not in old)])
        self._document.seal()

    def _selected(self) -> tuple[list[str], list[str]]:
        """Names of the selected layers, and of the blocks of the selected rows that are not a whole network."""
        rows: list[QModelIndex | QPersistentModelIndex] = list(self.tree.selectionModel().selectedRows())
        layers = [layer["name"] for layer in map(self.model.layer_at, rows) if layer is not None]
        blocks = dict.fromkeys(self.model.block_at(row).name for row in rows)
        return layers, [name for name in blocks if "." in name]

    def _show_layers(self) -> None:
        layers = self._findings.layers if self._findings is not None else ()
        unfolded = {block.name for row, block in enumerate(self.model.blocks) if self.tree.isExpanded(self._top(row))}
        place = self.tree.verticalScrollBar().value()
        self.model.set_layers(layers, self.filter.text())
        few = sum(len(block.layers) for block in self.model.blocks) <= FEW
        for row, block in enumerate(self.model.blocks):
            self.tree.setExpanded(self._top(row), few or block.name in unfolded)
        self.tree.verticalScrollBar().setValue(place)
        self.on_selection_changed()

    def _top(self, row: int) -> QModelIndex:
        return self.model.index(row, 0)

    def _show_totals(self, findings: Findings) -> None:
        forms = ", ".join(f"{words.count(number)} {form}" for form, number in findings.forms.items())
        number = words.count(len(findings.layers))
        if findings.trainable_layers:
            number += f" of {words.count(findings.trainable_layers)}"
        parts = [f"{number} layers", f"{words.count(findings.parameters)} parameters"]
        if findings.file_bytes:
            parts.append(f"file about {words.size(findings.file_bytes)}" + (f" ({forms})" if forms else ""))
        self.totals.setText("  ·  ".join(parts) if findings.layers else "")

    def _show_excluded(self) -> None:
        patterns = self._document.value(EXCLUDE) or []
        self.excluded.setText(f"Left out: {', '.join(patterns)}" if patterns else "")
        self.excluded.setVisible(bool(patterns))
        self._edit_button.setVisible(bool(patterns))

    def _show_state(self, sentence: str, role: str) -> None:
        self.state.setText(sentence)
        self.state.setVisible(bool(sentence))
        theme.set_role(self.state, role)

    def _lay_out(self) -> None:
        title = QLabel("Layers", self)
        theme.set_role(title, "title")
        self._layer_button = QPushButton(self)
        self._layer_button.setToolTip("Add the selected layers to targets.exclude")
        self._block_button = QPushButton(self)
        self._block_button.setToolTip("Add the blocks of the selected layers to targets.exclude")
        self._layer_button.clicked.connect(self.exclude_layers.trigger)
        self._block_button.clicked.connect(self.exclude_block.trigger)
        self._edit_button = QPushButton("Edit the patterns", self)
        self._edit_button.clicked.connect(lambda: self.show_field.emit(EXCLUDE))
        self.state.setWordWrap(True)
        top = QHBoxLayout()
        top.addWidget(title)
        self.state.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        top.addWidget(self.state, 1)
        row = QHBoxLayout()
        row.addWidget(self.filter, 1)
        row.addWidget(self._layer_button)
        row.addWidget(self._block_button)
        below = QHBoxLayout()
        below.addWidget(self.excluded, 1)
        below.addWidget(self._edit_button)
        self._prepare_tree()
        layout = QVBoxLayout(self)
        layout.addLayout(top)
        layout.addWidget(self.totals)
        layout.addWidget(self.problems)
        layout.addLayout(row)
        layout.addWidget(self.tree, 1)
        layout.addLayout(below)

    def _prepare_tree(self) -> None:
        self.tree.setModel(self.model)
        self.tree.setStyleSheet("QTreeView::item { padding: 3px; }")
        self.tree.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.tree.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        self.tree.addActions([self.exclude_layers, self.exclude_block])
        header = self.tree.header()
        header.setStretchLastSection(False)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        width = self.fontMetrics().averageCharWidth()
        for column, characters in ((1, 14), (2, 20), (NUMBERS, 16)):
            header.resizeSection(column, characters * width)


class _Problems(QWidget):
    """The first sentences, each with a button that shows the option."""

    show_field = Signal(str)

    def __init__(self, parent: QWidget):
        super().__init__(parent)
        self.setAccessibleName("Problems")
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self.hide()

    def set_problems(self, problems: Sequence[tuple[str, str]]) -> None:
        """Path of the option ("" for none) and the sentence of each."""
        while (item := self._column.takeAt(0)) is not None:
            old = item.widget()
            if old is not None:
                old.hide()
                old.deleteLater()
        for path, sentence in problems[:MOST]:
            content = QWidget(self)
            row = QHBoxLayout(content)
            row.setContentsMargins(0, 0, 0, 0)
            label = QLabel(f"{path}: {sentence}" if path else sentence, content, wordWrap=True)
            label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            theme.set_role(label, "problem")
            row.addWidget(label, 1)
            if path:
                button = QPushButton("Show the field", content)
                button.setAccessibleName(f"Show the field {path}")
                button.clicked.connect(lambda _=False, path=path: self.show_field.emit(path))
                row.addWidget(button, 0, Qt.AlignmentFlag.AlignTop)
            self._column.addWidget(content)
        if len(problems) > MOST:
            self._column.addWidget(QLabel(f"… and {words.plural(len(problems) - MOST, 'problem')} more", self))
        self.setVisible(bool(problems))
