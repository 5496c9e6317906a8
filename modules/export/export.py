"""Writing changes of layers for another program: forms, file, check of what was written, metadata."""

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules import disk, families, hosts, quant
from modules.adapters.base import Adapted, Terms
from modules.export import choosing, encodings, fuse, metadata, read_back, rounding
from modules.export.report import KEPT, Report, megabytes
from modules.export.rounding import DTYPES, Numbers
from modules.files import distance, forms, keys, opening
from modules.files.change import Change
from modules.files.facts import Facts
from modules.hosts import How
from modules.hosts.parts import arithmetic
from modules.preset.schema import Export, Preset


@dataclass(frozen=True)
class Written:
    """What `about` can tell of in a file's metadata."""

    report: Report
    """With forms and sizes, before the check."""
    form: metadata.Form


def export(model: Any, layers: dict[str, Adapted], preset: Preset, facts: Facts, path: Path) -> Report:
    """Write the adapters of `layers` (by full name) to `path` as `preset.export` says, and check the file.

    Raises as `write` does.
    """
    with torch.no_grad():
        changes = _changes(layers)
    options = rounding.resolved(preset.export, families.load_class(preset.family).computed_in)

    def about(written: Written) -> dict[str, str]:
        found = metadata.training(preset, facts, written.form) | metadata.described(preset, facts)
        return found | metadata.own(preset, facts, model.base_hash())

    return write(path, model, changes, options, about)


def write(
    path: Path, model: Any, changes: dict[str, Change], options: Export, about: Callable[[Written], dict[str, str]]
) -> Report:
    """Write `changes` (by full layer name) to `path` as `options` say, and check the file.

    The file appears under its name only when it is complete and right. `about` gives its metadata, beside that of the
    model, the outcome and hashes. Raises ValueError if the host cannot hold the changes, if values leave the file's
    range, or if the file's effect is not the meant one; in the last case the file is kept as
    `<name>.rejected.safetensors`. Raises DiskFull as `disk.whole` does.
    """
    with torch.no_grad():
        changes, spelling = _named(model, changes, options)
    numbers = Numbers(rounding.resolved(options, "float16"), next(iter(model.networks)))
    report = Report(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), _exact_products(), disk.whole(path) as partial:
        tensors = _tensors(changes, numbers, report)
        report.notes += _notes(changes, numbers.options, report)
        told = about(Written(report, _form(tensors, hosts.load(options.host).NAMES)))
        flat = {spelling[name] + suffix: t for name, found in tensors.items() for suffix, t in found.items()}
        opening.save(flat, partial, {key: value for key, value in told.items() if key.startswith("ss_")})
        try:
            _check(changes, spelling, numbers, partial, report)
        except ValueError as error:
            rejected = partial.replace(path.with_name(f"{path.stem}.rejected.safetensors"))
            raise ValueError(f"{error}. The file is kept as {rejected}") from error
        content = metadata.tensors_hash(partial)
        told = model.metadata() | told | metadata.file_hashes(partial) | report.outcome()
        opening.save(flat, partial, told)
        if metadata.tensors_hash(partial) != content:
            raise OSError(f"{partial}: the disk returned other bytes than were written; the file is not to be trusted")
    report.size = path.stat().st_size
    return report


def expected_size(model: Any, layers: dict[str, Adapted], options: Export) -> tuple[int, dict[str, int]]:
    """Bytes of the tensors that `export` will write, and how many layers take which form; from shapes alone, so the
    networks may be on the meta device. Layers that are too inexact in 16 bits, which only their values tell, may add a
    quarter (`rounding.in_full`). Raises ValueError like `export` for updates that the host cannot hold."""
    names, sketches = hosts.load(options.host).NAMES, {}
    with torch.no_grad():
        for name, change in _named(model, _changes(layers), options)[0].items():
            sketches[name] = encodings.on_meta(forms.seen(change.layer, change.layer.dense(), change.terms))
        plans = choosing.plans(sketches, options, False)
        size, counts = 0, Counter()
        for name, plan in plans.items():
            size += encodings.size(plan.encodings[0], plan.view(sketches[name]), names, options.dtype)
            counts[plan.words(sketches[name], plan.encodings[0], True)] += 1
    return size, dict(counts)


def _changes(layers: dict[str, Adapted]) -> dict[str, Change]:
    found: dict[str, Change] = {}
    without_values: dict[Hashable, Terms] = {}  # terms of layers on the meta device: those alike have equal ones
    for name, adapted in layers.items():
        key = _likeness(adapted)
        terms = without_values.get(key) if key is not None else None
        if terms is None:
            terms = adapted.adapter.export_terms(adapted.layer.dense())
            without_values |= {} if key is None else {key: terms}
        found[name] = Change(adapted.layer, terms, weight=adapted.adapted_weight)
    return found


def _likeness(adapted: Adapted) -> Hashable:
    """What decides over the shapes of a layer's terms; None where values do."""
    tensors = adapted.adapter.state_dict()
    if not all(tensor.is_meta for tensor in tensors.values()):
        return None
    layer, shapes = adapted.layer, tuple((name, tensor.shape) for name, tensor in tensors.items())
    return layer.kind, layer.out_features, layer.channels, layer.kernel, adapted.adapter.config, shapes


def _named(model: Any, changes: dict[str, Change], options: Export) -> tuple[dict[str, Change], dict[str, str]]:
    """The changes of the layers that the host's files have, some fused of several of the model's; and their names
    there. Raises ValueError where they cannot be fused."""
    terms = {name: change.terms for name, change in changes.items()}
    layers = {name: change.layer for name, change in changes.items()}
    found, spelling = {}, {}
    for name, (key, layer, joined) in fuse.fused(model, terms, layers, options.host, options.form).items():
        if isinstance(layer, fuse.Fused):
            found[name] = Change(layer, joined, weight=functools.partial(_fused_weight, layer, changes))
        else:
            found[name] = changes[name]
        spelling[name] = key
    return found, spelling


def _fused_weight(layer: fuse.Fused, changes: dict[str, Change]) -> Tensor:
    """The adapted weights of the layers that are fused, those without a change as they are."""
    return layer.join([changes[one.name].adapted() if one.name in changes else one.dense() for one in layer.layers])


def _tensors(changes: dict[str, Change], numbers: Numbers, report: Report) -> dict[str, dict[str, Tensor]]:
    """Each layer's tensors by suffix; fills in the report's forms and sizes."""
    options = numbers.options
    host, names, written = hosts.load(options.host), hosts.load(options.host).NAMES, {}
    how = How(options.comfyui_norm, any(change.terms.magnitude is not None for change in changes.values()))
    kept = {name: change.given for name, change in changes.items() if _is_kept(change, options, how)}
    sketches = {name: encodings.on_meta(change.seen()) for name, change in changes.items() if name not in kept}
    magnitudes = any(names.magnitude in (found or {}) for found in kept.values())
    plans = choosing.plans(sketches, options, magnitudes)
    for name, change in changes.items():
        found = kept.get(name)
        if found is not None:
            report.forms[name] = f"{(arithmetic.kinds(found) or ['difference of the bias'])[-1]}, {KEPT}"
        else:
            found, report.forms[name] = plans[name].carry_out(change.seen(), names, name)
        found = keys.stored(found, names, DTYPES[options.dtype], name)
        there = numbers.how(how, name)
        written[name] = found if there is how or name in kept else host.fitted(change.base(), found, there)
        if written[name] is not found:
            report.fitted[name] = options.computes_in
    if options.form == "auto":
        size = sum(tensor.nbytes for found in written.values() for tensor in found.values())
        full = rounding.in_full(changes, {name: written[name] for name in report.fitted}, numbers, how, size)
        written |= full
        report.fitted = {name: number for name, number in report.fitted.items() if name not in full}
        report.forms |= dict.fromkeys(full, encodings.FULL_HERE)
    report.sizes |= {name: sum(tensor.nbytes for tensor in found.values()) for name, found in written.items()}
    return written


def _is_kept(change: Change, options: Export, how: How) -> bool:
    """Whether a layer's given tensors do in the program, which computes as `how` says, what the change means."""
    host = hosts.load(options.host)
    if change.given is None or options.form not in ("auto", "compact") or change.layer.kind not in host.KINDS:
        return False
    if not change.given.keys() <= host.NAMES.all():
        return False
    W = change.base()
    given = {suffix: tensor.to(W.device) for suffix, tensor in change.given.items()}
    try:
        error = distance.compare(change.adapted(), host.effect(W, given, 1.0, how), W)
        if options.form == "auto":
            host.effect(W, given, 1.0, replace(how, dtype=torch.bfloat16))
    except hosts.Unread:
        return False
    return not distance.is_too_large(error, "float32") and _same_bias(change, host.bias_change(given, 1.0), 1e-5)


def _same_bias(change: Change, found: Tensor | None, tolerance: float) -> bool:
    """Whether the program adds the meant change to the bias, to a part of its largest value."""
    wanted = change.terms.bias
    if wanted is None or found is None:
        return (wanted is None or not wanted.any()) and (found is None or not found.any())
    found = found.to(wanted)
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


def _check(
    changes: dict[str, Change], spelling: dict[str, str], numbers: Numbers, partial: Path, report: Report
) -> None:
    """Read the file back and compare what the host computes from it with the meant weights."""
    options, host = numbers.options, hosts.load(numbers.options.host)
    found = read_back.read(partial, spelling, host.NAMES)
    how = How(options.comfyui_norm, any(host.NAMES.magnitude in tensors for tensors in found.values()))
    tolerance = distance.TOLERANCE[options.dtype]
    hows = {name: numbers.how(how, name) if name in report.fitted else how for name in changes}
    for name, change in changes.items():
        W = change.base()
        report.errors[name] = distance.compare(change.adapted(), host.effect(W, found[name], 1.0, hows[name]), W)
    wrong = {name: error.weight for name, error in report.exact.items()
             if numbers.is_too_large(error, hows[name])}
    report.rounded = rounding.measured(changes, found, numbers, how)
    report.notes += rounding.notes(report, options)
    report.notes += _other_notes(changes, found, numbers, how, report)
    report.notes += _fallback_notes(changes, found, options, how)
    if wrong:
        worst = sorted(wrong, key=lambda name: -wrong[name])[:3]
        raise ValueError(
            f"the exported file would not do what was trained: {len(wrong)} of {len(changes)} layers are off by more "
            f"than {tolerance:g} of their largest weight ("
            + ", ".join(f"{name}: {wrong[name]:.1e}" for name in worst)
            + "); try export.dtype float32"
        )
    for name, change in changes.items():
        if not _same_bias(change, host.bias_change(found[name], 1.0), tolerance):
            raise ValueError(f"the exported file would not change the bias of {name} as was trained")


def _other_notes(
    changes: dict[str, Change], found: dict[str, dict[str, Tensor]], numbers: Numbers, how: How, report: Report
) -> list[str]:
    """What the program makes of output magnitudes under other conditions than the file was written for."""
    options, host = numbers.options, hosts.load(numbers.options.host)
    names = [name for name, form in report.forms.items() if host.NAMES.magnitude in found[name]]
    names = [name for name in names if "output magnitude" in report.forms[name] or report.is_kept(name)]
    notes = []
    for which, other in host.others(how).items() if names else ():
        errors = []
        for name in names:
            W, there = changes[name].base(), numbers.how(other, name)
            errors.append(distance.compare(changes[name].adapted(), host.effect(W, found[name], 1.0, there), W))
        if any(numbers.is_too_large(error, numbers.how(how, name)) for error, name in zip(errors, names, strict=True)):
            change = max(error.change for error in errors)
            notes.append(f"this file is for ComfyUI with export.comfyui_norm {options.comfyui_norm}; in ComfyUI "
                         f"{which} up to {change:.1%} of a layer's change would be wrong")
        else:
            notes.append(f"the output magnitudes are exact in ComfyUI {which} too")
    return notes


def _fallback_notes(
    changes: dict[str, Change], found: dict[str, dict[str, Tensor]], options: Export, how: How
) -> list[str]:
    """How far from the training the LoRA is that ComfyUI reads without the node."""
    if options.node_fallback is None:
        return []
    host, errors = hosts.load(options.host), {}
    for name, change in changes.items():
        W, without = change.base(), replace(how, node=False)
        weight = host.effect(W, found[name], 1.0, how)
        instead = host.effect(W, found[name], 1.0, without)
        if not torch.equal(weight, instead):
            errors[name] = distance.compare(weight, instead, W).change
    if not errors:
        return ["export.node_fallback changed nothing: no layer of this file needs the node"]
    worst, middle = max(errors, key=lambda name: errors[name]), sorted(errors.values())[len(errors) // 2]
    return [f"without the node ComfyUI reads a LoRA of rank {options.node_fallback} for {len(errors)} layers; error as "
            f"a part of the trained change: median {middle:.1%}, largest {errors[worst]:.1%} ({worst})"]


def _notes(changes: dict[str, Change], options: Export, report: Report) -> list[str]:
    found = list(hosts.load(options.host).notes(set(report.forms.values())))
    full = [name for name, form in report.forms.items() if form == encodings.FULL]
    if full and options.form != "full":
        size = sum(report.sizes[name] for name in full)
        found.append(f"{len(full)} layers have no compact exact form and are stored as full differences, "
                     f"{megabytes(size)} in all; export.form compact writes an approximation instead")
    small = [name for name, form in report.forms.items() if form == encodings.FULL_HERE]
    if small:
        size = sum(report.sizes[name] for name in small)
        found.append(f"{len(small)} layers would lose too much where {options.host} computes in {options.computes_in}, "
                     f"and are stored as full differences, {megabytes(size)} in all")
    if options.rank is not None and not any("approximate" in form for form in report.forms.values()):
        found.append("export.rank changed nothing: every layer has an exact form for this host")
    if any(quant.is_rounded(change.layer.base) for change in changes.values()):
        found.append("the base was quantised: the file was checked against the rounded weights it was trained on, and "
                     "on the full weights it does what it does there up to that rounding")
    return found


def _form(tensors: dict[str, dict[str, Tensor]], names: keys.Names) -> metadata.Form:
    """What the file is made of."""
    axes, kinds = Counter(), set()
    for found in tensors.values():
        kinds.update(arithmetic.kinds(found)[-1:])
        scale = found.get(names.magnitude)
        if scale is not None:
            axes["input" if scale.dim() > 1 and scale.shape[0] == 1 and names.difference else "output"] += 1
    alphas = {found[names.alpha].item() for found in tensors.values() if names.alpha in found}
    return metadata.Form(
        ranks=frozenset(found[names.down].shape[0] for found in tensors.values() if names.down in found),
        alpha=alphas.pop() if len(alphas) == 1 else None if alphas or not names.alpha else keys.ALPHA,
        axis=max(axes, key=lambda axis: axes[axis], default=""),
        kinds=frozenset(kinds),
    )


@contextmanager
def _exact_products() -> Iterator[None]:
    """Full float32 matrix products: TensorFloat-32 alone would miss the tolerance."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
