"""The samples of a run: prompts by steps, and two steps of a prompt before and after each other."""

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QComboBox, QLabel, QPushButton, QStackedWidget, QWidget

from ui.core import workers
from ui.core.runs.history import Sample
from ui.pages.runs.before_after import BeforeAfter
from ui.pages.runs.sample_table import SamplesModel, SampleTable, read_picture, step_text
from ui.widgets.making import across, down, dressed, with_icon

EMPTY = (
    "No samples yet. They are drawn at the interval that the preset's page “Samples” sets, or when you press "
    "“Sample now”."
)


class Gallery(QStackedWidget):
    """Three views: a sentence while there are no samples, the grid, and the comparison of two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SamplesModel(side=self.fontMetrics().height() * 7, parent=self)
        self.empty = dressed(QLabel(EMPTY, wordWrap=True, alignment=Qt.AlignmentFlag.AlignCenter, margin=40), "muted")
        self.grid = dressed(SampleTable(self.model), name="Samples: prompts by steps")
        self.grid.opened.connect(self.on_grid_opened)
        self.pair = Pair(self.model)
        self.pair.back.clicked.connect(self.on_back_clicked)
        for view in (self.empty, self.grid, self.pair):
            self.addWidget(view)

    def show_samples(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Show the samples of the run in `folder`; the comparison stays open when the same run goes on."""
        another = folder != self.model.folder
        bar = self.grid.horizontalScrollBar()
        at_end = another or bar.value() == bar.maximum()
        if not self.model.set_samples(folder, samples) and not another:
            return
        if not samples:
            self.pair.cancel()
            self.setCurrentWidget(self.empty)
        elif another or self.currentWidget() is not self.pair:
            self.setCurrentWidget(self.grid)
        else:
            self.pair.refresh()
        if at_end:
            self.grid.updateGeometries()
            bar.setValue(bar.maximum())

    def on_grid_opened(self, row: int, column: int) -> None:
        """Compare the picked picture with the first of its prompt."""
        picked = self.model.steps[column]
        first = next((step for step in self.model.steps if self.model.sample(row, step)), picked)
        self.pair.show_pair(row, first, picked)
        self.setCurrentWidget(self.pair)
        self.pair.slider.setFocus()

    def on_back_clicked(self) -> None:
        """Back to the grid, where the picked picture is."""
        self.setCurrentWidget(self.grid)
        self.grid.setFocus()


class Pair(QWidget):
    """Two steps of one prompt, a line between them, and all steps of the prompt as a film strip."""

    def __init__(self, model: SamplesModel):
        super().__init__()
        self.model = model
        self.row = 0
        self.reading: workers.Task | None = None
        self.back = with_icon(dressed(QPushButton("All samples"), tip="Back to all samples (Escape)"), "left")
        within = Qt.ShortcutContext.WidgetWithChildrenShortcut
        QShortcut(QKeySequence(Qt.Key.Key_Escape), self, self.back.click, context=within)
        self.prompt = dressed(QComboBox(minimumContentsLength=12), name="Prompt")
        self.prompt.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.before, self.after = (dressed(QComboBox(), name=f"Step on the {side}") for side in ("left", "right"))
        self.slider = BeforeAfter()
        self.strip = dressed(SampleTable(model), name="All steps of this prompt; the chosen one is on the right")
        self.strip.verticalHeader().hide()
        self.strip.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.strip.horizontalHeader().setFixedHeight(round(self.fontMetrics().height() * 1.8))
        bar = self.strip.horizontalScrollBar().sizeHint().height()
        self.strip.setFixedHeight(model.side + 12 + self.strip.horizontalHeader().height() + bar)
        self._lay_out()
        self.prompt.activated.connect(self.on_prompt_activated)
        self.before.activated.connect(self.load)
        self.after.activated.connect(self.load)
        self.strip.opened.connect(self.on_strip_opened)

    def show_pair(self, row: int, before: int, after: int) -> None:
        """Compare two steps of a prompt."""
        self.row = row
        self._fill(before, after)
        self.load()

    def refresh(self) -> None:
        """There are more steps, or others: keep what is compared where it still exists."""
        before, after = self.before.currentData(), self.after.currentData()
        first, last = self.model.steps[0], self.model.steps[-1]
        self.row = min(self.row, len(self.model.prompts) - 1)
        self.show_pair(
            self.row, before if before in self.model.steps else first, after if after in self.model.steps else last
        )

    def load(self) -> None:
        """Read both pictures, then show them."""
        self.cancel()
        steps = (self.before.currentData(), self.after.currentData())
        samples = [self.model.sample(self.row, step) for step in steps]
        missing = [step_text(step) for step, sample in zip(steps, samples, strict=True) if sample is None]
        self.strip.setCurrentIndex(self.model.index(self.row, self.model.steps.index(steps[1])))
        if missing:
            self.slider.set_message(f"This prompt has no sample at: {', '.join(missing)}")
            return
        paths = [self.model.path(sample) for sample in samples if sample]
        labels = (step_text(steps[0]), step_text(steps[1]))
        read = lambda: [read_picture(path) for path in paths]  # noqa: E731
        show = lambda images: self.slider.set_pictures(images[0], images[1], labels)  # noqa: E731
        self.reading = workers.run(read, done=show, failed=self.slider.set_message)

    def cancel(self) -> None:
        """Wait for no pictures."""
        if self.reading:
            self.reading.cancel()

    def on_prompt_activated(self, row: int) -> None:
        """Compare the same steps of another prompt."""
        self.show_pair(row, self.before.currentData(), self.after.currentData())

    def on_strip_opened(self, _row: int, column: int) -> None:
        """The picked step is the one on the right."""
        self.after.setCurrentIndex(column)
        self.load()

    def _fill(self, before: int, after: int) -> None:
        """The choices of prompts and steps."""
        self.prompt.clear()
        self.prompt.addItems([prompt for _, prompt in self.model.prompts])
        self.prompt.setCurrentIndex(self.row)
        self.prompt.setToolTip(self.prompt.currentText())
        for box, step in ((self.before, before), (self.after, after)):
            box.clear()
            for one in self.model.steps:
                box.addItem(step_text(one), one)
            box.setCurrentIndex(self.model.steps.index(step))
        for row in range(len(self.model.prompts)):
            self.strip.setRowHidden(row, row != self.row)

    def _lay_out(self) -> None:
        left, right = (dressed(QLabel(text), "muted") for text in ("Left", "Right"))
        top = across(self.back, (self.prompt, 1), left, self.before, right, self.after)
        down(top, (self.slider, 1), self.strip, of=self, margins=(0, 8, 0, 0))
