"""Initial values from the layers' inputs, before the first step; see `modules.adapters.input_start` (EVA, CorDA).

The inputs are those of the pictures of the first steps, with their noise. Their second moments, a matrix as large as a
square layer, are collected for as many layers at once as fit in `ROOM`; so there are several passes over the pictures.
The values are in every state, so that a resumed run does not compute them again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from modules.adapters.base import Adapted, seed_of
from modules.adapters.input_start import CORDA, InputStartAdapter, Moments, distributed, moments, rows
from modules.data.batches import Batch
from modules.training import gradient_start, setup
from modules.training.session import Session

ROOM = 2 * 2**30
"""Bytes of all matrices that are collected at once, at least one."""

FROM_INPUTS = ("eva", *CORDA)
"""Values of `init` that need the inputs."""


def asking(adapted: Mapping[str, Adapted]) -> dict[str, Adapted]:
    """The layers that start from their inputs. Those of embeddings are tokens, without directions."""
    return {name: layer for name, layer in adapted.items() if isinstance(layer.adapter, InputStartAdapter)
            and layer.adapter.config.init in FROM_INPUTS and layer.layer.kind != "embedding"}


def groups(layers: Mapping[str, Adapted]) -> list[list[str]]:
    """The names of the layers of each pass, in their order."""
    found, used = [[]], 0
    for name, layer in layers.items():
        size = 4 * layer.layer.fan_in**2
        if found[-1] and used + size > ROOM:
            found.append([])
            used = 0
        found[-1].append(name)
        used += size
    return found


def notes(adapted: Mapping[str, Adapted]) -> list[str]:
    """What it costs, in a sentence."""
    layers = asking(adapted)
    if not layers:
        return []
    passes = groups(layers)
    most = max(sum(4 * layers[name].layer.fan_in**2 for name in names) for names in passes)
    init = next(iter(layers.values())).adapter.config.init
    others = len(adapted) - len(layers)
    left_out = f"; {others} embeddings start at random" if others else ""
    return [f"adapter.init {init}: before the first step the inputs of the layers are collected, {len(passes)} times "
            f"over {gradient_start.PICTURES} pictures or a few more, with up to {most / 2**20:,.0f} MB more "
            f"memory{left_out}"]


@dataclass(frozen=True)
class Found:
    """The principal components of one layer's inputs, on the CPU."""

    parts: Tensor
    vectors: Tensor


def begin(session: Session, loss: Callable[[Session, Batch], Tensor]) -> None:
    """Set the fresh adapters that ask for it. `loss`: the mean error of a micro-batch. Raises FloatingPointError where
    inputs are non-finite."""
    layers = asking(session.adapted)
    if not layers:
        return
    batches, found = gradient_start.first_batches(session), {}
    seen = len(batches) * session.batches.total
    session.events.write("stage", {"name": "start", "detail": f"initial values from inputs of {seen} pictures"})
    for names in groups(layers):
        collected = collect(session, loss, batches, {name: layers[name] for name in names})
        for name in names:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed_of("inputs", session.preset.training.seed, name))
                found[name] = _taken(layers[name], collected.pop(name))
    components = {name: one for name, one in found.items() if one is not None}
    if components:
        _distribute(session, layers, components)
    gradient_start.share([tensor for layer in layers.values() for tensor in layer.adapter.state_dict().values()])


def _taken(layer: Adapted, collected: Moments) -> Found | None:
    """The layer's components; a pair is set at once."""
    adapter: Any = layer.adapter
    if adapter.config.init in CORDA:
        W = layer.layer.dense().to(collected.square.device)
        up, down = collected.pair(W, adapter.config.rank, CORDA[adapter.config.init])
        adapter.begin_with_pair(up.to(adapter.up), down.to(adapter.down))
        return None
    parts, vectors = collected.components(adapter.config.rank)
    return Found(parts.cpu(), vectors.to(device="cpu", dtype=adapter.down.dtype))


def _distribute(session: Session, layers: Mapping[str, Adapted], components: Mapping[str, Found]) -> None:
    """Give the layers their ranks, and set their components."""
    own = setup.own_settings(session.model, session.preset.targets, components)
    ranks = [one.rank or session.preset.adapter.model_dump()["rank"] for one in own.values()]
    counts = distributed([one.parts for one in components.values()], ranks)
    for count, (name, one) in zip(counts, components.items(), strict=True):
        layers[name].adapter.begin_with_components(layers[name].layer, one.vectors, count)  # pyright: ignore
    detail = f"ranks by explained variance: {min(counts)} to {max(counts)}, {sum(counts)} in all"
    session.events.write("stage", {"name": "ranks", "detail": detail})


def collect(
    session: Session, loss: Callable[[Session, Batch], Tensor], batches: Sequence[Batch], layers: Mapping[str, Adapted]
) -> dict[str, Moments]:
    """The moments of the layers' inputs over the batches of all processes."""
    device = session.accelerator.device  # where inputs are, also those of layers that are kept in main memory
    found = {name: moments(one.layer, one.adapter.config.init, device) for name, one in layers.items()}
    with watched(layers, found), session.derived.frozen(), torch.compiler.set_stance("force_eager"):
        for batch in batches:
            with session.accelerator.autocast():
                loss(session, batch)
    session.derived.end()
    for name, one in found.items():
        for sums in (one.square, one.total):
            sums.copy_(session.accelerator.reduce(sums, "sum"))  # pyright: ignore
        one.counts = session.accelerator.reduce(one.counts.to(one.total), "sum").double().cpu()  # pyright: ignore
        if not bool(one.square.isfinite().all()):
            raise FloatingPointError(f"{name}: non-finite inputs on the first pictures, from which the adapters' "
                                     "initial values are computed; check the pictures, or try adapter.init kaiming")
    return found


@contextmanager
def watched(layers: Mapping[str, Adapted], found: Mapping[str, Moments]) -> Iterator[None]:
    """Inside, what goes into the layers is added to the moments, but for passes of the base alone."""

    def add(name: str, module: Adapted, arguments: tuple[Any, ...]) -> None:
        if module.enabled:
            found[name].add(rows(module.layer, arguments[0]))

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_pre_hook(partial(add, name)))
        yield
