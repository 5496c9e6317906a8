"""Families with bases that edit pictures: reference pictures are further tokens behind those of the noised latents.

Encoding and sampling are those of diffusers' pipelines that edit. What a pipeline makes of its argument `image`, the
size included, is made of reference pictures in training too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pkgutil import resolve_name
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor

from modules.families import base as protocol
from modules.families.parts.pipeline import PipelineModel, computing_on
from modules.preset.base_options import Base


class EditModel(PipelineModel):
    """A family whose bases, or some of them, take reference pictures."""

    EDITORS: ClassVar[dict[str, int | None]]
    """The pipelines that edit, and how many reference pictures each takes; None: any number."""
    EXAMPLE: ClassVar[str]
    """A base that edits, on the hub."""
    ONLY_EDITS: ClassVar[bool] = True
    """Whether bases that edit were trained with reference pictures alone."""

    editor: Any = None
    """The pipeline that edits, where reference pictures are used."""

    @classmethod
    def edit_pipeline(cls, base: Base) -> str:
        """Which of `EDITORS` this base has, "" if it does not edit."""
        found = cls.index(cls.source(base)).get("_class_name", "")
        return found if found in cls.EDITORS else ""

    def editor_parts(self, base: Base) -> dict[str, Any]:
        """The parts that the pipeline that edits is made of."""
        return dict(self.pipeline.components)

    # -- the protocol -------------------------------------------------------------------------------------------------

    def use_references(self, base: Base, counts: Mapping[str, int]) -> list[str]:
        """Make the pipeline that edits, if there are reference pictures."""
        name = self.edit_pipeline(base)
        if not any(counts.values()):
            if not name or not self.ONLY_EDITS:
                return []
            return [f"base.path: {base.path} is a model that edits, and is trained without reference pictures here; "
                    "give them as data.folders[].references to train it as what it is"]
        for option, count in counts.items():
            if not count:
                continue
            if not name:
                raise ValueError(f"{option}: {base.path} takes no reference pictures; remove them, or give a base that "
                                 f"edits, such as {self.EXAMPLE}, or its folder as base.config")
            if (most := self.EDITORS[name]) is not None and count > most:
                raise ValueError(f"{option}: {count} reference pictures, but {base.path} takes {most} at once; give "
                                 "fewer")
        kind = resolve_name(f"diffusers:{name}")
        if isinstance(self.pipeline, kind):
            self.editor = copy(self.pipeline)
        else:
            self.editor = computing_on(self.device, kind(**self.editor_parts(base)))
            self.editor.set_progress_bar_config(disable=True)
        return []

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """As the pipeline resizes its argument `image`."""
        raise NotImplementedError

    @torch.no_grad()
    def encode_reference(self, image: Image) -> Tensor:
        """A reference picture's latents `(c, h', w')`, as the pipeline scales them: the most likely ones."""
        self.present("vae")
        pixels = self.reference_pixels(image).to(self.device, self.VAE_DTYPE)
        with torch.autocast(self.device.type, enabled=False):
            found = self.editor._encode_vae_image(self.film(pixels), None)
        return found.reshape(-1, *found.shape[-2:]).float().cpu()

    def reference_pixels(self, image: Image) -> Tensor:
        """`(1, 3, h, w)` in [-1, 1]: the picture in its size for the model."""
        width, height = self.reference_size(*image.size)
        return self.editor.image_processor.preprocess(image, height, width)

    def film(self, pixels: Tensor) -> Tensor:
        """As the VAE reads them."""
        return pixels

    # -- sampling -----------------------------------------------------------------------------------------------------

    def drawing(self, prompt: protocol.Caption, width: int, height: int) -> tuple[Any, dict[str, Any]]:
        """The pipeline that edits, for an instruction; its latents of reference pictures are those of training."""
        if not isinstance(prompt, protocol.Instruction):
            return super().drawing(prompt, width, height)
        images = [one.image() for one in prompt.references]
        found = map(self.encode_reference, images)
        editor = copy(self.editor)
        editor.scheduler = self.pipeline.scheduler  # which may have got another shift
        editor._encode_vae_image = lambda image, generator: self.film(next(found)[None]).to(image)
        return editor, {"image": images if self.EDITORS[self.edit_name] != 1 else images[0]}

    @property
    def edit_name(self) -> str:
        """The pipeline that edits."""
        return next(name for name in self.EDITORS if isinstance(self.editor, resolve_name(f"diffusers:{name}")))


def joined(tokens: Tensor, references: Sequence[Tensor]) -> Tensor:
    """The noised latents' tokens `(n, tokens, c)` with those of reference pictures behind them."""
    return torch.cat([tokens, *references], 1) if references else tokens
