"""What ComfyUI 0.28.0 reads of a file: `convert_lora`, the names of `model_lora_keys_unet` and `model_lora_keys_clip`,
and the suffixes of `load_lora`. Keys that it does not find are logged as "lora key not loaded", and ignored.
"""

from collections.abc import Iterator, Mapping
from functools import cache

from torch import Tensor

from modules.families.parts import published
from modules.families.parts.names import MODEL, joined
from modules.families.parts.published import Published
from modules.files import keys
from modules.hosts.key_maps.loading import Loading, Pair, Suffixes, read

TITLE = "ComfyUI"

PAIRS = (
    Pair(".lora_up.weight", ".lora_down.weight", keys.MIDDLE), Pair("_lora.up.weight", "_lora.down.weight"),
    Pair(".lora_B.weight", ".lora_A.weight"), Pair(".lora.up.weight", ".lora.down.weight"), Pair(".lora_B", ".lora_A"),
    Pair(".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    Pair(".lora_B.default.weight", ".lora_A.default.weight"),
)
SUFFIXES = Suffixes(PAIRS, rotations=True, reshapes=True)

CLIP_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Of CLIP's blocks, those with kohya's and peft's names."""

LATER = ".img_mlp.gate_up."
"""Occurs in names of the layers of a model that only later versions have."""

CONTROL = ("img_in.lora_A.weight", "single_blocks.0.norm.key_norm.scale")
"""Keys of Black Forest Labs' control adapters."""
STYLE = ("single_blocks.37.processor.qkv_lora.up.weight", "double_blocks.18.processor.qkv_lora2.up.weight")
"""Keys of XLabs' adapters, and of those that followed, where they have all blocks."""
STYLE_NAMES = (
    (".down.weight", ".lora_down.weight"), (".up.weight", ".lora_up.weight"), (".qkv_lora2.", ".txt_attn.qkv."),
    (".qkv_lora1.", ".img_attn.qkv."), (".proj_lora1.", ".img_attn.proj."), (".proj_lora2.", ".txt_attn.proj."),
    (".qkv_lora.", ".linear1_qkv."), (".proj_lora.", ".linear2."), (".processor.", "."),
)


def loading(tensors: Mapping[str, Tensor], family: str) -> Loading:
    """What it reads of the file in a model of the family."""
    if any(LATER in layer.original for layer in published.layers(family)):
        return Loading(unjudged="ComfyUI 0.28.0 does not have this model, and no later version was run")
    converted = {new: old for old, new in zip(tensors, renamed(tensors), strict=True)}
    return read({new: tensors[old] for new, old in converted.items()}, names(family), SUFFIXES).under(converted)


def renamed(tensors: Mapping[str, Tensor]) -> list[str]:
    """The keys as ComfyUI renames them before it searches for layers."""
    if all(key in tensors for key in CONTROL):
        return [f"diffusion_model.{key.replace('.lora_B.bias', '.diff_b').replace('_norm.scale', '_norm.set_weight')}"
                for key in tensors]
    if not all(key in tensors for key in STYLE):
        return list(tensors)
    found = []
    for key in tensors:
        for old, new in STYLE_NAMES:
            key = key.replace(old, new)
        found.append(f"diffusion_model.{key}")
    return found


@cache
def names(family: str) -> frozenset[str]:
    """The names, without suffixes, that it finds in models of the family."""
    layers = published.layers(family)
    denoiser = [layer for layer in layers if not layer.is_text]
    originals = " ".join(layer.original for layer in denoiser)
    starts = next((starts for mark, starts in STARTS.items() if mark in originals), USUAL)
    found = {name for layer in denoiser for name in original_names(layer)}
    for layer in denoiser:
        found |= set(unet_names(layer) if layer.network == "unet" else transformer_names(layer, starts))
    return frozenset(found | text_names(layers))


def original_names(layer: Published) -> Iterator[str]:
    """With the original checkpoint's path, and for a part of a fused matrix."""
    name = layer.original.removesuffix(".weight").removesuffix(".scale")
    yield from (f"lora_unet_{joined(name)}", f"diffusion_model.{name}")
    if ".linear1" in layer.original:
        yield f"diffusion_model.{name}_qkv"


def unet_names(layer: Published) -> Iterator[str]:
    """With diffusers' path, with the attention names of its first adapters."""
    old = layer.path.replace(".to_", ".processor.to_")
    old = old.removesuffix(".0") if old.endswith(".to_out.0") else old
    yield from (f"lora_unet_{joined(layer.path)}", f"lycoris_{joined(layer.path)}", old, f"unet.{old}")


def transformer_names(layer: Published, starts: tuple[str, ...]) -> Iterator[str]:
    """With diffusers' path, where it has one, after these beginnings; underscores for dots after those that end with
    one."""
    if not layer.path.startswith(PATHLESS):
        yield from (start + (joined(layer.path) if start.endswith("_") else layer.path) for start in starts)


USUAL = ("transformer.", "", "lycoris_", "lora_transformer_")
STARTS = {
    "joint_blocks": ("transformer.", "base_model.model.", "lycoris_", "lora_transformer_"),
    "txt_norm": ("transformer.", "", "lycoris_"),
    "txtfusion": ("transformer.", "", "lycoris_", "diffusion_model."),
    "llm_adapter": (),
    "noise_refiner": ("transformer.", "", "lycoris_", "diffusion_model."),
}
"""Beginnings of names with diffusers' paths, by a part of the transformer's original names."""


PATHLESS = (
    "distilled_guidance_layer.", "time_guidance_embed.", "double_stream_modulation_", "single_stream_modulation.",
)
"""Layers that it has under the original checkpoint's names only."""


def text_names(layers: tuple[Published, ...]) -> set[str]:
    """Of all text encoders: with kohya's, peft's and its own prefixes."""
    found = set()
    networks = sorted({layer.network for layer in layers if layer.is_text})
    for network in networks:
        own = [layer.path for layer in layers if layer.network == network]
        if is_language_model(own):
            wrappers = (*(f"{word}." for word in LANGUAGE_MODELS), "")
            found |= {f"text_encoders.{wrapper}transformer.{path}" for wrapper in wrappers for path in own}
            found |= {f"lora_te_{joined(path.removeprefix(MODEL))}" for path in own}
        elif is_t5(own):
            known = [path for path in own if path != "encoder.embed_tokens"]  # the same table as `shared`
            found |= {f"lora_te{index}_{joined(path)}" for index in T5_NUMBERS[len(networks)] for path in known}
            found |= {f"text_encoders.{wrapper}transformer.{path}" for wrapper in ("t5xxl.", "") for path in known}
        else:
            is_second, known = network.endswith("_2"), (*own, "text_projection")
            wrappers = ("clip_g",) if is_second else ("clip_l", "clip_h") if len(networks) == 1 else ("clip_l",)
            found |= {f"text_encoders.{wrapper}.transformer.{path}" for wrapper in wrappers for path in known}
            found |= clip_names(own, network)
    return found


LANGUAGE_MODELS = ("qwen3_4b", "qwen3_8b", "mistral3_24b", "qwen25_7b", "qwen3vl_4b", "qwen3_06b")
"""Its words for text encoders that are such."""

T5_NUMBERS = {1: (1,), 2: (2, 3), 3: (3,)}
"""By the number of text encoders: the number of the T5 in kohya's and OneTrainer's names."""


def is_language_model(paths: list[str]) -> bool:
    """Whether a text encoder with these layers is a language model."""
    return any(path.startswith(MODEL) for path in paths)


def is_t5(paths: list[str]) -> bool:
    """Whether a text encoder with these layers is a T5."""
    return any("DenseReluDense" in path for path in paths)


def clip_names(paths: list[str], network: str) -> set[str]:
    """A CLIP's, with kohya's and peft's prefixes."""
    starts = ("lora_te2_",) if network.endswith("_2") else ("lora_te_", "lora_te1_")
    known = [path for path in paths if ".encoder.layers." in path and path.endswith(CLIP_LAYERS)]
    found = {f"{start}{joined(path)}" for start in starts for path in known}
    return found | {f"{network}.{path}" for path in known} | {f"{starts[-1]}text_projection"}
