"""Colours and style, dark and light."""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtGui import QColor, QFontInfo, QGuiApplication, QPalette
from PySide6.QtWidgets import QApplication, QStyleFactory, QWidget

TITLE = 1.75
"""Size of a page's title, in that of other text."""

FRAMED = ("QCheckBox", "QComboBox", "QAbstractSpinBox", "QAbstractItemView")
"""Kinds of widgets whose frames Fusion draws."""

SCHEMES = {"system": Qt.ColorScheme.Unknown, "light": Qt.ColorScheme.Light, "dark": Qt.ColorScheme.Dark}


@dataclass(frozen=True)
class Colors:
    """The colours of one theme."""

    window: QColor
    surface: QColor
    """Of what text is typed into, lists and plots."""
    raised: QColor
    """Of buttons, and of what lies on the window."""
    border: QColor
    text: QColor
    muted: QColor
    accent: QColor
    accent_text: QColor
    """On the accent."""
    good: QColor
    warning: QColor
    bad: QColor
    modified: QColor
    """Marks what differs from the preset."""
    series: tuple[QColor, ...]
    """Of curves, on the surface."""


COLORS = {
    "window": ("#f4f5f7", "#1b1e24"),
    "surface": ("#ffffff", "#14171c"),
    "raised": ("#fbfbfc", "#252a32"),
    "border": ("#cfd4dc", "#3a414d"),
    "text": ("#1d2430", "#e4e8ee"),
    "muted": ("#5b6675", "#98a3b3"),
    "accent": ("#2f5fd0", "#5b8cff"),
    "accent_text": ("#ffffff", "#0b1220"),
    "good": ("#1b7f4c", "#58c48a"),
    "warning": ("#8f5b00", "#e0a93f"),
    "bad": ("#bb2a2a", "#ff7b72"),
    "modified": ("#b86e00", "#f0a33c"),
}
"""On light and on dark."""

SERIES = (
    "#2f5fd0 #c2570c #1b7f4c #8b3fc0 #b3261e #0e7490 #7a5c00 #be2f83",
    "#6f9bff #ff9e57 #5fd093 #c78bff #ff7b72 #45c8dc #d9bd4a #ff85c2",
)

LIGHT, DARK = (
    Colors(
        **{name: QColor(both[theme]) for name, both in COLORS.items()},
        series=tuple(map(QColor, SERIES[theme].split())),
    )
    for theme in (0, 1)
)


class Notifier(QObject):
    """Says when the colours are others."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.mode = "system"
        QGuiApplication.styleHints().colorSchemeChanged.connect(self.on_scheme_changed)

    def on_scheme_changed(self) -> None:
        """Give the whole program the colours of the scheme that the system, or the user, has chosen."""
        app = QApplication.instance()
        assert isinstance(app, QApplication)
        app.setPalette(palette(colors()))
        for kind in FRAMED:
            app.setPalette(framed(colors()), kind)  # pyright: ignore[reportArgumentType]  a text is what it takes
        app.setStyleSheet(style_sheet(colors()))
        self.changed.emit()


@cache
def notifier() -> Notifier:
    """The one that says it."""
    return Notifier()


def is_dark() -> bool:
    """Whether the dark theme is shown."""
    mode = notifier().mode  # not every platform does what setColorScheme asks
    if mode == "system":
        return QGuiApplication.styleHints().colorScheme() == Qt.ColorScheme.Dark
    return mode == "dark"


def colors() -> Colors:
    """The colours of the theme that is shown."""
    return DARK if is_dark() else LIGHT


def apply(app: QApplication, mode: str) -> None:
    """Show the theme `system`, `light` or `dark`, from now on and when the system's changes."""
    if app.style().name() != "fusion":
        app.setStyle(QStyleFactory.create("Fusion"))
    notifier().mode = mode
    QGuiApplication.styleHints().setColorScheme(SCHEMES[mode])
    notifier().on_scheme_changed()


def set_role(widget: QWidget, role: str) -> None:
    """Give a widget one of the roles that the style sheet knows: title, heading, muted, problem, note, primary ..."""
    set_look(widget, "role", role)


def set_look(widget: QWidget, name: str, value: Any) -> None:
    """Give a widget a property that rules of the style sheet are about."""
    if widget.property(name) != value:
        widget.setProperty(name, value)
        widget.style().unpolish(widget)
        widget.style().polish(widget)


def palette(c: Colors) -> QPalette:
    """The colours in Qt's roles."""
    role, disabled = QPalette.ColorRole, QPalette.ColorGroup.Disabled
    result = QPalette(c.raised, c.window)
    for color, *names in (
        (c.text, role.WindowText, role.Text, role.ButtonText, role.ToolTipText),
        (c.bad, role.BrightText),
        (c.surface, role.Base),
        (c.window, role.AlternateBase, role.Window),
        (c.raised, role.Button, role.ToolTipBase),
        (c.border, role.Mid, role.Dark),
        (c.accent, role.Highlight, role.Accent, role.Link),
        (c.accent_text, role.HighlightedText),
        (c.muted, role.PlaceholderText),
    ):
        for name in names:
            result.setColor(name, color)
    for name in (role.WindowText, role.Text, role.ButtonText):
        result.setColor(disabled, name, c.muted)
    result.setColor(disabled, role.Highlight, c.border)
    return result


def framed(c: Colors) -> QPalette:
    """The same for `FRAMED`: Fusion draws their frames in the window's colour, darker, which does not show on dark."""
    result = palette(c)
    result.setColor(QPalette.ColorRole.Window, outline(c).lighter(140))
    return result


def outline(c: Colors) -> QColor:
    """Of what is typed into, picked or ticked: it has to be seen where a plain border may be faint."""
    return mixed(c.border, c.text, 0.35)


def mixed(a: QColor, b: QColor, share: float) -> QColor:
    """`a` with `share` of `b` in it."""
    return QColor.fromRgbF(*(x + (y - x) * share for x, y in zip(a.getRgbF()[:3], b.getRgbF()[:3], strict=True)))  # pyright: ignore


def style_sheet(c: Colors) -> str:
    """The rules that the palette cannot say."""
    names = {field.name: value.name() for field in fields(c) if isinstance(value := c.__dict__[field.name], QColor)}
    names |= {
        "outline": outline(c).name(),
        "hover": mixed(c.raised, c.text, 0.06).name(),
        "pressed": mixed(c.raised, c.text, 0.12).name(),
        "selected": mixed(c.window, c.accent, 0.18).name(),
        "accent_hover": mixed(c.accent, c.text, 0.12).name(),
    }
    names["title"] = f"{QFontInfo(QGuiApplication.font()).pointSizeF() * TITLE:.1f}pt"
    rules = RULES
    for name in sorted(names, key=len, reverse=True):
        rules = rules.replace(f"@{name}", names[name])
    return rules


RULES = """
QLabel[role="title"] { font-size: @title; font-weight: 600; }
QLabel[role="heading"] { font-weight: 600; }
QLabel[role="muted"] { color: @muted; }
QLabel[role="problem"] { color: @bad; }
QLabel[role="note"] { color: @warning; }
QLabel[role="good"] { color: @good; }
QLabel[role="mono"], QPlainTextEdit[role="mono"] { font-family: monospace; }

QLineEdit, QPlainTextEdit, QTextEdit { border: 1px solid @outline; border-radius: 4px; padding: 3px 6px; }
QLineEdit:focus, QPlainTextEdit:focus, QTextEdit:focus { border-color: @accent; }
QLineEdit:disabled { background: @window; border-color: @border; }
QLineEdit[invalid="true"], QComboBox[invalid="true"] { border: 1px solid @bad; border-radius: 4px; padding: 3px 6px; }

QPushButton, QToolButton { background: @raised; border: 1px solid @outline; border-radius: 4px; padding: 4px 10px; }
QToolButton { padding: 4px 6px; }
QPushButton:hover, QToolButton:hover { background: @hover; }
QPushButton:pressed, QToolButton:pressed, QToolButton:checked { background: @pressed; }
QPushButton:focus, QToolButton:focus { border-color: @accent; }
QPushButton:disabled, QToolButton:disabled { color: @muted; border-color: @border; background: transparent; }
QPushButton[role="primary"] { background: @accent; border-color: @accent; color: @accent_text; font-weight: 600; }
QPushButton[role="primary"]:hover { background: @accent_hover; }
QPushButton[role="primary"]:disabled { background: @border; border-color: @border; color: @muted; }
QPushButton[role="primary"]:focus { border-color: @text; }
QPushButton[role="danger"] { color: @bad; }
QPushButton[role="flat"], QToolButton[role="flat"] { background: transparent; border-color: transparent; padding: 2px; }
QPushButton[role="flat"]:hover, QToolButton[role="flat"]:hover { background: @hover; }
QPushButton[role="flat"]:focus, QToolButton[role="flat"]:focus { border-color: @accent; }

QListView, QTreeView, QTableView, QScrollArea { border: 1px solid @border; border-radius: 4px; }
QScrollArea[frameShape="0"], QListView[frameShape="0"], QTreeView[frameShape="0"] { border: none; }
QListView, QTreeView, QTableView { background: @surface; alternate-background-color: @window; }
QListView::item:selected, QTreeView::item:selected, QTableView::item:selected { background: @selected; color: @text; }
QListView::item:hover, QTreeView::item:hover { background: @hover; }
QAbstractItemView QLineEdit { border: none; border-radius: 0; padding: 0 2px; }
QListView:focus, QTreeView:focus, QTableView:focus { border-color: @accent; }
QListView[invalid="true"], QTableView[invalid="true"] { border-color: @bad; }

QFrame[role="bar"] { background: @raised; border: none; border-bottom: 1px solid @border; }
QFrame[role="foot"] { background: @raised; border: none; border-top: 1px solid @border; }
QFrame[role="banner"] { background: @selected; border: none; border-bottom: 1px solid @border; }
QFrame[role="table"] { background: @surface; border: 1px solid @border; border-radius: 4px; }
QFrame[role="table"][invalid="true"] { border-color: @bad; }
QListWidget[role="navigation"] { background: @window; border: none; border-right: 1px solid @border; border-radius: 0; }
QListWidget[role="navigation"]::item { padding: 4px 8px; border-radius: 4px; margin: 0 6px; }
QListWidget[role="navigation"]::item:disabled { color: @muted; }
"""
