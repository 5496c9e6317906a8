"""The first draws in a list: each with its prompt, where chunks begin and what is cut off, and its picture."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PySide6.QtCore import QByteArray, QModelIndex, QPersistentModelIndex, QRectF, QSize, Qt
from PySide6.QtGui import QImage, QPainter, QPixmap, QTextDocument
from PySide6.QtWidgets import QListWidget, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from ui.core import words
from ui.pages.pictures.preview import tinted
from ui.widgets import theme
from ui.widgets.making import dressed, scrolled

BORDER = "┃"
"""Stands where a further chunk begins."""

PAD = 5
SIDE = 6
"""Of a draw's picture, in lines of text."""

Index = QModelIndex | QPersistentModelIndex


class Prompts(QListWidget):
    """The draws; the selected one is what the preview shows."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.draws: list[Mapping[str, Any]] = []
        self.words: list[list[str]] = []
        """What is done to the picture in each."""
        dressed(scrolled(self), name="Prompts of the first draws", wordWrap=True, spacing=1)
        self.setResizeMode(QListWidget.ResizeMode.Adjust)
        self.setItemDelegate(_Draws(self))

    def set_draws(self, draws: Sequence[Mapping[str, Any]], has_mask: bool) -> None:
        """Show these, of a picture that has a mask or none; the same row stays selected."""
        row = max(0, self.currentRow())
        self.clear()
        self.draws, self.words = list(draws), [changes(draw, has_mask) for draw in draws]
        self.addItems([draw_words(*both) for both in zip(self.draws, self.words, strict=True)])
        for number, draw in enumerate(draws):
            if draw.get("pixels"):
                self.item(number).setData(Qt.ItemDataRole.DecorationRole, self._pixmap(draw))
        self.setCurrentRow(min(row, len(draws) - 1))

    def _pixmap(self, draw: Mapping[str, Any]) -> QPixmap:
        """What the encoder is given, with what its mask leaves out tinted."""
        image, side = _decoded(draw["pixels"]), SIDE * self.fontMetrics().lineSpacing()
        if draw["mask"]:
            image = image.convertToFormat(QImage.Format.Format_RGB32)
            painter = QPainter(image)
            painter.drawImage(image.rect(), tinted(_decoded(draw["mask"])))
            painter.end()
        size, ratio = QSize(side, side) * self.devicePixelRatioF(), self.devicePixelRatioF()
        smooth = Qt.TransformationMode.SmoothTransformation
        pixmap = QPixmap.fromImage(image.scaled(size, Qt.AspectRatioMode.KeepAspectRatio, smooth))
        pixmap.setDevicePixelRatio(ratio)
        return pixmap


class _Draws(QStyledItemDelegate):
    """Paints them."""

    def __init__(self, view: Prompts):
        super().__init__(view)
        self._view = view

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        """Qt: as high as picture and text need."""
        picture, width = self._picture(index), self._view.viewport().width() - 2 * self._view.spacing()
        text = self._text(index, width - picture.width())
        return QSize(width, max(round(text.size().height()), picture.height()) + 2 * PAD)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Qt: the style's background, the picture, and the words beside it."""
        styled: Any = QStyleOptionViewItem(option)
        rect = styled.rect
        self._view.style().drawPrimitive(QStyle.PrimitiveElement.PE_PanelItemViewItem, styled, painter, self._view)
        pixmap, place = index.data(Qt.ItemDataRole.DecorationRole), self._picture(index)
        text = self._text(index, rect.width() - place.width())
        painter.save()
        if pixmap is not None:
            painter.drawPixmap(rect.left() + PAD, rect.top() + PAD, pixmap)
        painter.translate(rect.left() + place.width(), rect.top() + PAD)
        text.drawContents(painter, QRectF(0, 0, rect.width() - place.width(), rect.height()))
        painter.restore()

    def _picture(self, index: Index) -> QSize:
        """The room that a picture takes at the left, none without one."""
        pixmap = index.data(Qt.ItemDataRole.DecorationRole)
        side = SIDE * self._view.fontMetrics().lineSpacing()
        return QSize() if pixmap is None else QSize(side + 2 * PAD, round(pixmap.deviceIndependentSize().height()))

    def _text(self, index: Index, width: int) -> QTextDocument:
        text = QTextDocument()
        text.setDefaultFont(self._view.font())
        text.setDocumentMargin(PAD)
        text.setHtml(draw_html(self._view.draws[index.row()], self._view.words[index.row()]))
        text.setTextWidth(width)
        return text


def _decoded(text: str) -> QImage:
    return QImage.fromData(QByteArray.fromBase64(text.encode()))


def pieces(draw: Mapping[str, Any]) -> list[str]:
    """The prompt in its chunks, without what is cut off."""
    prompt = draw["prompt"].removesuffix(draw["cut"]) if draw["cut"] else draw["prompt"]
    places = [0, *(place for place in draw["chunks"] if place < len(prompt)), len(prompt)]
    return [prompt[begin:end] for begin, end in zip(places, places[1:], strict=False)]


def changes(draw: Mapping[str, Any], has_mask: bool) -> list[str]:
    """What is done to the picture in this draw, in words."""
    found = ["flipped"] if draw["flip"] else []
    if draw["variant"] is not None:
        found.append(f"version {draw['variant'] + 1}")
    if draw["angle"]:
        found.append(f"turned by {draw['angle']:.1f}°")
    factors = {name: draw[name] for name in ("brightness", "contrast", "saturation")}
    found += [f"{name} {factor:.0%}" for name, factor in factors.items() if factor != 1]
    if draw["hue"]:
        found.append(f"hue {draw['hue']:+.0%}")
    return found + (["mask ignored"] if has_mask and not draw["masked"] else [])


def draw_words(draw: Mapping[str, Any], done: Sequence[str]) -> str:
    """One draw in words, with what is done to the picture."""
    prompt = BORDER.join(pieces(draw)).strip()
    lines = [f"{draw['position'] + 1}.  {prompt or '(empty prompt: caption dropped)'}"]
    if done:
        lines.append("      " + ", ".join(done))
    if draw["cut"]:
        lines.append(f"      cut off, too long: “{draw['cut']}”")
    return "\n".join(lines)


def draw_html(draw: Mapping[str, Any], done: Sequence[str]) -> str:
    """The same for the eye: chunks apart, and what is cut off struck through where it stands."""
    colors = theme.colors()
    ink, muted, accent = colors.text.name(), colors.muted.name(), colors.accent.name()
    border = f'<b style="color:{accent}">{BORDER}</b>'
    prompt = border.join(escape(one) for one in pieces(draw))
    if draw["cut"]:
        prompt += f'<s style="color:{muted}">{escape(draw["cut"])}</s>'
    prompt = prompt.strip() or f'<span style="color:{muted}">(empty prompt: caption dropped)</span>'
    number = f'<span style="color:{muted}">{words.count(draw["position"] + 1)}.</span>'
    below = f'<br><span style="color:{muted}">{escape(", ".join(done))}</span>' if done else ""
    return f'<span style="color:{ink}">{number}&nbsp; {prompt}{below}</span>'
