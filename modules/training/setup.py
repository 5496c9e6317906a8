"""From a preset to a model with adapters: which layers are matched, and attaching adapters to them."""

import difflib
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modules import families
from modules.adapters import methods
from modules.adapters.base import Adapted, Adapter, AdapterConfig, adapted_layers, attach
from modules.adapters.layers import KINDS
from modules.data import references
from modules.families.base import Reading
from modules.families.parts.names import is_unused
from modules.files.reading import listed
from modules.preset.schema import Base, Preset, Targets
from modules.training import active_ranks, dropping, ema, new_tokens, noise
from modules.training.layer_options import in_denoiser, own_settings, rule_problems, rules_with_hits
from modules.training.matching import NONE, Names, hint_for, is_pattern, parts_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

NO_CHOICE = "targets.include: no layer is chosen; targets.layers is none, so give patterns here"
NOTHING_LEFT = "targets.exclude: no layer is left to adapt; remove patterns, or change targets.layers"


def precision(preset: Preset, device: torch.device) -> str:
    """The dtype of forward and backward pass on `device`."""
    if preset.training.precision != "auto":
        return preset.training.precision
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def base_dtype(preset: Preset, device: torch.device) -> torch.dtype:
    """The dtype of the frozen weights."""
    return DTYPES[precision(preset, device) if preset.base.dtype == "auto" else preset.base.dtype]


def layer_names(model: Any) -> list[str]:
    """Full names of all layers that could be adapted, in the model's order."""
    return [name for name, module in whole(model).named_modules()
            if isinstance(module, tuple(KINDS)) and not is_unused(name)]


def match_layers(model: Any, targets: Targets) -> tuple[list[str], list[str]]:
    """Full names of the layers to adapt, in the model's order; and what is wrong, in sentences.

    Wrong are an unknown set, a pattern without a match, and no layer at all.
    """
    names = layer_names(model)
    found = Names(names)
    chosen, problems = _base_choice(model, targets, names, found)
    known, misses = not problems, len(problems)
    for field, patterns in (("include", targets.include), ("exclude", targets.exclude)):
        for pattern in patterns:
            hits = set(found.matching([pattern]))
            if field == "include":
                chosen |= hits
            else:
                hits = hits & chosen if known else hits
                chosen -= hits
            if not hits:
                problems.append(f"targets.{field}: {pattern!r} matches no layer{hint_for(pattern, names, misses)}")
                misses += 1
    if not chosen and not problems and not (targets.tokens and targets.layers == NONE and not targets.include):
        problems.append(NO_CHOICE if targets.layers == NONE and not targets.include else NOTHING_LEFT)
    return [name for name in names if name in chosen], problems


def _base_choice(model: Any, targets: Targets, names: Sequence[str], found: Names) -> tuple[set[str], list[str]]:
    """The layers that targets.layers means, before targets.include and targets.exclude; and what is wrong with it."""
    chosen, problems, sets = set(), [], model.named_targets()
    for part in parts_of(targets.layers):
        hits = found.matching(sets.get(part, (part,)))
        wanted = {name for name in hits if targets.text_encoders or in_denoiser(model, name)}
        chosen |= wanted
        if hits and not wanted and part not in sets:
            problems.append(f"targets.layers: {part!r} matches only layers of text encoders, such as {hits[0]}; turn "
                            "on targets.text_encoders")
        elif not hits and is_pattern(part):
            problems.append(f"targets.layers: {part!r} matches no layer{hint_for(part, names, len(problems))}")
        elif not hits and part not in sets:
            near = difflib.get_close_matches(part, [*sets, NONE], 1)
            hint = f"did you mean {near[0]}?" if near else f"available: {', '.join(sets)}, {NONE}, or patterns"
            if part and not near and found.matching([f"*{part}*"]):
                hint = f"did you mean the layers whose names have it, '*{part}*'?"
            problems.append(f"targets.layers: {part!r} is not a layer set of this family; {hint}")
    return chosen, problems


def optimizer_problems(preset: Preset) -> list[str]:
    """An average of the weights, or an optimizer, that does not fit what the method does after each step; and dropout
    that does not fit; in sentences."""
    method, optimizer = preset.adapter.method, preset.optimizer
    adapter = methods()[method].Adapter
    found = ema.problems(preset.training, optimizer, method if adapter.sets_parameters else "")
    found += dropping.problems(preset)
    wrong = {
        f"averages the weights of all steps, but {method} resets some of them during training":
            optimizer.averages and adapter.sets_parameters,
        f"changes gradients in a step, but {method} reads them after it":
            adapter.reads_gradients and not optimizer.keeps_gradients,
    }
    return found + [f"optimizer.name is {optimizer.name}, which {why}: choose another optimizer"
                    for why, is_wrong in wrong.items() if is_wrong]


def unmatched_rules(model: Any, targets: Targets, chosen: Collection[str]) -> list[str]:
    """Rules that are for none of the layers `chosen`, in sentences. Call it before adapters are attached."""
    names, sets, problems = layer_names(model), model.named_targets(), []
    expected = bool(chosen) and not _base_choice(model, targets, names, Names(names))[1]  # else that is reported
    adapted, misses = set(chosen), 0
    for number, (rule, hits) in enumerate(rules_with_hits(model, targets, names)):
        place = f"targets.rules[{number}].match: {rule.match!r}"
        if not hits:
            near = difflib.get_close_matches(rule.match, sets, 1)
            hint = f"; did you mean the layer set {near[0]}?" if near else hint_for(rule.match, names, misses)
            problems.append(f"{place} matches no layer{hint}")
            misses += 1
        elif expected and adapted.isdisjoint(hits):
            off = not targets.text_encoders and not any(in_denoiser(model, name) for name in hits)
            where = "targets.text_encoders" if off else "targets.layers or targets.include"
            problems.append(
                f"{place} matches only layers that are not adapted, such as {hits[0]}; add them with {where}, or "
                "remove the rule"
            )
    return problems


def whole(model: Any) -> nn.ModuleDict:
    """All networks of a model as one, so that full layer names are module paths."""
    return nn.ModuleDict(model.networks)


def attach_all(model: Any, preset: Preset) -> tuple[dict[str, Adapted], list[str]]:
    """Attach the preset's adapter to all matched layers that can take it; and what is wrong, in sentences."""
    network = whole(model)
    names, problems = match_layers(model, preset.targets)
    problems += rule_problems(preset) + unmatched_rules(model, preset.targets, names)
    problems += active_ranks.problems(preset, model)
    known: dict[Hashable, Adapter] = {}
    for name, own in own_settings(model, preset.targets, names).items():
        try:
            attach(network, name, with_rank(preset.adapter, own.rank), preset.training.seed, known)
        except ValueError as error:
            problems.append(f"targets.exclude: {error}")
    return dict(adapted_layers(network)), problems


def with_rank(config: AdapterConfig, rank: int | None) -> AdapterConfig:
    """The method's options with a layer's own rank, if it has one and the method has a rank; and room for it to grow at
    the start."""
    given = rank is not None and "rank" in type(config).model_fields
    return (config.model_copy(update={"rank": rank}) if given else config).widened()


def load(preset: Preset, device: torch.device) -> Any:
    """The frozen model in main memory, ready to encode on `device`. Raises ValueError for what is wrong."""
    model = families.load_class(preset.family).load(preset.base, device, base_dtype(preset, device))
    if problems := noise.problems(preset.objective, model.process):
        raise ValueError("\n".join(problems))
    noise.prepare(model, preset.objective)
    model.use_reading(Reading.of(preset.base, preset.data))
    model.use_references(preset.base, reference_counts(preset))
    if problems := new_tokens.problems(model, preset):
        raise ValueError("\n".join(problems))
    model.use_new_tokens(new_tokens.words(preset.targets))
    return model


def reference_counts(preset: Preset) -> dict[str, int]:
    """The largest number of reference pictures, by the option that has them."""
    of_samples = [len(one.references) for one in preset.samples.prompts if not isinstance(one, str)]
    return {"data.folders[].references": references.most(preset.data),
            "samples.prompts[].references": max(of_samples, default=0) if preset.samples.enabled else 0}


def place(model: Any, preset: Preset) -> None:
    """Move the denoiser to the device, and text encoders that are adapted. Raises ValueError for what is wrong."""
    if problems := block_problems(model, preset.base):
        raise ValueError("\n".join(problems))
    model.place(preset.base, trains_texts(model, preset.targets))


def attach_ready(model: Any, preset: Preset) -> dict[str, Adapted]:
    """Attach fresh adapters to the networks, which are on the device, and set these up for training. Raises ValueError
    for what is wrong."""
    adapted, problems = attach_all(model, preset)
    if problems:
        raise ValueError("\n".join(problems))
    new_tokens.attach(model, preset)
    if preset.training.gradient_checkpointing:
        model.enable_checkpointing()
    if preset.training.compile:
        model.compile_blocks(preset.training.gradient_checkpointing)
    return adapted


def unmoved(adapted: dict[str, Adapted]) -> list[str]:
    """The layers that the method can never change, as their weights are zero, in a sentence; nothing where there are
    none. Reads weights, in every process."""
    found = [name for name, one in adapted.items() if not one.adapter.moves_zero and one.layer.is_zero()]
    if not found:
        return []
    method = adapted[found[0]].adapter.config.method
    return [f"{method} cannot change {len(found)} of {len(adapted)} layers, because their weights are all zero "
            f"({listed(found)}); exclude them with targets.exclude, or choose a method that adds to the weight, such "
            "as LoRA"]


def block_problems(model: Any, base: Base) -> list[str]:
    """Whether the model has as many blocks as are to be kept in main memory."""
    count = len(model.blocks())
    if base.offload_blocks <= count:
        return []
    return [f"base.offload_blocks: {base.offload_blocks} is more than the {count} blocks of this model; give {count} "
            "to keep all of them in main memory"]


def load_and_attach(preset: Preset, device: torch.device) -> tuple[Any, dict[str, Adapted]]:
    """Load, place and attach, where nothing has to be encoded before."""
    model = load(preset, device)
    place(model, preset)
    return model, attach_ready(model, preset)


def parameter_groups(adapted: dict[str, Adapted], model: Any, targets: Targets) -> list[dict]:
    """Trainable parameters as optimizer groups, in a fixed order: `params`, their `names` in the
    adapter, `lr_scale`, whether they `decay`, `pairs` of places in `params` (see `Adapter.pairs`), and whether their
    steps are `calibrated`."""
    groups: dict[tuple[float, bool, float], dict[str, Any]] = {}
    own = own_settings(model, targets, adapted)
    for name, layer in adapted.items():
        scale, stop = own[name].lr_scale, own[name].stop
        calibrated, places = layer.adapter.config.step_size == "calibrated", {}
        for key, parameter in layer.adapter.named_parameters():
            if parameter.requires_grad:
                decay = key not in layer.adapter.undecayed
                fresh = {"lr_scale": scale, "decay": decay, "calibrated": calibrated}
                fresh |= {"params": [], "names": [], "pairs": []}
                group = groups.setdefault((scale, decay, stop), fresh)
                places[key] = (group, len(group["params"]))
                group["params"].append(parameter)
                group["names"].append(key)
        for up, down in layer.adapter.pairs:
            if up in places and down in places:
                assert places[up][0] is places[down][0], f"{name}: a pair decays as a whole or not at all"
                places[up][0]["pairs"].append((places[up][1], places[down][1]))
    return [*groups.values(), *new_tokens.groups(model, targets)]


def trained(adapted: Mapping[str, Adapted]) -> dict[str, nn.Parameter]:
    """The trainable parameters by `<full layer name>.<parameter>`."""
    return {f"{name}.{key}": parameter for name, layer in adapted.items()
            for key, parameter in layer.adapter.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True)
class LayerRow:
    """One adapted layer."""

    name: str
    kind: str
    out_features: int
    channels: int
    kernel: int
    parameters: int
    """Trainable parameters."""
    rank: int | None
    """None for methods without one."""
    lr_scale: float
    """Its learning rate as a multiple of training.learning_rate."""


def layer_rows(adapted: dict[str, Adapted], model: Any, targets: Targets) -> list[LayerRow]:
    """The adapted layers in the model's order."""
    own = own_settings(model, targets, adapted)
    return [
        LayerRow(
            name,
            module.layer.kind,
            module.layer.out_features,
            module.layer.channels,
            module.layer.kernel,
            sum(p.numel() for p in module.adapter.parameters() if p.requires_grad),
            module.adapter.config.model_dump().get("rank"),
            own[name].lr_scale,
        )
        for name, module in adapted.items()
    ]


def layer_table(adapted: dict[str, Adapted], model: Any, preset: Preset) -> str:
    """One line per layer: name, kind and shape, method, trainable parameters, rank, factor on the learning rate."""
    rows = ["layer\tkind\tshape\tmethod\tparameters\trank\tlr_scale"]
    for row in layer_rows(adapted, model, preset.targets):
        shape = f"{row.out_features}x{row.channels}" + (f"x{row.kernel}" if row.kernel > 1 else "")
        facts = (row.name, row.kind, shape, preset.adapter.method, row.parameters, row.rank or "", f"{row.lr_scale:g}")
        rows.append("\t".join(map(str, facts)))
    return "\n".join(rows) + "\n"


def trains_texts(model: Any, targets: Targets) -> bool:
    """Whether any layer outside the denoiser is to be adapted, or new tokens are to be learned."""
    return bool(targets.tokens) or any(not in_denoiser(model, name) for name in match_layers(model, targets)[0])
