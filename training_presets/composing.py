"""Presets that are put together from parts: `<method>[_<variant>]_<family>[_<purpose>]`, such as `wora_sdxl`.

`methods/<method>.json` and `families/<family>.json` say what each brings, a method also what one family needs with it,
`purposes/<purpose>.json` what all presets of a purpose have, and `pairs/<name>.json` what one preset has of its own,
and why. This file is shared by the trainer and the window, each with its own reader of JSON; it imports neither.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Values = dict[str, Any]
"""A preset, or some of its options, as in JSON."""
Read = Callable[[Path], Values]
"""Reads the mapping in a JSON file. Raises ValueError in words."""


@dataclass(frozen=True)
class Part:
    """What is in one of these files, or below a name in `purposes` or `variants` of one."""

    description: str = ""
    """One sentence."""
    settings: Values = field(default_factory=dict)
    purposes: Mapping[str, "Part"] = field(default_factory=dict)
    """What is different for a purpose, by its name. A family has the purposes that its file names."""
    variants: Mapping[str, "Part"] = field(default_factory=dict)
    """Of a method: what is different for a variant, by its name."""
    families: Mapping[str, "Part"] = field(default_factory=dict)
    """Of a method: what one family needs, by its name, and why."""
    recommended: tuple[str, ...] = ()
    """Of a family, or of its purpose: the methods to begin with (`doft_planes` is one with its variant), best first."""
    short: bool = False
    """Of a family's purpose: names leave the family out, as `wora_demo` does."""
    why: str = ""
    """Of a pair, and of what one family needs: why the parts do not do."""

    def below(self, purpose: str) -> "Part":
        """What is different for a purpose; an empty part where nothing is, and for no purpose."""
        return self.purposes.get(purpose, Part())


@dataclass(frozen=True)
class Composed:
    """A preset that is put together."""

    name: str
    """As it is listed."""
    full_name: str
    """With the family, which `name` may leave out."""
    method: str
    variant: str
    family: str
    purpose: str
    """`variant` and `purpose` may be empty."""
    place: int | None
    """Among the methods to begin with for its family and purpose, from 0; None: it is none of them."""
    about: str
    """A sentence about the method."""
    group: str
    """A sentence about the family and its purpose."""
    description: str
    layers: tuple[Values, ...]
    """Options of a preset; each lies on those before it."""


def every(folder: Path, read: Read) -> list[Composed]:
    """All presets of the parts in `folder`: by family, then purpose; in each the recommended ones first, best first."""
    found = _composed(folder, read, _stems(folder / "methods"))
    return sorted(found, key=lambda one: (one.family, one.purpose, one.place is None, one.place or 0, one.name))


def find(name: str, folder: Path, read: Read) -> Composed | None:
    """The preset of this name, with its family or without; None if the parts give none. Other methods are not read."""
    methods = [method for method in _stems(folder / "methods") if name.startswith(f"{method}_")]
    for one in _composed(folder, read, methods):
        if name in (one.name, one.full_name):
            return one
    return None


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.json"))


def _composed(folder: Path, read: Read, methods: list[str]) -> Iterator[Composed]:
    """The presets of these methods."""
    if not methods:
        return
    families, purposes = (
        {stem: _part(folder / kind / f"{stem}.json", read) for stem in _stems(folder / kind)}
        for kind in ("families", "purposes")
    )
    pairs = set(_stems(folder / "pairs"))
    for method in methods:
        whole = _part(folder / f"methods/{method}.json", read)
        for variant in ("", *whole.variants):
            for family, model in families.items():
                for purpose in ("", *model.purposes):
                    full = _joined(method, variant, family, purpose)
                    name = _joined(method, variant, purpose) if model.below(purpose).short else full
                    pair = _part(folder / f"pairs/{name}.json", read) if name in pairs else Part()
                    parts = model, whole, whole.variants.get(variant, Part())
                    extra = purposes.get(purpose, Part()), whole.families.get(family, Part()), pair
                    yield _one((name, full), (method, variant, family, purpose), parts, extra)


def _one(
    names: tuple[str, str], words: tuple[str, str, str, str], parts: tuple[Part, Part, Part],
    extra: tuple[Part, Part, Part],
) -> Composed:
    """A preset of its words, the parts for them (family, method, variant), and those for its purpose, for the method in
    the family, and for it alone.

    First comes what always holds, then what the purpose changes.
    """
    method, variant, family, purpose = words
    model, whole, varied = parts
    model_changed, whole_changed, varied_changed = changed = [part.below(purpose) for part in parts]
    for_purpose, together, pair = extra
    sentences = (part.description for part in (pair, varied_changed, varied, whole_changed, whole))
    about, group = next(filter(None, sentences), ""), model_changed.description or model.description
    description = pair.description or f"{about} {group}".strip()
    named = {"description": description, "family": family, "adapter": {"method": method}}
    layers = named, *(part.settings for part in (*parts, for_purpose, *changed, together, pair))
    recommended, called = (model_changed if purpose else model).recommended, _joined(method, variant)
    place = recommended.index(called) if called in recommended else None
    return Composed(*names, *words, place, about, group, description, layers)


def _joined(*words: str) -> str:
    return "_".join(filter(None, words))


def _part(path: Path, read: Read) -> Part:
    return _checked(read(path), f"{path}")


def _checked(values: Any, place: str) -> Part:
    """A part whose entries are known and of the right kind. Raises ValueError in words."""
    known = vars(Part())
    if not isinstance(values, dict):
        raise ValueError(f"{place}: a part of presets is an object in braces, as in {{...}}")
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{place}: {name}: unknown; a part of presets has {', '.join(known)}")
        kind = list if isinstance(known[name], tuple) else type(known[name])
        if not isinstance(value, kind):
            raise ValueError(f"{place}: {name}: {value!r} is of the wrong kind; it has to be a {kind.__name__}")
    inner = {
        name: {key: _checked(part, f"{place}: {name}.{key}") for key, part in values.get(name, {}).items()}
        for name in ("purposes", "variants", "families")
    }
    return Part(**{**values, **inner, "recommended": tuple(values.get("recommended", ()))})
