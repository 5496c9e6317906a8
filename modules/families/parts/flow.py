"""Rectified-flow transformers."""

from typing import Any, ClassVar

import torch

from modules.families.parts.pipeline import PipelineModel
from modules.objectives import Flow

PATCH = 2
"""Latents along each side of a token, in most families."""


class FlowModel(PipelineModel):
    """A pipeline with a rectified-flow transformer; the scheduler's shift is also that of the process."""

    DENOISER = "transformer"
    computed_in = "float16"
    TOKEN: ClassVar[int] = PATCH
    """Latents along each side of this family's tokens."""

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(pipeline, device)
        self.bucket_step = self.latent_factor * self.TOKEN
        schedule = pipeline.scheduler.config
        self.process = Flow(shift=schedule.shift)
        if schedule.use_dynamic_shifting:  # its points are in tokens
            small, large = (self.TOKEN**2 * n for n in (schedule.base_image_seq_len, schedule.max_image_seq_len))
            self.process = Flow(growth=(small, schedule.base_shift, large, schedule.max_shift))

    def use_shift(self, shift: float) -> None:
        """Train and sample with this fixed shift, whatever the base's own."""
        scheduler, changes = self.pipeline.scheduler, {"shift": shift, "use_dynamic_shifting": False}
        self.pipeline.scheduler = type(scheduler).from_config(scheduler.config, **changes)
        self.process = self.process.with_shift(shift)
