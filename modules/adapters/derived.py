"""Tensors that depend on parameters only, computed once per optimizer step instead of once per forward.

1. `begin` derives them with a graph; each gets a detached twin that requires grad, the leaf. 2. Every forward (each
micro-batch, and again under gradient checkpointing) uses the leaves; gradients add up there. 3. `pull_back` propagates
the summed leaf gradients through the derive graph once.

This is the chain rule with parameters constant within a step, so it is exact. Leaves are persistent tensors that are
overwritten in place: new ones would make torch.compile recompile.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from modules.adapters.base import Adapted, Adapter


class Derived:
    """The derived tensors of all adapted layers of a training."""

    def __init__(self, adapted: Iterable[Adapted]):
        self.adapted = list(adapted)
        self._methods: dict[type[Adapter], list[Adapted]] = {}
        for module in self.adapted:
            self._methods.setdefault(type(module.adapter), []).append(module)
        self._graph: list[tuple[Tensor, Tensor]] = []

    def begin(self) -> None:
        """Derive from the current parameters. Call before the first forward of a step."""
        self._graph = []
        for leaf, tensor in self._overwrite():
            leaf.grad = None
            if tensor.requires_grad:
                self._graph.append((tensor, leaf))

    def pull_back(self) -> None:
        """Propagate the leaves' summed gradients to the parameters. Call after the last backward of a step, once."""
        used = [(tensor, leaf.grad) for tensor, leaf in self._graph if leaf.grad is not None]
        self._graph = []
        if used:
            torch.autograd.backward([tensor for tensor, _ in used], [grad for _, grad in used])

    def end(self) -> None:
        """Drop the leaves: every forward derives again."""
        self._graph = []
        for module in self.adapted:
            module.leaves = {}

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Leaves of the current parameters for any number of forwards without gradient (validation, samples)."""
        with torch.no_grad():
            self._overwrite()
            yield

    def _overwrite(self) -> list[tuple[Tensor, Tensor]]:
        """Derive, and set all leaves; returns them with their values."""
        pairs = []
        for method, members in self._methods.items():
            derived = method.derive_all([(module.adapter, module.layer) for module in members])
            for module, tensors in zip(members, derived, strict=True):
                for gone in module.leaves.keys() - tensors.keys():
                    del module.leaves[gone]
                pairs += [(_leaf(module.leaves, key, tensor), tensor) for key, tensor in tensors.items()]
        if pairs:
            with torch.no_grad():
                torch._foreach_copy_([leaf for leaf, _ in pairs], [tensor for _, tensor in pairs])
        return pairs


def _leaf(leaves: dict[str, Tensor], key: str, value: Tensor) -> Tensor:
    """The leaf for `value`, not yet set; the existing one if it fits."""
    kept = leaves.get(key)
    if kept is None or kept.shape != value.shape or kept.dtype != value.dtype or kept.device != value.device:
        kept = leaves[key] = torch.empty_like(value, requires_grad=True, memory_format=torch.contiguous_format)
    return kept
