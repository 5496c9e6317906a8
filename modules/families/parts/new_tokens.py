"""New tokens of text encoders (textual inversion, Gal et al. 2022, arXiv 2208.01618): words that stand for vectors of
their own, in front of the frozen table of embeddings.

A token of n vectors is n tokens of the tokenizer, `sks`, `sks_1`, `sks_2`, as diffusers' `TextualInversionLoaderMixin`
names them; where a text has the first one, all of them are read. The table itself is not copied or resized.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modules.adapters.base import Adapted, Adapter
from modules.adapters.layers import as_layer


def words_of(token: str, vectors: int) -> list[str]:
    """The tokenizer's words for a token of so many vectors."""
    return [token, *(f"{token}_{number}" for number in range(1, vectors))]


def add(tokenizers: Iterable[Any], words: Sequence[str]) -> None:
    """Make each tokenizer read these words as tokens: whole words, in any case where it knows no case."""
    from tokenizers import AddedToken

    for tokenizer in tokenizers:
        tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])


def expanded(tokenizer: Any, numbers: Sequence[int]) -> list[list[int]]:
    """For each token of a text all that are read for it: itself, or all vectors of a new token."""
    if all(number < tokenizer.vocab_size for number in numbers):
        return [[number] for number in numbers]
    added = tokenizer.get_added_vocab()
    names = {number: name for name, number in added.items()}
    return [_vectors(number, names.get(number, ""), added) for number in numbers]


def _vectors(number: int, name: str, added: Mapping[str, int]) -> list[int]:
    found = [number]
    while name and f"{name}_{len(found)}" in added:
        found.append(added[f"{name}_{len(found)}"])
    return found


class Rows(Adapter):
    """The vectors of new tokens: for each a parameter `(n, dim)`, in float32 whatever the base has."""

    undecayed = ("vectors",)

    def __init__(self, vectors: Sequence[Tensor]):
        nn.Module.__init__(self)
        self.vectors = nn.ParameterList(nn.Parameter(own) for own in vectors)


class Table(Adapted):
    """A text encoder's table of embeddings with rows for new tokens; `base` may be adapted itself."""

    adapter: Any

    def __init__(self, base: Any, rows: Rows, first: int):
        nn.Module.__init__(self)
        self.base = base  # before the rows: a network's dtype is that of its first parameter
        self.adapter = rows
        self.layer = base.layer if isinstance(base, Adapted) else as_layer(base, "token_embedding")
        self.first = first
        """The number of the first new token."""
        self.leaves, self.merged, self.enabled = {}, None, True

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(...)` to embeddings `(..., dim)`."""
        known = x < self.first
        rows = torch.cat([*self.adapter.vectors])
        own = rows[(x - self.first).clamp_min(0)]
        found = self.base(x.where(known, torch.zeros_like(x)))
        return torch.where(known.unsqueeze(-1), found, own.to(found.dtype))


def embeddings_of(encoder: Any) -> Any:
    """The frozen table `nn.Embedding` of a text encoder."""
    table = encoder.get_input_embeddings()
    while isinstance(table, Adapted):
        table = table.base
    return table
