"""Qwen-Image's pipelines that edit: their text encoder sees the reference pictures too.

What reads pictures is kept beside the text encoder, and is in it only while captions about pictures are encoded: so a
base without reference pictures is the same in every way. Pictures are read with Pillow, which needs no torchvision.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from PIL.Image import Image
from torch import Tensor

from modules.families import base as protocol
from modules.families.parts import files
from modules.families.parts.editing import EditModel
from modules.families.parts.loading import with_buffers
from modules.families.parts.names import Place
from modules.families.parts.original import read_weights
from modules.families.parts.qwen3 import ENCODER
from modules.preset.base_options import Base
from modules.tensorfile import read_header

ONE, SEVERAL = "QwenImageEditPipeline", "QwenImageEditPlusPipeline"

LARGE = 1024 * 1024
"""Pixels of the only reference picture, as its pipeline resizes it: to multiples of 32, so that 16 are none."""

LEVELS = ("visual.", "model.visual.")
"""What the names of the part that reads pictures begin with in files."""
MARK = "patch_embed.proj.weight"
"""A tensor of it."""


class QwenEditor(EditModel):
    """A pipeline with such a text encoder."""

    EDITORS = {ONE: 1, SEVERAL: None}

    eyes: Any
    """What reads pictures; None where it was not loaded, or is not needed."""

    def use_references(self, base: Base, counts: Mapping[str, int]) -> list[str]:
        """With what reads pictures, and the processor that prepares them for it."""
        found = super().use_references(base, counts)
        self.reads_references = self.editor is not None
        if self.editor is None:
            self.eyes = None
        elif self.eyes is None or self.device.type == "meta":
            self._read_eyes(base)
        if self.eyes is not None:
            self.eyes.requires_grad_(False).eval()
        return found

    def editor_parts(self, base: Base) -> dict[str, Any]:
        """With a processor."""
        source = self.source(base)
        return {**super().editor_parts(base), "processor": processor(source, self.pipeline.tokenizer)}

    def _read_eyes(self, base: Base) -> None:
        """From the text encoder's file, if it is in one. Raises ValueError if that has no such part."""
        source = self.sources(base).get(ENCODER)
        if source is None:
            return
        names = read_header(source.path).tensors
        ends = [level + MARK for level in LEVELS]
        mark = next((n for n in names if any(n == end or n.endswith(f".transformer.{end}") for end in ends)), None)
        if mark is None:
            raise ValueError(f"{source.option}: {source.path} lacks the part of the text encoder that reads pictures; "
                             f"give a whole {self.TEXT_FILES[ENCODER].title.removeprefix('a ')}")
        if self.device.type == "meta":
            return
        start, network = mark.removesuffix(MARK), with_buffers(type(self).skeleton(base).eyes)
        places = {name: Place(start + name) for name in network.state_dict()}
        read_weights(network, source.path, places, self.pipeline.text_encoder.dtype)
        self.eyes = network

    # -- reference pictures -------------------------------------------------------------------------------------------

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """About a million pixels, of the picture's shape."""
        one, several = _modules()
        if self.edit_name == ONE:
            area = LARGE
            found = smallest = one.calculate_dimensions(area, width / height)[:2]
        else:
            area = several.CONDITION_IMAGE_SIZE
            found = several.calculate_dimensions(several.VAE_IMAGE_SIZE, width / height)
            smallest = several.calculate_dimensions(area, width / height)
        if min(smallest) == 0:
            raise ValueError(f"it has {width} x {height} px; crop it so that no side is more than {area // 16**2 - 1} "
                             "times the other")
        return found

    def film(self, pixels: Tensor) -> Tensor:
        """Of one frame."""
        return pixels.unsqueeze(2)

    def _seen_picture(self, image: Image) -> Image:
        """As the text encoder sees it."""
        _, several = _modules()
        width, height = self.reference_size(*image.size)
        if self.edit_name == SEVERAL:
            width, height = several.calculate_dimensions(several.CONDITION_IMAGE_SIZE, image.width / image.height)
        return self.editor.image_processor.resize(image, height, width)

    def seen(self, caption: protocol.Caption) -> tuple[Tensor, Tensor | None]:
        """What the pipeline's `encode_prompt` gives for a caption, with the reference pictures that it is about."""
        if isinstance(caption, str):
            return self.pipeline.encode_prompt([caption], device=self.device)
        images = [self._seen_picture(one.image()) for one in caption.references]
        with self._seeing():
            return self.editor.encode_prompt(
                image=images[0] if self.edit_name == ONE else images, prompt=[caption.text], device=self.device
            )

    @contextmanager
    def _seeing(self) -> Iterator[None]:
        """Inside, the text encoder has what reads pictures."""
        inner = self.pipeline.text_encoder.model
        inner.visual = self.eyes.to(self.device)
        try:
            yield
        finally:
            inner.visual = None

    def _release_again(self) -> None:
        super()._release_again()
        if self.eyes is not None and ENCODER in self._released:
            self.eyes.to("cpu")

    def fingerprint(self, part: str) -> str:
        """Of instructions, with what reads pictures."""
        if part != "instructions":
            return super().fingerprint(part)
        reader = self.editor.processor.image_processor
        facts = [super().fingerprint("texts"), self.edit_name, self.editor.prompt_template_encode,
                 files.weights_hash(self.eyes), files.settings(self.eyes.config), files.settings(reader.to_dict())]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def processor(source: str, tokenizer: Any) -> Any:
    """What makes tokens of captions and patches of pictures, of the folder, or of the hub's model, `source`. Raises
    ValueError where it has no settings for that."""
    from transformers import Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class WithoutFilms(Qwen2VLProcessor):
        """It has no reader of films, which needs torchvision and which nothing here uses."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    try:
        reader = Qwen2VLImageProcessorPil.from_pretrained(source, subfolder="processor")
    except (OSError, ValueError) as error:
        raise ValueError(f"{Path(source) / 'processor'}: the settings for reading pictures, preprocessor_config.json, "
                         "cannot be read; give a complete copy of a model that edits") from error
    return WithoutFilms(reader, tokenizer, None)


def _modules() -> list[Any]:
    """diffusers' modules with the pipelines that edit."""
    return [import_module(resolve_name(f"diffusers:{name}").__module__) for name in (ONE, SEVERAL)]
