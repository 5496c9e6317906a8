"""The interface of an adapter method (a `Config`, an `Adapter`), and `Adapted`, which replaces a base layer.

`weight` defines the method; `derive` and `forward` are its fast path and must agree with it. All else uses `weight`.
"""

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modules import quant
from modules.adapters.layers import Layer, as_layer
from modules.adapters.terms import Terms
from modules.preset.section import Section, option

GROUP = "Regularisation"
"""The group of options about dropout and the largest norm."""


class AdapterConfig(Section):
    """Options of a method. Each method's `Config` has `method: Literal["<its file name>"]`."""

    start_from: str = option("", why="training starts from scratch", group="Start", advanced=True, kind="file")
    """Continue from this adapter file, of any trainer, if the method and its options can represent it. Used only at the
    start: a resumed run continues from its own state."""

    skip_unknown: bool = option(
        False, why="nothing in the file is dropped silently", group="Start", advanced=True, needs=".start_from"
    )
    """Skip entries of the start_from file that change no trainable layer of this model: embeddings, norms, layers of
    another model. Off: they are an error."""

    step_size: Literal["calibrated", "raw"] = option(
        "calibrated", why="one learning rate then suits every method, rank and block size", advanced=True
    )
    """calibrated: one step of a sign-like optimizer (Adam, Lion) changes each layer's weight by about learning_rate
    times its norm. raw: parameters are scaled as in the method's publication. Exported files are exact either way."""

    def widened(self) -> "AdapterConfig":
        """The options of a layer's adapter whose rank may grow at the start: with the largest that it may get."""
        return self

    module_dropout: float = option(0.0, why="as in other trainers", group=GROUP, advanced=True, ge=0, lt=1)
    """Probability of leaving a layer without its adapter, drawn for each sample. Only in training steps."""

    @property
    def drops(self) -> bool:
        """Whether anything is dropped in training steps."""
        return self.module_dropout > 0

    @property
    def limits_norm(self) -> bool:
        """Whether parameters are scaled down after each step."""
        return False

    @property
    def pool(self) -> str | None:
        """The folder of finished adapters that a method starts from, its option `folder`; None: it has no such
        option."""
        return None


class Adapter(nn.Module):
    """Base of the methods' adapters: parameters and small frozen buffers of one layer's update."""

    kinds: tuple[str, ...] = ("linear", "conv", "embedding")
    """The kinds of `Layer` that the method supports."""

    undecayed: tuple[str, ...] = ()
    """Names of parameters without weight decay: without gradients, an adapter must stay the identity under decay."""

    moves_zero: bool = True
    """Whether the method can change a weight that is zero everywhere. Not if it multiplies the weight, or scales its
    update by the weight's norm."""

    uses_alpha: bool = True
    """Whether an option `alpha` has an effect on this layer, where the method has one."""

    drop: Any = None
    """What is dropped of the present micro-batch (`dropout.Drop`); None outside of training steps."""

    sets_parameters: bool = False
    """Whether `after_step` sets parameters. Averages of weights, which would restore old values, are then refused."""
    reads_gradients: bool = False
    """Whether `after_step` reads gradients. Optimizers that change them in a step are then refused."""

    pairs: tuple[tuple[str, str], ...] = ()
    """Names of parameters `up (out, r)` and `down (r, fan_in)` that act through their product alone: `up T` and
    `T^-1 down` give the same weight for any invertible `T (r, r)`."""

    def __init__(self, config: Any, layer: Layer):
        super().__init__()
        if layer.kind not in self.kinds:
            raise ValueError(f"{layer.name}: {config.method} cannot adapt {layer.kind} layers; exclude it")
        self.config = config
        self.channels, self.kernel = layer.channels, layer.kernel

    def weight(self, W: Tensor) -> Tensor:
        """The adapted weight `(out, fan_in)` of the base weight `W (out, fan_in)`, differentiable: the definition."""
        raise NotImplementedError

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        """Small tensors that depend on parameters and base weight only; computed once a step (see `derived`)."""
        return {}

    @classmethod
    def derive_all(cls, pairs: Sequence[tuple[Any, Layer]]) -> list[dict[str, Tensor]]:
        """`derive` of many (adapter of this method, layer) at once. Methods may override it to compute those of equal
        shape together: a few large operations instead of thousands of small ones."""
        return [adapter.derive(layer) for adapter, layer in pairs]

    def forward(self, x: Any, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        """The adapted layer on `x`, bias included. Methods may override it to avoid an `(out, fan_in)` tensor."""
        return layer.adapted(x, self.weight(layer.dense()))

    def gradient_pair(self) -> tuple[nn.Parameter, nn.Parameter] | None:
        """`up (out, r)` and `down (r, fan_in)` of a fresh adapter whose `down` is to start along the gradient of the
        loss, if the options say so. The adapter is the identity as long as one of the two is zero."""
        return None

    @classmethod
    def penalty(cls, adapters: Sequence[Any]) -> Tensor | None:
        """What the method adds to the loss once per optimizer step, of all adapters of a training; None: nothing.
        A differentiable `()` of their parameters."""
        return None

    @classmethod
    def after_step(cls, adapters: Sequence[Any], step: int, steps: int) -> list[nn.Parameter]:
        """Called without a graph when optimizer step `step` of `steps` (from 1) is done and the gradients that the
        optimizer used are still available. Whatever is kept from step to step is a buffer.

        Returns parameters whose optimizer state must be reset, because their values were set.
        """
        return []

    @classmethod
    def replanned(cls, adapters: Sequence[Any], step: int, before: int, now: int) -> str:
        """Called when a training that was planned for `before` steps has done `step` of them and continues to `now`:
        what the method would have done differently so far in a training of `now` steps, and how it continues, in a
        clause; empty if it would have done the same. Raises ValueError if it cannot continue."""
        return ""

    def export_terms(self, W: Tensor) -> Terms:
        """The update of base weight `W (out, fan_in)` as exact terms."""
        raise NotImplementedError

    def start_from(self, terms: Terms, layer: Layer) -> None:
        """Set fresh parameters so that the adapted weight is that of `terms`, and training can continue from there.

        Raises ValueError, in a sentence, where the method or its options cannot represent them.
        """
        raise ValueError(f"{self.config.method} cannot start from an adapter file")

    def start_from_pool(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Set fresh parameters from what the finished adapters in `config.pool` do to the layer: `up (out, r)`,
        `down (r, fan_in)` of each. For methods whose options name such a folder."""
        raise NotImplementedError

    def refuse_all_but(self, terms: Terms, *parts: str) -> None:
        """ValueError if `terms` have a part that is none of these."""
        words = {"rotation": "a rotation", "up": "a low-rank pair", "difference": "a full difference",
                 "magnitude": "magnitudes", "bias": "a change of the bias"}
        values = {"rotation": terms.rotation, "up": terms.up, "difference": terms.difference,
                  "magnitude": terms.magnitude, "bias": terms.bias}
        found = [words[part] for part, value in values.items() if value is not None and part not in parts]
        if found:
            raise ValueError(f"the file has {' and '.join(found)}, which {self.config.method} cannot represent; choose "
                             "the method it was trained with")

    def curves(self) -> dict[str, Tensor]:
        """Scalars worth plotting over the training, detached; averaged over layers by the loop."""
        return {}

    def _apply(self, fn, recurse: bool = True):
        # Adapters keep float32 when the model is cast to half precision: a step would be lost to rounding there.
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in quant.HALF else moved

        return super()._apply(keep_precision, recurse)


class Together(Adapter):
    """An adapter that is derived together with others like it, in a few large operations instead of thousands of small
    ones. A method implements `derive_alike`, and `likeness` if more than shapes must be equal."""

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        return self.derive_all([(self, layer)])[0]

    @classmethod
    def derive_all(cls, pairs: Sequence[tuple[Any, Layer]]) -> list[dict[str, Tensor]]:
        return alike(pairs, lambda pair: pair[0].likeness(pair[1]), cls.derive_alike)

    def likeness(self, layer: Layer) -> Hashable:
        """The key of those that are derived together."""
        first = next(self.parameters())
        return self.shapes, layer.fan_in, self.kernel, first.device, first.dtype

    @cached_property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Of all parameters and buffers. They are constant, and are read for every layer in every step."""
        return tuple(tensor.shape for tensor in (*self.parameters(), *self.buffers()))

    @classmethod
    def derive_alike(cls, pairs: Sequence[tuple[Any, Layer]]) -> list[dict[str, Tensor]]:
        """`derive` of each of the pairs, which all have one likeness."""
        raise NotImplementedError


class Adapted(nn.Module):
    """A frozen base layer and its adapter, which replaces the base layer.

    Not `parametrize`: that fails on quantized bases. Not a replaced `forward`: deep copies would keep the old layer.
    """

    def __init__(self, base: nn.Module, adapter: Adapter, layer: Layer):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapter = adapter
        self.layer = layer
        self.leaves: dict[str, Tensor] = {}
        self.merged: nn.Module | None = None
        self.enabled = True

    def forward(self, x: Any) -> Tensor:
        """The adapted layer; while `derived.Derived` is active, from this step's leaves."""
        if not self.enabled:
            return self.layer(x)
        if self.merged is not None:
            return self.merged(x)
        leaves = self.leaves or self.adapter.derive(self.layer)
        if self.adapter.drop is not None and not self.adapter.drop.inside:
            return self.adapter.drop.around(x, self.layer, lambda x: self.adapter(x, self.layer, leaves))
        return self.adapter(x, self.layer, leaves)

    def __getattr__(self, name: str) -> Any:
        # Networks read `.weight.dtype`, `.in_features` and the like of their layers; the base answers.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def adapted_weight(self) -> Tensor:
        """The adapted weight in the layer's own shape, float32 or float64."""
        with torch.no_grad():
            return self.layer.native(self.adapter.weight(self.layer.dense()))

    def merge(self) -> None:
        """Compute with the merged weight from now on. The base is kept as it is."""
        self.merged = quant.with_dense_weight(self.base, self.adapted_weight())

    def unmerge(self) -> None:
        """Back to base and adapter, bit for bit."""
        self.merged = None

    def _apply(self, fn, recurse: bool = True):
        self.leaves = {}  # they would keep the old dtype and device
        self.layer.forget()
        return super()._apply(fn, recurse)


def attach(
    network: nn.Module, name: str, config: AdapterConfig, seed: int, known: dict[Hashable, Adapter] | None = None
) -> Adapted:
    """Put an adapter around the layer `name` of `network`, in place.

    Initial values are a function of `(seed, name)` alone. Raises ValueError, naming the layer, for layers that
    cannot be adapted. `known` saves time where layers have no values: see `_adapter`.
    """
    parent = network.get_submodule(name.rpartition(".")[0])
    base = network.get_submodule(name)
    layer = as_layer(base, name)
    adapted = Adapted(base, _adapter(config, layer, seed_of(seed, name), known), layer).train(base.training)
    setattr(parent, name.rpartition(".")[2], adapted)
    return adapted


def _adapter(config: AdapterConfig, layer: Layer, seed: int, known: dict[Hashable, Adapter] | None) -> Adapter:
    """A new adapter. On the meta device those of similar layers are identical: `known` keeps one of each to copy."""
    from modules.adapters import methods

    base, device = layer.base, quant.device_of(layer.base)
    alike = layer.kind, layer.out_features, layer.channels, layer.kernel, base.weight.dtype, config
    known = known if device.type == "meta" else None
    if known is not None and alike in known:
        return copy.deepcopy(known[alike], {id(config): config})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # no other device is drawn from
        adapter = methods()[config.method].Adapter(config, layer)  # pyright: ignore
    adapter.to(device=device, dtype=torch.float64 if base.weight.dtype == torch.float64 else None)
    if known is not None:
        known[alike] = adapter
    return adapter


def seed_of(*parts: Any) -> int:
    """A 63-bit seed from any printable parts, the same on every machine."""
    import hashlib

    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def adapted_layers(network: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Names and `Adapted` modules of a network, in the network's order."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, Adapted))


def detach(network: nn.Module) -> None:
    """Remove all adapters; the network is the unchanged base network."""
    _replace(network, lambda adapted: adapted.base)


def merge_and_detach(network: nn.Module) -> None:
    """Replace base and adapter by ordinary layers with the adapted weights."""
    for _, adapted in adapted_layers(network):
        adapted.merge()
    _replace(network, lambda adapted: adapted.merged)


def _replace(network: nn.Module, choose) -> None:
    for name, adapted in list(adapted_layers(network)):
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, choose(adapted))


def adapter_state(layers: Mapping[str, Adapted]) -> dict[str, Tensor]:
    """Parameters and buffers of the adapters of `layers` (by name), `<layer>.<tensor>`, detached on the CPU."""
    return {
        f"{name}.{key}": value.detach().cpu().clone()
        for name, adapted in layers.items()
        for key, value in adapted.adapter.state_dict().items()
    }


def check_adapter_state(layers: Mapping[str, Adapted], state: dict[str, Tensor]) -> None:
    """Raise ValueError if a layer or tensor of `adapter_state` is missing, extra or misshapen."""
    named = [(name, adapted.adapter.state_dict()) for name, adapted in layers.items()]
    expected = {f"{name}.{key}": value for name, values in named for key, value in values.items()}
    wrong = sorted(expected.keys() ^ state.keys())
    wrong += [k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape]
    if wrong:
        raise ValueError(f"the saved adapter has other layers or options: {', '.join(wrong[:5])} ({len(wrong)})")


def load_adapter_state(layers: Mapping[str, Adapted], state: dict[str, Tensor]) -> None:
    """Set all adapters from `adapter_state`. Raises ValueError as `check_adapter_state` does."""
    check_adapter_state(layers, state)
    for name, adapted in layers.items():
        adapted.adapter.load_state_dict({key: state[f"{name}.{key}"] for key in adapted.adapter.state_dict()})


def alike(
    items: Sequence[Any], key: Callable[[Any], Hashable], compute: Callable[[list[Any]], list[dict[str, Tensor]]]
) -> list[dict[str, Tensor]]:
    """`compute` on each group of items with equal keys; its results in the order of the items."""
    groups: dict[Hashable, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(key(item), []).append(place)
    found: list[dict[str, Tensor]] = [{} for _ in items]
    for places in groups.values():
        for place, result in zip(places, compute([items[p] for p in places]), strict=True):
            found[place] = result
    return found


def rows_of(**stacks: Tensor) -> list[dict[str, Tensor]]:
    """Stacked results `(n, ...)` by name as one dictionary for each of the n."""
    return [dict(zip(stacks, row, strict=True)) for row in zip(*(s.unbind() for s in stacks.values()), strict=True)]
