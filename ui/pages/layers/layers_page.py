"""The layers page: what the targets match, its size, and patterns that match nothing."""

from collections.abc import Sequence

from PySide6.QtCore import QModelIndex, Qt, Signal
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QLabel, QLineEdit, QPushButton, QTreeView, QWidget

from ui.core import words
from ui.core.check import Check, Findings
from ui.core.preset.document import Document
from ui.pages.layers.block_tree import NUMBERS, RIGHT, LayerModel
from ui.widgets import dialogs
from ui.widgets.making import Part, across, action, button, down, dressed, panel, plain, say

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
        self._document = document
        self._findings: Findings | None = None
        self.model = LayerModel()
        self.state, self.totals = QLabel(wordWrap=True, alignment=RIGHT), QLabel(wordWrap=True)
        self.problems = _Problems(document)
        self.filter = dressed(QLineEdit(clearButtonEnabled=True), name="Filter layers")
        self.filter.setPlaceholderText("Filter by name or kind")
        self.tree = dressed(QTreeView(uniformRowHeights=True), name="Layers")
        tip = "Add the {} to the field “Exclude”".format
        self.exclude_layers = action(self.tree, "", lambda: self._exclude(0), tip=tip("selected layers"))
        self.exclude_block = action(self.tree, "", lambda: self._exclude(1), tip=tip("blocks of the selected layers"))
        self.excluded = dressed(QLabel(wordWrap=True), "muted")
        self.edit = QPushButton("Edit patterns")
        self._lay_out()
        document.changed.connect(self.on_document_changed)
        check.started.connect(self.on_started)
        check.finished.connect(self.on_finished)
        self.filter.textChanged.connect(self._show_layers)
        self.edit.clicked.connect(lambda: self.show_field.emit(EXCLUDE))
        self.tree.selectionModel().selectionChanged.connect(self.on_selection_changed)
        self.problems.show_field.connect(self.show_field)
        self._show_excluded()
        self.on_selection_changed()
        self._show_state("Not checked", "muted")
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
        self._show_state("Out of date, checking…" if old else "Checking…", "muted")

    def on_finished(self, findings: Findings) -> None:
        """The trainer has answered."""
        if findings.failed:
            self._show_state(f"Check failed: {findings.failed}", "problem")
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
        self._show_state("" if findings.layers else "No layers match", "muted")
        self._show_totals(findings)
        self._show_layers()

    def on_selection_changed(self) -> None:
        """What can be excluded depends on what is selected."""
        layers, blocks = self._selected()
        self.exclude_layers.setEnabled(bool(layers))
        self.exclude_layers.setText("Exclude these layers" if len(layers) > 1 else "Exclude this layer")
        self.exclude_block.setEnabled(bool(blocks))
        self.exclude_block.setText("Exclude these blocks" if len(blocks) > 1 else "Exclude this block")

    def _exclude(self, which: int) -> None:
        """One undo step for all patterns, the first or the second of `_selected`."""
        patterns = self._selected()[which]
        old = list(self._document.value(EXCLUDE) or [])
        self._document.seal()
        self._document.set(EXCLUDE, [*old, *(pattern for pattern in patterns if pattern not in old)])
        self._document.seal()

    def _selected(self) -> tuple[list[str], list[str]]:
        """Patterns of the selected layers, and of the blocks of the selected rows that are not a whole network."""
        name, rows = Qt.ItemDataRole.ToolTipRole, self.tree.selectionModel().selectedRows()
        layers = [row.data(name) for row in rows if row.parent().isValid()]
        blocks = dict.fromkeys((row.parent() if row.parent().isValid() else row).data(name) for row in rows)
        return layers, [f"{name}.*" for name in blocks if "." in name]

    def _show_layers(self) -> None:
        layers = self._findings.layers if self._findings is not None else ()
        unfolded = {top.data() for top in self._tops() if self.tree.isExpanded(top)}
        place = self.tree.verticalScrollBar().value()
        self.model.set_layers(layers, self.filter.text())
        few = sum(map(self.model.rowCount, self._tops())) <= FEW
        for top in self._tops():
            self.tree.setExpanded(top, few or top.data() in unfolded)
        self.tree.verticalScrollBar().setValue(place)
        self.on_selection_changed()

    def _tops(self) -> list[QModelIndex]:
        return [self.model.index(row, 0) for row in range(self.model.rowCount())]

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
        say(self.excluded, f"Excluded: {', '.join(patterns)}" if patterns else "")
        self.edit.setVisible(bool(patterns))

    def _show_state(self, sentence: str, role: str) -> None:
        say(self.state, sentence, role)

    def _lay_out(self) -> None:
        self._prepare_tree()
        top = across(dressed(QLabel("Layers"), "title"), (self.state, 1))
        tools = across((self.filter, 1), button(self.exclude_layers), button(self.exclude_block))
        below = across((self.excluded, 1), self.edit)
        down(top, self.totals, self.problems, tools, (self.tree, 1), below, of=self)

    def _prepare_tree(self) -> None:
        self.tree.setModel(self.model)
        self.tree.setStyleSheet("QTreeView::item { padding: 3px; }")
        self.tree.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.tree.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
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

    def __init__(self, document: Document):
        super().__init__()
        self._document = document
        self.setAccessibleName("Problems")
        self._column = down(of=self, margins=(0, 0, 0, 0))
        self.hide()

    def set_problems(self, problems: Sequence[tuple[str, str]]) -> None:
        """Path of the option ("" for none) and the sentence of each."""
        for old in self.findChildren(QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly):
            old.hide()
            old.deleteLater()
        for path, sentence in problems[:MOST]:
            name = dialogs.labels(self._document, [path])[0] if path else ""
            parts: list[Part] = [(dressed(plain(f"{name}: {sentence}" if path else sentence), "problem"), 1)]
            if path:
                show = dressed(QPushButton("Show field"), name=f"Show the field {name}")
                show.clicked.connect(lambda _=False, path=path: self.show_field.emit(path))
                parts.append(down(show, None))
            self._column.addWidget(panel(across(*parts)))
        if len(problems) > MOST:
            self._column.addWidget(QLabel(f"… and {words.plural(len(problems) - MOST, 'problem')} more", self))
        self.setVisible(bool(problems))
