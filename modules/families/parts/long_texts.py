"""CLIP text encoders on captions of more than 75 tokens, with weights of words, or read at an earlier layer.

The scheme is that of kohya's sd-scripts (`max_token_length`, `weighted_captions`, `clip_skip`; commit 48d368fa), so
that files trained here and there agree:

1. All chunks are one row of tokens: a start, the caption's tokens, an end, padding. It is cut every 75 tokens, whatever
   word or comma is there, and each chunk gets the row's start in front and the row's last token at its end. Where the
   padding is another token than the end (the second encoder of SDXL, SD2), a chunk that ends inside the caption ends
   with an end token, and one that begins with padding has an end token first.
2. Every chunk is read by itself. The features of the row are the first chunk's start, each chunk's 75 tokens, and the
   last chunk's end; the pooled text is that of the first chunk.
3. The features of a token are multiplied by its weight; the mean is not restored afterwards, and the pooled text is as
   without weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modules.families.base import Reading
from modules.families.parts import new_tokens
from modules.families.parts.emphasis import parts_of
from modules.preset.data_options import CHUNK


@dataclass(frozen=True)
class Token:
    """A token of a caption."""

    number: int
    weight: float
    start: int
    """The character of the caption at which it begins."""


def tokens_of(tokenizer: Any, caption: str, emphasis: bool) -> list[Token]:
    """All tokens of a caption, without start and end. Parts of different weights are tokenized apart."""
    if not emphasis:
        return [Token(number, 1.0, start) for number, start in _tokenized(tokenizer, caption)]
    return [
        Token(number, part.weight, part.places[start])
        for part in parts_of(caption)
        for number, start in _tokenized(tokenizer, part.text)
    ]


def _tokenized(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Each token, and the character of the text at which it begins."""
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    numbers = new_tokens.expanded(tokenizer, read.input_ids)
    return [(number, start) for several, (start, _) in zip(numbers, read.offset_mapping, strict=True)
            for number in several]


def chunks_of(tokenizer: Any, numbers: Sequence[int], count: int) -> Tensor:
    """A caption's tokens as `count` chunks `(count, length)`, with start, end and padding; see the module."""
    room = tokenizer.model_max_length - 2
    start, end, padding = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    kept = list(numbers[: count * room])
    row = [*kept, end, *[padding] * (count * room - len(kept))]  # behind the start
    if count == 1:
        return torch.tensor([[start, *row]])
    chunks = [[start, *row[at : at + room], row[-1]] for at in range(0, count * room, room)]
    for chunk in chunks:
        if chunk[-2] not in (end, padding):
            chunk[-1] = end
        if chunk[1] == padding:
            chunk[1] = end
    return torch.tensor(chunks)


def encode(
    encoder: Any, tokenizer: Any, captions: Sequence[str], reading: Reading, normed: bool
) -> tuple[Tensor, Tensor | None]:
    """Features `(n, tokens, dim)` of layer `reading.layer` of a text encoder, through its final layer norm if `normed`;
    and, of an encoder with a projection, the pooled text `(n, dim)`."""
    room, count = tokenizer.model_max_length - 2, reading.tokens // CHUNK
    tokens = [tokens_of(tokenizer, caption, reading.emphasis)[: count * room] for caption in captions]
    chunks = [chunks_of(tokenizer, [token.number for token in own], count) for own in tokens]
    output = encoder(torch.cat(chunks).to(encoder.device), output_hidden_states=True)
    hidden = output.hidden_states[-reading.layer]
    hidden = joined((_final_norm(encoder)(hidden) if normed else hidden).unflatten(0, (-1, count)))
    if reading.emphasis:
        weights = torch.ones(hidden.shape[:2])
        for row, own in zip(weights, tokens, strict=True):
            row[1 : 1 + len(own)] = torch.tensor([token.weight for token in own])
        hidden = hidden * weights[..., None].to(hidden)
    pooled = output.get("text_embeds")
    return hidden, None if pooled is None else pooled[::count]


def joined(chunks: Tensor) -> Tensor:
    """Features of the chunks of captions `(n, chunks, length, dim)` as those of one row each `(n, tokens, dim)`."""
    return torch.cat([chunks[:, 0, :1], chunks[:, :, 1:-1].flatten(1, 2), chunks[:, -1, -1:]], 1)


def _final_norm(encoder: nn.Module) -> nn.Module:
    """transformers has it in `text_model`, or without that level."""
    return next(module for name, module in encoder.named_modules() if name.endswith("final_layer_norm"))
