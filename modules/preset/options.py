"""The options of a preset as a flat list, from the pydantic models: dotted names, types, bounds, nearest names.

A tagged section (`adapter`, `optimizer`, ...) is one of several models, selected by the value of its tag. Each model
that a preset may have is one `Group`; the options of a preset are those of the groups whose tags it has chosen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python


@dataclass(frozen=True)
class Group:
    """One model at one place of a preset."""

    path: str
    """Dotted name of the section, "" for the preset itself."""

    model: type[BaseModel]

    chosen: tuple[tuple[str, str], ...] = ()
    """Tags that lead here, outermost first, e.g. (("optimizer.name", "adamw"),)."""

    tag: str = ""
    """Name of the field whose value picks this model among others, "" when there is no choice."""

    default_tag: str | None = None
    """The tag's default; None: required."""

    def options(self) -> Iterator[tuple[str, FieldInfo]]:
        """Dotted name and field of each option; the section's tag, if any, is the first."""
        fields = self.model.model_fields
        for name in sorted(fields, key=lambda name: name != self.tag):  # a stable sort: the others keep their order
            if not models_of(fields[name]):
                yield join(self.path, name), fields[name]

    def defaults(self) -> dict[str, Any]:
        """Default of each field that has one, as in JSON."""
        given = {name: field for name, field in self.model.model_fields.items() if not field.is_required()}
        return {name: to_jsonable_python(default_of(field)) for name, field in given.items()}


@cache
def groups(model: type[BaseModel]) -> tuple[Group, ...]:
    """Every group of a preset class, sections in the order of their declaration."""
    return tuple(_groups(Group("", model)))


def _groups(group: Group) -> Iterator[Group]:
    yield group
    for name, field in group.model.model_fields.items():
        path, tag = join(group.path, name), field.discriminator
        for model in models_of(field):
            if not isinstance(tag, str):
                yield from _groups(Group(path, model, group.chosen))
                continue
            chosen = (*group.chosen, (join(path, tag), tag_value(model, tag)))
            default = None if field.is_required() else default_of(field).model_dump()[tag]
            yield from _groups(Group(path, model, chosen, tag, default))


def active(model: type[BaseModel], values: Mapping[str, Any]) -> list[Group]:
    """The groups that `values` chose. A tag that is absent or wrong leaves all its groups in."""
    known = tag_choices(model)

    def fits(name: str, wanted: str) -> bool:
        given = at(values, name)
        return given == wanted or given not in known[name]

    return [group for group in groups(model) if all(fits(name, wanted) for name, wanted in group.chosen)]


def options(model: type[BaseModel], values: Mapping[str, Any] | None = None) -> dict[str, FieldInfo]:
    """Options by dotted name: those that `values` chose, or those of all groups."""
    found: dict[str, FieldInfo] = {}
    for group in groups(model) if values is None else active(model, values):
        for name, field in group.options():
            found.setdefault(name, field)
    return found


def names(model: type[BaseModel], values: Mapping[str, Any] | None = None) -> set[str]:
    """Dotted names of the options as above, and of their sections."""
    chosen = groups(model) if values is None else active(model, values)
    return {name for group in chosen for name in (group.path, *dict(group.options()))} - {""}


def owners(model: type[BaseModel], name: str) -> dict[str, list[str]]:
    """Which tag values have the option `name`, by tag: {"optimizer.name": ["adamw", "prodigy"]}."""
    found: dict[str, list[str]] = {}
    for group in groups(model):
        if any(name == option for option, _ in group.options()):
            for tag, value in group.chosen:
                if value not in found.setdefault(tag, []):
                    found[tag].append(value)
    return found


def tag_choices(model: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Dotted name of each tag and its values."""
    found: dict[str, tuple[str, ...]] = {}
    for group in groups(model):
        for tag, value in group.chosen:
            if value not in found.setdefault(tag, ()):
                found[tag] += (value,)
    return found


def choices(model: type[BaseModel], name: str, values: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    """The values of an option that is one of several, with the tags in `values`; () for any other option."""
    tags = tag_choices(model)
    if name in tags:
        return tags[name]
    field = field_at(model, name, values)
    kinds = members(field.annotation) if field else ()
    return tuple(value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind))


def field_at(model: type[BaseModel], name: str, values: Mapping[str, Any] | None = None) -> FieldInfo | None:
    """The field of an option, or of an entry in a list of them as in `list[0].name`; None when there is none.

    Where variants have the same name for different fields, the one that `values` chose, or the first.
    """
    outer, _, inner = name.partition("].")
    entries = entry_at(model, outer) if inner else None
    return entries.model_fields.get(inner) if entries else options(model, values).get(name.partition(" ")[0])


def entry_at(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of the entries of the list that `name` is or is inside of, as in `list[0].name`; None if in none."""
    field = options(model).get(name.partition("[")[0])
    return entry(field.annotation) if field else None


def entry(annotation: Any) -> type[BaseModel] | None:
    """The model that the entries of a list are, or may be; None for entries that are plain values, and for no list."""
    models = (one for one in _inner(annotation) if isinstance(one, type) and issubclass(one, BaseModel))
    return next(models, None)


def is_mixed(model: type[BaseModel], name: str) -> bool:
    """Whether the entries of the list that `name` is or is inside of may be models or texts."""
    field = options(model).get(name.partition("[")[0])
    return field is not None and entry(field.annotation) is not None and takes_texts(field.annotation)


def takes_texts(annotation: Any) -> bool:
    """Whether the entries of a list may be texts."""
    return str in _inner(annotation)


def _inner(annotation: Any) -> list[Any]:
    """What the entries of a list may be; empty for no list."""
    if get_origin(annotation) is not tuple:
        return []
    return [_bare(one) for one in members(_bare(get_args(annotation)[0]))]


def _bare(annotation: Any) -> Any:
    """A type without what is annotated to it."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def models_of(field: FieldInfo) -> list[type[BaseModel]]:
    """The models a field may hold; none for a plain option."""
    kinds = members(field.annotation)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def default_of(field: FieldInfo) -> Any:
    """The default of a field; `PydanticUndefined` when there is none."""
    return field.get_default(call_default_factory=True)  # pyright: ignore


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def tag_value(model: type[BaseModel], tag: str) -> str:
    """The value of a model's tag, from its `Literal`."""
    return get_args(model.model_fields[tag].annotation)[0]


# -- dotted names -----------------------------------------------------------------------------------------------------


def join(path: str, name: str) -> str:
    """`path.name`, or `name` at the top."""
    return f"{path}.{name}" if path else name


def at(values: Any, name: str) -> Any:
    """The value at a dotted name, None when there is none."""
    for part in name.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return None
        values = values[part]
    return values


def holds(values: Any, name: str) -> bool:
    """Whether there is a value, null included, at a dotted name."""
    section, _, last = name.rpartition(".")
    inner = at(values, section) if section else values
    return isinstance(inner, Mapping) and last in inner


def flatten(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, Mapping) and value
        found |= flatten(value, join(path, name)) if inner else {join(path, name): value}
    return found


# -- words ------------------------------------------------------------------------------------------------------------

WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", NoneType: "null"}


def type_words(annotation: Any) -> str:
    """The type of an option for a reader, e.g. "whole number or null"."""
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(f"{value}" for value in get_args(annotation))
    if entries := entry(annotation):
        also = "texts or " if takes_texts(annotation) else ""
        return f"list of {also}{entries.__name__.lower()}s {{{', '.join(entries.model_fields)}}}"
    if get_origin(annotation) is tuple:
        first, *more = (_bare(one) for one in get_args(annotation))
        return f"list of {type_words(first)}s" if more == [...] else f"list of {1 + len(more)} {type_words(first)}s"
    if len(members(annotation)) > 1:
        return " or ".join(type_words(member) for member in members(annotation))
    return WORDS[annotation]


def entry_words(model: type[BaseModel]) -> str:
    """How an entry of a list is written, e.g. `{"match": ...}`."""
    needed = [name for name, field in model.model_fields.items() if field.is_required()]
    return "{" + ", ".join(f'"{name}": ...' for name in needed or model.model_fields) + "}"


def bound_words(field: FieldInfo) -> str:
    """The bounds of an option, e.g. "at least 0, less than 1"; "" when there are none."""
    words = []
    for bound in field.metadata:
        match bound:
            case annotated_types.Ge(ge):
                words.append(f"at least {number(ge)}")
            case annotated_types.Gt(gt):
                words.append(f"more than {number(gt)}")
            case annotated_types.Le(le):
                words.append(f"at most {number(le)}")
            case annotated_types.Lt(lt):
                words.append(f"less than {number(lt)}")
    return ", ".join(words)


def number(value: Any) -> str:
    """A number without needless digits: 10 for 10.0."""
    return str(int(value)) if value == int(value) else repr(value)


def hint(field: FieldInfo, key: str) -> str:
    """What `section.option` keeps about a field: "unit", "why", "only_with" ...; "" when it is not given."""
    extra = field.json_schema_extra
    return str(extra.get(key, "")) if isinstance(extra, dict) else ""
