"""Stable Diffusion 3 and 3.5 (medium, large): two CLIP text encoders and a T5 that may be absent, a transformer that
treats text and picture alike, a VAE with shifted latents; rectified flow.

Encoding and sampling are diffusers' own `StableDiffusion3Pipeline`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.families import base as protocol
from modules.families.parts import files
from modules.families.parts.flow import FlowModel
from modules.families.parts.names import GATED, Files, Place, clip, t5, t5_place, transformer
from modules.families.parts.split import CLIP_G, CLIP_L, T5
from modules.preset.base_options import Base

T5_TOKENS = 256
"""Tokens that T5 reads of a caption, end token included; the pipeline's default."""

POSITIONS = "transformer.text_model.embeddings.position_embedding.weight"

LAST = "text_encoder_3"
"""T5: the optional part."""

ATTENTION = [
    "transformer.*.attn.to_[qkv]",
    "transformer.*.attn.to_out.0",
    "transformer.*.attn.add_[kv]_proj",
    "transformer.*.attn.to_add_out",
    "transformer.*.attn2.to_[qkv]",
    "transformer.*.attn2.to_out.0",
    "text_encoder*.self_attn.*",
    "text_encoder_3.*.SelfAttention.[qkvo]",
]
MLP = [
    "transformer.*.ff.net.0.proj",
    "transformer.*.ff.net.2",
    "transformer.*.ff_context.net.0.proj",
    "transformer.*.ff_context.net.2",
    "text_encoder*.mlp.fc[12]",
    "text_encoder_3.*.DenseReluDense.w*",
]
REST = [
    "transformer.*.norm1.linear",
    "transformer.pos_embed.proj",
    "transformer.time_text_embed.*.linear_[12]",
    "transformer.context_embedder",
    "transformer.proj_out",
    "text_encoder_2.text_projection",
]
"""Not CLIP-L's projection: it is the identity, and single checkpoints have none."""

# Modules of diffusers' transformer in the naming of the original checkpoints.
OUTSIDE = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
OF_STREAM = {
    "attn.to_q": "attn.qkv",
    "attn.to_k": "attn.qkv",
    "attn.to_v": "attn.qkv",
    "attn.norm_q": "attn.ln_q",
    "attn.norm_k": "attn.ln_k",
    "attn.to_out.0": "attn.proj",
    "norm1.linear": "adaLN_modulation.1",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
IN_BLOCK = {
    **{name: f"x_block.{original}" for name, original in OF_STREAM.items()},
    **{name.replace("attn.", "attn2."): f"x_block.{original.replace('attn.', 'attn2.')}"
       for name, original in OF_STREAM.items() if name.startswith("attn.")},
    "attn.add_q_proj": "context_block.attn.qkv",
    "attn.add_k_proj": "context_block.attn.qkv",
    "attn.add_v_proj": "context_block.attn.qkv",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_add_out": "context_block.attn.proj",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
ROWS = {"to_q": 0, "add_q_proj": 0, "to_k": 1, "add_k_proj": 1, "to_v": 2, "add_v_proj": 2}
"""Where a layer begins in the matrix that the original has for three, in widths of the transformer."""


class Model(FlowModel):
    """A loaded SD3 or SD3.5 base."""

    TITLE = "an SD3 model"
    HUB_ID = "stabilityai/stable-diffusion-3.5-medium"
    PIPELINE = "StableDiffusion3Pipeline"
    FILE = "sd3.5_medium.safetensors"
    TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
    TEXT_FILES = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5}
    PARTS = {
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "an SD3 transformer",
        f"text_encoders.clip_l.{POSITIONS}": "the first text encoder (CLIP-L)",
        f"text_encoders.clip_g.{POSITIONS}": "the second text encoder (CLIP-G)",
        "text_encoders.t5xxl.transformer.shared.weight": "the third text encoder (T5)",
        "first_stage_model.encoder.conv_in.weight": "the VAE",
    }
    PARTIAL = True
    OPTIONAL = (LAST,)
    IDENTITIES = ("text_encoder.text_projection.weight",)
    """CLIP's own projection of CLIP-L's pooled text, which some files have, is not used."""
    UNUSED = ".*"
    CONFIGS = (
        *(f"{part}/config.json" for part in ("transformer", "vae", "text_encoder", "text_encoder_2")),
        *(f"{part}/tokenizer_config.json" for part in ("tokenizer", "tokenizer_2")),
        "scheduler/scheduler_config.json",
    )
    """T5's are added, unless the index has no T5."""
    FOREIGN_WIDTHS = (1024, 2048, 3072, 4096, 6144)
    LIKE = (
        "joint_blocks_|(^|_)transformer_blocks_[0-9]+_(attn_(to|add|norm)_|attn2_|norm1_|ff_)|te[123]_|"
        "text_encoder(_[23])?_|clip_[lg]|t5xxl"
    )
    UNLIKE = (
        "single_(transformer_)?blocks|double_blocks|(down|up)_blocks|mid_block|put_blocks|attn1_|img_(mlp|mod)|te_text|"
        f"transformer_blocks_(3[89]|[4-9][0-9])_|{GATED}"
    )

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(pipeline, device)
        largest = pipeline.transformer.config.pos_embed_max_size
        self.longest_side = None if largest is None else largest * self.bucket_step
        """The end of its position embeddings."""

    # -- single checkpoints -------------------------------------------------------------------------------------------

    @classmethod
    def hub_id(cls, path: str) -> str:
        """The model on the hub whose configuration the checkpoint at `path` has."""
        names = files.tensor_names(path) or set()
        if any(".attn2." in name for name in names):
            return cls.HUB_ID
        normed = any(".attn.ln_q." in name for name in names)
        return "stabilityai/stable-diffusion-3" + (".5-large" if normed else "-medium-diffusers")

    @classmethod
    def configs(cls, base: Base) -> tuple[str, ...]:
        """With T5's, unless the configuration says that there is none; the hub's have one."""
        if base.config and (Path(base.config) / files.INDEX).is_file() and cls.index(base.config)[LAST] == [None, None]:
            return cls.CONFIGS
        return (*cls.CONFIGS, "text_encoder_3/config.json", "tokenizer_3/tokenizer_config.json")

    # -- layers -------------------------------------------------------------------------------------------------------

    def named_targets(self) -> dict[str, list[str]]:
        """Patterns of the named sets of layers.

        Left out of all: `norm_out.linear` and the last block's `norm1_context.linear`, whose halves other programs
        store exchanged, so that magnitudes and rotations would apply to the wrong rows; and the last block's
        `attn.add_q_proj`, whose output is unused.
        """
        blocks = range(self.pipeline.transformer.config.num_layers - 1)
        queries = [f"transformer.transformer_blocks.{block}.attn.add_q_proj" for block in blocks]
        norms = [f"transformer.transformer_blocks.{block}.norm1_context.linear" for block in blocks]
        return {
            "attention": ATTENTION + queries,
            "attention-mlp": ATTENTION + queries + MLP,
            "all": ATTENTION + queries + MLP + REST + norms,
        }

    # -- encoding and predicting --------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """T5's, which has the highest limit; CLIP's without T5."""
        return self.pipeline.tokenizer_3 if "text_encoder_3" in self.networks else self.pipeline.tokenizer

    @property
    def caption_tokens(self) -> int:
        """Tokens of a caption that T5 reads (CLIP reads the first 75 of its own), or CLIP without T5."""
        if "text_encoder_3" not in self.networks:
            return super().caption_tokens
        return T5_TOKENS - self.tokenizer.num_special_tokens_to_add()

    def encode_texts(self, captions: Sequence[str]) -> protocol.Texts:
        """`hidden (n, tokens, dim)`: CLIP's last but one layers, then T5's last, zeros without T5; `pooled (n, dim)` of
        both CLIPs."""
        for name in self.text_encoders:
            self.present(name)
        hidden, _, pooled, _ = self.pipeline.encode_prompt(
            list(captions),
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=T5_TOKENS,
        )
        return {"hidden": hidden, "pooled": pooled}

    def predict(self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor) -> Tensor:
        """The transformer on `noisy (n, c, h, w)`; it does not use `sizes`."""
        transformer = self.pipeline.transformer
        noisy = noisy.to(transformer.dtype)
        return transformer(noisy, texts["hidden"], texts["pooled"], times.float(), return_dict=False)[0]

    # -- exporting ----------------------------------------------------------------------------------------------------

    def names_of(self, network: str) -> Files:
        """The network's names in files. kohya's and Forge's names of the transformer are the original ones."""
        names = {
            "transformer": transformer(),
            "text_encoder": clip(network, "lora_te1_", "clip_l"),
            "text_encoder_2": clip(network, "lora_te2_", "clip_g"),
            "text_encoder_3": t5(network, "lora_te3_"),
        }
        return names[network]

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where original checkpoints have a tensor."""
        if path == "pos_embed":
            return Place(kind)
        if network != self.DENOISER:
            return t5_place(path, kind) if network == LAST else Place(f"{path}.{kind}")
        config = self.pipeline.transformer.config
        return transformer_place(path, kind, config.num_attention_heads * config.attention_head_dim, config.num_layers)

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture."""
        config = self.pipeline.transformer.config
        architecture, version = ("3-medium", "sd3-medium")
        if config.qk_norm is not None:
            size = "medium" if config.dual_attention_layers else "large"
            architecture, version = f"3-5-{size}", f"sd3.5-{size}"
        return {
            "modelspec.architecture": f"stable-diffusion-{architecture}/lora",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            "ss_base_model_version": version,
            "ss_v2": "False",
        }


def transformer_place(path: str, kind: str, width: int, depth: int) -> Place:
    """Where original checkpoints have a tensor of diffusers' transformer of this `width` with `depth` blocks, e.g. in
    `joint_blocks.0.x_block.attn.qkv.weight`. Shift and scale come in the other order where diffusers' module has
    nothing else: behind the last block, and in that block for the text."""
    if not path.startswith("transformer_blocks."):
        return Place(f"{OUTSIDE[path]}.{kind}", exchanged=path == "norm_out.linear")
    _, number, inside = path.split(".", 2)
    last = int(number) == depth - 1 and inside == "norm1_context.linear"
    name, row = f"joint_blocks.{number}.{IN_BLOCK[inside]}.{kind}", ROWS.get(inside.rpartition(".")[2])
    return Place(name, exchanged=last) if row is None else Place(name, row * width, width)
