"""Magnitudes on top of an update: `m V / norm(V)` along the outputs or the inputs."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.documents import parse_json
from modules.files import forms
from modules.files.writer import OURS, About

ROWS = ".lora_magnitude_vector"
SUFFIXES = {
    ".dora_scale": "magnitude",
    **dict.fromkeys((ROWS, f"{ROWS}.weight"), "row_magnitude"),
    ".magnitude": "row_magnitude",
    ".dora_log_multiplier": "log_multiplier",
    ".dora_multiplier": "multiplier",
    ".initial_norm": "initial_norm",
    ".lora_wora_alpha": "wora_alpha",
    ".lora_wora_beta": "wora_beta",
}

ANY = ("magnitude", "row_magnitude", "log_multiplier", "multiplier")
COMMON = {"LoRA": "DoRA", "OFT": "DOFT", "LoHa": "DoHa", "LoKr": "DoKr"}
"""Names of kinds with a magnitude."""


def axis(parts: dict[str, Tensor]) -> str:
    """The axis of a layer's magnitude, from its shape; empty without one."""
    found = parts.get("magnitude")
    if found is None:
        return "output" if any(part in parts for part in ANY) else ""
    return "input" if found.dim() > 1 and found.shape[0] == 1 and found.numel() > 1 else "output"


def outputs(parts: dict[str, Tensor]) -> int | None:
    """The number of outputs that a magnitude shows, for kinds whose other tensors do not."""
    found = next((parts[part] for part in ANY if part in parts), None)
    return None if found is None or axis(parts) == "input" else found.numel()


def words(parts: dict[str, Tensor], what: str) -> str:
    """`what` with its magnitude."""
    along = axis(parts)
    if not along:
        return what
    common = next((f" ({name})" for kind, name in COMMON.items() if what.startswith(kind)), "")
    common = " (WoRA)" if "wora_alpha" in parts else common
    return f"{what} with {along} magnitude{common}"


def weighted(terms: Terms, parts: dict[str, Tensor], W: Tensor) -> Terms:
    """With the weights of peft's WoRA, `m V / norm(V)` of `V = beta W + alpha up down`: that of `W + alpha / beta
    up down`, and the sign of beta goes to the magnitude. Raises ValueError for one weight without the other."""
    given = [parts[part] for part in ("wora_alpha", "wora_beta") if part in parts]
    if not given:
        return terms
    if len(given) < 2 or "row_magnitude" not in parts or terms.up is None:
        raise ValueError("its WoRA lacks alpha, beta, the magnitude, up or down; the file is damaged")
    if any(tensor.numel() != 1 for tensor in given):
        raise ValueError("alpha and beta of its WoRA should be single values; the file is damaged")
    alpha, beta = (tensor.item() for tensor in given)
    if beta == 0:
        return replace(terms, up=alpha * terms.up, difference=-W)
    return replace(terms, up=alpha / beta * terms.up)


def on_top(terms: Terms, parts: dict[str, Tensor], layer: Layer, W: Tensor, about: About) -> Terms:
    """`terms` with the layer's magnitude. Raises ValueError for one that does not fit."""
    along = axis(parts)
    if not along:
        return terms
    given = parts.get("magnitude", parts.get("row_magnitude"))
    if given is None:
        raise ValueError("it has a multiplier but no rotation; the file is damaged")
    expected = layer.out_features if along == "output" else layer.channels
    if given.numel() != expected:
        raise ValueError(f"its magnitude has {given.numel()} values along the {along}, but the layer has {expected}")
    found = given.flatten().to(W.dtype)
    if "wora_beta" in parts and parts["wora_beta"].item() < 0:
        found = -found
    if along == "output" and _for_original_norm(about) and "magnitude" in parts:
        found = found * forms.ratio(norm(forms.applied(terms, layer, W), along, layer), W.norm(dim=1))
    unit = _unit(about, layer.name)
    if unit and "magnitude" in parts:  # it was written for a ComfyUI that adds this to the norm
        original = along == "output" and _for_original_norm(about)
        length = norm(W if original else forms.applied(terms, layer, W), along, layer)
        found = found * length / (length + unit)
    return replace(terms, magnitude=found, axis=along)


def _for_original_norm(about: About) -> bool:
    """Whether our exporter wrote output magnitudes for the base's norm; files from before 2026-11-30 do not have
    this."""
    if about.writer != OURS:
        return False
    for_comfyui = about.metadata.get("gimbal.host", "comfyui").startswith("comfyui")
    before = about.metadata.get("gimbal.comfyui_norm", "original") if for_comfyui else "adapted"
    return about.metadata.get("gimbal.magnitude_norm", before) == "original"


def _unit(about: About, name: str) -> float:
    """What our exporter has compensated in a layer's magnitude (`export.computes_in`): the dtype's machine epsilon."""
    if about.writer != OURS:
        return 0.0
    number = _fitted(about.metadata.get("gimbal.fitted", "{}")).get(name)
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(str(number), 0.0)


@lru_cache(1)
def _fitted(text: str) -> dict[str, Any]:
    """The layers whose magnitudes our exporter has fitted, with the dtype that they are fitted to."""
    try:
        found = parse_json(text, "gimbal.fitted")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def norm(V: Tensor, along: str, layer: Layer) -> Tensor:
    """`(out)` or `(channels)` of `V (out, fan_in)`."""
    if along == "output":
        return V.norm(dim=1)
    return V.unflatten(1, (layer.channels, layer.kernel)).norm(dim=(0, 2))
