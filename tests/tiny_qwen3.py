"""A tiny Qwen3 language model with a tokenizer that is built here: bytes, a few words, and the real one's template."""

from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from tests.tiny_sdxl import WORDS

TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
"""What Qwen3's own template makes of one message of a user, with thinking and without."""

SPECIAL = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
