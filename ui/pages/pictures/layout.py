"""The widgets of the data page and where they stand."""

from dataclasses import dataclass

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSplitter,
    QTabWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from ui.core.settings import Settings
from ui.pages.pictures.bucket_bars import Histogram
from ui.pages.pictures.captions import Captions
from ui.pages.pictures.data_set import PictureModel
from ui.pages.pictures.folders_bar import FoldersBar
from ui.pages.pictures.grid import PictureGrid
from ui.pages.pictures.notes import NotesList
from ui.pages.pictures.panel import PicturePanel
from ui.pages.pictures.thumbnails import Thumbnails
from ui.widgets import theme
from ui.widgets.elided import Elided


@dataclass
class Parts:
    """The page's widgets."""

    training: QToolButton
    validation: QToolButton
    refresh: QPushButton
    save_all: QPushButton
    folders: FoldersBar
    search: QLineEdit
    problems_only: QCheckBox
    status: Elided
    progress: QProgressBar
    views: QTabWidget
    grid: PictureGrid
    bucket_line: QLabel
    histogram: Histogram
    notes: NotesList
    panel: PicturePanel
    splitter: QSplitter


def build(page: QWidget, model: PictureModel, thumbnails: Thumbnails, captions: Captions, settings: Settings) -> Parts:
    """Make the widgets of the page and lay them out."""
    parts = Parts(
        training=QToolButton(page),
        validation=QToolButton(page),
        save_all=QPushButton("Save all captions", page),
        refresh=QPushButton("Refresh", page),
        folders=FoldersBar(settings, page),
        views=QTabWidget(page, documentMode=True),
        search=QLineEdit(page, clearButtonEnabled=True),
        problems_only=QCheckBox("Only marked", page),
        status=Elided(page),
        progress=QProgressBar(page, textVisible=False),
        grid=PictureGrid(model, thumbnails, page),
        bucket_line=QLabel(page, wordWrap=True),
        histogram=Histogram(),
        notes=NotesList(page),
        panel=PicturePanel(captions, page),
        splitter=QSplitter(Qt.Orientation.Horizontal, page, childrenCollapsible=False),
    )
    _finish(page, parts)
    layout = QVBoxLayout(page)
    layout.addLayout(_heading(page, parts))
    layout.addWidget(parts.folders)
    layout.addWidget(parts.splitter, 1)
    return parts


def _finish(page: QWidget, parts: Parts) -> None:
    """What constructors cannot say."""
    switch = QButtonGroup(page)
    for button, text in ((parts.training, "Training"), (parts.validation, "Validation")):
        button.setText(text)
        button.setCheckable(True)
        switch.addButton(button)
    parts.training.setChecked(True)
    parts.refresh.setToolTip("Look at the folders again (F5)")
    parts.views.setAccessibleName("Pictures, buckets and notes")
    parts.search.setAccessibleName("Filter by name or caption")
    parts.search.setPlaceholderText("Filter by name or caption")
    parts.search.setAcceptDrops(False)  # folders may be dropped anywhere on the page
    parts.problems_only.setToolTip("Missing, empty and too long captions, enlarged and unreadable pictures")
    parts.status.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
    parts.progress.setFixedWidth(page.fontMetrics().averageCharWidth() * 16)
    parts.progress.hide()
    theme.set_role(parts.bucket_line, "muted")


def _heading(page: QWidget, parts: Parts) -> QHBoxLayout:
    title = QLabel("Pictures", page)
    theme.set_role(title, "title")
    row = QHBoxLayout()
    row.addWidget(title)
    row.addSpacing(page.fontMetrics().height())
    switch = QHBoxLayout()
    switch.setSpacing(0)
    switch.addWidget(parts.training)
    switch.addWidget(parts.validation)
    row.addLayout(switch)
    row.addSpacing(page.fontMetrics().height() // 2)
    row.addWidget(parts.status, 1)
    row.addWidget(parts.progress)
    row.addWidget(parts.save_all)
    row.addWidget(parts.refresh)
    scrolled = QScrollArea(page, widgetResizable=True)
    scrolled.setFrameShape(QScrollArea.Shape.NoFrame)
    scrolled.setWidget(parts.histogram)
    buckets = QWidget(page)
    rows = QVBoxLayout(buckets)
    rows.setContentsMargins(0, 6, 8, 0)
    rows.addWidget(parts.bucket_line)
    rows.addWidget(scrolled, 1)
    pictures = QWidget(page)
    column = QVBoxLayout(pictures)
    column.setContentsMargins(0, 6, 8, 0)
    filters = QHBoxLayout()
    filters.addWidget(parts.search, 1)
    filters.addWidget(parts.problems_only)
    column.addLayout(filters)
    column.addWidget(parts.grid, 1)
    notes = QWidget(page)
    lines = QVBoxLayout(notes)
    lines.setContentsMargins(0, 6, 8, 0)
    lines.addWidget(parts.notes)
    for widget, name in ((pictures, "Pictures"), (buckets, "Buckets"), (notes, "Problems and notes")):
        parts.views.addTab(widget, name)
    parts.splitter.addWidget(parts.views)
    parts.splitter.addWidget(parts.panel)
    parts.splitter.setStretchFactor(0, 1)
    width = page.fontMetrics().averageCharWidth()
    parts.splitter.setSizes([width * 90, width * 46])
    return row
