"""What every section of a preset is made of: a frozen model that refuses unknown keys, and described fields."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


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


LOCAL_KINDS = ("file", "folder", "folders", "model")
"""Kinds of options that name places on this machine; a model may also be an id on the Hugging Face hub."""


def option(
    default: Any = ...,
    *,
    why: str,
    group: str = "Basic",
    unit: str = "",
    advanced: bool = False,
    kind: str = "",
    title: str | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A field of a preset.

    `why` is the one-line reason for the default, printed in the generated manual; `group` and `advanced` place the
    field in the form; `unit` is shown behind the number; `kind` picks the widget where the type does not: one of
    `LOCAL_KINDS` or ""; `title` is the field's label where its name ("Learning rate") would not do.
    """
    extra = {"why": why, "group": group, "unit": unit, "advanced": advanced, "kind": kind}
    given = {key: value for key, value in extra.items() if value}
    return Field(default, title=title, ge=ge, gt=gt, le=le, lt=lt, json_schema_extra=given)
