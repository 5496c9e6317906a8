"""Networks, adapters and presets for the export tests."""

import typing
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modules import adapters
from modules.adapters.base import Adapted, adapted_layers, attach, detach
from modules.export.export import Report, export
from modules.families.parts.names import Spelling
from modules.files.facts import Facts
from modules.preset.schema import Preset

SMALL = {"rank": 3, "alpha": 2.0}
SMALL_ROTATION = {"blocks": {"kind": "blocks", "block_size": 4}, "planes": {"kind": "planes", "planes": 2}}


class Network(nn.Module):
    """One layer of each kind that an image model has."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(24, 16)
        self.square = nn.Linear(16, 16, bias=False)
        self.conv = nn.Conv2d(8, 12, 3, padding=1)
        self.point = nn.Conv2d(8, 8, 1)
        self.single = nn.Linear(8, 1)
        self.table = nn.Embedding(20, 8)


class Model:
    """The parts of a family that exporting asks for, around `Network`."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        self.networks = {"unet": Network().requires_grad_(False)}
        self.tables = {}

    def export_key(self, layer: str, host: str) -> str:
        return layer if host == "diffusers" else "lora_" + layer.replace(".", "_")

    def spellings(self, layer: str) -> list[Spelling]:
        return [Spelling(self.export_key(layer, host)) for host in ("diffusers", "kohya")]

    def metadata(self) -> dict[str, str]:
        return {"modelspec.architecture": "test/lora", "ss_base_model_version": "test"}

    def base_hash(self) -> str:
        return "0" * 64


def variants() -> list[tuple[str, dict]]:
    """Every method with its small default, and once more for each alternative of each of its options. Where steps are
    calibrated there is no alpha."""
    found = []
    for name, module in adapters.methods().items():
        fields = module.Config.model_fields
        default = {key: value for key, value in SMALL.items() if key in fields}
        if fields["step_size"].default == "calibrated":
            default.pop("alpha", None)
        if "rotation" in fields:
            found += [(name, {**default, "rotation": rotation}) for rotation in SMALL_ROTATION.values()]
            continue
        found.append((name, default))
        for key, info in fields.items():
            others = typing.get_args(info.annotation) if typing.get_origin(info.annotation) is Literal else ()
            others = (True, False) if info.annotation is bool else others
            for value in others:
                if value != info.default and key not in ("method", "step_size"):  # steps are not in files
                    found.append((name, allowed(module, {**default, key: value})))
    return found


def allowed(module: Any, options: dict) -> dict:
    """The options, with raw steps where theirs cannot be calibrated."""
    try:
        module.Config(**options)
    except ValueError:
        return {**options, "step_size": "raw"}
    return options


def label(variant: tuple[str, dict]) -> str:
    name, options = variant
    flat = {**options, **options.get("rotation", {})}
    return "-".join([name, *(f"{k}={v}" for k, v in flat.items() if k not in ("rotation", *SMALL))])


def randomise(adapted: Adapted, seed: int, scale: float = 0.2) -> None:
    """Move every parameter far from where training starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.adapter.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def trained(model: Any, method: str, options: dict, layers: list[str] | None = None) -> dict[str, Adapted]:
    """Adapters on all of a model's layers (or `layers`) that the method takes, by full name, with random parameters."""
    module = adapters.methods()[method]
    config = module.Config(method=method, **options)
    network = nn.ModuleDict(model.networks)
    names = layers or [f"unet.{name}" for name, _ in model.networks["unet"].named_children()]
    for number, name in enumerate(names):
        try:
            randomise(attach(network, name, config, 0), number)
        except ValueError as refusal:
            assert "exclude it" in str(refusal) or "with 1 output cannot be" in str(refusal)
    return dict(adapted_layers(network))


def preset(method: str, options: dict, base: dict | None = None, data: dict | None = None, **export_options) -> Preset:
    """A preset named "test"."""
    return Preset.model_validate({
        "name": "test", "family": "sdxl", "adapter": {"method": method, **options},
        "export": export_options, "base": base or {}, "data": data or {},
    })


def write(
    folder: Path, variant: tuple[str, dict], layers: list[str] | None = None, model: Any = None, **export_options
) -> tuple[Any, dict[str, Adapted], Report, dict[str, Tensor]]:
    """A model, its trained layers, the report of their export and the file's tensors."""
    model = model or Model()
    found = trained(model, *variant, layers)
    report = export(model, found, preset(*variant, **export_options), Facts(), folder / "test.safetensors")
    return model, found, report, load_file(report.path)


def assert_diffusers_computes(model: Any, variant: tuple[str, dict], names: list[str], folder: Path, options: dict):
    """Train, export, load with `load_lora_weights`, and compare what peft merges with the trained weights."""
    layers = trained(model, *variant, names)
    report = export(model, layers, preset(*variant, **options), Facts(), folder / "test.safetensors")
    wanted = {name: adapted.adapted_weight() for name, adapted in layers.items()}
    for network in model.networks.values():
        detach(network)

    model.pipeline.load_lora_weights(str(report.path))
    found = {f"{p}.{n}": m for p, network in model.networks.items() for n, m in network.named_modules()}
    try:
        for name, weight in wanted.items():
            layer = found[name]
            kept = layer.base_layer.weight.data.clone()
            layer.merge()
            merged = layer.base_layer.weight.data.clone()
            layer.merged_adapters.clear()
            layer.base_layer.weight.data.copy_(kept)
            assert (merged - weight).abs().max() <= 1e-5 * weight.abs().max(), name
    finally:
        model.pipeline.unload_lora_weights()
