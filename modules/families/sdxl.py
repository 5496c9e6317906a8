"""Stable Diffusion XL: two CLIP text encoders, a UNet conditioned on text, pooled text and picture sizes, a VAE.

Encoding and sampling are diffusers' own `StableDiffusionXLPipeline`.
"""

from collections.abc import Sequence

from torch import Tensor

from modules.families import base as protocol
from modules.families.parts.unet import UNetModel, prediction_word, text_model_path


class Model(UNetModel):
    """A loaded SDXL base. The VAE stays in float32: SDXL's overflows in float16."""

    TITLE = "an SDXL model"
    HUB_ID = "stabilityai/stable-diffusion-xl-base-1.0"
    PIPELINE = "StableDiffusionXLPipeline"
    OPTIONS = {"add_watermarker": False}
    TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
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

    def encode_texts(self, captions: Sequence[str]) -> protocol.Texts:
        """`hidden (n, tokens, dim)`: both encoders' last but one layer; `pooled (n, dim)` of the second."""
        for name in self.text_encoders:
            self.present(name)
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

    def export_key(self, layer: str, host: str) -> str:
        """`unet.`... or `text_encoder`... as the host spells it; kohya's and ComfyUI's UNet names are the ldm ones."""
        network, _, path = layer.partition(".")
        if network != "unet":
            path = text_model_path(path)
        if host == "diffusers":
            return f"{network}.{path}"
        if host == "comfyui" and path.endswith("token_embedding"):  # ComfyUI has no kohya spelling for it
            clip = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}[network]
            return f"text_encoders.{clip}.transformer.{path}"
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[network]
        if network == "unet":
            path = self.ldm_name(path)
        return prefix + path.replace(".", "_")

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture."""
        return {
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            "modelspec.prediction_type": prediction_word(self.process.prediction),
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_v2": "False",
        }
