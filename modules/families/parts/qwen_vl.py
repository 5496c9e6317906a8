"""Text encoders that are the language model of a Qwen2.5-VL or Qwen3-VL: captions are read without pictures.

A family derives from `QwenVLReader` before its other bases. Encoding itself is its pipeline's own `encode_prompt`: that
writes the caption behind a system message, whose tokens it leaves out of what it reads. A pipeline of captions alone
has a tokenizer and no processor, so that nothing here needs a reader of pictures, or torchvision.
"""

from typing import Any

from torch import nn

from modules.families.parts.names import MODEL, Files, Place, Spelling, joined, text_name
from modules.families.parts.pipeline import PipelineModel
from modules.families.parts.qwen3 import ENCODER, Qwen3Reader
from modules.families.parts.split import TextFile

MARK, NEW_MARK = "model.layers.0.self_attn.q_proj.bias", "model.language_model.layers.0.self_attn.q_proj.bias"
"""A tensor that files with a Qwen2.5-VL have and those with a Qwen3 have not: as published, and in ComfyUI's file, and
as transformers 5 names it."""

NEWER_MARK = "language_model.layers.0.self_attn.q_norm.weight"
"""A tensor of every Qwen3-VL, in the class without its output."""


def text_file(example: str) -> TextFile:
    """Files with a Qwen2.5-VL; `example` is the usual one of the size. What reads pictures, and the output, are left
    out."""
    return TextFile(f"a Qwen2.5-VL file such as {example}", MARK, text_name, NEW_MARK, _new_place)


def _new_place(path: str, kind: str, network: Any) -> Place:
    return Place(f"{path}.{kind}")


def newer_text_file(example: str) -> TextFile:
    """Files with a Qwen3-VL, as published and in ComfyUI, or as transformers saves the model without its output. A
    Qwen3 has the same layers in the same sizes, but no level above the language model."""
    return TextFile(f"a Qwen3-VL file such as {example}", f"{MODEL}{NEWER_MARK}", lambda name: MODEL + name, NEWER_MARK,
                    _new_place)


class QwenVLReader(Qwen3Reader, PipelineModel):
    """How a pipeline reads captions with such a model, and what files call its layers."""

    def message(self, caption: str) -> str:
        """The text that is tokenized, as the pipeline makes it."""
        return self.pipeline.prompt_template_encode.format(caption)

    @property
    def caption_tokens(self) -> int:
        """Tokens of a caption that are read: `text_length` are counted from where the system message ends."""
        return super().caption_tokens + self.pipeline.prompt_template_encode_start_idx

    def split(self, layer: str) -> tuple[str, str, Files]:
        """The text encoder without the level that its class has for the language model."""
        network, path, names = super().split(layer)
        return network, text_name(path) if network == ENCODER else path, names

    def spellings(self, layer: str) -> list[Spelling]:
        """With that level too, as OneTrainer writes names."""
        found, (network, path, names) = super().spellings(layer), self.split(layer)
        if network != ENCODER:
            return found
        whole = path.replace("model.", "model.language_model.", 1)
        found += [Spelling(start + whole) for start in names.dotted]
        return found + [Spelling(start + joined(whole)) for start in names.joined]


def drop_unread(encoder: Any) -> Any:
    """Take the parts out of a text `encoder` that no condition of a caption alone depends on: the output, and what
    reads pictures, which is returned."""
    eyes, encoder.model.visual = encoder.model.visual, None
    encoder.lm_head = nn.Identity()
    return eyes
