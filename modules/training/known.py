"""The facts about a training that decide whether options have an effect (`modules.preset.conditions`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules import documents
from modules.adapters.base import Adapted
from modules.data.folders import entries
from modules.preset.schema import Preset
from modules.training import layer_options, noise
from modules.training.session import Pictures


def facts(
    preset: Preset, model: Any, adapted: Mapping[str, Adapted], forms: Mapping[str, int], pictures: Pictures | None
) -> dict[str, Any]:
    """All that is known. What could not be found out for a problem (no model, nothing adapted, no forms of the layers
    in the exported file, no pictures) is left out."""
    found: dict[str, Any] = {}
    if preset.base.path:
        found["single_file"] = documents.is_file(Path(preset.base.path))
    if model is not None:
        found |= noise.facts_of(preset.objective, model.process)
    if adapted:
        found["decayed"] = any(_decays(layer) for layer in adapted.values())
        found["scaled"] = any(layer.adapter.uses_alpha for layer in adapted.values())
        found["kernels"] = any(layer.layer.kernel > 1 for layer in adapted.values())
        found["text_layers"] = any(not layer_options.in_denoiser(model, name) for name in adapted)
    if forms:
        found["magnitudes"] = any("magnitude" in form for form in forms)
        found["output_magnitudes"] = any("output magnitude" in form for form in forms)
    if pictures is not None:
        found["validation"] = pictures.validation is not None or bool(entries(preset.data, "validation"))
    return found


def _decays(layer: Adapted) -> bool:
    trained = [key for key, parameter in layer.adapter.named_parameters() if parameter.requires_grad]
    return any(key not in layer.adapter.undecayed for key in trained)
