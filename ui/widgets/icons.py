"""The window's icons, drawn in the theme's text colour."""

from functools import cache

from PySide6.QtGui import QColor, QIcon, QPixmap

from ui.widgets import theme

SIZES = (16, 20, 24, 32, 48)

SHAPES = {
    "add": "M12 5v14M5 12h14",
    "box": "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
    "changes": "M7 4v12M3.5 7.5L7 4l3.5 3.5M17 20V8M13.5 16.5L17 20l3.5-3.5",
    "chart": "M4 4v16h16M7 15l4-5 3 3 5-7",
    "clock": "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M12 7v5l3.5 2",
    "copy": "M9 9h11v11H9zM5 15H4V4h11v1",
    "delete": "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
    "down": "M6 9l6 6 6-6",
    "edit": "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
    "error": "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M9 9l6 6M15 9l-6 6",
    "export": "M12 15V3M7.5 7.5L12 3l4.5 4.5M4 14v6h16v-6",
    "file": "M6 3h8l4 4v14H6zM14 3v4h4",
    "folder": "M3 6h6l2 2h10v11H3z",
    "gauge": "M4 18a9 9 0 1 1 16 0M12 14l4-5",
    "layers": "M12 3l9 5-9 5-9-5zM3 12.5l9 5 9-5M3 16.5l9 5 9-5",
    "left": "M15 6l-6 6 6 6",
    "list": "M9 6h11M9 12h11M9 18h11M4 6h1M4 12h1M4 18h1",
    "next": "M5 5l8 7-8 7zM17 5v14",
    "ok": "M5 12.5l4.5 4.5L19 7.5",
    "open": "M14 4h6v6M20 4l-9 9M18 14v6H4V6h6",
    "picture": "M3 5h18v14H3zM3 16l5-5 4 4 3-3 6 5M15.5 9h.5",
    "play": "M7 4l13 8-13 8z",
    "redo": "M15 4l5 5-5 5M20 9H9a5 5 0 0 0 0 10h4",
    "refresh": "M20 5v5h-5M4 19v-5h5M19.5 10A8 8 0 0 0 5 8M4.5 14A8 8 0 0 0 19 16",
    "remove": "M6 6l12 12M18 6L6 18",
    "reset": "M4 5v5h5M4.5 10A8 8 0 1 1 5 15",
    "right": "M9 6l6 6-6 6",
    "save": "M4 4h13l3 3v13H4zM8 4v5h8V4M7 20v-7h10v7",
    "search": "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13M15.5 15.5L21 21",
    "sliders": "M5 4v6M5 14v6M12 4v3M12 11v9M19 4v9M19 17v3M3 12h4M10 9h4M17 15h4",
    "stop": "M6 6h12v12H6z",
    "target": "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6M12 1v4M12 19v4M1 12h4M19 12h4",
    "undo": "M9 4L4 9l5 5M4 9h11a5 5 0 0 1 0 10h-4",
    "up": "M6 15l6-6 6 6",
    "warning": "M12 4l9.5 16h-19zM12 10v5M12 17.5v.5",
}
"""Paths on a sheet of 24 x 24."""


def icon(name: str, color: QColor | None = None) -> QIcon:
    """The icon of this name in the theme's text colour, or in `color`."""
    return _drawn(name, (color or theme.colors().text).name(), theme.colors().muted.name())


@cache
def _drawn(name: str, color: str, disabled: str) -> QIcon:
    icon = QIcon()
    for mode, ink, opacity in (
        (QIcon.Mode.Normal, color, 1), (QIcon.Mode.Selected, color, 1), (QIcon.Mode.Disabled, disabled, 0.45)
    ):  # fmt: skip
        for side in SIZES:
            pixmap = QPixmap()
            pixmap.loadFromData(_sheet(name, ink, side, opacity).encode(), "SVG")
            icon.addPixmap(pixmap, mode)
    return icon


def _sheet(name: str, ink: str, side: int, opacity: float) -> str:
    """The icon as SVG, `side` pixels wide and high, drawn in the colour `ink`."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{side}" height="{side}" viewBox="0 0 24 24" fill="none" '
        f'opacity="{opacity}" stroke="{ink}" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round">'
        f'<path d="{SHAPES[name]}"/></svg>'
    )
