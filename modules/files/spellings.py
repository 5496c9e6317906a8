"""From a name in a file, without the model: its spelling (naming scheme), and the part of the model.

The tables are export.md 1.1 to 1.4, run or read in the programs' code. Which program reads which spelling: `trouble` in
modules/hosts.
"""

import re

KOHYA_PATH, KOHYA_ORIGINAL, KOHYA_TEXT = "kohya, diffusers' paths", "kohya, original paths", "kohya, text encoders"
GENERIC, PEFT, PEFT_TEXT = "ComfyUI's generic names", "diffusers", "diffusers, text encoders"
LEGACY, LYCORIS, KOHYA_OFT, BARE = "OneTrainer's old names", "LyCORIS", "kohya's OFT", "bare paths"

SPELLINGS = (
    (r"lora_te\d?_", KOHYA_TEXT),
    (r"lora_unet_(input_blocks|output_blocks|middle_block|time_embed|label_emb|out_2|double_blocks|single_blocks|"
     r"joint_blocks|final_layer|img_in|txt_in|time_in|vector_in|guidance_in|x_embedder|context_embedder|"
     r"(layers|(noise|context)_refiner)_\d+_attention_(qkv|out$|[qk]_norm))",
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


def spelling(name: str) -> str:
    """The naming scheme of a name."""
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
