"""The training adapter (base.training_adapter): a LoRA that belongs to the base while it is trained, and only then.

A distilled base that is trained directly loses what the distillation gave it. Such a LoRA takes the distillation back
for the time of the training: it is active in steps, validation and prior prediction, and not in samples and exports.

Its change is added to the output of each of its layers, adapted or not. So norms, rotations, magnitudes and initial
values see the base weight alone, and the adapted layer minus its change is the layer with the exported file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from modules import quant
from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files import forms, kinds, opening, reading
from modules.files.reading import Placed, listed
from modules.preset.schema import Preset
from modules.training import layer_options, setup

Result = TypeVar("Result")

OPTION = "base.training_adapter"

UNTRAINED = (
    f"the base is distilled to few steps: trained as it is, it loses that; give {OPTION} with a LoRA that takes the "
    "distillation back while it is trained, or the model that it was distilled from as base.path"
)
"""A note."""


class Beside(nn.Module):
    """A layer, adapted or not, whose output has a frozen low-rank change of it added.

    Not a forward hook: torch's compiler does not notice that a block has one and another block of its kind has none.
    """

    def __init__(self, inner: nn.Module, layer: Layer, up: Tensor, down: Tensor):
        """`up (out, r)` with every scale, `down (r, fan_in)`, both as `layer` has them."""
        super().__init__()
        self.inner, self.layer = inner, layer
        self.up: Tensor
        self.down: Tensor
        self.register_buffer("up", up, persistent=False)
        self.register_buffer("down", down, persistent=False)
        self.train(inner.training)

    def forward(self, x: Any) -> Tensor:
        """The layer's output and the change's."""
        y = self.inner(x)
        return y + self.layer.expand(self.layer.project(x, self.down), self.up).to(y.dtype)

    def __getattr__(self, name: str) -> Any:
        # Networks read `.weight.dtype`, `.in_features` and the like of their layers; the layer answers.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


@dataclass(frozen=True)
class Spot:
    """Where one of them is."""

    parent: nn.Module
    attribute: str
    beside: Beside


@dataclass(frozen=True)
class TrainingAdapter:
    """A training adapter on the networks of a training; without spots there is none."""

    spots: list[Spot] = field(default_factory=list)

    def _set(self, active: bool) -> None:
        for spot in self.spots:
            setattr(spot.parent, spot.attribute, spot.beside if active else spot.beside.inner)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the networks have only their layers and adapters, as before `add`."""
        self._set(False)
        try:
            yield
        finally:
            self._set(True)


def look(preset: Preset, model: Any) -> list[str]:
    """What is wrong with the file, in sentences. `model` may be on the meta device; call it before adapters are
    attached."""
    try:
        _each(preset, model, lambda placed: placed.terms_for(torch.zeros(())))
    except (ValueError, OSError) as error:
        return [f"{OPTION}: {error}"]
    return []


def read(preset: Preset, model: Any) -> dict[str, tuple[Layer, Terms]]:
    """The changes of the file by full layer name, in the dtype and on the device of the layers; empty without a file.
    Call it when the base is on its device, and before adapters are attached. Raises ValueError naming the option."""
    try:
        found = _each(preset, model, Placed.changes)
    except (ValueError, OSError) as error:
        raise ValueError(f"{OPTION}: {error}") from error
    return {name: (change.layer, _stored(change.terms, change.layer))
            for changes in found for name, change in changes.items()}


def add(changes: Mapping[str, tuple[Layer, Terms]], model: Any) -> TrainingAdapter:
    """Put the changes beside the layers of the model, in place. Call it after adapters are attached."""
    network, spots = setup.whole(model), []
    for name, (layer, terms) in changes.items():
        assert terms.up is not None and terms.down is not None
        parent, attribute = network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        beside = Beside(network.get_submodule(name), layer, terms.up, terms.down)
        setattr(parent, attribute, beside)
        spots.append(Spot(parent, attribute, beside))
    return TrainingAdapter(spots)


def _each(preset: Preset, model: Any, make: Callable[[Placed], Result]) -> list[Result]:
    """`make` of each name in the file, nothing without a file. Raises ValueError naming the file, and OSError."""
    if not preset.base.training_adapter:
        return []
    file = opening.read(Path(preset.base.training_adapter))
    found = reading.place(file, model)
    wrong = [*found.left_out(), *_strangers(found.placed, model)]
    if not wrong and not found.placed:
        wrong = ["it changes no layer of this base"]
    try:
        if wrong:
            raise ValueError("; ".join(wrong))
        with torch.no_grad():
            if found.placed and all(_is_zero(placed) for placed in found.placed):
                raise ValueError("all its changes are zero (an alpha of 0, or matrices of zeros), so it does nothing")
            return [make(placed) for placed in found.placed]
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def _is_zero(placed: Placed) -> bool:
    """Whether the pair changes nothing."""
    terms = placed.terms_for(torch.zeros(()))
    assert terms.up is not None and terms.down is not None
    return not (terms.up.any() and terms.down.any())


def _strangers(placed: Iterable[Placed], model: Any) -> list[str]:
    """What a training adapter cannot have, in sentences."""
    texts, others = [], dict[str, list[str]]()
    for one in placed:
        if not layer_options.in_denoiser(model, one.members[0][0].name):
            texts.append(one.name)
        elif not kinds.is_pair(one.parts) or kinds.has_bias(one.parts):
            others.setdefault(kinds.words(one.parts), []).append(one.name)
    found = [f"{listed(names)}: {what}, but a training adapter is a plain LoRA, without magnitudes, biases and norms"
             for what, names in others.items()]
    if texts:
        found.append(f"{listed(texts)}: text encoders, but a training adapter changes the denoiser alone")
    return found


def _stored(terms: Terms, layer: Layer) -> Terms:
    """A pair as it is kept in memory."""
    assert forms.is_pair(terms) and terms.up is not None and terms.down is not None
    to = {"dtype": quant.dtype_of(layer.base), "device": quant.device_of(layer.base)}
    return Terms(up=terms.up.to(**to).contiguous(), down=terms.down.to(**to).contiguous())

