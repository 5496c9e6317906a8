"""The SDXL kind of demo base: a UNet and two CLIP text encoders, trained together.

Velocity is predicted (Salimans and Ho 2022, section 4), with a schedule whose last step is pure noise (Lin et al.
2023): there the network answers a caption with a picture, which is what a base with few subjects learns best. With
SDXL's own noise prediction and schedule, whose noisiest step still shows a mean colour, colours were learned last.
"""

# diffusers annotates tuples of any length as tuple[int], and outputs as their tuple form:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
import argparse
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn

from scripts.demo_data import SIZE, Picture
from scripts.demo_training import Captions, Stage, draw, fast, latents_of, make_clip, sampled, write_pipeline

OPTIONS = {"steps": 8000, "learning_rate": 2e-3, "out": Path("demo/base"), "vae": None}
"""Defaults of make_demo_base.py for this kind."""

WIDTH = 96
"""Of each text encoder."""

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
            "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}  # fmt: skip

MOST = 5.0
"""Greatest weight of the squared error of a picture, as velocity's is seen: `1 + SNR` without a bound."""


def make_unet() -> diffusers.UNet2DConditionModel:
    """SDXL's layout with two blocks, attention in the lower one."""
    return diffusers.UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(64, 128),
        layers_per_block=2,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )


class Generator(nn.Module):
    """UNet and text encoders, trained together."""

    unet: Any
    first: Any
    second: Any

    def __init__(self, unet: nn.Module, first: nn.Module, second: nn.Module):
        super().__init__()
        self.unet, self.first, self.second = unet, first, second

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """The predicted velocity, conditioned as `StableDiffusionXLPipeline` does."""
        one, two = (e(tokens, output_hidden_states=True) for e in (self.first, self.second))
        hidden = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1)
        sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=noisy.dtype).expand(len(noisy), -1)
        added = {"text_embeds": two.text_embeds, "time_ids": sizes}
        return self.unet(noisy, timesteps, hidden, added_cond_kwargs=added).sample


def train(vae: Any, pictures: list[Picture], captions: Captions, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """Velocity prediction on the latents; the caption is left out one time in ten, for guidance. Writes the folder."""
    torch.manual_seed(arguments.seed + 1)
    model = Generator(make_unet(), make_clip(tokenizer, WIDTH), make_clip(tokenizer, WIDTH, projected=True))
    stage = Stage("generator", model, arguments.steps, arguments.learning_rate, arguments.work)
    alphas = diffusers.DDPMScheduler(**SCHEDULE).alphas_cumprod
    mean, std = latents_of(vae, pictures, arguments.work)
    padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = captions.encoded(lambda texts: tokenizer(texts, **padded).input_ids)
    losses: list[float] = []

    def loss_of(step: int) -> Tensor:
        generator = draw(arguments.seed + 1, step)
        chosen = captions.choose(arguments.batch, generator)
        left_out = torch.rand(len(chosen), generator=generator) < 0.1
        tokens = [ids.empty if out else ids.of[n][c] for (n, c), out in zip(chosen, left_out, strict=True)]
        numbers = torch.tensor([number for number, _ in chosen])
        latents = sampled(mean[numbers], std[numbers], generator)
        noise = torch.randn(latents.shape, generator=generator)
        times = 1000 * torch.rand(len(chosen), generator=generator).sqrt()  # noisy ones oftener; may be rounded to 1000
        timesteps = times.long().clamp(max=999)
        signal = alphas[timesteps].view(-1, 1, 1, 1)
        with fast():
            predicted = model(signal.sqrt() * latents + (1 - signal).sqrt() * noise, timesteps, torch.stack(tokens))
        error = predicted.float() - (signal.sqrt() * noise - (1 - signal).sqrt() * latents)
        losses.append(float(error.detach().square().mean()))
        return (error.square() * (MOST * (1 - signal)).clamp(max=1)).mean()  # 1 / (1 + SNR) is 1 - signal

    def look(step: int) -> None:
        print(f"\nstep {step}: error of velocity {np.mean(losses[-250:]):.4f}", flush=True)
        if step % 1000 == 0 or step == arguments.steps:
            kept = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(stage.average)
            write(vae, model, tokenizer, arguments)
            model.load_state_dict(kept)

    stage.run(loss_of, look=look)
    write(vae, model, tokenizer, arguments)


def write(vae: Any, model: Generator, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """The diffusers folder."""
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=model.first,
        text_encoder_2=model.second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=model.unet,
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"),
        add_watermarker=False,
    )
    write_pipeline(pipeline, arguments.out)
