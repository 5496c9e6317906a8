"""Checks one layer's tensors against their suffixes, before any kind computes with them."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from modules.adapters.base import Terms

FLAGS = ("scaled", "cans", "exponential", "clipped", "block_size", "block_share", "coft", "scaled_flag", "on_input",
         "reshape")
"""Parts that are marks or counts: of any dtype, empty or not."""

NUMBERS = ("magnitude", "delora_lambda", "bias", "set_bias", "wora_alpha", "wora_beta")
"""Parts that may have no dimension."""


def check(parts: dict[str, Tensor]) -> None:
    """Raises ValueError for tensors that no kind can compute with."""
    alpha = parts.get("alpha")
    if alpha is not None and (alpha.numel() != 1 or alpha.is_complex()):
        raise ValueError(f"its alpha has {alpha.numel()} values and should be a single value; the file is damaged")
    for part, tensor in parts.items():
        if part in FLAGS or part == "alpha":
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"its {part} is stored as {str(tensor.dtype).removeprefix('torch.')}, which is not a "
                             "valid dtype for weights; the file is damaged, or quantized in an unknown format")
        if tensor.dim() == 0 and part not in NUMBERS:
            raise ValueError(f"its {part} is a single value; the file is damaged")
        if tensor.numel() == 0 and not (part == "oft_blocks" and tensor.dim() == 4):  # BOFT without factors
            raise ValueError(f"its {part} is empty; the file is damaged")


def refuse_rests(parts: Collection[str], known: Collection[str], others: Collection[Collection[str]]) -> None:
    """ValueError for parts that nothing uses: neither the layer's kind (`known`) nor another whole one beside it
    (`others`), such as a LoRA for programs that cannot read the rest."""
    rests = sorted(part for part in parts if part not in known and not any(part in other for other in others))
    if rests:
        raise ValueError(f"incomplete: with its {', '.join(rests)} alone no update can be computed")


def check_magnitude(along: str, given: Tensor | None, out: int | None, fan_in: int | None) -> None:
    """ValueError for a magnitude that cannot be one of a weight `(out, fan_in)`, as far as that is known."""
    if given is None or not along:
        return
    count = given.numel()
    fits = out in (None, count) if along == "output" else fan_in is None or fan_in % count == 0
    if not fits:
        raise ValueError(f"its magnitude has {count} values along the {along}, but its other tensors are for "
                         f"{out or '?'} outputs and {fan_in or '?'} inputs; the file is damaged")


def check_terms(terms: Terms, W: Tensor) -> None:
    """ValueError for terms that are not of `W (out, fan_in)`, in addition to the checks of the kinds."""
    pair, (out, fan_in) = (terms.up, terms.down), W.shape
    fits = terms.difference is None or terms.difference.shape == W.shape
    if pair[0] is not None and pair[1] is not None:
        fits = fits and pair[0].shape == (out, len(pair[1])) and pair[1].shape[1:] == (fan_in,)
    if not fits:
        raise ValueError("its tensors have shapes that do not match; the file is damaged")


@contextmanager
def as_sentence() -> Iterator[None]:
    """torch's errors about shapes as a ValueError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        said = str(error).strip().splitlines()[0]
        raise ValueError(f"its tensors have shapes that do not match ({said}); the file is damaged") from error
