"""Training that starts from a finished file (adapter.start_from): checked before, and applied at the start."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modules.adapters import methods
from modules.adapters.base import Adapted
from modules.adapters.layers import Layer, as_layer
from modules.files import kinds, opening, reading, start_from
from modules.files.change import Change
from modules.files.embeddings import BUNDLE
from modules.files.reading import Placed, Reading
from modules.preset.schema import Preset
from modules.training import state

OPTION = "adapter.start_from"
SKIP = "adapter.skip_unknown true"


def is_begun(folder: Path) -> bool:
    """Whether the run in `folder` has states, so that it does not start from the file. Where none of them can be used,
    it cannot resume at all."""
    return bool(state.states(folder))


def has_own(preset: Preset) -> bool:
    """Whether the run has learned already, so that nothing starts from a file any more."""
    run = Path(preset.saving.folder) / preset.name
    return is_begun(run) or bool(preset.name) and (run / "adapter.safetensors").is_file()


def look(preset: Preset, model: Any) -> tuple[Reading | None, list[str]]:
    """Which layers the file changes, and what is wrong with it, in sentences. `model` may be on the meta device; call
    it before adapters are attached. None without a file, and where the run does not need it any more."""
    if not preset.adapter.start_from or has_own(preset):
        return None, []
    try:
        found = reading.place(_opened(preset), model)
    except (ValueError, OSError) as error:
        return None, [f"{OPTION}: {error}"]
    left_out = [*found.left_out(), *_norms(found)]
    found.placed = _trainable(found)
    if preset.adapter.skip_unknown:
        return found, []
    return found, [f"{OPTION}: {found.file.path}: {sentence}; {SKIP} reads the rest" for sentence in left_out]


def _opened(preset: Preset) -> opening.AdapterFile:
    """The file, without embeddings of new tokens that start from a file. Raises ValueError as `opening.read`."""
    file = opening.read(Path(preset.adapter.start_from))
    own = [f"{BUNDLE}{one.token}." for one in preset.targets.tokens if one.file]
    tensors = {key: tensor for key, tensor in file.tensors.items() if not key.startswith(tuple(own))}
    return replace(file, tensors=tensors)


def _norms(found: Reading) -> list[str]:
    return [f"{reading.listed(found.norms)}: no method trains norms"] if found.norms else []


def _trainable(found: Reading) -> list[Placed]:
    return [placed for placed in found.placed if placed.layer.kind != "norm"]


def misfits(found: Reading, adapted: dict[str, Adapted]) -> list[str]:
    """Why the fresh adapters cannot take the file's values, as far as that shows without the base's weights: layers
    that are not trained, tensors of other sizes, a method or options that cannot represent them."""
    names = {layer.name for placed in found.placed for layer, _ in placed.members}
    strangers = [name for name in sorted(names) if name not in adapted]
    if strangers:
        return [f"{OPTION}: the file also changes layers that are not trained ({reading.listed(strangers)}); add "
                "them with targets.layers or targets.include"]
    seen, said = set(), {}
    for placed in found.placed:
        sort = _sort(placed, adapted)
        if sort not in seen:
            seen.add(sort)
            try:
                _try(placed, adapted)
            except ValueError as error:
                sentence = str(error)
                said.setdefault(sentence.partition(": ")[2], sentence)
    return [f"{OPTION}: {found.file.path}: {sentence}" for sentence in said.values()]


def _sort(placed: Placed, adapted: dict[str, Adapted]) -> Any:
    """A key that is equal for layers which either all can take the file's values or all cannot."""
    tensors = frozenset((part, tensor.shape, tensor.dtype) for part, tensor in placed.parts.items())
    layers = tuple((layer.kind, layer.base.weight.shape, adapted[layer.name].adapter.config.model_dump_json())
                   for layer, _ in placed.members)
    return kinds.words(placed.parts), tensors, layers


def _try(placed: Placed, adapted: dict[str, Adapted]) -> None:
    """Start adapters on random layers of the same sizes. Raises ValueError as `start_from.start` does."""
    trial, trials = on_random_layers(placed), {}
    for layer, _ in trial.members:
        config = adapted[layer.name].adapter.config
        trials[layer.name] = Adapted(layer.base, methods()[config.method].Adapter(config, layer), layer)  # pyright: ignore
    with torch.no_grad():
        start_from.start(trial.changes(), trials)


def on_random_layers(placed: Placed) -> Placed:
    """The same tensors on layers with random weights, so that a base on the meta device can be checked."""
    members = tuple((_random(layer), part) for layer, part in placed.members)
    whole = next((layer for layer, _ in members if layer.name == placed.layer.name), placed.layer)
    return replace(placed, layer=whole, members=members)


def _random(layer: Layer) -> Layer:
    """The same layer with random weights on the CPU, also for one on the meta device."""
    base: Any = copy.deepcopy(layer.base).to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(base.weight, std=0.02, generator=generator)
    for name, parameter in base.named_parameters():
        if name == "bias":
            nn.init.zeros_(parameter)
    return as_layer(base, layer.name)


def read(preset: Preset, model: Any) -> dict[str, Change]:
    """What the file does to the layers, empty without a file. Call it before adapters are attached. Raises ValueError
    naming the option."""
    if not preset.adapter.start_from:
        return {}
    try:
        file = _opened(preset)
        found = reading.changes(file, model, preset.adapter.skip_unknown, SKIP)
        norms = [name for name, change in found.items() if change.layer.kind == "norm"]
        if norms and not preset.adapter.skip_unknown:
            raise ValueError(f"{file.path}: {reading.listed(norms)}: no method trains norms; {SKIP} reads the rest")
        return {name: change for name, change in found.items() if name not in norms}
    except (ValueError, OSError) as error:
        raise ValueError(f"{OPTION}: {error}") from error


def apply(changes: dict[str, Change], adapted: dict[str, Adapted]) -> list[str]:
    """Set the fresh adapters; sentences about what differs from the file. Raises ValueError naming the option."""
    if not changes:
        return []
    try:
        return start_from.start(changes, adapted)
    except ValueError as error:
        raise ValueError(f"{OPTION}: {error}") from error
