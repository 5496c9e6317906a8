"""Presets made up at random from the schema, and the trainer's own answers about them."""

import json
import random
from functools import cache
from typing import Any

from pydantic import ValidationError

from modules.preset import options, problems, reference
from modules.preset.schema import Preset
from ui.core.preset.field import Field
from ui.core.preset.schema import Schema, Values, at, flatten, with_value, without


@cache
def schema() -> Schema:
    """The window's schema of the trainer as it is."""
    return Schema(json.loads(reference.schema_text()))


def trainer_says(values: Values) -> tuple[Values | None, list[str]]:
    """The complete preset or None, and the problems."""
    try:
        return Preset.model_validate(values).model_dump(mode="json"), []
    except ValidationError as error:
        return None, problems.sentences(error, Preset, values)


def some_value(field: Field, rng: random.Random) -> Any:
    """A value that the schema allows."""
    if field.choices:
        return rng.choice(field.choices)
    if field.nullable and rng.random() < 0.3:
        return None
    if field.kind == "boolean":
        return rng.random() < 0.5
    if field.kind in ("integer", "number"):
        bounds = (field.minimum, field.exclusive_minimum, field.maximum, field.exclusive_maximum)
        low = next((bound for bound in bounds[:2] if bound is not None), -5)
        high = next((bound for bound in bounds[2:] if bound is not None), low + 1000)
        if field.kind == "number":
            return low + (high - low) * rng.uniform(0.01, 0.99)
        found = rng.randint(int(low) + (bounds[1] is not None), int(high) - (bounds[3] is not None))
        return found - found % (field.multiple_of or 1)
    if field.kind == "entries":
        return [{one.path: some_value(one, rng) for one in field.columns if one.required or rng.random() < 0.7}
                for _ in range(rng.randrange(4))]  # fmt: skip
    if field.kind in ("texts", "folders"):
        return [rng.choice(["a cat", "ü \"'\\", "x*"]) for _ in range(rng.randrange(3))]
    return rng.choice(["", "a, b", "ü \"'\\", "null", " "])


def some_tags(rng: random.Random) -> Values:
    """A preset in which every tag, inner ones too, and everything that has to be given is chosen."""
    values: Values = {}
    for field in schema().fields({}).values():
        if field.required or field.kind == "tag":
            values = with_value(values, field.path, some_value(field, rng))
    for field in schema().fields(values).values():
        if field.kind == "tag" and at(values, field.path) is None:
            values = with_value(values, field.path, some_value(field, rng))
    return values


def some_preset(rng: random.Random, changes: int = 12) -> Values:
    """A right preset that is not complete."""
    values = some_tags(rng)
    free = [field for field in schema().fields(values).values() if field.kind != "tag" and not field.required]
    for field in rng.sample(free, changes):
        values = with_value(values, field.path, value_of_all(field, rng))
    return without_refused(_with_needs(values), rng)


def without_refused(values: Values, rng: random.Random, *switch: str) -> Values:
    """`values` without some of those that are right by themselves and refused together.

    `switch`: a tag and what it is switched to before the trainer is asked.
    """
    while problems := trainer_says(schema().switched(values, *switch)[0] if switch else values)[1]:
        assert are_of_sections(problems), problems
        sections = [problem.partition(":")[0] for problem in problems]
        inside = [path for path in flatten(values) if path.rpartition(".")[0] in sections]
        values = without(values, rng.choice([path for path in inside if schema().everything()[path][0].kind != "tag"]))
    return values


def are_of_sections(problems: list[str]) -> bool:
    """Whether there are problems, and each is about values that do not go together rather than about one of them."""
    return bool(problems) and not {problem.partition(":")[0] for problem in problems} & schema().everything().keys()


def _with_needs(values: Values) -> Values:
    """What some options of the exported file are refused without."""
    is_node = at(values, "export.node_fallback") is not None or at(values, "export.node_spelling") is not None
    if is_node or at(values, "export.rank") is not None:
        values = with_value(values, "export.form", "compact")
    return with_value(values, "export.host", "comfyui_node") if is_node else values


def value_of_all(field: Field, rng: random.Random) -> Any:
    """A value that is right in each variant with a field of this path, so that it stays right in another one."""
    same = schema().everything()[field.path]
    drawn = (some_value(field, rng) for _ in range(100))
    return next((value for value in drawn if not any(one.problem(value) for one in same)), field.default)


def of_each_variant() -> list[Values]:
    """A preset for each variant of each section, complete but for what has to be given."""
    found = []
    for group in options.groups(Preset):
        values: Values = {"adapter": {"method": schema().tags["adapter"].choices[0]}}
        for tag, choice in group.chosen:
            values = with_value(values, tag, choice)
        found.append(schema().complete(values)[0])
    return found
