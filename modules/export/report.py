"""A written file, and its errors."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from modules.files.distance import LayerError

SHOWN = 8
"""The number of approximated layers that a report's text names."""

KEPT = "as it was"
"""The end of the form of a layer whose tensors are those of another file."""


@dataclass(frozen=True)
class Rounded:
    """A file's errors in a program that computes in some dtype, relative to the trained change (Frobenius norm)."""

    error: float
    """Of all layers together."""
    rounding: float
    """The error of rounding the trained weights; no file can do better."""
    worst: float
    """Of the layer whose error is the largest, of those that are not `lost`."""
    layer: str
    """Empty if all are lost."""
    beyond: int
    """The number of layers with an error of more than a tenth of their change and twice that of rounding."""
    lost: int = 0
    """The number of layers that have changed by less than the rounding error of their weights."""

    @property
    def is_good(self) -> bool:
        """Whether the error is little more than that of rounding; True for a file without changes."""
        if self._is_nothing:
            return True
        return self.beyond == 0 and self.error <= max(2 * self.rounding, 0.001)

    @property
    def _is_nothing(self) -> bool:
        return bool(self.lost) and not self.layer

    def words(self) -> str:
        """For reading; no percentage of a negligible change."""
        if self._is_nothing:
            return "no layer has changed by more than the rounding error of its weight"
        found = f"{self.error:.2%} (rounding alone: {self.rounding:.2%})"
        found += f", largest in one layer {self.worst:.1%} ({self.layer})" if self.layer else ""
        return found + (f"; layers that have changed by less than the rounding error of their weights: {self.lost}"
                        if self.lost else "")


@dataclass
class Report:
    """A written file."""

    path: Path
    size: int = 0
    """Of the file, in bytes."""
    forms: dict[str, str] = field(default_factory=dict)
    """Form of each layer, in words."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each layer's tensors."""
    errors: dict[str, LayerError] = field(default_factory=dict)
    """Distance of each layer's effect in the host from the trained weight."""
    fitted: dict[str, str] = field(default_factory=dict)
    """The layers whose magnitudes are fitted to the dtype that the program computes in, and this dtype
    (`computes_in`)."""
    rounded: dict[str, Rounded] = field(default_factory=dict)
    """By the dtype in which the program may compute (`Host.WAYS`)."""
    notes: list[str] = field(default_factory=list)
    """What the user should know, as sentences."""

    @property
    def approximate(self) -> dict[str, LayerError]:
        """Errors of the layers that are approximated on purpose. Recomputed at each access: use it once, not for every
        layer."""
        return {name: error for name, error in self.errors.items() if self._is_approximate(name)}

    @property
    def exact(self) -> dict[str, LayerError]:
        """Errors of all other layers, likewise."""
        return {name: error for name, error in self.errors.items() if not self._is_approximate(name)}

    def is_kept(self, name: str) -> bool:
        """Whether the layer's tensors are those of another file, unchanged."""
        return self.forms[name].endswith(KEPT)

    def _is_approximate(self, name: str) -> bool:
        return "approximate" in self.forms[name]

    def text(self) -> str:
        """The report in printable lines."""
        lines = [f"{self.path}: {megabytes(self.size)}, {len(self.forms)} layers"]
        sizes: Counter[str] = Counter()
        for name, form in self.forms.items():
            sizes[form] += self.sizes[name]
        for form, count in Counter(self.forms.values()).most_common():
            lines.append(f"  {form}: {count} layers, {megabytes(sizes[form])}")
        exact, approximate = self.exact, self.approximate
        if exact:
            worst = max(exact, key=lambda name: exact[name].weight)
            lines.append(f"  largest error of an exact layer: {exact[worst].weight:.1e} of its largest weight "
                         f"({worst})")
        if approximate:
            found = sorted(approximate.items(), key=lambda item: -item[1].change)
            middle = found[len(found) // 2][1].change
            lines.append(f"  {len(found)} approximated layers; error as a part of the trained change: median "
                         f"{middle:.1%}, and the largest (in brackets: as a part of the largest weight)")
            lines += [f"    {name}: {e.change:.1%} ({e.weight:.1e})" for name, e in found[:SHOWN]]
        lines += [f"  error as a part of the trained change, computed in {way}: {found.words()}"
                  for way, found in self.rounded.items()]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def table(self) -> str:
        """One line per layer: name, form, bytes, error of the weight, error of the change; tab-separated."""
        rows = ["layer\tform\tbytes\tlargest error of the weight\terror of the change"]
        rows += [f"{name}\t{form}\t{self.sizes[name]}\t{self.errors[name].weight:.2e}\t{self.errors[name].change:.2e}"
                 for name, form in self.forms.items()]
        return "\n".join(rows) + "\n"

    def outcome(self) -> dict[str, str]:
        """Forms and errors, for the file's metadata."""
        rounded = {way: {key: value if isinstance(value, str | int) else float(f"{value:.3e}")
                         for key, value in vars(found).items()} for way, found in self.rounded.items()}
        return {
            "gimbal.computed": json.dumps(rounded),
            "gimbal.fitted": json.dumps(self.fitted),
            "gimbal.form": json.dumps(self.forms),
            "gimbal.errors": json.dumps({name: float(f"{e.weight:.2e}") for name, e in self.errors.items()}),
            "gimbal.approximations": json.dumps({n: float(f"{e.change:.3e}") for n, e in self.approximate.items()}),
        }


def megabytes(size: int) -> str:
    """A size in bytes, for reading."""
    return f"{size / 1e6:.1f} MB"
