"""What is done to one layer, of whoever's file or training: the terms, and the weight that they make."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files import forms
from modules.files.forms import Seen


@dataclass
class Change:
    """What is done to one layer."""

    layer: Layer
    """Its `dense()` is the base weight."""
    terms: Terms
    given: dict[str, Tensor] | None = None
    """A file's tensors by suffix with the same meaning; written as they are where the program reads them exactly."""
    weight: Callable[[], Tensor] | None = None
    """The adapted weight in the layer's own shape, where something else than the terms defines it."""

    def adapted(self) -> Tensor:
        """The adapted weight in the layer's own shape, float32 or float64."""
        if self.weight is not None:
            return self.weight()
        return self.layer.native(forms.applied(self.terms, self.layer, self.layer.dense()))

    def base(self) -> Tensor:
        """The base weight in the layer's own shape, float32."""
        return self.layer.native(self.layer.dense()).float()

    def seen(self) -> Seen:
        """The layer as programs see it; a change that does nothing is no change."""
        W = self.layer.dense()
        view = forms.seen(self.layer, W, self.terms)
        if not W.is_meta and torch.equal(view.adapted(), view.W):
            return replace(view, terms=Terms(bias=self.terms.bias))
        return view
