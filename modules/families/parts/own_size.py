"""Pipelines that edit and take reference pictures at their own size, unless they are too large."""

import math

from PIL.Image import Image
from torch import Tensor

from modules.families.parts.editing import EditModel

LARGEST = 1024 * 1024
"""Pixels of a reference picture; the pipelines make larger ones smaller."""
SMALLEST, LONGEST = 64, 8
"""Of a reference picture: least pixels along each side, and most of the longer one per pixel of the shorter one."""


class OwnSizeEditor(EditModel):
    """A family with such pipelines."""

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """The picture's own size, at most about a million pixels."""
        if min(width, height) < SMALLEST or max(width, height) > LONGEST * min(width, height):
            raise ValueError(f"it has {width} x {height} px, and the model takes {SMALLEST} px and more along each "
                             f"side, and shapes up to {LONGEST}:1; remove it")
        if width * height > LARGEST:
            factor = math.sqrt(LARGEST / (width * height))
            width, height = int(width * factor), int(height * factor)
        step = self.editor.vae_scale_factor * 2
        return width // step * step, height // step * step

    def reference_pixels(self, image: Image) -> Tensor:
        """Resized where it is too large, and then cropped."""
        width, height = self.reference_size(*image.size)
        processor = self.editor.image_processor
        if image.width * image.height > LARGEST:
            image = processor._resize_to_target_area(image, LARGEST)
        return processor.preprocess(image, height=height, width=width, resize_mode="crop")
