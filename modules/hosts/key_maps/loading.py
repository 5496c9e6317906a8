"""What a program reads of a whole file, key by key, before any arithmetic."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from modules.files import keys

KNOWN = ("sd15", "sdxl", "sd3", "flux", "chroma")
"""The families that Forge and sd-scripts have."""
NO_FAMILY = "it does not support this model family"


@dataclass(frozen=True)
class Loading:
    """The result."""

    read: frozenset[str] = frozenset()
    """Keys of the file that the program uses."""
    raises: str = ""
    """The exception that ends the program's loading, in words: nothing is read then."""
    refuses: str = ""
    """Why it reads nothing, without an error."""
    own_alphas: bool = False
    """Whether diffusers uses each layer's own alpha."""
    other_arithmetic: bool = False
    """Whether it computes with a module that its file in modules/hosts does not model."""
    unjudged: str = ""
    """Why it is not modelled for this file."""

    def under(self, names: Mapping[str, str]) -> "Loading":
        """The same with the keys that `names` has for the keys here."""
        return replace(self, read=frozenset(names[key] for key in self.read))


@dataclass(frozen=True)
class Pair:
    """Suffixes of a low-rank pair."""

    up: str
    down: str
    middle: str = ""


@dataclass(frozen=True)
class Suffixes:
    """Suffixes that a ComfyUI-like program reads."""

    pairs: tuple[Pair, ...]
    """The first present one is read, others of the same layer are not."""
    rotations: bool
    reshapes: bool
    parts: frozenset[str] = field(init=False)
    """All of them."""
    by_end: dict[str, list[str]] = field(init=False)
    """The same by their last characters, as many as `END`: a file has thousands of keys."""

    def __post_init__(self):
        pairs = (part for pair in self.pairs for part in (pair.up, pair.down, pair.middle) if part)
        others = (keys.KOHYA.alpha, keys.KOHYA.magnitude, *keys.HADAMARD, *keys.HADAMARD_CORES, *keys.KRONECKER,
                  *keys.GENERAL, keys.NORM, keys.NORM_BIAS, keys.KOHYA.difference, keys.KOHYA.bias, keys.SET)
        more = (keys.BLOCKS, keys.RESCALE) if self.rotations else ()
        object.__setattr__(self, "parts", frozenset((*pairs, *others, *more, *((RESHAPE,) if self.reshapes else ()))))
        object.__setattr__(self, "by_end", {})
        for part in self.parts:
            self.by_end.setdefault(part[-END:], []).append(part)


END = 4

RESHAPE = ".reshape_weight"
"""The shape that a layer is resized to."""

KRONECKER_MARKS = (".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w2_a")


def read(tensors: Mapping[str, Tensor], names: Collection[str], suffixes: Suffixes) -> Loading:
    """What a ComfyUI-like program reads, with these names of layers."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        for suffix in suffixes.by_end.get(key[-END:], ()):
            if key.endswith(suffix) and key.removesuffix(suffix) in names:
                layers.setdefault(key.removesuffix(suffix), {})[suffix] = tensor
    found: set[str] = set()
    for name, parts in layers.items():
        taken, missing = _taken(parts, suffixes)
        if missing:
            return Loading(raises=f"KeyError: {name}{missing}")
        found |= {name + suffix for suffix in taken}
    return Loading(frozenset(found))


def _taken(parts: dict[str, Tensor], suffixes: Suffixes) -> tuple[set[str], str]:
    """Of one layer the suffixes that are read, and one whose absence is an error in the program."""
    updates = set()
    pair = next((pair for pair in suffixes.pairs if pair.up in parts), None)
    wanted: list[tuple[str, ...]] = []
    if pair is not None:
        wanted.append((pair.up, pair.down))
        updates |= {pair.middle, RESHAPE} & parts.keys()
    if keys.HADAMARD[0] in parts:
        wanted.append(keys.HADAMARD)
        wanted += [keys.HADAMARD_CORES] if keys.HADAMARD_CORES[0] in parts else []
    if keys.GENERAL[0] in parts:
        wanted.append(keys.GENERAL)
    for whole in wanted:
        missing = next((suffix for suffix in whole if suffix not in parts), "")
        if missing:
            return set(), missing
        updates |= set(whole)
    if any(suffix in parts for suffix in KRONECKER_MARKS):
        updates |= set(keys.KRONECKER) & parts.keys()
    if keys.BLOCKS in parts and parts[keys.BLOCKS].dim() in (3, 4):
        updates |= {keys.BLOCKS, keys.RESCALE} & parts.keys()
    if keys.NORM in parts:
        updates |= {keys.NORM, keys.NORM_BIAS} & parts.keys()
    updates |= {keys.KOHYA.difference, keys.KOHYA.bias, keys.SET} & parts.keys()
    if updates:  # alone they have no effect
        updates |= {keys.KOHYA.alpha, keys.KOHYA.magnitude} & parts.keys()
    return updates, ""
