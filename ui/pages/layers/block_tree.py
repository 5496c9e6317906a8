"""The layers that take an adapter, grouped by their block of the network, as a tree of two levels."""

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtGui import QStandardItem, QStandardItemModel

from ui.core import words

COLUMNS = ("Layer", "Kind", "Shape", "Parameters")
NUMBERS = 3
"""The column with numbers, to the right."""

Layer = Mapping[str, Any]
"""name, kind, out_features, channels, kernel, parameters"""

RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter


class LayerModel(QStandardItemModel):
    """Blocks, and in each its layers."""

    def __init__(self) -> None:
        super().__init__(0, len(COLUMNS))
        self.setHorizontalHeaderLabels(COLUMNS)
        self.horizontalHeaderItem(NUMBERS).setTextAlignment(RIGHT)

    def set_layers(self, layers: Sequence[Layer], text: str) -> None:
        """Show the layers whose names have all words of `text`."""
        sought = text.lower().split()
        groups: dict[str, list[Layer]] = {}
        for layer in layers:
            if all(word in f"{layer['name']} {layer['kind']}".lower() for word in sought):
                groups.setdefault(block_of(layer["name"]), []).append(layer)
        self.removeRows(0, self.rowCount())  # not `clear`, which takes the columns and their widths along
        for block, inside in groups.items():
            parameters = words.count(sum(layer["parameters"] for layer in inside))
            row = _row((block, words.plural(len(inside), "layer"), "", parameters), block)
            self.appendRow(row)
            for layer in inside:
                row[0].appendRow(_row(layer_words(layer, block), layer["name"]))


def _row(texts: Sequence[str], name: str) -> list[QStandardItem]:
    """A row of the tree; `name`, the whole one of its layer or block, is its tooltip."""
    items = [QStandardItem(text) for text in texts]
    items[NUMBERS].setTextAlignment(RIGHT)
    for item in items:
        item.setEditable(False)
        item.setToolTip(name)
    return items


def block_of(name: str) -> str:
    """The block of a layer: its name up to the first number, or without its last part if there is none.

    `unet.down_blocks.1.attentions.0.proj_in` is in `unet.down_blocks.1`, `unet.conv_in` in `unet`.
    """
    parts = name.split(".")
    end = next((place + 1 for place, part in enumerate(parts[:-1]) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[:end])


def layer_words(layer: Layer, block: str) -> tuple[str, str, str, str]:
    """The columns of a layer."""
    shape = f"{layer['out_features']} × {layer['channels']}"
    if layer["kernel"] > 1:
        shape += f" × {layer['kernel']}"
    return layer["name"].removeprefix(f"{block}."), layer["kind"], shape, words.count(layer["parameters"])
