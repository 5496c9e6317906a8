"""What an option has an effect with: `option(..., needs=...)`, as a text or several.

A text is a condition with alternatives, `A or B`; of several texts all must hold. An alternative is

    data.shuffle                     an option that is on: not null, false, 0, empty or "none"
    training.schedule linear|cosine  an option that has one of these values; >1 stands for all above 1
    not training.epochs              an option that is off
    .step_size raw                   an option beside this one: in the same section, or in the same entry of a list
    data.folders[].masks             an option in any entry of a list
    @validation                      a fact that only `--check` knows, see `FACTS`

An option that is set although a condition does not hold is a note; an error with "!" in front of the condition.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training_presets.sentences import enumerated, shown

FACTS: dict[str, tuple[str, str]] = {
    "single_file": ("a single-file checkpoint as base", "with a base that is no single-file checkpoint"),
    "diffusion": ("a diffusion model as base", "with this base, which is a rectified-flow model"),
    "flow": ("a rectified-flow model as base", "with this base, which is a diffusion model"),
    "validation": ("validation pictures", "without validation pictures"),
    "text_layers": ("an adapted layer of a text encoder", "because no layer of a text encoder is adapted"),
    "decayed": ("a method with parameters that decay", "with this method, whose parameters never decay"),
    "scaled": ("a layer whose factors are no full matrices", "because the factors of all layers are full matrices"),
    "magnitudes": ("magnitudes in the file", "without magnitudes in the file"),
    "kernels": ("an adapted convolution with a kernel", "because no adapted layer is a convolution with a kernel"),
    "output_magnitudes": ("output-axis magnitudes in the file", "without output-axis magnitudes in the file"),
}
"""A fact's words in "Only with ...", and where it does not hold in "has no effect ..."."""

OFF = (None, False, 0, "", "none", [], ())
"""The values of an option that is off."""

Look = Callable[[str], list[Any] | None]
"""The values of an option by its dotted name: several with `[]`, none where this preset has no such option; None where
that is unknown, and then every condition on it holds."""


@dataclass(frozen=True)
class Alternative:
    """One alternative of a condition."""

    name: str
    """Of an option, or of a fact with its @."""
    values: tuple[str, ...] = ()
    """One of which it has to have; (): it has to be on."""
    negated: bool = False
    """It has to be off."""

    def holds(self, look: Look, facts: Mapping[str, Any]) -> bool:
        """Whether it holds. A fact that is not known holds."""
        if self.name.startswith("@"):
            return bool(facts.get(self.name[1:], True))
        found = look(self.name)
        if found is None:
            return True
        on = any(_is_one(value, self.values) if self.values else not is_off(value) for value in found)
        return on is not self.negated

    def words(self) -> str:
        """For "Only with ..."."""
        if self.name.startswith("@"):
            return FACTS[self.name[1:]][0]
        name = self.name.removeprefix(".")
        if self.values:
            return f"{name} {_any_of(self.values)}"
        return f"{name} off" if self.negated else name


def parse(condition: str) -> tuple[Alternative, ...]:
    """The alternatives of a condition."""
    return tuple(_alternative(text) for text in condition.removeprefix("!").split(" or "))


def is_strict(condition: str) -> bool:
    """Whether an option that is set without it is an error."""
    return condition.startswith("!")


def _alternative(text: str) -> Alternative:
    negated = text.startswith("not ")
    name, _, values = text.removeprefix("not ").partition(" ")
    return Alternative(name, tuple(values.split("|")) if values else (), negated)


def only_with(conditions: Sequence[str]) -> str:
    """`Only with A or B, and C.`, for the manual; "" without conditions."""
    parts = [enumerated([one.words() for one in _said(parse(condition))], "or") for condition in conditions]
    return f"Only with {', and '.join(parts)}." if parts else ""


def _said(alternatives: Sequence[Alternative]) -> list[Alternative]:
    """Those that are named in a sentence: not the option of a folder beside the same of all folders."""
    usual = {one.name.removeprefix("data.") for one in alternatives if one.name.startswith("data.")}
    repeated = {f"{place}.{name}" for name in usual for place in ("data.folders[]", "")}
    return [one for one in alternatives if one.name not in repeated]


def unmet(conditions: Sequence[str], look: Look, facts: Mapping[str, Any]) -> str:
    """The first condition that does not hold; "" where all hold."""
    failed = (one for one in conditions if not any(part.holds(look, facts) for part in parse(one)))
    return next(failed, "")


def reason(condition: str, look: Look, path: str) -> str:
    """Why an option has no effect where this condition does not hold: `without data.shuffle or data.part_dropout`.
    `path`: of the section that the option is in, "" to leave it out."""
    first, *others = alternatives = _said(parse(condition))
    if others:
        return f"without {enumerated([_named(one, path) for one in alternatives], 'or')}"
    if first.name.startswith("@"):
        return FACTS[first.name[1:]][1]
    name, found = absolute(first.name, path), look(first.name) or []
    if "[]" in name:  # the values of some entries say nothing about those that would be needed
        return f"without {_named(first, path)}"
    now = enumerated([value_text(value) for value in found], "and") if found else ""
    if first.negated:
        return f"with {name} {now}; set {name} to {'false' if True in found else 'null'}"
    return f"with {name} {now}; set {name} to {_any_of(first.values)}" if first.values and now else (
        f"without {_named(first, path)}")


def refusal(why: str, name: str, instead: Any) -> str:
    """`has no effect`, why (see `reason`), and the value that the option should have instead."""
    text = value_text(instead)
    remedy = f"set it to {text}" if asks_nothing(instead) else f"leave {name} at {text}"
    return f"has no effect {why}{', or' if '; set ' in why else ';'} {remedy}"


def _named(one: Alternative, path: str) -> str:
    if one.name.startswith("@"):
        return FACTS[one.name[1:]][0]
    return " ".join([absolute(one.name, path), *([_any_of(one.values)] if one.values else [])])


def _is_one(value: Any, values: Sequence[str]) -> bool:
    """Whether a value is one of these, or above a bound among them."""
    bounds = [float(one[1:]) for one in values if one.startswith(">")]
    return value_text(value) in values or any(is_number(value) and value > bound for bound in bounds)


def is_number(value: Any) -> bool:
    """Whether a value of an option is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _any_of(values: Sequence[str]) -> str:
    return enumerated([one.replace(">", "more than ") for one in values], "or")


def absolute(name: str, path: str) -> str:
    """The full name of an option that may be one beside this one."""
    if not name.startswith("."):
        return name
    return f"{path}{name}" if path else name[1:]


def is_off(value: Any) -> bool:
    """Whether an option with this value is off."""
    return value in OFF


def asks_nothing(value: Any) -> bool:
    """Whether a value turns an option off, which is no request; a number may be one."""
    return is_off(value) and not is_number(value)


def value_text(value: Any) -> str:
    """A value in a sentence: words as they are typed."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) and value.isidentifier() else shown(value)
