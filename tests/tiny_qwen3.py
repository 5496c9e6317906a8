"""A tiny Qwen3 language model with a tokenizer that is built here: bytes, a few words, and the real one's template."""

from collections.abc import Sequence

from transformers import Qwen2Tokenizer, Qwen3Config
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.tiny_sdxl import WORDS

TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
"""What Qwen3's own template makes of one message of a user, with thinking and without."""

SPECIAL = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")


def tokenizer(length: int = 1024, words: Sequence[str] = ()) -> Qwen2Tokenizer:
    """Qwen's kind of tokenizer: pairs of bytes, of which it knows those that a few words are made of, `words` first."""
    letters = bytes_to_unicode().values()
    vocabulary, merges = list(letters), []
    for word in (word for word in (*words, *WORDS) if len(word) > 1):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary.append(word[:end])
    found = Qwen2Tokenizer({token: i for i, token in enumerate(vocabulary)}, merges, model_max_length=length,
                           extra_special_tokens=list(SPECIAL[:2]))
    found.add_tokens(list(SPECIAL[2:]))
    found.chat_template = TEMPLATE
    return found


def config(tokens: Qwen2Tokenizer, width: int, layers: int) -> Qwen3Config:
    """A small model with grouped heads, as the real one has."""
    return Qwen3Config(
        vocab_size=len(tokens), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
