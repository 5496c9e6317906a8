"""Captions and prompts that are longer than what the text encoders read, by the names of their pictures."""

from collections.abc import Mapping
from typing import Any

from modules.data.index import Index
from modules.data.names import listing
from modules.preset.data_options import CHUNK, MOST_TOKENS
from modules.preset.schema import Preset
from modules.training.session import whole_captions


def notes(preset: Preset, model: Any, training: Index | None, validation: Index | None) -> list[str]:
    """What is cut off, in a sentence for each kind. A picture's caption is taken whole, with its trigger."""
    found = []
    for what, index in (("captions", training), ("captions of validation pictures", validation)):
        if index is not None:
            names = [picture.name for picture in index.pictures]
            found += _cut(model, what, dict(zip(names, whole_captions(index), strict=True)))
    if preset.samples.enabled:
        prompts = {f"samples.prompts[{number}]": prompt for number, prompt in enumerate(preset.samples.texts)}
        found += _cut(model, "prompts", {"samples.negative": preset.samples.negative, **prompts})
    return found


def _cut(model: Any, what: str, texts: Mapping[str, str]) -> list[str]:
    """The sentence, if there is any."""
    limit, chunk = model.caption_tokens, model.chunk_tokens
    lengths = {name: len(model.token_starts(text)) for name, text in texts.items()}
    long = [name for name, length in lengths.items() if length > limit]
    if not long:
        return []
    longest = max(lengths.values())
    needed = -(-longest // chunk) * CHUNK
    advice = f"; data.caption_tokens {needed} reads all" if model.reads_chunks and needed <= MOST_TOKENS else ""
    return [f"{what} are cut after {limit} tokens, which is what the text encoders read (the longest has {longest})"
            f"{advice}; {listing(long)}"]
