"""What every section of a preset is made of: a frozen model that rejects unknown keys, and described fields."""

from collections.abc import Mapping
from types import NoneType
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from modules.preset import conditions

NUMBER_FORMATS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Short names of number formats (dtypes). Every option and flag that takes the long one takes the short one too."""


def long_form(word: str) -> str:
    """A number format's long name; any other word unchanged."""
    return NUMBER_FORMATS.get(word, word)


class Section(BaseModel):
    """A group of options. Each attribute's docstring is its help text everywhere (form, `--help`, manual)."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        field_title_generator=lambda name, _: name.replace("_", " ").capitalize(),
    )

    @model_validator(mode="before")
    @classmethod
    def number_formats(cls, values: Any) -> Any:
        """With long names, where an option is a choice that has them."""
        if not isinstance(values, Mapping):
            return values
        return {name: _long_form(cls.model_fields.get(name), value) for name, value in values.items()}

    @model_validator(mode="after")
    def nothing_is_ignored(self) -> Self:
        """Reject a refused option without effect, as far as this section's other options tell."""
        values = dict(self)
        for name, field in type(self).model_fields.items():
            value, needed = values[name], [one for one in needs(field) if conditions.is_strict(one)]
            if not needed or value == field.default or conditions.asks_nothing(value):
                continue

            def look(other: str) -> list[Any] | None:
                return [values[other[1:]]] if other.startswith(".") else None

            if unmet := conditions.unmet(needed, look, {}):
                why = conditions.refusal(conditions.reason(unmet, look, ""), name, idle_value(field))
                raise ValueError(f"{name} {conditions.value_text(value)} {why}")
        return self


def needs(field: FieldInfo) -> tuple[str, ...]:
    """The conditions under which an option has an effect, see `conditions`; () for one that always has."""
    extra = field.json_schema_extra
    return tuple(f"{one}" for one in extra.get("needs", ())) if isinstance(extra, dict) else ()  # pyright: ignore


def _long_form(field: FieldInfo | None, value: Any) -> Any:
    if field is None or not isinstance(value, str) or value not in NUMBER_FORMATS:
        return value
    return long_form(value) if long_form(value) in get_args(field.annotation) else value


def idle_value(field: FieldInfo) -> Any:
    """The value that an option without effect should have: null where it may be null, otherwise the default."""
    return None if NoneType in get_args(field.annotation) else field.default


LOCAL_KINDS = ("file", "files", "folder", "folders", "model")
"""Kinds of options that are local paths; a model may also be an id on the Hugging Face hub."""


def option(
    default: Any = ...,
    *,
    why: str = "",
    group: str = "Basic",
    unit: str = "",
    advanced: bool = False,
    kind: str = "",
    title: str | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    multiple_of: int | None = None,
    needs: str | tuple[str, ...] = (),
    description: str | None = None,
) -> Any:
    """A field of a preset.

    `why` is the one-line reason for the default, printed in the generated manual, "" where the description says enough;
    `group` and `advanced` place the field in the form; `unit` is shown behind the number; `kind` picks the widget where
    the type does not: one of `LOCAL_KINDS` or ""; `title` is the field's label where its name ("Learning rate") would
    not do. `needs` are the conditions under which it has an effect, see `conditions`; `description` stands for the
    docstring of a field that is made by code.
    """
    conditional = [one for one in ((needs,) if isinstance(needs, str) else needs) if one]
    extra = {"why": why, "group": group, "unit": unit, "advanced": advanced, "kind": kind}
    extra |= {"needs": conditional, "only_with": conditions.only_with(conditional)}
    given = {key: value for key, value in extra.items() if value}
    return Field(
        default, title=title, ge=ge, gt=gt, le=le, lt=lt, multiple_of=multiple_of, description=description,
        json_schema_extra=given,
    )
