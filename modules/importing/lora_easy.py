"""LoRA_Easy_Training_Scripts, a window around sd-scripts: the TOML file that it saves.

How its sections become arguments of sd-scripts: derrian-distro/LoRA_Easy_Training_scripts_Backend
`utils/validation.py` and `utils/process.py`; what they hold: derrian-distro/LoRA_Easy_Training_Scripts
`main_ui_files/*.py`, at commit ae5ce07.
"""

from collections.abc import Mapping
from typing import Any

from modules.importing import base, kohya, kohya_data
from modules.importing.documents import Document
from modules.importing.ledger import Imported, Ledger

NAME = "LoRA_Easy_Training_Scripts"

FOLDERS = "datasets[0].subsets"
"""sd-scripts' place for its `subsets`."""


def recognises(document: Document) -> bool:
    """Sections whose arguments stand below `args` and `dataset_args`."""
    return document.kind == "TOML" and kohya_data.is_sectioned(document.values)


def convert(document: Document, wishes: base.Wishes) -> Imported:
    """The preset. Raises ValueError with one sentence for what cannot be trained here."""
    known, reasons = base.table("kohya")
    own, own_reasons = base.table("lora_easy")
    given, names = _arguments(document)
    ledger = Ledger(NAME, document.path, given, {**known, **own}, names)
    if ledger.text("train_mode.train_mode") == "textual_inversion":
        raise ValueError(f"{document.path}: train_mode is textual_inversion, but Gimbal trains adapters only")
    _switched_off(ledger)
    family = _family(ledger, wishes)
    _network(ledger)
    return kohya.train(ledger, family, wishes, {**own_reasons, **reasons})


def _arguments(document: Document) -> tuple[dict[str, Any], dict[str, str]]:
    """Arguments by sd-scripts' names, and where each stands in the file."""
    given: dict[str, Any] = {}
    names: dict[str, str] = {}

    def put(key: str, place: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, one in value.items():
                put(f"{key}.{name}", f"{place}.{name}", one)
            return
        joins = isinstance(value, list) and key.startswith("network_args.")
        given[key], names[key] = ",".join(map(str, value)) if joins else value, place

    for section, content in document.values.items():
        if section == "subsets" and isinstance(content, list):
            for number, subset in enumerate(content):
                put(f"{FOLDERS}[{number}]", f"subsets[{number}]", subset)
            continue
        if not isinstance(content, Mapping):
            put(section, section, content)
            continue
        for part, prefix in (("args", ""), ("dataset_args", "general.")):
            values = content.get(part, {})
            if not isinstance(values, Mapping):
                raise ValueError(f"{document.path}: {section}.{part}: is no section; save the file anew")
            for name, value in values.items():
                put(f"{prefix}{name}", f"{section}.{part}.{name}", value)
        for name in content.keys() - {"args", "dataset_args"}:
            put(f"{section}.{name}", f"{section}.{name}", content[name])
    return given, names


def _switched_off(ledger: Ledger) -> None:
    """Noughts, empty texts and false are not passed on."""
    for key, value in list(ledger.given.items()):
        if not value or str(value).lower() == "false":
            del ledger.given[key]
            ledger.idle.add(key)


def _family(ledger: Ledger, wishes: base.Wishes) -> str:
    flux = ledger.written("guidance_scale")
    found = "sdxl" if ledger.flag("sdxl") else "flux" if flux else "sd15"
    family = wishes.family or found
    if ledger.written("sdxl"):
        ledger.to("sdxl", "family", family)
    ledger.set({"family": family}, "pretrained_model_name_or_path")
    if ledger.flag("v2"):
        ledger.agree("v2", "the base tells whether it is Stable Diffusion 2")
    return family


def _network(ledger: Ledger) -> None:
    """The network's module, which follows from other settings; and the warm-up, a part of all steps."""
    if ledger.flag("fa"):
        module, key = "networks.lora_fa", "fa"
    elif ledger.written("network_args.algo"):
        module, key = "lycoris.kohya", "network_args.algo"
    elif ledger.written("network_args.unit"):
        module, key = "networks.dylora", "network_args.unit"
    else:
        module, key = "networks.lora_flux" if ledger.written("guidance_scale") else "networks.lora", ""
    ledger.given["network_module"] = module
    ledger.names["network_module"] = ledger.names.get(key, "network_args")
    if key:
        ledger.originals["network_module"] = ledger.given[key]
    if key == "fa":
        del ledger.given["fa"]
    ledger.rename("warmup_ratio", "lr_warmup_steps")
    ledger.names["lr_warmup_steps"] = ledger.names.get("warmup_ratio", "optimizer_args.args.warmup_ratio")
