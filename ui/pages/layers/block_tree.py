"""The layers that take an adapter, grouped by their block of the network, as a tree of two levels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QAbstractItemModel, QModelIndex, QPersistentModelIndex, Qt

from ui.core import words

COLUMNS = ("Layer", "Kind", "Shape", "Parameters")
NUMBERS = 3
"""The column with numbers, to the right."""

Index = QModelIndex | QPersistentModelIndex
Layer = Mapping[str, Any]
"""name, kind, out_features, channels, kernel, parameters"""

TOP = 0
"""Internal id of blocks; that of a layer is the row of its block plus one."""


@dataclass(frozen=True)
class Block:
    """Layers that belong together."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """Of all its layers."""
        return sum(layer["parameters"] for layer in self.layers)


class LayerModel(QAbstractItemModel):
    """Blocks, and in each its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[Block] = []

    def set_layers(self, layers: Sequence[Layer], text: str) -> None:
        """Show the layers whose names have all words of `text`."""
        sought = text.lower().split()
        groups: dict[str, list[Layer]] = {}
        for layer in layers:
            if all(word in f"{layer['name']} {layer['kind']}".lower() for word in sought):
                groups.setdefault(block_of(layer["name"]), []).append(layer)
        self.beginResetModel()
        self.blocks = [Block(name, tuple(found)) for name, found in groups.items()]
        self.endResetModel()

    def block_at(self, index: Index) -> Block:
        """The block of a row, or that the row's layer is in."""
        return self.blocks[index.row() if index.internalId() == TOP else index.internalId() - 1]

    def layer_at(self, index: Index) -> Layer | None:
        """The layer of a row; None for a block."""
        return None if index.internalId() == TOP else self.block_at(index).layers[index.row()]

    def index(self, row: int, column: int, parent: Index = QModelIndex()) -> QModelIndex:  # noqa: B008
        """Qt."""
        if not self.hasIndex(row, column, parent):
            return QModelIndex()
        return self.createIndex(row, column, parent.row() + 1 if parent.isValid() else TOP)

    def parent(self, index: Index) -> QModelIndex:  # type: ignore[override]
        """Qt."""
        if not index.isValid() or index.internalId() == TOP:
            return QModelIndex()
        return self.createIndex(index.internalId() - 1, 0, TOP)

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        """Qt."""
        if not parent.isValid():
            return len(self.blocks)
        return len(self.block_at(parent).layers) if parent.internalId() == TOP and parent.column() == 0 else 0

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        """Qt."""
        return len(COLUMNS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Qt."""
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return COLUMNS[section]
        if role == Qt.ItemDataRole.TextAlignmentRole and section == NUMBERS:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        return None

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Qt."""
        if not index.isValid():
            return None
        block, layer = self.block_at(index), self.layer_at(index)
        if role == Qt.ItemDataRole.DisplayRole:
            return block_words(block)[index.column()] if layer is None else layer_words(layer, block)[index.column()]
        if role == Qt.ItemDataRole.ToolTipRole:
            return block.name if layer is None else layer["name"]
        if role == Qt.ItemDataRole.TextAlignmentRole and index.column() == NUMBERS:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        return None


def block_of(name: str) -> str:
    """The block of a layer: its name up to the first number, or without its last part if there is none.

    `unet.down_blocks.1.attentions.0.proj_in` is in `unet.down_blocks.1`, `unet.conv_in` in `unet`.
    """
    parts = name.split(".")
    end = next((place + 1 for place, part in enumerate(parts[:-1]) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[:end])


def block_words(block: Block) -> tuple[str, str, str, str]:
    """The columns of a block."""
    return block.name, words.plural(len(block.layers), "layer"), "", words.count(block.parameters)


def layer_words(layer: Layer, block: Block) -> tuple[str, str, str, str]:
    """The columns of a layer."""
    shape = f"{layer['out_features']} × {layer['channels']}"
    if layer["kernel"] > 1:
        shape += f" × {layer['kernel']}"
    return layer["name"].removeprefix(block.name + "."), layer["kind"], shape, words.count(layer["parameters"])
