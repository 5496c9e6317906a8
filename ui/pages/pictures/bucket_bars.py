"""How the pictures fall into buckets, as bars."""

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import QEvent, QPoint, QRect, QSize, Qt
from PySide6.QtGui import QColor, QHelpEvent, QKeyEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from ui.core import words
from ui.widgets import theme


class Histogram(QWidget):
    """One bar a bucket: its shape, how many pictures an epoch shows, and what is filled up to whole batches."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.buckets: list[Mapping[str, Any]] = []
        self.batch = 1
        self.setAccessibleName("Buckets")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Minimum)
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)

    def set_buckets(self, buckets: Sequence[Mapping[str, Any]], batch: int) -> None:
        """Show these, as scripts/look.py gives them; `batch` is the size of a batch."""
        self.buckets, self.batch = list(buckets), batch
        self.setAccessibleDescription("\n".join(self.sentence(bucket) for bucket in self.buckets))
        self.updateGeometry()
        self.update()

    def sentence(self, bucket: Mapping[str, Any]) -> str:
        """Everything about a bucket."""
        width, height = bucket["size"]
        text = f"{width} × {height}: {words.plural(bucket['pictures'], 'picture')}"
        if bucket["repeats"] != bucket["pictures"]:
            text += f", shown {words.plural(bucket['repeats'], 'time')} per epoch"
        if bucket["filled"]:
            text += f"; {bucket['filled']} more are shown again to fill the last batch of {self.batch}"
        if self.is_small(bucket):
            text += ". Fewer than a batch: every batch of it repeats pictures"
        return text + "."

    def is_small(self, bucket: Mapping[str, Any]) -> bool:
        """Whether a bucket does not fill one batch."""
        return bucket["repeats"] < self.batch

    def bar_at(self, position: QPoint) -> Mapping[str, Any] | None:
        """The bucket below a point."""
        row = position.y() // self._row()
        return self.buckets[row] if 0 <= row < len(self.buckets) else None

    def sizeHint(self) -> QSize:
        """Qt: one row a bucket."""
        return QSize(self.fontMetrics().averageCharWidth() * 50, max(1, len(self.buckets)) * self._row() + 2)

    minimumSizeHint = sizeHint

    def event(self, event: QEvent) -> bool:
        """Qt: the sentence of the bar below the mouse as tooltip."""
        if isinstance(event, QHelpEvent):
            bucket = self.bar_at(event.pos())
            QToolTip.showText(event.globalPos(), self.sentence(bucket) if bucket else "", self)
            return True
        return super().event(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Qt: nothing to press; keys go on to the page."""
        event.ignore()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Qt: name, bar and number of each bucket."""
        if not self.buckets:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        most = max(bucket["repeats"] + bucket["filled"] for bucket in self.buckets)
        gap, height = self._gap(), self._row()
        start = height + 3 * gap + self.fontMetrics().horizontalAdvance("0000 × 0000")
        numbers = max(self.fontMetrics().horizontalAdvance(self._number(bucket)) for bucket in self.buckets)
        scale = max(1, self.width() - start - numbers - 2 * gap) / max(1, most)
        for row, bucket in enumerate(self.buckets):
            line = QRect(0, row * height, self.width(), height)
            self._paint_name(painter, line, *bucket["size"])
            end = self._paint_bar(painter, line.adjusted(start, gap // 2, 0, -gap // 2), bucket, scale)
            painter.setPen(theme.colors().warning if self.is_small(bucket) else theme.colors().muted)
            painter.drawText(line.adjusted(end + gap, 0, 0, 0), Qt.AlignmentFlag.AlignVCenter, self._number(bucket))

    def _paint_name(self, painter: QPainter, line: QRect, width: int, height: int) -> None:
        """The bucket's shape and its size."""
        colors, gap = theme.colors(), self._gap()
        shape = QSize(width, height).scaled(
            line.height() - gap, line.height() - gap, Qt.AspectRatioMode.KeepAspectRatio
        )
        outline = QRect(0, 0, shape.width(), shape.height())
        outline.moveCenter(QPoint(line.height() // 2, line.center().y()))
        painter.setPen(colors.muted)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRect(outline)
        painter.setPen(colors.text)
        name = line.adjusted(line.height() + gap, 0, 0, 0)
        painter.drawText(name, Qt.AlignmentFlag.AlignVCenter, f"{width} × {height}")

    def _paint_bar(self, painter: QPainter, bar: QRect, bucket: Mapping[str, Any], scale: float) -> int:
        """Solid what is shown anyway, pale what is shown again; returns where the bar ends."""
        color = QColor(theme.colors().warning if self.is_small(bucket) else theme.colors().series[0])
        painter.setPen(Qt.PenStyle.NoPen)
        left = bar.left()
        for number, opacity in ((bucket["repeats"], 1.0), (bucket["filled"], 0.3)):
            if number:
                width = max(2, round(number * scale))
                color.setAlphaF(opacity)
                painter.setBrush(color)
                painter.drawRoundedRect(left, bar.top(), width, bar.height(), 2, 2)
                left += width
        return left

    def _number(self, bucket: Mapping[str, Any]) -> str:
        number = words.count(bucket["repeats"])
        if bucket["filled"]:
            number += f" + {words.count(bucket['filled'])} filled up"
        return number + (", fewer than a batch" if self.is_small(bucket) else "")

    def _row(self) -> int:
        return round(self.fontMetrics().height() * 1.7)

    def _gap(self) -> int:
        return self.fontMetrics().height() // 2
