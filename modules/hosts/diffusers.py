"""Files for diffusers: peft's names, without alpha (diffusers rejects it there)."""

from collections.abc import Collection

from torch import Tensor

from modules.files import keys, spellings
from modules.hosts import How, is_transformer
from modules.hosts.parts import arithmetic, usual
from modules.hosts.parts.arithmetic import Unread

NAMES = keys.PEFT
KINDS = ("linear", "conv")
WAYS = usual.WAYS
fitted = usual.fitted
others = usual.others
own = usual.own


def notes(forms: Collection[str]) -> list[str]:
    """None: the file is exact."""
    return []


def trouble(spelling: str, family: str, names: Collection[str]) -> str:
    """Other names than its own are rejected, or converted, as in the family's loader."""
    if family == "flux2" and spelling in (spellings.GENERIC, spellings.KOHYA_PATH):
        return "" if spelling == spellings.GENERIC else "it loads nothing, with a message in its log only"
    if spelling == spellings.GENERIC and is_transformer(family):
        return "it loads nothing, with a message in its log only"
    if spelling in (spellings.GENERIC, spellings.LEGACY, spellings.LYCORIS, spellings.KOHYA_OFT):
        return "it rejects such names"
    if spelling == spellings.BARE:
        return "peft reads such files, not load_lora_weights"
    if spelling == spellings.KOHYA_ORIGINAL and family == "sd15":
        return "it rejects the original checkpoint's paths for this model family"
    if spelling in (spellings.KOHYA_ORIGINAL, spellings.KOHYA_PATH) and family == "sd3":
        return "it loads nothing, with a message in its log only"
    return "it rejects such names" if spelling == spellings.KOHYA_PATH and family in ("flux", "chroma") else ""


def bias_change(tensors: dict[str, Tensor], strength: float) -> Tensor | None:
    """Never read."""
    return None


def effect(W: Tensor, tensors: dict[str, Tensor], strength: float, how: How) -> Tensor:
    """The strength scales the pair but not the magnitude. With `how.magnitudes` a layer without one is given the norm
    of the base weight, so that it is normalised as well."""
    if keys.KOHYA.alpha in tensors:
        raise Unread("diffusers rejects peft's names with alpha")
    if NAMES.up not in tensors:
        raise Unread(f"diffusers reads no update from {', '.join(sorted(tensors)) or 'nothing'}")
    V = W + strength * arithmetic.low_rank(W, {s: tensors[s] for s in tensors if s in NAMES.all()}, None).matrix
    given = tensors.get(NAMES.magnitude)
    if not how.magnitudes and given is None:
        return V
    if given is None:
        length = arithmetic.row_norm(W)
    elif given.numel() == W.shape[0]:
        length = given.to(W).view(-1, *[1] * (W.dim() - 1))
    else:
        raise Unread(f"peft expects one magnitude per output, but there are {given.numel()} for {W.shape[0]} outputs")
    return V * (length / arithmetic.row_norm(V))
