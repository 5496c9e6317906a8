"""The own settings of adapted layers: ranks, learning rates, and when they stop learning, by targets.rules and by text
encoder."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from modules.preset.schema import Preset, Rule, Targets
from modules.training.matching import Names


def in_denoiser(model: Any, name: str) -> bool:
    """Whether the layer with this full name is in the denoiser, the first of the model's networks."""
    return name.startswith(next(iter(model.networks)) + ".")


@dataclass(frozen=True)
class Own:
    """A layer's own settings."""

    rank: int | None
    """None: adapter.rank."""
    rates: Mapping[str, float]
    """Factors on training.learning_rate, by the option that gives them."""
    stop: float = 1.0
    """Share of all steps after which it is no longer trained."""

    @property
    def lr_scale(self) -> float:
        """The layer's learning rate as a multiple of training.learning_rate."""
        return prod(self.rates.values())


def own_settings(model: Any, targets: Targets, names: Collection[str]) -> dict[str, Own]:
    """The own settings of each of the layers `names`. Of rules that give the same to one layer, the last one counts."""
    ranks: dict[str, int] = {}
    rates: dict[str, dict[str, float]] = {}
    for number, (rule, hits) in enumerate(rules_with_hits(model, targets, names)):
        for name in hits:
            if rule.rank is not None:
                ranks[name] = rule.rank
            if rule.lr_scale is not None:
                rates[name] = {f"targets.rules[{number}].lr_scale": rule.lr_scale}
    networks = {name: own_of_encoder(targets, name) for name in model.networks}
    networks[next(iter(model.networks))] = Own(None, {})
    found = {name: networks[name.partition(".")[0]] for name in names}
    return {name: Own(ranks.get(name), {**one.rates, **rates.get(name, {})}, one.stop) for name, one in found.items()}


def own_of_encoder(targets: Targets, name: str) -> Own:
    """The settings of a text encoder. Of several entries for it the last one counts, value by value."""
    rate, stop = {"targets.text_encoder_lr_scale": targets.text_encoder_lr_scale}, targets.text_encoder_stop
    for number, one in enumerate(targets.encoders):
        if one.name == name:
            stop = stop if one.stop is None else one.stop
            rate = rate if one.lr_scale is None else {f"targets.encoders[{number}].lr_scale": one.lr_scale}
    return Own(None, rate, stop)


def rules_with_hits(model: Any, targets: Targets, names: Iterable[str]) -> list[tuple[Rule, list[str]]]:
    """The rules, each with those of `names` that it is for."""
    if not targets.rules:
        return []
    found, sets = Names(names), model.named_targets()
    return [(rule, found.matching(sets.get(rule.match, (rule.match,)))) for rule in targets.rules]


def uneven_rates(own: Iterable[Own]) -> tuple[tuple[str, float], ...]:
    """The options, with their factors, that give some of the layers another learning rate than others."""
    layers = list(own)
    if len({one.lr_scale for one in layers}) < 2:
        return ()
    counts = Counter(rate for one in layers for rate in one.rates.items() if rate[1] != 1)
    return tuple(rate for rate, count in counts.items() if count < len(layers))


def possible_rates(targets: Targets) -> tuple[tuple[str, float], ...]:
    """The same where the layers are not known: all options that may do so."""
    rates = [("targets.text_encoder_lr_scale", targets.text_encoder_lr_scale)] if targets.text_encoders else []
    rates += [(f"targets.encoders[{n}].lr_scale", one.lr_scale or 1.0) for n, one in enumerate(targets.encoders)]
    rates += [(f"targets.rules[{n}].lr_scale", rule.lr_scale or 1.0) for n, rule in enumerate(targets.rules)]
    return tuple(rate for rate in rates if rate[1] != 1)


def rule_problems(preset: Preset) -> list[str]:
    """What is wrong with rules whatever the layers are, in sentences."""
    problems, method = [], preset.adapter.method
    for number, rule in enumerate(preset.targets.rules):
        place = f"targets.rules[{number}]"
        if rule.rank is None and rule.lr_scale is None:
            problems.append(f"{place}: has neither rank nor lr_scale; set one of them, or remove the rule")
        if rule.rank is not None and "rank" not in type(preset.adapter).model_fields:
            problems.append(f"{place}.rank: {rule.rank}, but method {method} has no rank; remove it from the rule")
    return problems


def encoder_problems(model: Any, targets: Targets, adapted: Collection[str]) -> list[str]:
    """What is wrong with targets.encoders, and with ends of their training, in sentences; `adapted`: full names of the
    adapted layers."""
    encoders, problems = list(model.networks)[1:], []
    learning = {name.partition(".")[0] for name in adapted}
    for number, one in enumerate(targets.encoders):
        place = f"targets.encoders[{number}]"
        if one.name not in encoders:
            there = ", ".join(encoders) or "none"
            problems.append(f"{place}.name: {one.name!r} is no text encoder of this model; available: {there}")
        elif adapted and one.name not in learning:
            problems.append(f"{place}.name: no layer of {one.name} is adapted; add some with targets.text_encoders, or "
                            "remove the entry")
        elif one.lr_scale is None and one.stop is None:
            problems.append(f"{place}: has neither lr_scale nor stop; set one of them, or remove the entry")
    stops = {one.stop for one in own_settings(model, targets, adapted).values()}
    if stops and max(stops) < 1:
        problems.append(f"targets.text_encoder_stop: only text encoders are trained, and all of them stop after "
                        f"{max(stops):g} of the steps; set it to 1, or train fewer steps")
    return problems
