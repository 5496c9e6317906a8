"""The metadata of a file: facts of the training, for model managers and for repeating it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from modules import hosts
from modules.files.facts import Facts
from modules.preset.base_options import is_hub_id
from modules.preset.data_options import CHUNK
from modules.preset.files import METADATA_KEY
from modules.preset.schema import Preset
from modules.preset.section import LOCAL_KINDS


def without_paths(section: BaseModel) -> dict[str, Any]:
    """A preset's values as JSON data, with local files and folders set back to their defaults."""
    values = section.model_dump(mode="json")
    for name, value in section:
        info = type(section).model_fields[name]
        extra = info.json_schema_extra
        if isinstance(value, BaseModel):
            values[name] = without_paths(value)
        elif isinstance(extra, dict) and extra.get("kind") in LOCAL_KINDS:
            values[name] = to_jsonable_python(info.get_default())
    return values


def base_name(preset: Preset) -> str:
    """The base's id on the hub, or the last part of its path."""
    return preset.base.path if is_hub_id(preset.base.path) else Path(preset.base.path).name


def training(preset: Preset, facts: Facts, form: "Form", encoders: Sequence[str]) -> dict[str, str]:
    """The `ss_*` keys that A1111, Forge, SD.Next and kohya's tools read. `encoders`: names of the text encoders."""
    rate = preset.training.learning_rate
    found: dict[str, Any] = {
        "ss_output_name": preset.name,
        "ss_sd_model_name": base_name(preset),
        "ss_network_module": "lycoris.kohya" if form.is_extended else "networks.lora",
        "ss_network_dim": form.dim,
        "ss_network_alpha": form.dim if form.alpha is None else form.alpha,
        "ss_network_args": form.arguments,
        "ss_resolution": f"({preset.data.largest}, {preset.data.largest})",
        "ss_batch_size_per_device": preset.training.batch_size,
        "ss_gradient_accumulation_steps": preset.training.accumulation,
        "ss_num_train_images": sum(n * facts.repeats[folder] for folder, n in facts.pictures.items()),
        "ss_steps": facts.step,
        "ss_epoch": facts.epoch,
        "ss_learning_rate": rate,
        "ss_unet_lr": rate,
        "ss_text_encoder_lr": text_encoder_rates(preset, encoders),
        "ss_lr_scheduler": preset.training.schedule,
        "ss_optimizer": preset.optimizer.name,
        "ss_mixed_precision": preset.training.precision,
        "ss_seed": preset.training.seed,
        "ss_training_started_at": facts.started,
        "ss_training_finished_at": facts.finished,
        "ss_trigger_words": preset.data.trigger,
    }
    if preset.base.clip_skip is not None:
        found["ss_clip_skip"] = preset.base.clip_skip
    if preset.data.caption_tokens != CHUNK:
        found["ss_max_token_length"] = preset.data.caption_tokens
    if preset.export.dataset_names:
        folders = {f: {"n_repeats": facts.repeats[f], "img_count": n} for f, n in facts.pictures.items()}
        sizes = [{"resolution": [int(n) for n in b.split("x")], "count": c} for b, c in facts.buckets.items()]
        found["ss_tag_frequency"] = facts.tags
        found["ss_dataset_dirs"] = folders
        found["ss_bucket_info"] = {"buckets": dict(enumerate(sizes)), "mean_img_ar_error": 0}
    return {key: text(value) for key, value in found.items()}


def text_encoder_rates(preset: Preset, encoders: Sequence[str]) -> float | list[float] | None:
    """One learning rate; with own ones of some encoders a list of all, as kohya's."""
    rate, targets = preset.training.learning_rate, preset.targets
    if not targets.text_encoders:
        return None
    own = {one.name: one.lr_scale for one in targets.encoders if one.lr_scale is not None}
    if not own:
        return rate * targets.text_encoder_lr_scale
    return [rate * own.get(name, targets.text_encoder_lr_scale) for name in encoders]


def described(preset: Preset, facts: Facts) -> dict[str, str]:
    """The `modelspec.*` keys that SwarmUI and model managers read."""
    resolution = preset.data.largest
    found = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": preset.export.title or preset.name,
        "modelspec.description": preset.description,
        "modelspec.author": preset.export.author,
        "modelspec.license": preset.export.license,
        "modelspec.date": datetime.fromtimestamp(facts.finished, timezone.utc).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.trigger_phrase": preset.data.trigger,
        "modelspec.tags": preset.data.trigger,
    }
    return {key: value for key, value in found.items() if value}


def own(preset: Preset, facts: Facts, base_hash: str) -> dict[str, str]:
    """Our keys, with which the training can be repeated. Without dataset names also without captions and local
    paths."""
    named = preset.export.dataset_names
    values = preset.model_dump(mode="json") if named else without_paths(preset)
    if is_hub_id(preset.base.path):
        values["base"]["path"] = preset.base.path
    if not named:
        values["samples"]["prompts"] = preset.samples.texts
    found = {
        METADATA_KEY: values,
        "gimbal.method": preset.adapter.method,
        "gimbal.host": preset.export.host,
        "gimbal.base": base_name(preset),
        "gimbal.base_hash": base_hash,
        "gimbal.prompts": facts.prompts if named else preset.samples.texts,
        "gimbal.dataset": {"pictures": sum(facts.pictures.values()), **({"folders": facts.pictures} if named else {})},
        "gimbal.versions": facts.versions,
        "gimbal.seed": preset.training.seed,
        "gimbal.step": facts.step,
        "gimbal.comfyui_norm": preset.export.comfyui_norm,
        "gimbal.magnitude_norm": hosts.magnitude_norm(preset.export),
        "gimbal.export_form": preset.export.form,
    }
    return {key: text(value) for key, value in found.items()}


ALGORITHMS = {
    "LoRA": "lora", "LoHa": "loha", "LoKr": "lokr", "GLoRA": "glora", "rotation": "diag-oft", "butterfly": "boft",
}
"""LyCORIS' names for the kinds of updates in a file; all others are full differences there."""


@dataclass(frozen=True)
class Form:
    """What a file is made of, for model managers."""

    ranks: frozenset[int]
    """Those of the low-rank pairs; empty if the file has none."""
    alpha: float | None
    """That of all layers; None if the format has none, so that each pair's is its own rank, or if they differ."""
    axis: str
    """The axis of most magnitudes, or empty."""
    kinds: frozenset[str]
    """Kinds of updates (`arithmetic.KINDS`) in it."""

    @property
    def dim(self) -> int | str:
        """The rank of all pairs, 0 if there are none, and kohya's word if they differ."""
        return "Dynamic" if len(self.ranks) > 1 else max(self.ranks, default=0)

    @property
    def is_extended(self) -> bool:
        """Whether the file is more than a plain LoRA."""
        return bool(self.axis) or bool(self.kinds - {"LoRA"})

    @property
    def arguments(self) -> dict[str, str]:
        """LyCORIS' arguments for such a file: its algorithm is that of the pairs, if there are any."""
        if not self.is_extended:
            return {}
        kind = next((kind for kind in ALGORITHMS if kind in self.kinds), "")
        algorithm = {"algo": ALGORITHMS.get(kind, "full")}
        if not self.axis:
            return algorithm
        return {**algorithm, "dora_wd": "True", "wd_on_output": str(self.axis == "output")}


def text(value: Any) -> str:
    """A metadata value: text as it is, everything else in kohya's way (None, True) or as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)


def file_hashes(path: Path) -> dict[str, str]:
    """kohya's two hashes of a safetensors file whose header holds `ss_*` only: sha256 after the header, and the first 8
    digits of the sha256 of 64 KiB at 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(0x100000)
        legacy = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
        file.seek(0)
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"sshs_model_hash": digest.hexdigest(), "sshs_legacy_hash": legacy}
