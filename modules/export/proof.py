"""Whether a written file has the trained effect in its program; and its effect elsewhere."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from modules import hosts
from modules.export import partly, read_back, rounding
from modules.export.report import Report
from modules.export.rounding import Numbers
from modules.files import distance
from modules.files.change import Change, parts
from modules.hosts import How
from modules.preset.export_options import Export


def error_of(change: Change, tensors: dict[str, Tensor], host: hosts.Host, how: How) -> distance.LayerError:
    """The distance of the program's weight from the adapted weight. Raises `hosts.Unread` if it has none."""
    found = distance.Comparison()
    for block, own in parts(change, tensors):
        found.add(block.adapted, host.effect(block.W, own, 1.0, how), block.W)
    return found.error()


def same_bias(change: Change, found: Tensor | None, tolerance: float) -> bool:
    """Whether the program adds the trained change to the bias, to a tolerance relative to its largest value."""
    wanted = change.terms.bias
    if wanted is None or found is None:
        return (wanted is None or not wanted.any()) and (found is None or not found.any())
    found = found.to(wanted)
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


def check(
    changes: dict[str, Change], spelling: dict[str, str], numbers: Numbers, how: How, partial: Path, report: Report
) -> None:
    """Read the file back and compare what the host computes from it with the trained weights; fills in the report's
    errors and notes. Raises ValueError if they differ."""
    options, host = numbers.options, hosts.load(numbers.options.host)
    found = read_back.read(partial, spelling, host.NAMES)
    how = replace(how, magnitudes=any(host.NAMES.magnitude in tensors for tensors in found.values()))
    hows = {name: numbers.how(how, name) if name in report.fitted else how for name in changes}
    for name, change in changes.items():
        report.errors[name] = error_of(change, found[name], host, hows[name])
    report.rounded = rounding.measured(changes, found, numbers, how)
    report.notes += rounding.notes(report, options)
    report.notes += _other_notes(changes, found, numbers, how, report)
    report.notes += _fallback_notes(changes, found, options, how)
    report.notes += partly.notes(changes, found, spelling, options, how)
    tolerance = distance.TOLERANCE[options.dtype]
    wrong = {n: e.weight for n, e in report.exact.items() if numbers.is_too_large(e, hows[n])}
    if wrong:
        worst = sorted(wrong, key=lambda name: -wrong[name])[:3]
        raise ValueError(
            f"the exported file does not match the trained weights: {len(wrong)} of {len(changes)} layers are off by "
            f"more than {tolerance:g} of their largest weight ("
            + ", ".join(f"{name}: {wrong[name]:.1e}" for name in worst)
            + "); try export.dtype float32"
        )
    for name, change in changes.items():
        if not same_bias(change, host.bias_change(found[name], 1.0), tolerance):
            raise ValueError(f"the exported file does not match the trained bias of {name}")


def _other_notes(
    changes: dict[str, Change], found: dict[str, dict[str, Tensor]], numbers: Numbers, how: How, report: Report
) -> list[str]:
    """The program's results for output magnitudes under other conditions than the file was written for."""
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
    """The error of the LoRA that ComfyUI reads without the node."""
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
        return ["export.node_fallback has no effect: no layer of this file needs the node"]
    worst, middle = max(errors, key=lambda name: errors[name]), sorted(errors.values())[len(errors) // 2]
    return [f"without the node ComfyUI reads a LoRA of rank {options.node_fallback} for {len(errors)} layers; error as "
            f"a part of the trained change: median {middle:.1%}, largest {errors[worst]:.1%} ({worst})"]
