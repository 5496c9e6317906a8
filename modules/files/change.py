"""The change of one layer, from any file or training: its terms, and the adapted weight."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files import forms, keys, kinds, rows
from modules.files.forms import Seen


@dataclass(frozen=True)
class Block:
    """Some rows of a layer, or all: before and after, in the layer's own shape, float32 or float64."""

    start: int
    stop: int
    W: Tensor
    adapted: Tensor


class Change:
    """What is done to one layer."""

    def __init__(
        self, layer: Layer, terms: Terms | Callable[[], Terms], given: dict[str, Tensor] | None = None,
        weight: Callable[[], Tensor] | None = None,
    ):
        """`layer`: its `dense()` is the base weight. `terms`, or a function that computes them. `given`: a file's
        tensors by suffix with the same meaning; written unchanged if the program reads them exactly. `weight`: the
        adapted weight in the layer's own shape, if something other than the terms defines it."""
        self.layer, self.given, self.weight = layer, given, weight
        self._terms = terms

    @property
    def terms(self) -> Terms:
        """May be recomputed at each access."""
        return self._terms() if callable(self._terms) else self._terms

    def adapted(self) -> Tensor:
        """The adapted weight in the layer's own shape, float32 or float64."""
        if self.weight is not None:
            return self.weight()
        return self.layer.native(forms.applied(self.terms, self.layer, self.layer.dense()))

    def base(self) -> Tensor:
        """The base weight in the layer's own shape, float32."""
        return self.layer.native(self.layer.dense()).float()

    def blocks(self) -> Iterator[Block]:
        """The layer in blocks of rows, if these are independent; else one block with all rows."""
        terms = self.terms
        if not self.is_pair(terms):
            yield Block(0, self.layer.out_features, self.base(), self.adapted())
            return
        for start, stop in rows.blocks(self.layer):
            W = rows.dense(self.layer, start, stop)
            adapted = forms.applied(forms.of_rows(terms, start, stop), self.layer, W)
            yield Block(start, stop, self.layer.native(W).float(), self.layer.native(adapted))

    def seen(self, values: bool = True) -> Seen:
        """The layer as programs see it; a change without effect is left out. Without `values` the weight of a plain
        pair, which the pair does not depend on, is left on the meta device."""
        terms = self.terms
        if not values and self._pair(terms) and not _does_nothing(terms):
            return forms.seen(self.layer, torch.empty(self.layer.out_features, self.layer.fan_in, device="meta"), terms)
        W = self.layer.dense()
        view = forms.seen(self.layer, W, terms)
        if not W.is_meta and torch.equal(view.adapted(), view.W):
            return replace(view, terms=Terms(bias=terms.bias))
        return view

    def is_pair(self, terms: Terms) -> bool:
        """Whether its `terms` are a plain pair and define it completely, so that each row can be computed
        independently."""
        return self.weight is None and self._pair(terms)

    def _pair(self, terms: Terms) -> bool:
        return self.layer.kind != "embedding" and forms.is_pair(terms)


def parts(change: Change, tensors: dict[str, Tensor]) -> Iterator[tuple[Block, dict[str, Tensor]]]:
    """A layer's weights and a file's tensors for them (by suffix), in blocks of rows where both are plain pairs."""
    if not kinds.is_pair(tensors) or change.layer.kind == "embedding":  # whose rows are the tokens
        yield Block(0, change.layer.out_features, change.base(), change.adapted()), tensors
        return
    wide = {suffix: keys.precise(tensor) for suffix, tensor in tensors.items()}  # once, not for each block
    for block in change.blocks():
        yield block, kinds.of_rows(wide, block.start, block.stop)


def _does_nothing(terms: Terms) -> bool:
    """Whether all components of a plain pair are zero."""
    if terms.up is None or terms.down is None or terms.up.is_meta:
        return False
    return not bool((terms.up.any(0) & terms.down.any(1)).any())
