"""Stable Diffusion XL: two CLIP text encoders, a UNet conditioned on text, pooled text and picture sizes, a VAE.

Encoding and sampling are diffusers' own `StableDiffusionXLPipeline`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from modules.families import base as protocol
from modules.families.parts import long_texts
from modules.families.parts.names import Files, Place, clip, open_clip_place, unet
from modules.families.parts.reader import unread
from modules.families.parts.split import CLIP_G, CLIP_L
from modules.families.parts.unet import ANY_UNET, UNetModel, prediction_word

LAYER = 2
"""The layer of both text encoders that is read, counted from the last one."""


class Model(UNetModel):
    """A loaded SDXL base. The VAE stays in float32: SDXL's overflows in float16."""

    TITLE = "an SDXL model"
    HUB_ID = "stabilityai/stable-diffusion-xl-base-1.0"
    PIPELINE = "StableDiffusionXLPipeline"
    OPTIONS = {"add_watermarker": False}
    FILE = "sd_xl_base_1.0.safetensors"
    TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
    TEXT_FILES = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G}
    TOKEN_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    PARTS = {
        "model.diffusion_model.label_emb.0.0.weight": "an SDXL UNet",
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight": "the first text encoder",
        "conditioner.embedders.1.model.positional_embedding": "the second text encoder",
        "first_stage_model.encoder.conv_in.weight": "the VAE",
    }
    CONFIGS = (
        *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2")),
        *(f"{part}/tokenizer_config.json" for part in ("tokenizer", "tokenizer_2")),
        "scheduler/scheduler_config.json",
    )
    LIKE = f"{ANY_UNET}|te[12]_text_model|text_encoder_2_text_model|clip_g"
    UNLIKE = (
        "te_text_model|te3_|text_encoder_3|t5xxl|joint_blocks|single_(transformer_)?blocks|double_blocks|attn_(to|add)_|"
        "(down|up)_blocks_3_|down_blocks_0_attentions|up_blocks_2_attentions|input_blocks_([12]_1|9|10|11)_|"
        "output_blocks_([678]_1|9|10|11)_"
    )

    def use_reading(self, reading: protocol.Reading) -> list[str]:
        """The layer is fixed."""
        super().use_reading(replace(reading, layer=1))
        return unread(protocol.Reading(layer=reading.layer), self.TITLE)

    def encode_texts(self, captions: Sequence[str]) -> protocol.Texts:
        """`hidden (n, tokens, dim)`: both encoders' last but one layer; `pooled (n, dim)` of the second."""
        first, second = (self.present(name) for name in self.text_encoders)
        if self.reading != protocol.Reading() or self.has_new_tokens:
            reading = replace(self.reading, layer=LAYER)
            one, _ = long_texts.encode(first, self.tokenizer, captions, reading, normed=False)
            two, pooled = long_texts.encode(second, self.pipeline.tokenizer_2, captions, reading, normed=False)
            assert pooled is not None
            return {"hidden": torch.cat([one, two], -1).to(second.dtype), "pooled": pooled}
        hidden, _, pooled, _ = self.pipeline.encode_prompt(
            list(captions), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"hidden": hidden, "pooled": pooled}

    def predict(self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor) -> Tensor:
        """The UNet on `noisy (n, c, h, w)`."""
        unet = self.pipeline.unet
        added = {"text_embeds": texts["pooled"], "time_ids": sizes.to(texts["pooled"].dtype)}
        hidden = texts["hidden"]
        return unet(noisy.to(unet.dtype), times.float(), hidden, added_cond_kwargs=added, return_dict=False)[0]

    def names_of(self, network: str) -> Files:
        """kohya's and ComfyUI's UNet names are the original ones."""
        if network == self.DENOISER:
            return unet(kohya_original=True)
        if network == "text_encoder":
            return clip(network, "lora_te1_", "clip_l", "conditioner.embedders.0.transformer.")
        return clip(network, "lora_te2_", "clip_g", "conditioner.embedders.1.model.")

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where original checkpoints have a tensor; the second text encoder is OpenCLIP's."""
        if network == self.DENOISER:
            return self.unet_place(path, kind)
        if network == "text_encoder":
            return Place(f"{path}.{kind}")
        return open_clip_place(path, kind, self.networks[network])

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture."""
        return {
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            "modelspec.prediction_type": prediction_word(self.process.prediction),
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_v2": "False",
        }
