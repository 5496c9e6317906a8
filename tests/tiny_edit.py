"""Tiny random bases that edit, of real diffusers classes: folders whose index says so, as published ones do."""

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

from tests import tiny_flux, tiny_flux2, tiny_qwenimage

SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""Tokens around pictures, and in their place."""

READER = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
          "min_pixels": 28 * 28, "max_pixels": 28 * 28 * 16}
"""As published, with fewer pixels."""


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pipelines' own sizes of reference pictures small: a million pixels are many for a test."""
    whole = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(16, 40), (32, 32), (40, 16)])
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, shape: whole(48 * 48, shape))
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 48 * 48)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", 32 * 32)


def make_folder(folder: Path, kind: str) -> Path:
    """The folder of a base; `kind`: the pipeline that edits."""
    base = folder / "base"
    if kind == "FluxKontextPipeline":
        tiny_flux.make_pipeline(folder).save_pretrained(base)
    elif kind.startswith("Flux2"):
        tiny_flux2.save(tiny_flux2.make_pipeline("dev" if kind == "Flux2Pipeline" else "base"), base)
        return base
    else:
        _qwen(base)
    index = json.loads((base / "model_index.json").read_text())
    index["_class_name"] = kind
    if "processor" not in index and kind.startswith("Qwen"):
        index["processor"] = ["transformers", "Qwen2VLProcessor"]
    (base / "model_index.json").write_text(json.dumps(index))
    return base


def _qwen(base: Path) -> None:
    """With the tokens that stand for pictures, where the text encoder looks for them."""
    tokens: Any = tiny_qwenimage.tokenizer()
    tokens.add_tokens(list(SPECIAL), special_tokens=True)
    numbers = dict(zip(SPECIAL, tokens.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    pipeline = tiny_qwenimage.make_pipeline(tokens=tokens, places={
        "vision_start_token_id": numbers["<|vision_start|>"], "vision_end_token_id": numbers["<|vision_end|>"],
        "image_token_id": numbers["<|image_pad|>"], "video_token_id": numbers["<|video_pad|>"],
    })
    pipeline.save_pretrained(base)
    (base / "processor").mkdir()
    (base / "processor/preprocessor_config.json").write_text(json.dumps(READER))
