"""Files that people have for FLUX.1 and Stable Diffusion 3: public key names on the tiny models."""

from collections.abc import Callable

import torch
from torch import nn

from tests.export import foreign
from tests.files.making import Sample, low_rank, lycoris, module, of_peft
from tests.files.unets import AB, FC, kohya

DOUBLE, SINGLE = "transformer.transformer_blocks.1", "transformer.single_transformer_blocks.1"
IMAGE = [f"{DOUBLE}.attn.to_{part}" for part in "qkv"]
WORDS = [f"{DOUBLE}.attn.add_{part}_proj" for part in "qkv"]
ALONE = [f"{SINGLE}.attn.to_{part}" for part in "qkv"]
PATHS = (IMAGE[0], WORDS[2], f"{DOUBLE}.ff.net.0.proj", f"{SINGLE}.proj_mlp", f"{SINGLE}.proj_out")
"""Layers that files in diffusers' paths name one by one."""

KOHYA, PEFT, WITH_ALPHA = low_rank(), low_rank(alpha=None, **AB), low_rank(alpha=1.5, **AB)


def paths(start: str, separator: str = ".", make: Callable = PEFT) -> Callable[[], Sample]:
    """Files in diffusers' paths."""

    def sample() -> Sample:
        found = Sample("flux")
        for layer in PATHS:
            found.put(layer, start + layer.removeprefix("transformer.").replace(".", separator), make)
        return found

    return sample


def fused(start: str, separator: str, make: Callable = KOHYA) -> Callable[[], Sample]:
    """Files in the original checkpoint's names, query, key and value as one."""

    def sample() -> Sample:
        found = Sample("flux")
        for layers, name in (
            (IMAGE, "double_blocks.1.img_attn.qkv"), (WORDS, "double_blocks.1.txt_attn.qkv"),
            ([*ALONE, f"{SINGLE}.proj_mlp"], "single_blocks.1.linear1"),
        ):
            found.fused(layers, start + name.replace(".", separator), make)
        for layer, name in ((f"{DOUBLE}.attn.to_out.0", "double_blocks.1.img_attn.proj"),
                            (f"{SINGLE}.proj_out", "single_blocks.1.linear2")):
            found.put(layer, start + name.replace(".", separator), make)
        return found

    return sample


def xlabs(start: str, single: bool = True) -> Callable[[], Sample]:
    """XLabs' trainer: processors of the original checkpoint's blocks, scale 1."""

    def sample() -> Sample:
        found, make = Sample("flux"), low_rank(alpha=None, up=".up.weight", down=".down.weight")
        found.fused(IMAGE, f"{start}double_blocks.1.processor.qkv_lora1", make)
        found.fused(WORDS, f"{start}double_blocks.1.processor.qkv_lora2", make)
        found.put(f"{DOUBLE}.attn.to_out.0", f"{start}double_blocks.1.processor.proj_lora1", make)
        found.put(f"{DOUBLE}.attn.to_add_out", f"{start}double_blocks.1.processor.proj_lora2", make)
        if single:
            found.fused(ALONE, f"{start}single_blocks.1.processor.qkv_lora", make)
            found.put(f"{SINGLE}.proj_out", f"{start}single_blocks.1.processor.proj_lora", make)
        return found

    return sample


def bfl(wider: bool) -> Callable[[], Sample]:
    """BFL's canny and depth LoRAs: biases in lora_B, whole scales of norms, an input of twice the channels."""

    def sample() -> Sample:
        found, generator = Sample("flux"), torch.Generator().manual_seed(9)
        for layers, name in ((IMAGE, "double_blocks.1.img_attn.qkv"),
                             ([f"{SINGLE}.proj_out"], "single_blocks.1.linear2")):
            found.fused(layers, name, low_rank(alpha=None, **AB))
            biases = [module("flux", layer).bias for layer in layers]
            given = 0.1 * torch.randn(sum(map(len, biases)), generator=generator)
            found.add(name, {".lora_B.bias": given})
            parts = given.split([len(bias) for bias in biases])
            found.biases |= {layer: b + part for layer, b, part in zip(layers, biases, parts, strict=True)}
        for layer, name in ((f"{DOUBLE}.attn.norm_q", "double_blocks.1.img_attn.norm.query_norm"),
                            (f"{SINGLE}.attn.norm_k", "single_blocks.1.norm.key_norm")):
            scale = 1 + 0.1 * torch.randn(len(module("flux", layer).weight), generator=generator)
            found.add(name, {".scale": scale})
            found.weights[layer] = scale
        base = module("flux", "transformer.x_embedder")
        if wider:
            wide = nn.Linear(2 * base.in_features, base.out_features)
            found.add("img_in", foreign.lora_of_kohya(wide.requires_grad_(False), 3, None).tensors)
            found.renamed(("lora_up", "lora_B"), ("lora_down", "lora_A"))
            found.refused = "img_in"
        else:
            found.put("transformer.x_embedder", "img_in", low_rank(alpha=None, **AB))
        return found

    return sample


def bfl_comfyui(wider: bool) -> Callable[[], Sample]:
    """The same after ComfyUI's conversion: generic names, `set_weight`, `reshape_weight`."""

    def sample() -> Sample:
        found = bfl(wider)()
        found.renamed((".lora_B.bias", ".diff_b"), ("_norm.scale", "_norm.set_weight"))
        found.tensors = {f"diffusion_model.{key}": tensor for key, tensor in found.tensors.items()}
        up, down = (found.tensors[f"diffusion_model.img_in.{name}.weight"] for name in ("lora_B", "lora_A"))
        found.tensors["diffusion_model.img_in.reshape_weight"] = torch.tensor([up.shape[0], down.shape[1]])
        found.refused = "diffusion_model.img_in" if wider else ""
        return found

    return sample


def peft_transformer(start: str) -> Callable[[], Sample]:
    """peft's own save_pretrained of the transformer, under another beginning."""

    def sample() -> Sample:
        from peft import LoraConfig

        targets = [layer.removeprefix("transformer.") for layer in PATHS]
        config = LoraConfig(r=3, lora_alpha=3, target_modules=targets)
        found = of_peft("flux", "transformer", config).renamed(("base_model.model.", start))
        found.config = {}
        return found

    return sample


def flux_texts(clip: str, t5: str) -> Callable[[], Sample]:
    """kohya's and OneTrainer's text encoders."""

    def sample() -> Sample:
        block = "encoder.block.0.layer.0.SelfAttention.q"
        found = Sample("flux").put(f"text_encoder.{FC}", kohya(f"text_model.{FC}", clip), low_rank())
        return found.put(f"text_encoder_2.{block}", kohya(block, t5), low_rank())

    return sample


def sd3_paths(start: str, separator: str = ".", make: Callable = PEFT) -> Callable[[], Sample]:
    """Stable Diffusion 3 in diffusers' paths."""

    def sample() -> Sample:
        found = Sample("sd3")
        for path in ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn2.to_v",
                     "transformer_blocks.1.ff.net.2"):
            found.put(f"transformer.{path}", start + path.replace(".", separator), make)
        return found

    return sample


def sd3_fused(start: str, separator: str) -> Callable[[], Sample]:
    """Stable Diffusion 3 in the original checkpoint's names."""

    def sample() -> Sample:
        found = Sample("sd3")
        for middle, parts in (("x_block.attn", [f"to_{p}" for p in "qkv"]),
                              ("context_block.attn", [f"add_{p}_proj" for p in "qkv"])):
            layers = [f"transformer.transformer_blocks.0.attn.{part}" for part in parts]
            found.fused(layers, start + f"joint_blocks.0.{middle}.qkv".replace(".", separator), low_rank())
        return found

    return sample


SAMPLES: dict[str, Callable[[], Sample]] = {
    "FLUX diffusers": paths("transformer."),
    "FLUX diffusers with alpha": paths("transformer.", make=WITH_ALPHA),
    "FLUX ai-toolkit": paths("diffusion_model."),
    "FLUX fal": paths(""),
    "FLUX default name": paths("transformer.", make=low_rank(
        alpha=None, up=".lora_B.default.weight", down=".lora_A.default.weight")),
    "FLUX OneTrainer": paths("lora_transformer_", "_", low_rank()),
    "FLUX LoKr": paths("transformer.", make=lycoris("lokr", lora_dim=2, alpha=1, factor=2)),
    "FLUX SimpleTuner LyCORIS": paths("lycoris_", "_", lycoris("lokr", lora_dim=2, alpha=1, factor=2)),
    "FLUX peft": peft_transformer("base_model.model."),
    "FLUX peft, transformer.base_model": peft_transformer("transformer.base_model.model."),
    "FLUX kohya": fused("lora_unet_", "_"),
    "FLUX ComfyUI": fused("diffusion_model.", ".", low_rank(alpha=None)),
    "FLUX original": fused("", ".", low_rank(alpha=None, **AB)),
    "FLUX XLabs": xlabs("", single=False),
    "FLUX XLabs single blocks": xlabs(""),
    "FLUX XLabs generic": xlabs("diffusion_model."),
    "FLUX BFL": bfl(wider=False),
    "FLUX BFL control": bfl(wider=True),
    "FLUX BFL by ComfyUI": bfl_comfyui(wider=False),
    "FLUX BFL control by ComfyUI": bfl_comfyui(wider=True),
    "FLUX kohya texts": flux_texts("lora_te1_", "lora_te3_"),
    "FLUX OneTrainer texts": flux_texts("lora_te1_", "lora_te2_"),
    "SD3 diffusers": sd3_paths("transformer."),
    "SD3 OneTrainer": sd3_paths("lora_transformer_", "_", low_rank()),
    "SD3 kohya": sd3_fused("lora_unet_", "_"),
    "SD3 ComfyUI": sd3_fused("diffusion_model.", "."),
}
