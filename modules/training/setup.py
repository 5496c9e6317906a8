"""From a preset to a model with adapters: which layers are matched, and putting adapters on them."""

import difflib
import fnmatch
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modules import families
from modules.adapters.base import Adapted, adapted_layers, attach
from modules.adapters.layers import KINDS
from modules.preset.schema import Base, Preset, Targets
from modules.training import noise

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def precision(preset: Preset, device: torch.device) -> str:
    """The number format of forward and backward pass on `device`."""
    if preset.training.precision != "auto":
        return preset.training.precision
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def base_dtype(preset: Preset, device: torch.device) -> torch.dtype:
    """The number format the frozen weights are kept in."""
    return DTYPES[precision(preset, device) if preset.base.dtype == "auto" else preset.base.dtype]


def layer_names(model: Any) -> list[str]:
    """Full names of all layers that could be adapted, in the model's order."""
    return [name for name, module in whole(model).named_modules() if isinstance(module, tuple(KINDS))]


def match_layers(model: Any, targets: Targets) -> tuple[list[str], list[str]]:
    """Full names of the layers to adapt, in the model's order; and what is wrong, in sentences.

    Wrong are an unknown set, a pattern without a match, and no layer at all.
    """
    names, sets, problems = layer_names(model), model.named_targets(), []
    known = targets.layers in sets
    if not known:
        near = difflib.get_close_matches(targets.layers, sets, 1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(sets)}"
        problems.append(f"targets.layers: {targets.layers!r} is no set of layers of this family; {hint}")
    allowed = [name for name in names if targets.text_encoders or in_denoiser(model, name)]
    chosen = {n for n in allowed if any(fnmatch.fnmatchcase(n, p) for p in sets.get(targets.layers, ()))}
    for field, patterns in (("include", targets.include), ("exclude", targets.exclude)):
        for pattern in patterns:
            hits = fnmatch.filter(sorted(chosen) if field == "exclude" and known else names, pattern)
            chosen = chosen.union(hits) if field == "include" else chosen.difference(hits)
            if not hits:
                problems.append(f"targets.{field}: {pattern!r} matches no layer; {_nearest_layer(pattern, names)}")
    if not chosen and not problems:
        problems.append("targets.exclude: no layer is left to adapt; take patterns out, or change targets.layers")
    return [name for name in names if name in chosen], problems


def _nearest_layer(pattern: str, names: list[str]) -> str:
    near = difflib.get_close_matches(pattern.strip("*"), names, 1, cutoff=0.3)
    return f"layers are named like {near[0] if near else names[0]}"


def whole(model: Any) -> nn.ModuleDict:
    """All networks of a model as one, so that full layer names are module paths."""
    return nn.ModuleDict(model.networks)


def attach_all(model: Any, preset: Preset) -> tuple[dict[str, Adapted], list[str]]:
    """Put the preset's adapter on all matched layers that can take it; and what is wrong, in sentences."""
    network = whole(model)
    names, problems = match_layers(model, preset.targets)
    for name in names:
        try:
            attach(network, name, preset.adapter, preset.training.seed)
        except ValueError as error:
            problems.append(f"targets.exclude: {error}")
    return dict(adapted_layers(network)), problems


def load(preset: Preset, device: torch.device) -> Any:
    """The frozen model in main memory, ready to encode on `device`. Raises ValueError for what is wrong."""
    model = families.load_class(preset.family).load(preset.base, device, base_dtype(preset, device))
    if problems := noise.problems(preset.objective, model.process):
        raise ValueError("\n".join(problems))
    noise.prepare(model, preset.objective)
    return model


def place_and_attach(model: Any, preset: Preset) -> dict[str, Adapted]:
    """Bring the denoiser to the device, and put adapters at the start of training on it and on text encoders that are
    adapted. Raises ValueError for what is wrong."""
    if problems := block_problems(model, preset.base):
        raise ValueError("\n".join(problems))
    model.place(preset.base, trains_texts(model, preset.targets))
    adapted, problems = attach_all(model, preset)
    if problems:
        raise ValueError("\n".join(problems))
    if preset.training.gradient_checkpointing:
        model.enable_checkpointing()
    if preset.training.compile:
        model.compile_blocks(preset.training.gradient_checkpointing)
    return adapted


def block_problems(model: Any, base: Base) -> list[str]:
    """Whether the model has as many blocks as are to be kept in main memory."""
    count = len(model.blocks())
    if base.offload_blocks <= count:
        return []
    return [f"base.offload_blocks: {base.offload_blocks} is more than the {count} blocks of this model; give {count} "
            "to keep all of them in main memory"]


def load_and_attach(preset: Preset, device: torch.device) -> tuple[Any, dict[str, Adapted]]:
    """Both at once, for what needs no encoding before."""
    model = load(preset, device)
    return model, place_and_attach(model, preset)


def parameter_groups(adapted: dict[str, Adapted], model: Any, targets: Targets) -> list[dict]:
    """Trainable parameters as optimizer groups `{"params", "lr_scale", "decay"}`, in a fixed order."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, layer in adapted.items():
        scale = 1.0 if in_denoiser(model, name) else targets.text_encoder_lr_scale
        for key, parameter in layer.adapter.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((scale, key not in layer.adapter.undecayed), []).append(parameter)
    return [{"params": params, "lr_scale": scale, "decay": decay} for (scale, decay), params in groups.items()]


@dataclass(frozen=True)
class LayerRow:
    """One adapted layer."""

    name: str
    kind: str
    out_features: int
    channels: int
    kernel: int
    parameters: int
    """Those that are trained."""


def layer_rows(adapted: dict[str, Adapted]) -> list[LayerRow]:
    """The adapted layers in the model's order."""
    return [
        LayerRow(
            name,
            module.layer.kind,
            module.layer.out_features,
            module.layer.channels,
            module.layer.kernel,
            sum(p.numel() for p in module.adapter.parameters() if p.requires_grad),
        )
        for name, module in adapted.items()
    ]


def layer_table(adapted: dict[str, Adapted], method: str) -> str:
    """One line per layer: name, kind and shape, method, trainable parameters."""
    rows = ["layer\tkind\tshape\tmethod\tparameters"]
    for row in layer_rows(adapted):
        shape = f"{row.out_features}x{row.channels}" + (f"x{row.kernel}" if row.kernel > 1 else "")
        rows.append(f"{row.name}\t{row.kind}\t{shape}\t{method}\t{row.parameters}")
    return "\n".join(rows) + "\n"


def trains_texts(model: Any, targets: Targets) -> bool:
    """Whether any layer outside the denoiser is to be adapted."""
    return any(not in_denoiser(model, name) for name in match_layers(model, targets)[0])


def in_denoiser(model: Any, name: str) -> bool:
    """Whether the layer with this full name belongs to the denoiser, the first of the model's networks."""
    return name.startswith(next(iter(model.networks)) + ".")
