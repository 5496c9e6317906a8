"""Programs' results for a file: which tensors they read, what they compute, and how far that is from the trained
weight."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from modules import hosts
from modules.files import keys, kinds, spellings, writer
from modules.files.distance import Comparison, LayerError
from modules.files.opening import AdapterFile
from modules.files.reading import family_of
from modules.hosts import How
from modules.hosts.parts import arithmetic


@dataclass(frozen=True)
class View:
    """A whole file as one program reads it."""

    host: str
    how: How
    common_alpha: float | None = None
    """diffusers uses this for attention and text encoders instead of their own alpha."""
    about: writer.About = field(default_factory=writer.About)
    """With peft's options in the file's metadata, which diffusers reads."""
    reads_alphas: bool = False
    """Whether diffusers reads alpha beside peft's names, as FLUX's loader does."""

    def tensors(self, name: str, parts: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
        """One layer's tensors by the suffixes that the program reads; `given`: those of the file."""
        names = hosts.load(self.host).NAMES
        pair = kinds.kind_of(parts) is kinds.low_rank
        pair |= self.host == "diffusers" and {"up", "down"} <= parts.keys()  # with any other tensors
        if self.host == "diffusers" and not pair:
            return {suffix: t for suffix, t in given.items() if suffix != keys.KOHYA.alpha}
        if not pair or (names.up in given and self.host != "diffusers"):
            return given
        if self.host != "diffusers":  # old spellings of the pair
            others = {suffix: t for suffix, t in given.items() if kinds.part_of(suffix) not in ("up", "down")}
            is_known = keys.PEFT.up in given
            return given if is_known else others | {names.up: parts["up"], names.down: parts["down"]}
        if keys.PEFT.up in given and keys.KOHYA.alpha in given and self.reads_alphas:
            scale = self._scale(name, parts)
            return {s: t for s, t in given.items() if s != keys.KOHYA.alpha} | {names.up: given[names.up] * scale}
        if keys.PEFT.up in given:
            scale = self.about.of(name).scale(len(parts["down"]))
            return given | {names.up: given[names.up] * scale} if scale != 1 else given
        if "mid" in parts:
            return given
        scale = self._scale(name, parts if keys.KOHYA.alpha in given else {"down": parts["down"]})
        return {names.up: parts["up"].float() * scale, names.down: parts["down"]}

    def _scale(self, name: str, parts: dict[str, Tensor]) -> float:
        """diffusers' factor for a pair in kohya's names."""
        if "alpha" not in parts:
            return 1.0
        guessed = self.common_alpha is not None and spellings.part(name, parts["down"].dim()) in (
            "attention", "text encoders"
        )
        alpha = self.common_alpha if guessed and self.common_alpha is not None else parts["alpha"].item()
        return alpha / parts["down"].shape[0]

    def effect(
        self, W: Tensor, tensors: dict[str, Tensor], strength: float, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The program's weight from `W` in the layer's own shape. Raises `arithmetic.Unread` with the reason."""
        return hosts.load(self.host).effect(W, tensors, strength, replace(self.how, dtype=dtype))


def view(file: AdapterFile, host: str, norm: str = "") -> View:
    """The file in `host`; `norm`: the norm that ComfyUI divides by, the current one if empty."""
    layers, _ = kinds.grouped(file.tensors)
    magnitudes = any(key.endswith(keys.PEFT.magnitude) for key in file.tensors)
    alphas = Counter(
        file.tensors[found["alpha"]].item() for found in layers.values()
        if "alpha" in found and "down" in found and file.tensors[found["alpha"]].numel() == 1
    )
    common = alphas.most_common(1)[0][0] if len(alphas) > 1 else None
    config = file.config if writer.PEFT_OPTIONS in file.metadata else {}
    how = How(norm or "original", magnitudes, family=family_of(file.tensors))
    return View(host, how, common, writer.About(config=config))


@dataclass(frozen=True)
class Verdict:
    """A program's result for one layer."""

    error: LayerError | None
    """None if it reads nothing."""
    reason: str = ""
    """Why it reads nothing."""


def judge(
    found: View, name: str, parts: dict[str, Tensor], given: dict[str, Tensor], W: Tensor, meant: Tensor,
    strength: float = 1.0, dtype: torch.dtype | None = None,
) -> Verdict:
    """The distance of the program's weight from `meant`, the trained one; `W` and `meant` in the layer's own shape."""
    return judge_blocks(found, name, [(parts, given, W, meant)], strength, (dtype,))[0]


def judge_blocks(
    found: View, name: str, blocks: Iterable[tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]],
    strength: float, dtypes: Sequence[torch.dtype | None],
) -> list[Verdict]:
    """The same of a layer that comes in blocks of rows, each with its tensors, `W` and what is meant; by dtype."""
    sums, unread = [Comparison() for _ in dtypes], {}
    for parts, given, W, meant in blocks:
        tensors = found.tensors(name, parts, given)
        for place, dtype in enumerate(dtypes):
            if place not in unread:
                try:
                    sums[place].add(meant, found.effect(W, tensors, strength, dtype), W)
                except arithmetic.Unread as error:
                    unread[place] = str(error)
    return [Verdict(None, unread[place]) if place in unread else Verdict(one.error()) for place, one in enumerate(sums)]


def name_troubles(host: str, family: str, names: Collection[str]) -> dict[str, list[str]]:
    """Why `host` does not find layers, by reason, with their names."""
    found: dict[str, list[str]] = {}
    by_spelling: dict[str, list[str]] = {}
    for name in names:
        by_spelling.setdefault(spellings.spelling(name), []).append(name)
    for how, listed in by_spelling.items():
        reason = hosts.load(host).trouble(how, family, listed)
        if reason:
            found.setdefault(f"names in the format of {how}: {reason}", []).extend(listed)
    return found


def scale_trouble(file: AdapterFile) -> str:
    """What diffusers does with several alphas, empty if the file has one or none."""
    found = view(file, "diffusers")
    if found.common_alpha is None:
        return ""
    return (f"its alphas differ between layers, but diffusers uses {found.common_alpha:g} for all layers of attention "
            "and text encoders, without a warning")


def counted(number: int, word: str = "layer") -> str:
    """ "1 layer", "2 layers"."""
    return f"{number} {word}" + ("" if number == 1 else "s")


def ranks(parts: dict[str, Tensor]) -> int | None:
    """The layer's rank, or block size."""
    kind = kinds.kind_of(parts)
    return None if kind is None else kind.rank(parts)


def about(file: AdapterFile) -> writer.About:
    """The facts that the arithmetic of its layers may depend on; `of` returns those of one layer."""
    return writer.About(writer.writer(file.tensors, file.metadata, file.config), "", file.metadata, file.config)
