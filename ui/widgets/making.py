"""Widgets with what their constructors do not take, buttons for actions, and rows and columns of widgets."""

from collections.abc import Callable
from typing import Any, TypeVar

from PySide6.QtCore import QObject, Qt
from PySide6.QtGui import QAction, QKeySequence
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QBoxLayout,
    QHBoxLayout,
    QLabel,
    QLayout,
    QPushButton,
    QSplitter,
    QVBoxLayout,
    QWidget,
)

from ui.widgets import icons, theme

Part = QWidget | QLayout | tuple[QWidget | QLayout, int] | int | None
"""Of a row or column: a widget or layout, either with its stretch; pixels; None for a stretch."""

Slot = Callable[[], object]
Margins = tuple[int, int, int, int]
FOR_PEOPLE = QKeySequence.SequenceFormat.NativeText
V = TypeVar("V", bound=QAbstractItemView)
W = TypeVar("W", bound=QWidget)
L = TypeVar("L", bound=QBoxLayout)
T = TypeVar("T", bound=QAction | QAbstractButton)


def dressed(widget: W, role: str = "", name: str = "", tip: str = "", **properties: Any) -> W:
    """The widget, with a role of the style sheet, a name for screen readers, a tooltip, and other Qt properties; what
    is not given stays as it is."""
    if role:
        theme.set_role(widget, role)
    properties |= {key: text for key, text in (("accessibleName", name), ("toolTip", tip)) if text}
    for key, value in properties.items():
        assert widget.setProperty(key, value), f"{type(widget).__name__} has no {key}"
    return widget


def scrolled(view: V) -> V:
    """The list or tree, which scrolls by pixels, and only up and down."""
    view.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
    view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    return view


def say(label: QLabel, text: str, role: str | None = None) -> None:
    """Show a text, in another role if there is one; a label without a text takes no room."""
    label.setText(text)
    label.setVisible(bool(text))
    if role is not None:
        theme.set_role(label, role)


def plain(text: str = "") -> QLabel:
    """A label of whole sentences as they are, which can be copied."""
    selectable = Qt.TextInteractionFlag.TextSelectableByMouse
    return QLabel(text, wordWrap=True, textFormat=Qt.TextFormat.PlainText, textInteractionFlags=selectable)


def across(*parts: Part, of: QWidget | None = None, margins: Margins | None = None) -> QHBoxLayout:
    """The parts beside each other; `of`: the widget that they fill."""
    return _filled(QHBoxLayout(of) if of else QHBoxLayout(), parts, margins)


def down(*parts: Part, of: QWidget | None = None, margins: Margins | None = None) -> QVBoxLayout:
    """The parts below each other; `of`: the widget that they fill."""
    return _filled(QVBoxLayout(of) if of else QVBoxLayout(), parts, margins)


def panel(*parts: Part, margins: Margins = (0, 0, 0, 0)) -> QWidget:
    """A widget with the parts below each other."""
    widget = QWidget()
    down(*parts, of=widget, margins=margins)
    return widget


def split(*parts: tuple[QWidget, int], way: Qt.Orientation = Qt.Orientation.Horizontal) -> QSplitter:
    """Widgets, each with its stretch, and a handle between them."""
    splitter = QSplitter(way, childrenCollapsible=False)
    for number, (widget, stretch) in enumerate(parts):
        splitter.addWidget(widget)
        splitter.setStretchFactor(number, stretch)
    return splitter


def with_icon(thing: T, name: str) -> T:
    """The action or button, with an icon that stays in the theme's colour."""
    _Inked(thing, name)
    return thing


def action(of: QWidget, text: str, slot: Slot, icon: str = "", keys: str = "", tip: str = "") -> QAction:
    """An action of a widget, whose keys work where that has the focus; the tooltip names them, too."""
    made = with_icon(QAction(text, of), icon) if icon else QAction(text, of)
    made.setShortcut(QKeySequence(keys))
    made.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
    if tip:
        made.setToolTip(f"{tip} ({made.shortcut().toString(FOR_PEOPLE)})" if keys else tip)
    made.triggered.connect(lambda: slot())
    of.addAction(made)
    return made


def button(action: QAction, role: str = "", name: str = "") -> QPushButton:
    """A button for an action, which looks as the action does; `name`: of a button without text."""
    made = dressed(QPushButton(), role, name)

    def follow() -> None:
        made.setText("" if name else action.text())
        made.setIcon(action.icon())
        made.setToolTip(action.toolTip())
        made.setEnabled(action.isEnabled())

    made.clicked.connect(action.trigger)
    action.changed.connect(follow)
    action.visibleChanged.connect(lambda: made.setVisible(action.isVisible()))
    follow()
    return made


class _Inked(QObject):
    """Gives an action or a button its icon anew when the theme changes; ends with it."""

    def __init__(self, thing: QAction | QAbstractButton, name: str):
        super().__init__(thing)
        self._thing, self._name = thing, name
        theme.notifier().changed.connect(self.on_theme_changed)
        self.on_theme_changed()

    def on_theme_changed(self) -> None:
        """Another colour."""
        self._thing.setIcon(icons.icon(self._name))


def _filled(layout: L, parts: tuple[Part, ...], margins: Margins | None) -> L:
    if margins is not None:
        layout.setContentsMargins(*margins)
    for part in parts:
        thing, stretch = part if isinstance(part, tuple) else (part, 0)
        if isinstance(thing, QWidget):
            layout.addWidget(thing, stretch)
        elif isinstance(thing, QLayout):
            layout.addLayout(thing, stretch)
        elif thing is None:
            layout.addStretch(1)
        else:
            layout.addSpacing(thing)
    return layout
