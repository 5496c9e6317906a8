"""All gradients of a training in one tensor, and parameters joined for elementwise optimizers.

One all-reduce, one norm, one clipping; and a handful of optimizer calls instead of thousands: bitsandbytes waits for
the device after each tensor.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

ALIGNED = 64
"""Tensors begin at multiples of this many elements: matrix products need aligned memory."""

SMALL = 4096
"""Tensors with fewer elements keep their optimizer state in float32 where others are kept in 8 bits (bitsandbytes)."""


@dataclass(frozen=True)
class _Place:
    """Parameters that are one to the optimizer."""

    members: list[nn.Parameter]
    joined: nn.Parameter
    gradient: Tensor
    """Of `joined`: a slice of all gradients."""


class Flat:
    """The trainable parameters: `groups` for the optimizer, and `gradients`, all of them.

    `block` 0: the optimizer gets each parameter. 1: those of a group joined. More: the same, but each begins at a
    multiple of it, and small ones are joined apart, as `exact`. Parameters keep their identity; their storage moves.
    """

    def __init__(self, groups: list[dict[str, Any]], block: int):
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        parts = [(group, part) for group in groups for part in _parts(group["params"], block)]
        starts = [_starts(part, max(block, ALIGNED)) for _, part in parts]
        first = self.parameters[0]
        total = sum(places[-1] for places in starts)
        self.gradients = torch.zeros(total, dtype=first.dtype, device=first.device)
        self._views: dict[nn.Parameter, Tensor] = {}
        self._joined: list[_Place] = []
        self.groups = [{**group, "params": []} for group in groups]
        self.exact: list[nn.Parameter] = []
        into = {id(group): own for group, own in zip(groups, self.groups, strict=True)}
        begin = 0
        for (group, part), places in zip(parts, starts, strict=True):
            gradient = self.gradients[begin : begin + places[-1]]
            begin += places[-1]
            self._views |= {p: gradient[at : at + p.numel()].view(p.shape) for p, at in zip(part, places, strict=False)}
            seen = [self._join(part, places, gradient)] if block else part
            into[id(group)]["params"] += seen
            if block > 1 and part[0].numel() < SMALL:
                self.exact += seen

    def _join(self, part: list[nn.Parameter], places: list[int], gradient: Tensor) -> nn.Parameter:
        joined = nn.Parameter(torch.zeros_like(gradient))
        for parameter, at in zip(part, places, strict=False):
            view = joined.data[at : at + parameter.numel()].view(parameter.shape)
            view.copy_(parameter.data)
            parameter.data = view
        self._joined.append(_Place(part, joined, gradient))
        return joined

    def clear(self) -> None:
        """Clear all gradients: backward passes make new ones."""
        for parameter in [*self.parameters, *(place.joined for place in self._joined)]:
            parameter.grad = None

    def collect(self) -> None:
        """Copy the backward passes' gradients into `gradients`; zero where there are none. Parameters that require none
        (of a group all or none do) keep none, so that the optimizer passes over them."""
        with torch.no_grad():
            found = [(view, p.grad) for p, view in self._views.items() if p.grad is not None]
            for view in (view for p, view in self._views.items() if p.grad is None):
                view.zero_()
            if found:
                torch._foreach_copy_([view for view, _ in found], [grad for _, grad in found])
        for parameter, view in self._views.items():
            parameter.grad = view if parameter.requires_grad else None
        for place in self._joined:
            place.joined.grad = place.gradient if place.members[0].requires_grad else None

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients down to this norm; 0: not at all. Their norm before `()`."""
        norm = torch.linalg.vector_norm(self.gradients)
        if max_norm:
            self.gradients.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def seen(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """The optimizer's parameters for these. Joined ones must be given together."""
        wanted = set(parameters)
        found = [place for place in self._joined if wanted & set(place.members)]
        for place in found:
            assert wanted >= set(place.members), "joined parameters can only be reset together"
        inside = {member for place in found for member in place.members}
        return [place.joined for place in found] + [p for p in parameters if p not in inside]


def _parts(parameters: list[nn.Parameter], block: int) -> list[list[nn.Parameter]]:
    """Parameters to be joined, in their order."""
    if block <= 1:
        return [parameters]
    large = [p for p in parameters if p.numel() >= SMALL]
    small = [p for p in parameters if p.numel() < SMALL]
    return [part for part in (large, small) if part]


def _starts(parameters: list[nn.Parameter], step: int) -> list[int]:
    """Where each begins, at multiples of `step`; the last value is the total size."""
    places = [0]
    for parameter in parameters:
        places.append(places[-1] + -(-parameter.numel() // step) * step)
    return places


def build(options: Any, groups: list[dict], lr: float) -> tuple[Flat, Optimizer]:
    """The optimizer of the preset's `options` over `groups` (see `optimizers.Options`), and their flat gradients."""
    flat = Flat(groups, options.block)
    for parameter in flat.exact:
        _keep_32_bits(parameter)
    return flat, options.build(flat.groups, lr)


def _keep_32_bits(parameter: nn.Parameter) -> None:
    """Register it with bitsandbytes for the parameter's lifetime: bitsandbytes identifies it by address."""
    from bitsandbytes.optim import GlobalOptimManager

    known = GlobalOptimManager.get_instance()
    known.override_config(parameter, "optim_bits", 32)
    weakref.finalize(parameter, known.pid2config.pop, id(parameter), None)
