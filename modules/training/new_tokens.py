"""New tokens that a training learns (targets.tokens): what can be wrong with them, their first values, and their
vectors as files have them. How they are read: `families.parts.new_tokens`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.adapters.base import Adapted, seed_of
from modules.export.token_files import file_name
from modules.families.parts.new_tokens import Rows, Table, embeddings_of, words_of
from modules.files import embeddings
from modules.preset.schema import Preset, Targets, Token
from modules.training import first_values

BAD_IN_NAMES = re.compile(r"[\s./\\]")
"""What the name of a token cannot have: texts are divided at spaces, keys in files at dots; and it names a file."""

Vectors = dict[str, dict[str, Tensor]]
"""By token, and by what files call a text encoder's: `(n, dim)`."""


def words(targets: Targets) -> list[str]:
    """All words that tokenizers have to know."""
    return [word for one in targets.tokens for word in words_of(one.token, one.vectors)]


def problems(model: Any, preset: Preset) -> list[str]:
    """What is wrong with the tokens, in sentences. Call it before the model knows them; it may have no weights."""
    tokens = preset.targets.tokens
    if tokens and not model.token_keys:
        return [f"targets.tokens: {tokens[0].token!r}, but text encoders of {preset.family} cannot learn new tokens "
                "here; remove the tokens, or train another family"]
    found, taken, files = [], dict[str, int](), dict[str, int]()
    for number, one in enumerate(tokens):
        place = f"targets.tokens[{number}]"
        found += _name_problems(model, one, f"{place}.token", taken)
        taken |= dict.fromkeys(words_of(one.token, one.vectors), number)
        if files.setdefault(file_name(one.token).lower(), number) != number:
            found.append(f"{place}.token: {one.token!r} would be exported to the same file as "
                         f"{tokens[files[file_name(one.token).lower()]].token!r}; choose another name")
        try:
            _first_ids(model, one, place)
            _from_file(model, preset, one, place)
        except (ValueError, OSError) as error:
            found.append(str(error))
    known = [number for number, one in enumerate(tokens) if any(_has(one.text, word) for word in taken)]
    return found + [f"targets.tokens[{number}].text: {tokens[number].text!r} has a new token in it; give words of the "
                    "vocabulary" for number in known]


def _name_problems(model: Any, one: Token, place: str, taken: Mapping[str, int]) -> list[str]:
    if not one.token or BAD_IN_NAMES.search(one.token):
        return [f"{place}: {one.token!r} cannot be a token; give one word without spaces, dots and slashes"]
    for word in words_of(one.token, one.vectors):
        if word in taken:
            return [f"{place}: {word!r} is already a word of targets.tokens[{taken[word]}]; choose another name"]
        for encoder in model.token_keys:
            if len(_ids(model, encoder, word)) == 1:
                return [f"{place}: {word!r} is already a token in the vocabulary of {encoder}, so it has a meaning; "
                        f"choose a word that is none, such as '<{word}>'"]
    return []


def _has(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def caption_problems(model: Any, targets: Targets, captions: Iterable[str]) -> list[str]:
    """Tokens that none of the captions has, in sentences. The model knows the tokens."""
    tokens, encoder = targets.tokens, next(iter(model.token_keys), "")
    lacking = {number: one.token for number, one in enumerate(tokens)} if encoder else {}
    numbers = {n: model.tokenizer_of(encoder).convert_tokens_to_ids(word) for n, word in lacking.items()}
    for caption in captions:
        if not lacking:
            break
        if any(word.lower() in caption.lower() for word in lacking.values()):
            ids = set(_ids(model, encoder, caption))
            lacking = {number: word for number, word in lacking.items() if numbers[number] not in ids}
    return [f"targets.tokens[{number}].token: {word!r} is in no caption of the training, so it would learn nothing; "
            "write it into captions, or set data.trigger to it" for number, word in lacking.items()]


def _ids(model: Any, encoder: str, text: str) -> list[int]:
    return model.tokenizer_of(encoder)(text, add_special_tokens=False).input_ids


def _first_ids(model: Any, one: Token, place: str) -> dict[str, list[int]]:
    """The tokens of the initial text, by text encoder. Raises ValueError if they are more than vectors, or none."""
    if one.file or not one.text:
        return {}
    found = {encoder: _ids(model, encoder, one.text) for encoder in model.token_keys}
    encoder, longest = max(found.items(), key=lambda item: len(item[1]))
    if len(longest) > one.vectors:
        raise ValueError(f"{place}.text: {one.text!r} has {len(longest)} tokens in {encoder}, but vectors is "
                         f"{one.vectors}; set vectors to {len(longest)}, or give a shorter text")
    if not all(found.values()):
        raise ValueError(f"{place}.text: {one.text!r} has no token; give a word, or leave it empty")
    return found


def _from_file(model: Any, preset: Preset, one: Token, place: str) -> dict[str, Tensor]:
    """The vectors in the file, by text encoder; none without a file, and where the run has vectors of its own. Raises
    ValueError for what does not fit."""
    if not one.file or first_values.has_own(preset):
        return {}
    try:
        read = embeddings.read(Path(one.file), one.token, list(model.token_keys.values()))
    except (ValueError, OSError) as error:
        raise ValueError(f"{place}.file: {error}") from error
    found = {encoder: read[key] for encoder, key in model.token_keys.items()}
    for encoder, own in found.items():
        wide = embeddings_of(model.networks[encoder]).embedding_dim
        if own.shape[1] != wide:
            raise ValueError(f"{place}.file: {one.file} has vectors of {own.shape[1]} values for {encoder}, which has "
                             f"{wide}; it is of another model")
        if len(own) != one.vectors:
            raise ValueError(f"{place}.file: {one.file} has {len(own)} vectors for {encoder}, but vectors is "
                             f"{one.vectors}; set vectors to {len(own)}")
    return found


# -- in a training ----------------------------------------------------------------------------------------------------


def attach(model: Any, preset: Preset) -> None:
    """Put tables with fresh rows into the text encoders, after adapters are attached. Raises ValueError for files that
    cannot be read."""
    tokens = preset.targets.tokens
    places = [(one, f"targets.tokens[{number}]") for number, one in enumerate(tokens)]
    given = [(_first_ids(model, *one), _from_file(model, preset, *one)) for one in places]
    for encoder in model.token_keys if tokens else ():
        network, weight = model.networks[encoder], embeddings_of(model.networks[encoder]).weight
        kind = torch.float64 if weight.dtype == torch.float64 else torch.float32
        rows = []
        for one, (ids, read) in zip(tokens, given, strict=True):
            seed = seed_of("new token", preset.training.seed, one.token, encoder)
            start = read[encoder] if read else _start(weight, ids.get(encoder, []), one.vectors, seed)
            rows.append(start.detach().to(weight.device, kind, copy=True))
        first = model.tokenizer_of(encoder).convert_tokens_to_ids(tokens[0].token)
        model.tables[encoder] = Table(network.get_input_embeddings(), Rows(rows), first)
        network.set_input_embeddings(model.tables[encoder])


def _start(weight: Tensor, ids: Sequence[int], count: int, seed: int) -> Tensor:
    """First values `(count, dim)`: those of these tokens in turn, or drawn with the table's mean and spread."""
    if ids:
        return weight[[ids[place % len(ids)] for place in range(count)]]
    drawn = torch.randn(count, weight.shape[1], generator=torch.Generator().manual_seed(seed))
    spread, mean = torch.std_mean(weight.detach().float(), dim=0)
    return mean + spread * drawn.to(weight.device)


def learned(model: Any) -> dict[str, Adapted]:
    """The tables by a name for their tensors."""
    return {f"{encoder}.new_tokens": table for encoder, table in model.tables.items()}


def parameters(model: Any, number: int) -> tuple[nn.Parameter, ...]:
    """The vectors of the token with this number, of all text encoders."""
    return tuple(table.adapter.vectors[number] for table in model.tables.values())


def groups(model: Any, targets: Targets) -> list[dict[str, Any]]:
    """Optimizer groups as of `setup.parameter_groups`: the vectors do not decay."""
    found: dict[tuple[float, float], dict[str, Any]] = {}
    for number, one in enumerate(targets.tokens):
        fresh = {"params": [], "names": [], "lr_scale": one.lr_scale, "decay": False, "pairs": [], "calibrated": False}
        group, mine = found.setdefault((one.lr_scale, one.stop), fresh), parameters(model, number)
        group["params"] += mine
        group["names"] += len(mine) * ["token"]
    return list(found.values())


def vectors(model: Any, targets: Targets) -> Vectors:
    """What the tokens have learned, copied to main memory, in float32."""
    return {
        one.token: {model.token_keys[encoder]: table.adapter.vectors[number].detach().float().cpu().clone()
                    for encoder, table in model.tables.items()}
        for number, one in enumerate(targets.tokens)
    }
