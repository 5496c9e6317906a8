"""Writes changes of layers for another program: forms, file, check of the file, metadata."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules import disk, families, hosts, quant, tensorfile
from modules.adapters.base import Adapted, Terms
from modules.export import choosing, encodings, fuse, metadata, proof, rounding
from modules.export.report import KEPT, Report, megabytes
from modules.export.rounding import DTYPES, Numbers
from modules.files import distance, forms, keys, opening
from modules.files.change import Change, parts
from modules.files.facts import Facts
from modules.hosts import How
from modules.hosts.parts import arithmetic
from modules.preset.schema import Export, Preset


@dataclass(frozen=True)
class Written:
    """What `about` can describe in a file's metadata."""

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
        found = metadata.training(preset, facts, written.form, [*model.networks][1:])
        return found | metadata.described(preset, facts) | metadata.own(preset, facts, model.base_hash())

    return write(path, model, changes, options, about)


def write(
    path: Path, model: Any, changes: dict[str, Change], options: Export, about: Callable[[Written], dict[str, str]]
) -> Report:
    """Write `changes` (by full layer name) to `path` as `options` say, and check the file.

    The file gets its name only when it is complete and correct. `about` returns its metadata, besides that of the
    model, the report and hashes. Raises ValueError if the host does not support the changes, if values are out of
    range, or if the file's effect is not the trained one; in the last case the file is kept as
    `<name>.rejected.safetensors`. Raises DiskFull as `disk.whole` does.
    """
    with torch.no_grad():
        changes, spelling = _named(model, changes, options)
    numbers = Numbers(rounding.resolved(options, "float16"), next(iter(model.networks)))
    report = Report(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), _exact_products(), disk.whole(path) as partial:
        how = _how(options, model)
        tensors = _tensors(changes, numbers, how, report)
        report.notes += _notes(changes, numbers.options, report)
        told = about(Written(report, _form(tensors, hosts.load(options.host).NAMES)))
        flat = {spelling[name] + suffix: t for name, found in tensors.items() for suffix, t in found.items()}
        opening.save_for_hashes(flat, partial, told)
        try:
            proof.check(changes, spelling, numbers, how, partial, report)
        except ValueError as error:
            rejected = partial.replace(path.with_name(f"{path.stem}.rejected.safetensors"))
            raise ValueError(f"{error}. The file is kept as {rejected}") from error
        told = model.metadata() | told | metadata.file_hashes(partial) | report.outcome()
        opening.save(flat, partial, told)
        if not tensorfile.holds(partial, flat):
            raise OSError(f"{partial}: the bytes read back from the disk differ from those written, so the file cannot "
                          "be used; check the disk")
    report.size = path.stat().st_size
    return report


def expected_size(model: Any, layers: dict[str, Adapted], options: Export) -> tuple[int, dict[str, int]]:
    """Bytes of the tensors that `export` will write, and how many layers take which form; from shapes alone, so the
    networks may be on the meta device. Layers that are too inexact in 16 bits, which depends on their values, may add a
    quarter (`rounding.in_full`). Raises ValueError like `export` for updates that the host does not support."""
    names, sketches = hosts.load(options.host).NAMES, {}
    alike: dict[int, tuple[Terms, forms.Seen]] = {}  # similar layers on the meta device share their terms
    with torch.no_grad():
        changes, spelling = _named(model, _changes(layers), options)
        for name, change in changes.items():
            layer, terms = change.layer, change.terms
            if id(terms) not in alike:
                alike[id(terms)] = terms, encodings.on_meta(forms.seen(layer, layer.dense(), terms))
            sketches[name] = replace(alike[id(terms)][1], layer=layer)
        plans = choosing.plans(sketches, options, False, _how(options, model).family)
        size, counts = 0, Counter()
        for name, plan in plans.items():
            size += encodings.size(plan.encodings[0], plan.view(sketches[name]), names, options.dtype)
            counts[plan.words(sketches[name], plan.encodings[0], True)] += 1
    return size, dict(counts)


def _how(options: Export, model: Any) -> How:
    """The conditions under which the file will be read, as far as options and the model show."""
    return How(options.comfyui_norm, family=families.name_of(model))


def _changes(layers: dict[str, Adapted]) -> dict[str, Change]:
    found: dict[str, Change] = {}
    without_values: dict[Hashable, Terms] = {}  # terms of layers on the meta device: similar layers have equal ones
    for name, adapted in layers.items():
        key = _likeness(adapted)
        terms = without_values.get(key) if key is not None else None
        if terms is None:
            terms = adapted.adapter.export_terms(adapted.layer.dense())
            without_values |= {} if key is None else {key: terms}
        found[name] = Change(adapted.layer, terms, weight=adapted.adapted_weight)
    return found


def _likeness(adapted: Adapted) -> Hashable:
    """What determines the shapes of a layer's terms; None if values do."""
    tensors = adapted.adapter.state_dict()
    if not all(tensor.is_meta for tensor in tensors.values()):
        return None
    layer, shapes = adapted.layer, tuple((name, tensor.shape) for name, tensor in tensors.items())
    return layer.kind, layer.out_features, layer.channels, layer.kernel, adapted.adapter.config, shapes


def _named(model: Any, changes: dict[str, Change], options: Export) -> tuple[dict[str, Change], dict[str, str]]:
    """The changes of the layers that the host's files have, some fused from several of the model's; and their names
    there. Raises ValueError if they cannot be fused, unless the form is an approximation anyway."""
    layers = {name: change.layer for name, change in changes.items()}
    groups = fuse.groups(model, changes, options.host)
    if options.form == "auto" and (reason := fuse.refusal(fuse.Asked(changes), groups, options.host)):
        raise ValueError(reason)
    found: dict[str, Change] = {}
    for group in groups:
        layer = fuse.layer_of(model, group, layers)
        fused = isinstance(layer, fuse.Fused)
        found[group.name] = fuse.FusedChange(layer, changes) if fused else changes[group.name]
    return found, {group.name: group.key for group in groups}


def _tensors(
    changes: dict[str, Change], numbers: Numbers, how: How, report: Report
) -> dict[str, dict[str, Tensor]]:
    """Each layer's tensors by suffix; fills in the report's forms and sizes."""
    options = numbers.options
    host, names, written = hosts.load(options.host), hosts.load(options.host).NAMES, {}
    how = replace(how, magnitudes=any(change.terms.magnitude is not None for change in changes.values()))
    kept = {name: change.given for name, change in changes.items() if _is_kept(change, options, how)}
    sketches = {name: encodings.on_meta(change.seen(values=False)) for name, change in changes.items()
                if name not in kept}
    magnitudes = any(names.magnitude in (found or {}) for found in kept.values())
    plans = choosing.plans(sketches, options, magnitudes, how.family)
    for name, change in changes.items():
        found = kept.get(name)
        if found is not None:
            report.forms[name] = f"{(arithmetic.kinds(found) or ['difference of the bias'])[-1]}, {KEPT}"
        else:
            found, report.forms[name] = plans[name].carry_out(change.seen(plans[name].needs_values), names, name)
        found = keys.stored(found, names, DTYPES[options.dtype], name)
        there = numbers.how(how, name)
        fits = there is how or name in kept or names.magnitude not in found
        written[name] = found if fits else host.fitted(change.base(), found, there)
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
    """Whether the program, under the conditions `how`, computes the change from a layer's given tensors."""
    host = hosts.load(options.host)
    if change.given is None or options.form not in ("auto", "compact"):
        return False
    if not choosing.may_hold(options.host, change.layer.kind):
        return False
    if not change.given.keys() <= host.NAMES.all():
        return False
    device = quant.device_of(change.layer.base)
    given = {suffix: tensor.to(device) for suffix, tensor in change.given.items()}
    try:
        error = proof.error_of(change, given, host, how)
        if options.form == "auto":  # whether it is read does not depend on the rows
            block, own = next(parts(change, given))
            host.effect(block.W, own, 1.0, replace(how, dtype=torch.bfloat16))
    except hosts.Unread:
        return False
    return not distance.is_too_large(error, "float32") and proof.same_bias(change, host.bias_change(given, 1.0), 1e-5)


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
        found.append(f"{len(small)} layers would lose too much precision where {options.host} computes in "
                     f"{options.computes_in}, and are stored as full differences, {megabytes(size)} in all")
    norms = sum(change.layer.kind == "norm" for change in changes.values())
    if norms:
        found.append(f"{norms} norm layers are changed: ComfyUI, A1111, Forge and LyCORIS read these changes, "
                     "sd-scripts ignores them")
    if options.rank is not None and not any("approximate" in form for form in report.forms.values()):
        found.append("export.rank has no effect: every layer has an exact form for this host")
    if any(quant.is_rounded(change.layer.base) for change in changes.values()):
        found.append("the base was quantized: the file was checked against the quantized weights it was trained on; "
                     "on the full-precision weights its effect is the same up to the quantization error")
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
