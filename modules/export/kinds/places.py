"""What a name in a file tells without the model: its spelling, the part of the model, who reads such names.

The tables are export.md 1.1 to 1.4, which were run or read in the programs' own code.
"""

import re
from collections.abc import Collection

KOHYA_PATH, KOHYA_ORIGINAL, KOHYA_TEXT = "kohya, diffusers' paths", "kohya, original paths", "kohya, text encoders"
GENERIC, PEFT, PEFT_TEXT = "ComfyUI's generic names", "diffusers", "diffusers, text encoders"
LEGACY, LYCORIS, KOHYA_OFT, BARE = "OneTrainer's old names", "LyCORIS", "kohya's OFT", "bare paths"

SPELLINGS = (
    (r"lora_te\d?_", KOHYA_TEXT),
    (r"lora_unet_(input_blocks|output_blocks|middle_block|time_embed|label_emb|out_2|double_blocks|single_blocks|"
     r"joint_blocks|final_layer|img_in|txt_in|time_in|vector_in|guidance_in|x_embedder|context_embedder)",
     KOHYA_ORIGINAL),
    (r"lora_unet_", KOHYA_PATH),
    (r"lora_transformer_", LEGACY),
    (r"lycoris_", LYCORIS),
    (r"oft_", KOHYA_OFT),
    (r"(model\.)?diffusion_model\.|text_encoders\.", GENERIC),
    (r"text_encoder(_\d)?\.", PEFT_TEXT),
    (r"(unet|transformer)\.", PEFT),
)

TEXT = re.compile(r"(lora|oft)_te|text_encoder|clip_[lg]|t5xxl|text_model")
ATTENTION = re.compile(r"attn|attention(?!s[._])|_qkv|to_[qkv]\b|[qkv]_proj|add_[qkv]_proj|linear1_qkv")
MLP = re.compile(r"\bff\b|_ff_|\.ff\.|ff_context|mlp|fc[12]|proj_in|proj_out|feed_forward|linear[12]|DenseReluDense")
CONV = re.compile(r"conv|resnets|in_layers|out_layers|skip_connection|(down|up)samplers|input_blocks_\d+_0_op")

UNETS, TRANSFORMERS = ("sd15", "sdxl"), ("sd3", "flux")


def spelling(name: str) -> str:
    """Whose way of writing names this is."""
    return next((words for pattern, words in SPELLINGS if re.match(pattern, name)), BARE)


def part(name: str, dimensions: int) -> str:
    """The part of the model, in words; `dimensions` of the layer's tensors."""
    if TEXT.match(name):
        return "text encoders"
    if ATTENTION.search(name):
        return "attention"
    if MLP.search(name) and dimensions <= 2:
        return "mlp"
    if dimensions > 2 or CONV.search(name):
        return "conv"
    return "other"


def trouble(host: str, how: str, family: str, names: Collection[str]) -> str:
    """Why `host` does not read names of a spelling for `family` ("" if unknown); empty if it does, or nobody knows."""
    readers = {"comfyui": _comfyui, "comfyui_node": _comfyui, "kohya": _kohya, "diffusers": _diffusers,
               "lycoris": _lycoris}
    return readers[host](how, family, names) if host in readers else ""


def _comfyui(how: str, family: str, names: Collection[str]) -> str:
    if how == PEFT and family in UNETS:
        return "it does not find query, key, value and output of the attention under these names; only the rest loads"
    if how == KOHYA_PATH and family in TRANSFORMERS:
        return "it does not know these names for this kind of model"
    if how == LEGACY and family in UNETS:
        return "it does not know these names for this kind of model"
    if how == PEFT_TEXT and any("text_model." not in name and "encoder.block" not in name for name in names):
        return "it does not find text encoders' layers without text_model. in their names"
    if how == PEFT_TEXT and any("encoder.block" in name for name in names):
        return "it does not find the T5 under these names"
    return "it does not know such names" if how in (KOHYA_OFT, BARE) else ""


def _kohya(how: str, family: str, names: Collection[str]) -> str:
    if how == KOHYA_OFT:
        return "only sd-scripts itself reads them"
    if how in (GENERIC, BARE, PEFT_TEXT):
        return "A1111 and sd-scripts do not know such names"
    if how == PEFT:
        return "only Forge knows such names, and only for Flux" if family != "sd3" else "they do not know such names"
    if how in (LEGACY, LYCORIS):
        return "A1111 and sd-scripts do not know such names; Forge does"
    return "they do not know these names for this kind of model" if how == KOHYA_PATH and family in TRANSFORMERS else ""


def _diffusers(how: str, family: str, names: Collection[str]) -> str:
    if how == GENERIC and family in TRANSFORMERS:
        return "it loads nothing and says so in its log only"
    if how in (GENERIC, LEGACY, LYCORIS, KOHYA_OFT):
        return "it refuses such names"
    if how == BARE:
        return "peft reads such files, not load_lora_weights"
    if how == KOHYA_ORIGINAL and family == "sd15":
        return "it refuses the original checkpoint's paths for this kind of model"
    if how in (KOHYA_ORIGINAL, KOHYA_PATH) and family == "sd3":
        return "it loads nothing and says so in its log only"
    return "it refuses such names" if how == KOHYA_PATH and family == "flux" else ""


def _lycoris(how: str, family: str, names: Collection[str]) -> str:
    if how != LYCORIS:
        return "its own loader looks for names that begin with lycoris_, unless LORA_PREFIX is set"
    return ""
