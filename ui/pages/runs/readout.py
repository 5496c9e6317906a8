"""The values under the mouse in a plot, as a tooltip."""

from collections.abc import Sequence
from html import escape

from PySide6.QtGui import QColor

NAME = 20
"""Letters of a run's name."""

Row = tuple[str, QColor, Sequence[tuple[str, float]]]
"""A run: its name, its colour, its values by the curve's name."""


def readout(title: str, table: Sequence[Row], lower: str) -> str:
    """A tooltip. One run: all its values, one a line. Several: a line each, with the curves that are drawn."""
    rows = _one(table[0][2]) if len(table) == 1 else _several(table, ("Smoothed", "Validation", lower))
    return f"<b>{title}</b><table cellspacing='0' cellpadding='1'>{rows}</table>"


def value_text(value: float) -> str:
    """Four digits are enough to compare."""
    return f"{value:.4g}" if value == value else "–"


def short(name: str) -> str:
    """A name that leaves room for numbers."""
    return name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[-NAME // 2 + 1 :]}"


def _one(values: Sequence[tuple[str, float]]) -> str:
    return "".join(_cells(f"<td>{escape(name)}&nbsp;&nbsp;</td>", [value]) for name, value in values)


def _several(table: Sequence[Row], names: Sequence[str]) -> str:
    head = "".join(f"<td align='right'>&nbsp;&nbsp;{escape(name)}</td>" for name in names)
    lines = [f"<tr><td></td>{head}</tr>"]
    for run, color, values in table:
        found = dict(values)
        start = f"<td><span style='color:{color.name()}'>■</span>&nbsp;{escape(short(run))}</td>"
        lines.append(_cells(start, [found.get(name, float("nan")) for name in names]))
    return "".join(lines)


def _cells(start: str, values: Sequence[float]) -> str:
    return f"<tr>{start}" + "".join(f"<td align='right'>&nbsp;&nbsp;{value_text(one)}</td>" for one in values) + "</tr>"
