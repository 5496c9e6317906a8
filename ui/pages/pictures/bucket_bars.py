"""How the pictures fall into buckets, as bars."""

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPaintEvent
from PySide6.QtWidgets import QGridLayout, QLabel, QWidget

from ui.core import words
from ui.widgets import theme
from ui.widgets.making import dressed

PALE = 0.3
"""Opacity of what is shown again to fill a batch."""


class Histogram(QWidget):
    """One bar a bucket: its size, how many pictures an epoch shows, and what is filled up to whole batches."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.batch = 1
        self.rows = QGridLayout(self)
        self.rows.setColumnStretch(1, 1)
        self.rows.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.setAccessibleName("Buckets")
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)

    def set_buckets(self, buckets: Sequence[Mapping[str, Any]], batch: int) -> None:
        """Show these, as scripts/look.py gives them; `batch` is the size of a batch."""
        self.batch = batch
        self.setAccessibleDescription("\n".join(map(self.sentence, buckets)))
        for old in self.findChildren(QWidget):
            self.rows.removeWidget(old)
            old.deleteLater()
        most = max((bucket["repeats"] + bucket["filled"] for bucket in buckets), default=1)
        for row, bucket in enumerate(buckets):
            (width, height), small = bucket["size"], self.is_small(bucket)
            shape = "□" if width == height else "▭" if width > height else "▯"
            number = dressed(QLabel(self._number(bucket)), "note" if small else "muted")
            for column, widget in enumerate((QLabel(f"{shape} {width} × {height}"), _Bar(bucket, most, small), number)):
                widget.setToolTip(self.sentence(bucket))
                self.rows.addWidget(widget, row, column)

    def sentence(self, bucket: Mapping[str, Any]) -> str:
        """Everything about a bucket."""
        width, height = bucket["size"]
        text = f"{width} × {height}: {words.plural(bucket['pictures'], 'picture')}"
        if bucket["repeats"] != bucket["pictures"]:
            text += f", shown {words.plural(bucket['repeats'], 'time')} per epoch"
        if bucket["filled"]:
            text += f"; {bucket['filled']} repeated to fill the last batch of {self.batch}"
        if self.is_small(bucket):
            text += ". Fewer than a batch: every batch repeats pictures"
        return text + "."

    def is_small(self, bucket: Mapping[str, Any]) -> bool:
        """Whether a bucket does not fill one batch."""
        return bucket["repeats"] < self.batch

    def _number(self, bucket: Mapping[str, Any]) -> str:
        number = words.count(bucket["repeats"])
        if bucket["filled"]:
            number += f" + {words.count(bucket['filled'])} repeated"
        return number + (", fewer than a batch" if self.is_small(bucket) else "")


class _Bar(QWidget):
    """Solid what is shown anyway, pale what is shown again."""

    def __init__(self, bucket: Mapping[str, Any], most: int, small: bool):
        super().__init__()
        self._parts, self._small = ((bucket["repeats"] / most, 1), (bucket["filled"] / most, PALE)), small

    def paintEvent(self, event: QPaintEvent) -> None:
        """Qt: both parts."""
        painter, color = QPainter(self), QColor(theme.colors().warning if self._small else theme.colors().series[0])
        left = 0.0
        for share, opacity in self._parts:
            color.setAlphaF(opacity)
            painter.fillRect(QRectF(left, 0, share * self.width(), self.height()), color)
            left += share * self.width()
