"""Transformers of double and single blocks on 2 x 2 packed latents: their call, and their names in files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modules.families.parts.editing import joined
from modules.families.parts.flow import PATCH, FlowModel
from modules.families.parts.names import GATED, Place, Spelling

DOUBLE, SINGLE = "transformer.transformer_blocks.*", "transformer.single_transformer_blocks.*"
ATTENTION = [f"{DOUBLE}.attn.*", f"{SINGLE}.attn.*"]
MLP = [f"{DOUBLE}.ff*.net.*", f"{SINGLE}.proj_mlp", f"{SINGLE}.proj_out"]

LIKE = (
    "single_(transformer_)?blocks_|double_blocks_|(^|_)transformer_blocks_[0-9]+_(attn_|ff_)|"
    "transformer_x_embedder_|(img|txt)_in_"
)
"""In names of their layers, underscores for dots."""
UNLIKE = (
    "joint_blocks|attn[12]_|(down|up)_blocks|mid_block|put_blocks|clip_g|te_text|text_encoder_3|"
    "(?<!single_)transformer_blocks_([0-9]+_img_|19|[2-9][0-9])|single_(transformer_)?blocks_(3[89]|[4-9][0-9])_|"
    "stream_modulation|to_qkv_mlp_proj|single_transformer_blocks_[0-9]+_attn_to_out_|linear_(in|out)_|guidance_embed_|"
    f"{GATED}"
)
"""In those of others' layers. There are 19 blocks of the first kind, and more in others' transformers."""

# Modules of diffusers' blocks in the naming of the original checkpoints.
IN_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "attn.to_q": "img_attn.qkv",
    "attn.to_k": "img_attn.qkv",
    "attn.to_v": "img_attn.qkv",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "norm1_context.linear": "txt_mod.lin",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.add_k_proj": "txt_attn.qkv",
    "attn.add_v_proj": "txt_attn.qkv",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_add_out": "txt_attn.proj",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
IN_SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.to_q": "linear1",
    "attn.to_k": "linear1",
    "attn.to_v": "linear1",
    "proj_mlp": "linear1",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "proj_out": "linear2",
}
PROCESSORS = {
    "img_attn.qkv": "qkv_lora1", "img_attn.proj": "proj_lora1",
    "txt_attn.qkv": "qkv_lora2", "txt_attn.proj": "proj_lora2",
    "linear1": "qkv", "linear2": "proj",
}
"""XLabs' names of a block's layers, those of single blocks without the `_lora` that other programs' keys have there
too; of linear1 only the query, key and value."""
ROWS = {
    "to_q": (0, 1), "to_k": (1, 1), "to_v": (2, 1),
    "add_q_proj": (0, 1), "add_k_proj": (1, 1), "add_v_proj": (2, 1),
    "proj_mlp": (3, 4),
}
"""Where a layer begins in the matrix that the original has for several, and how many rows it has; in widths of the
transformer."""


class DoubleSingleModel(FlowModel):
    """A pipeline with such a transformer."""

    computed_in = "bfloat16"
    PROPORTIONS = {"linear1$": 7, r"(img|txt)_mlp[._]0$": 4}
    FOREIGN_WIDTHS = (1536, 2432, 4096, 6144)

    def call(
        self,
        noisy: Tensor,
        times: Tensor,
        hidden: Tensor,
        more: Mapping[str, Any],
        references: Sequence[Tensor] = (),
    ) -> Tensor:
        """The transformer on `noisy (n, c, h, w)` and the texts' `hidden (n, tokens, dim)`; `more`: the arguments that
        are a family's own; `references`: latents `(n, c, h', w')`, whose place has 1 as its first number."""
        transformer, (height, width) = self.pipeline.transformer, noisy.shape[2:]
        noisy = noisy.to(transformer.dtype)
        like = {"device": noisy.device, "dtype": hidden.dtype}
        tokens, ids = self._tokens(noisy), self._places(noisy, like)
        for one in references:
            tokens, own = joined(tokens, [self._tokens(one.to(noisy.dtype))]), self._places(one, like)
            own[..., 0] = 1
            ids = torch.cat([ids, own])
        predicted = transformer(
            hidden_states=tokens,
            timestep=times.to(noisy.dtype) / self.process.count,
            encoder_hidden_states=hidden,
            txt_ids=torch.zeros(hidden.shape[1], 3, **like),
            img_ids=ids,
            return_dict=False,
            **more,
        )[0]
        own = predicted[:, : height // PATCH * (width // PATCH)]
        return self.unpacked(own, height * self.latent_factor, width * self.latent_factor)

    def _tokens(self, latents: Tensor) -> Tensor:
        return self.pipeline._pack_latents(latents, *latents.shape)

    def _places(self, latents: Tensor, like: dict[str, Any]) -> Tensor:
        n, _, height, width = latents.shape
        return self.pipeline._prepare_latent_image_ids(n, height // PATCH, width // PATCH, **like)

    def unpacked(self, latents: Tensor, height: int, width: int) -> Tensor:
        """`(n, tokens, 4 c)` as `(n, c, h, w)`; `height` and `width` in pixels."""
        return self.pipeline._unpack_latents(latents, height, width, self.latent_factor)

    def spellings(self, layer: str) -> list[Spelling]:
        """With ComfyUI's name for query, key and value of a single block without the rest of their matrix, and with
        those of XLabs' processors."""
        found = super().spellings(layer)
        fused = [s for s in found if s.rows and s.name.endswith("linear1") and not layer.endswith("proj_mlp")]
        processors = [replace(s, name=f"{block}.processor.{PROCESSORS[part]}") for s in found
                      for block, part in [split_block(s.name)] if part in PROCESSORS and not layer.endswith("proj_mlp")]
        return found + [replace(spelling, name=f"{spelling.name}_qkv") for spelling in fused] + processors


def split_block(name: str) -> tuple[str, str]:
    """A name such as `diffusion_model.double_blocks.0.img_attn.qkv` behind the block's number."""
    found = re.fullmatch(r"(.*(?:double|single)_blocks\.\d+)\.(.+)", name)
    return (found[1], found[2]) if found else ("", name)


def original_place(
    path: str,
    kind: str,
    width: int,
    outside: Mapping[str, str],
    double: Mapping[str, str] = IN_DOUBLE,
    single: Mapping[str, str] = IN_SINGLE,
) -> Place:
    """Where the original checkpoints have a tensor of diffusers' transformer of this `width`, e.g. in
    `double_blocks.0.img_mlp.0.weight`; `outside`, `double`, `single`: the original names of modules outside of the
    blocks and in them."""
    blocks, _, rest = path.partition(".")
    number, _, inside = rest.partition(".")
    if blocks == "transformer_blocks":
        original = f"double_blocks.{number}.{double[inside]}"
    elif blocks == "single_transformer_blocks":
        original = f"single_blocks.{number}.{single[inside]}"
    else:
        original = outside[path]
    name = f"{original}.{'scale' if original.endswith('_norm') else kind}"
    if (rows := ROWS.get(path.rpartition(".")[2])) is not None:
        return Place(name, rows[0] * width, rows[1] * width)
    return Place(name, exchanged=path == "norm_out.linear")  # the original has the shift first, diffusers the scale
