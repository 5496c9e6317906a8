"""The widgets of the data page and where they stand."""

from PySide6.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QFrame,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QTabWidget,
    QToolButton,
    QWidget,
)

from ui.core.preset import entries
from ui.core.settings import Settings
from ui.pages.pictures.bucket_bars import Histogram
from ui.pages.pictures.captions import Captions
from ui.pages.pictures.data_set import PictureModel
from ui.pages.pictures.folders_bar import FoldersBar
from ui.pages.pictures.grid import PictureGrid
from ui.pages.pictures.notes import NotesList
from ui.pages.pictures.panel import PicturePanel
from ui.pages.pictures.thumbnails import Thumbnails
from ui.widgets.elided import Elided
from ui.widgets.making import across, down, dressed, panel, split, with_icon

FILTER = "Filter by name or caption"
INSIDE = (0, 6, 8, 0)
"""Margins of what is in a tab."""


class Parts:
    """The page's widgets."""

    def __init__(
        self, page: QWidget, model: PictureModel, thumbnails: Thumbnails, captions: Captions, settings: Settings
    ):
        """Make them, and lay them out on `page`."""
        letter, line = page.fontMetrics().averageCharWidth(), page.fontMetrics().height()
        self.training = dressed(QToolButton(), text="Training", checkable=True, checked=True)
        self.validation = dressed(QToolButton(), text="Validation", checkable=True)
        switch = QButtonGroup(page)
        for button in (self.training, self.validation):
            switch.addButton(button)
        self.status = Elided()
        self.status.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.progress = QProgressBar(textVisible=False)
        self.progress.setFixedWidth(letter * 16)
        self.save_all = with_icon(QPushButton("Save all captions"), "save")
        self.refresh = with_icon(dressed(QPushButton("Refresh"), tip="Read the folders again (F5)"), "refresh")
        self.folders = FoldersBar(settings)
        self.search = dressed(QLineEdit(clearButtonEnabled=True), name=FILTER, placeholderText=FILTER)
        self.search.setAcceptDrops(False)  # folders may be dropped anywhere on the page
        marks = "Missing, empty and too long captions, enlarged and unreadable pictures"
        self.problems_only = dressed(QCheckBox("Only problems"), tip=marks)
        self.grid = PictureGrid(model, thumbnails)
        self.bucket_line = dressed(QLabel(wordWrap=True), "muted")
        self.histogram, self.notes, self.panel = Histogram(), NotesList(), PicturePanel(captions)
        scrolled = dressed(QScrollArea(widgetResizable=True), frameShape=QFrame.Shape.NoFrame)
        scrolled.setWidget(self.histogram)
        self.views = dressed(QTabWidget(documentMode=True), name="Pictures, buckets and notes")
        pictures = panel(across((self.search, 1), self.problems_only), (self.grid, 1), margins=INSIDE)
        self.views.addTab(pictures, "Pictures")
        self.views.addTab(panel(self.bucket_line, (scrolled, 1), margins=INSIDE), "Buckets")
        self.views.addTab(panel(self.notes, margins=INSIDE), "Problems and notes")
        self.splitter = split((self.views, 2), (self.panel, 1))
        self.splitter.setSizes([letter * 90, letter * 46])
        title, both = dressed(QLabel("Pictures"), "title"), across(self.training, self.validation)
        both.setSpacing(0)
        state = ((self.status, 1), self.progress, self.save_all, self.refresh)
        down(across(title, line, both, line // 2, *state), self.folders, (self.splitter, 1), of=page)
        self.progress.hide()

    def set_of(self, role: str) -> QToolButton:
        """The button that shows the folders of a role."""
        return self.validation if role in entries.ROLES["validation"] else self.training
