"""A micro-batch as the denoiser gets it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from modules.families.base import Caption, Texts


@dataclass(frozen=True)
class Prepared:
    """Inputs and targets of the denoiser for `n` samples, on the CPU or on the device."""

    noisy: Tensor
    """`(n, c, h, w)` float32: noised latents."""
    wanted: Tensor
    """`(n, c, h, w)` float32: what is to be predicted."""
    times: Tensor
    """`(n)` float64, as the model's process has them."""
    sizes: Tensor
    """`(n, 6)` float32, see `pictures.sizes_of`."""
    captions: tuple[Caption, ...]
    texts: Texts | None
    """Conditions of the captions from the cache; None where text encoders compute them in each step."""
    weights: Tensor | None = None
    """`(n)` float32: of the samples' errors; None: all 1."""
    parts: Tensor | None = None
    """`(n, 1, h, w)` float64: weights inside of the samples, from their masks; None: all 1."""
    prior: tuple[int, ...] = ()
    """The samples whose target is what the frozen base predicts, instead of `wanted`."""
    base_too: bool = False
    """Whether another process has such samples in this batch."""
    deltas: Tensor | None = None
    """`(n)` float64: thresholds of the loss; None: the same for all."""
    positions: tuple[int, ...] = ()
    """The samples' indices in the whole run; () outside of training steps."""
    references: tuple[Tensor, ...] = ()
    """Latents `(n, c, h', w')` of each reference picture."""

    def to(self, device: torch.device) -> "Prepared":
        """The same on the device, copied asynchronously."""
        return self._map(partial(Tensor.to, device=device, non_blocking=True))

    def pinned(self) -> "Prepared":
        """The same in pinned memory: from pageable memory a copy waits for all work before it."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Prepared":
        return replace(
            self,
            noisy=change(self.noisy),
            wanted=change(self.wanted),
            times=change(self.times),
            sizes=change(self.sizes),
            texts=None if self.texts is None else {name: change(tensor) for name, tensor in self.texts.items()},
            weights=None if self.weights is None else change(self.weights),
            parts=None if self.parts is None else change(self.parts),
            deltas=None if self.deltas is None else change(self.deltas),
            references=tuple(map(change, self.references)),
        )
