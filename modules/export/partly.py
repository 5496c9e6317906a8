"""What those programs lose that do not support all of a file: layers by reason, and what to do."""

from collections.abc import Mapping

from torch import Tensor

from modules import hosts
from modules.files import distance, kinds
from modules.files.change import Change
from modules.files.reading import listed
from modules.hosts import How
from modules.hosts.parts.effect_of_file import counted
from modules.preset.export_options import Export

PLAIN = "export.form svd writes plain LoRAs, which it reads, and prints the error of each"
LEAVE_OUT = "leave them out of the training (targets.exclude) if the result must be the same there"


def notes(
    changes: Mapping[str, Change], found: Mapping[str, dict[str, Tensor]], spelling: Mapping[str, str], options: Export,
    how: How,
) -> list[str]:
    """One sentence for each program and reason; none for a file for one program.

    `found` has each layer's tensors by suffix, `spelling` its name in the file.
    """
    group = hosts.several(options.host)
    if group is None:
        return []
    said = []
    nowhere = group.unfound(how.family, {spelling[name]: name for name in changes})
    for program, reason, names in nowhere:
        if len(names) == len(changes):
            said.append(f"{program} loads nothing from this file: {reason}")
        else:
            said.append(_sentence(program, reason, names, LEAVE_OUT))
    for program in group.apart():
        unknown = {name for words, _, names in nowhere if words == program.WORDS for name in names}
        reasons: dict[str, list[str]] = {}
        for name in changes.keys() - unknown:
            reason = _reason(program, group, changes[name], found[name], options, how)
            if reason:
                reasons.setdefault(reason, []).append(name)
        said += [_sentence(program.WORDS, reason, sorted(names), PLAIN) for reason, names in sorted(reasons.items())]
    return said


def _reason(
    program: hosts.Member, group: hosts.Several, change: Change, tensors: dict[str, Tensor], options: Export, how: How
) -> str:
    """Why the program's result for a layer differs from the others', empty if it does not."""
    W, own = _small(change, tensors)
    try:
        weight = program.effect(W, own, 1.0, how)
    except hosts.Unread as error:
        return str(error)
    if group.NAMES.magnitude in tensors:
        meant = group.effect(W, tensors, 1.0, how)
        if distance.is_too_large(distance.compare(meant, weight, W), options.dtype):
            return "it ignores their magnitudes and computes other weights"
    lacks_bias = group.bias_change(tensors, 1.0) is not None and program.bias_change(tensors, 1.0) is None
    return "it does not read the change of their bias" if lacks_bias else ""


def _small(change: Change, tensors: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """A layer's weight and its tensors; of plain pairs some rows, since whether they are read does not depend on
    values."""
    if not kinds.is_pair(tensors) or change.layer.kind == "embedding":
        return change.base(), tensors
    block = next(change.blocks())
    return block.W, kinds.of_rows(tensors, block.start, block.stop)


def _sentence(program: str, reason: str, names: list[str], advice: str) -> str:
    return f"{program} loses {counted(len(names))}: {reason}; {advice}. Layers: {listed(names)}"
