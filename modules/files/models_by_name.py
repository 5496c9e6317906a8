"""Which model a file was trained for, from its keys and shapes alone: one of our families, or another that is named.

Layers of one model may have the names of another's. Distinguishing features are checked first; models that nothing
distinguishes are both reported.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from modules import families
from modules.families.parts import published
from modules.files import kinds

TWO_ATTENTIONS = "PixArt, LTX-Video or CogVideoX"
"""Models whose layers have names that one of ours has too: that has some layers that these have not, or other texts."""
OWN_LAYERS = re.compile(r"transformer_blocks[._]\d+[._]norm[123][._]linear_[12]|text_conditioner")
CROSS, CONTEXT = re.compile(r"transformer_blocks[._]\d+[._]attn2[._]to_[kv]$"), 1024
"""Layers of it that see texts, and the width of these."""

OTHERS: tuple[tuple[str, str], ...] = (
    ("Stable Cascade", r"prior_unet[._]|lora_prior_"),
    ("Stable Video Diffusion or AnimateDiff", r"motion_modules|temporal_(transformer_blocks|res_block)|time_stack"),
    ("Kolors", r"encoder_hid_proj|chatglm"),
    ("HunyuanVideo", r"token_refiner|(img|txt)_mod[._]linear|(img|txt)_mlp[._]fc[12]|single_blocks[._]\d+[._]modulation"
                     r"[._]linear|\.double_blocks\.\d+\.(img|txt)_attn_|double_blocks[._](19|[2-5]\d)[._]|"
                     r"single_transformer_blocks[._]3[89][._]"),
    ("Cosmos 1", r"blocks[._]block\d+[._]"),
    ("Cosmos-Predict2 14B", r"(?<!_transformer_)blocks[._](2[89]|3\d)[._]((self|cross)_attn[._](q|k|v|output)_proj|"
                            r"adaln_modulation_|mlp[._]layer[12])"),
    ("Wan 2.1 or 2.2", r"blocks[._]\d+[._](self|cross)_attn[._][qkvo](_img)?[._](?!proj)|blocks[._]\d+[._]ffn[._]"
                       r"(0|2|net)|(^|transformer\.|model\.|unet_|lora_transformer_|lycoris_)blocks[._]\d+[._]attn[12][._]to_"),
    ("AuraFlow", r"joint_transformer_blocks|(double|single)_layers[._]\d+[._]"),
    ("HiDream", r"(double|single)_stream_blocks"),
    ("Lumina 2", r"layers[._]\d+[._]attn[._]to_[qkv]|(noise|context)_refiner[._]\d+[._]attn[._]|"
                 r"(layers|refiner)[._]\d+[._]adaLN_modulation[._]1"),
    ("HunyuanDiT", r"Wqkv|unet_blocks[._]\d+[._]attn[12][._]|blocks[._]\d+[._]attn[12][._](q_proj|kv_proj|out_proj)"),
    ("Mochi", r"blocks[._]\d+[._]attn[._](qkv|proj)_[xy]"),
    ("Kandinsky 5", r"(visual|text)_transformer_blocks"),
    (TWO_ATTENTIONS, r"(^|^transformer[._]|model\.|lora_transformer_|lycoris_|lora_unet_)"
                     r"transformer_blocks[._]\d+[._](attn1[._]to_|audio_|scale_shift)"),
)
"""Models that are none of our families, and what occurs in some of their adapter files' keys and in none of ours. The
first match counts."""

IN_METADATA: tuple[tuple[str, str], ...] = (
    ("Kolors", "kolors"), ("Stable Cascade", "cascade"),
    ("HunyuanVideo", r"hunyuan[-_ ]?video"), ("Wan 2.1 or 2.2", r"\bwan[-_ ]?(video|2)"), ("HiDream", "hidream"),
    ("Lumina 2", "lumina"), ("AuraFlow", "auraflow"), ("PixArt", "pixart"), ("LTX-Video", r"\bltx"),
)
"""The same for what a file's metadata calls its base's architecture."""
ARCHITECTURE = ("modelspec.architecture", "ss_base_model_version")

BLOCK = re.compile(r"(double_blocks|single_blocks)[._]\d+[._](.*attn|linear1|.*mlp[._]0$)|"
                   r"(?<!single_)(?<!joint_)transformer_blocks[._]\d+[._]attn2?[._]")
"""Layers whose sizes tell families apart that have the same names."""
NARROW, LUMINA = re.compile(r"(layers|refiner)[._]\d+[._]attention[._](qkv|out)"), 2304
"""Layers whose names Z-Image and Lumina 2 share, and the width of the latter."""


@dataclass(frozen=True)
class Whose:
    """What a file can be for."""

    families: list[str] = field(default_factory=list)
    """Names of ours. More than one: nothing in the file tells which."""
    others: list[str] = field(default_factory=list)
    """Titles of models that are none of ours."""

    @property
    def title(self) -> str:
        """In words, empty if unknown."""
        return " or ".join((*(families.load_class(name).TITLE for name in self.families), *self.others))


def whose(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Whose:
    """The models that the file's keys fit."""
    if not any(key.startswith("gimbal.") for key in metadata):
        named = _in_metadata(metadata) or _by_keys(tensors)
        if named:
            return Whose(others=[named])
    names = {found[0] for key in tensors if (found := kinds.split(key))}
    scores = {family: sum(_body(name) in bodies for name in names) for family, bodies in _denoisers().items()}
    best, denoising = max(scores.values()), [name for name in names if not TEXT.search(name)]
    if denoising and 2 * best < len(denoising):
        return Whose()
    found = [family for family, score in scores.items() if score == best or not best]
    known = [family for family in found if families.load_class(family).recognises(list(tensors))]
    sizes = _sizes(tensors)
    known = [family for family in known if families.load_class(family).fits(sizes)] or known
    found = known or (found if best else [])  # text encoders show what denoisers leave open
    called = [family for family in found if _is_called(family, metadata)]  # and metadata, what all keys do
    return Whose(called or found)


TEXT = re.compile(r"(^|[._])(te\d?|text_encoder(_\d)?|text_encoders|clip_[lgh]|t5xxl|text_model)[._]|bundle_emb")


def _in_metadata(metadata: Mapping[str, str]) -> str:
    return next((title for title, pattern in IN_METADATA if re.search(pattern, _architecture(metadata))), "")


def _is_called(family: str, metadata: Mapping[str, str]) -> bool:
    pattern = families.load_class(family).CALLED
    return bool(pattern) and re.search(pattern, _architecture(metadata)) is not None


def _architecture(metadata: Mapping[str, str]) -> str:
    return " ".join(metadata.get(key, "") for key in ARCHITECTURE).lower()


def _by_keys(tensors: Mapping[str, Tensor]) -> str:
    text = "\n".join(tensors)
    title = next((title for title, pattern in OTHERS if re.search(pattern, text, re.MULTILINE)), "")
    if title == TWO_ATTENTIONS and (OWN_LAYERS.search(text) or _has_inputs(tensors, CROSS, CONTEXT)):
        return ""
    return title or ("Lumina 2" if _has_inputs(tensors, NARROW, LUMINA) else "")


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Numbers of outputs and inputs of the layers that tell by them, by name; of low-rank pairs alone."""
    found = {}
    for name, parts in kinds.grouped(tensors)[0].items():
        if BLOCK.search(name) and {"up", "down"} <= parts.keys():
            up, down = tensors[parts["up"]], tensors[parts["down"]]
            found[name] = (len(up), down[0].numel() if down.dim() > 1 else 0)
    return found


def _has_inputs(tensors: Mapping[str, Tensor], names: re.Pattern[str], width: int) -> bool:
    """Whether a layer with such a name has so many inputs."""
    layers, _ = kinds.grouped(tensors)
    return any(width in tensors[parts["down"]].shape for name, parts in layers.items()
               if names.search(name) and "down" in parts)


def _denoisers() -> dict[str, frozenset[str]]:
    """Paths of each family's denoiser without dots, as `_body` gives them."""
    return {family: frozenset(_joined(text) for layer in published.layers(family) if not layer.is_text
                              for text in (layer.path, re.sub(r"\.(weight|scale)$", "", layer.original)))
            for family in families.names()}


def _body(name: str) -> str:
    """A name without the prefixes of programs, and without dots."""
    name = re.sub(r"^(base_model\.model\.|diffusion_model\.|unet\.|transformer\.|model\.)+", "", name)
    name = re.sub(r"^(lora|lycoris|oft)_(unet_|transformer_(?=transformer|single|[xcptn]))?", "", name)
    name = re.sub(r"\.processor\.(to_[a-z]+)(_lora)?$", r".\1", name)
    name = re.sub(r"\.to_out$", ".to_out.0", name)
    return _joined(name.removesuffix("_qkv") if "linear1" in name else name)


def _joined(name: str) -> str:
    return name.replace(".", "_")
