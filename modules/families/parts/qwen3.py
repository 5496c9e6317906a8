"""Text encoders that are a Qwen3 language model: captions are messages of a chat, read at one or more of its layers.

A family derives from `Qwen3Reader` before its other bases. Encoding itself is its pipeline's own `encode_prompt`: that
writes the caption into the tokenizer's chat template, cuts the result off after `text_length` tokens and pads it.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from torch import nn

from modules.families.parts.names import HEAD, MODEL, Files, Place, with_level
from modules.families.parts.reader import Reader
from modules.families.parts.split import TextFile

ENCODER = "text_encoder"
"""Its name in pipelines."""

TABLE = "model.embed_tokens"
"""The table of tokens. Files without an output layer have its weights here."""


def _file_name(name: str) -> str:
    """A tensor's name in files, which have the `model` level and no output layer."""
    path, _, kind = name.rpartition(".")
    return place(with_level(path, MODEL), kind).name


def text_file(example: str) -> TextFile:
    """Files with such an encoder; `example` is the usual one of the size."""
    return TextFile(f"a Qwen3 file such as {example}", "model.layers.0.self_attn.q_norm.weight", _file_name)


class Qwen3Reader(Reader):
    """How a pipeline reads captions with a Qwen3 model."""

    THINKING: ClassVar[bool]
    """Whether the template lets the model think; without it, the message ends with an empty thought."""

    text_length: int = 512
    """Tokens of a caption in its template that are read; the pipelines' default."""

    def message(self, caption: str) -> str:
        """The text that is tokenized, as the pipeline makes it."""
        said = [{"role": "user", "content": caption}]
        template = self.tokenizer.apply_chat_template
        return template(said, tokenize=False, add_generation_prompt=True, enable_thinking=self.THINKING)

    @cached_property
    def _before(self) -> str:
        """What the template has in front of a caption."""
        return self.message("\n\0").partition("\n\0")[0]

    @property
    def caption_tokens(self) -> int:
        """Tokens of a caption that are read. The end of the template is cut off before the caption is."""
        return self.text_length - len(self.tokenizer(self._before, add_special_tokens=False).input_ids)

    def token_starts(self, caption: str) -> list[int]:
        """The character at which each token begins that has a part of the caption; 0 for one that has a part of the
        template too."""
        begin = len(self._before)
        tokens = self.tokenizer(self.message(caption), add_special_tokens=False, return_offsets_mapping=True)
        inside = [(start, end) for start, end in tokens.offset_mapping if start < begin + len(caption) and end > begin]
        return [max(start - begin, 0) for start, _ in inside]

    def reading_facts(self) -> list[str]:
        """With the template, which is no part of how the tokenizer splits texts."""
        return [*super().reading_facts(), self.message("")]


def names(word: str) -> Files:
    """The encoder's names in files; `word` is ComfyUI's for a model of this size, such as `qwen3_4b`."""
    generic = f"text_encoders.{word}.transformer."
    dotted = (f"{ENCODER}.", generic, "text_encoders.transformer.", f"{word}.transformer.")
    return Files(generic, "lora_te_", dotted=dotted, joined=("lora_te_",), comfyui=generic, peft=False, level=MODEL,
                 kohya_level=False, generic_only=True)


def place(path: str, kind: str) -> Place:
    """Where checkpoints have a tensor of the encoder; `path` has the `model` level."""
    return Place(f"{TABLE if path == HEAD else path}.{kind}")


def drop_unread(encoder: Any, model: Any, layers: Sequence[int]) -> None:
    """Take the parts out of a text `encoder` that no condition depends on, where hidden states `layers` of its language
    `model` are read: what `cut` takes out, and the output."""
    cut(model, layers)
    encoder.lm_head = nn.Identity()


def cut(model: Any, layers: Sequence[int]) -> None:
    """The same of the language `model`: the blocks behind the last of them, and the norm behind the last block."""
    model.layers = model.layers[: max(layers)]
    model.norm = nn.Identity()  # what comes out of the last block is a hidden state, and no longer normed


def targets(encoder: Any, layers: Sequence[int]) -> tuple[list[str], list[str]]:
    """Patterns of the attention and of the feed-forward layers that conditions depend on, where hidden states `layers`
    are read: 1 is that behind the first block, -1 that behind the last."""
    count = encoder.config.num_hidden_layers
    blocks = range(max(layer % (count + 1) for layer in layers))
    inside = [f"{ENCODER}.*layers.{block}" for block in blocks]
    return [f"{block}.self_attn.?_proj" for block in inside], [f"{block}.mlp.*_proj" for block in inside]
