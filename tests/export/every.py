"""Every method of ours on a tiny base of every family, exported for every host: what the matrix and its tests share."""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from modules import adapters, hosts
from modules.adapters.base import Adapted, detach
from modules.export.export import export
from modules.families import load_class
from modules.files.facts import Facts
from modules.preset.schema import Preset, Targets
from modules.training.setup import match_layers
from tests import tiny_flux, tiny_sd3, tiny_sd15, tiny_sdxl
from tests.export.setup import preset, trained
from tests.full_size import numberless

HOSTS = tuple(hosts.names())
DTYPES = ("float32", "float16")

SMALL = {"rank": 2, "alpha": 1.0, "block_size": 10, "factor": 4}
SMALL_ROTATIONS = {"blocks": {"block_size": 4}, "planes": {"planes": 1}}
"""Options that only say how much is learned, small enough for tiny layers."""

BLOCKS, PLANES = {"kind": "blocks"}, {"kind": "planes"}

CHOICES: dict[str, tuple[str, dict]] = {
    "LoRA": ("lora", {}),
    "DoRA, input axis": ("dora", {"axis": "input"}),
    "DoRA, output axis": ("dora", {"axis": "output"}),
    "WoRA, input axis": ("wora", {"axis": "input"}),
    "WoRA, output axis": ("wora", {"axis": "output"}),
    "OFT in planes": ("oft", {"rotation": PLANES}),
    "DOFT in planes": ("doft", {"rotation": PLANES}),
    "OFT in blocks": ("oft", {"rotation": BLOCKS}),
    "DOFT in blocks": ("doft", {"rotation": BLOCKS}),
    "OFT in blocks, output side": ("oft", {"rotation": BLOCKS, "side": "output"}),
    "DOFT in blocks, output side": ("doft", {"rotation": BLOCKS, "side": "output"}),
    "LoKr": ("lokr", {}),
    "LoKr, whole": ("lokr", {"rank": 8192}),
    "MoRA": ("mora", {}),
    "MoRA, rope": ("mora", {"kind": "rope"}),
}
"""Methods with those of their options that decide what a file has to hold, by their rows' names."""

NAMED = {method for method, _ in CHOICES.values()}

CHOICES |= {
    re.split("[:,]", module.__doc__ or name)[0]: (name, {})
    for name, module in adapters.methods().items() if name not in NAMED
}
"""And every other method as it is, so that none is left out."""


def small(method: str, choice: dict) -> tuple[str, dict]:
    """A method with such options, and sizes for tiny layers."""
    fields = adapters.methods()[method].Config.model_fields
    sizes = {key: value for key, value in SMALL.items() if key in fields}
    if fields["step_size"].default == "calibrated":
        sizes.pop("alpha", None)
    if "rotation" in choice:
        choice = {**choice, "rotation": {**choice["rotation"], **SMALL_ROTATIONS[choice["rotation"]["kind"]]}}
    return method, {**sizes, **choice}


VARIANTS = {label: small(*choice) for label, choice in CHOICES.items()}


@dataclass(frozen=True)
class Kind:
    """A kind of base."""

    family: str
    make: Callable[[Path], Any]
    """A tiny pipeline."""
    exclude: tuple[str, ...] = ()
    """Text encoders that not every host has names for."""
    layers: str = "attention-mlp"


FAMILIES = {
    "SD 1.5": Kind("sd15", tiny_sd15.make_pipeline, layers="attention-mlp-conv"),
    "SD 2": Kind("sd15", lambda folder: tiny_sd15.make_pipeline(folder, True), layers="attention"),
    "SDXL": Kind("sdxl", tiny_sdxl.make_pipeline, layers="attention-mlp-conv"),
    "SD 3": Kind("sd3", tiny_sd3.make_pipeline, ("text_encoder_3.*",)),
    "FLUX": Kind("flux", tiny_flux.make_pipeline, ("text_encoder_2.*",)),
}


@dataclass(frozen=True)
class Outcome:
    """What came of one export."""

    forms: tuple[str, ...] = ()
    """Of all layers, each once, in the order of the alphabet."""
    error: float = 0.0
    """The largest of an exact layer, as a part of its largest weight."""
    approximate: int = 0
    """How many layers are not exact."""
    refusal: str = ""
    """Why there is no file, with what to do about it; one line per reason."""


def fresh(kind: Kind) -> Any:
    """The model of a tiny random pipeline, always with the same weights; its hash is taken once."""
    with tempfile.TemporaryDirectory() as folder:
        model: Any = load_class(kind.family)(kind.make(Path(folder)), torch.device("cpu"))
    model.base_hash = cache(model.base_hash)
    for network in model.networks.values():
        network.requires_grad_(False)
    return model


@cache
def model_of(name: str) -> Any:
    """The same model each time; whoever puts adapters on it takes them off again."""
    return fresh(FAMILIES[name])


def layers_of(model: Any, kind: Kind) -> list[str]:
    """One layer of each sort: of those whose names differ in numbers or in the side of the UNet, the first."""
    found: dict[str, str] = {}
    targets = Targets(layers=kind.layers, text_encoders=True, exclude=kind.exclude)
    for layer in match_layers(model, targets)[0]:
        found.setdefault(re.sub(r"unet\.(up|down|mid)_blocks?(\.#)?", "unet.block", numberless(layer)), layer)
    return list(found.values())


def attempt(model: Any, layers: dict[str, Adapted], chosen: Preset) -> Outcome:
    """Export, which reads the file back and compares; what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = export(model, layers, chosen, Facts(), Path(folder) / "test.safetensors")
        except ValueError as refusal:
            return Outcome(refusal=str(refusal))
    worst = max((error.weight for error in report.exact.values()), default=0.0)
    return Outcome(tuple(sorted(set(report.forms.values()))), worst, len(report.approximate))


@cache
def outcomes(family: str, label: str) -> dict[tuple[str, str], Outcome]:
    """By host and number format: what came of exporting a method far from its start, with form auto."""
    model, variant = model_of(family), VARIANTS[label]
    try:
        layers = trained(model, *variant, layers_of(model, FAMILIES[family]))
        return {
            (host, dtype): attempt(model, layers, preset(*variant, host=host, dtype=dtype))
            for host in HOSTS for dtype in DTYPES
        }
    finally:
        for network in model.networks.values():
            detach(network)


def instead(family: str, label: str, **options: Any) -> Outcome:
    """What came of another export of the same method."""
    model, variant = model_of(family), VARIANTS[label]
    try:
        layers = trained(model, *variant, layers_of(model, FAMILIES[family]))
        return attempt(model, layers, preset(*variant, **{"dtype": "float32", **options}))
    finally:
        for network in model.networks.values():
            detach(network)


def reasons(outcome: Outcome) -> list[tuple[str, str]]:
    """Why there is no file, and what the message says to do about it; without the names of layers."""
    found = []
    for line in outcome.refusal.splitlines():
        reason, _, advice = re.sub(r"\.? Layers: .*", "", line).partition("; ")
        found.append((re.sub(r"^export\.host \w+: ", "", reason), advice))
    return found
