"""The part of `installed_comfyui` that runs in ComfyUI's Python, as a script: it imports none of our modules.

    python comfyui_process.py COMFYUI JOB

`JOB/job.json` names the adapter file, strength, dtype and nodes, `JOB/weights.safetensors` has the weights. Leaves
`JOB/effects.safetensors` and `JOB/said.json`: ComfyUI's version and what it logged.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

UNNEEDED = (
    "torchvision", "torchaudio", "torchsde", "kornia", "spandrel", "av", "scipy", "aiohttp", "comfy_aimdo",
    "comfy_kitchen",
)
"""Packages that ComfyUI imports with its LoRA loader, for pictures, sound, samplers, its server and GPU memory.
Patching a weight on the CPU does not use them, so they may be missing."""


class Unneeded:
    """Stands in for anything in an unneeded package: a class, a base class, a decorator, a value."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *given: Any, **_: Any) -> Any:
        return given[0] if len(given) == 1 and callable(given[0]) else Unneeded()  # a decorator: the function unchanged

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Unneeded()

    def __iter__(self) -> Any:
        return iter(())


class UnneededModule(types.ModuleType):
    """A package of `UNNEEDED` that is not installed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Unneeded,), {}) if name[0].isupper() else Unneeded()


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `UNNEEDED` packages that no other finder finds."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        found = fullname.partition(".")[0] in UNNEEDED
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if found else None

    def create_module(self, spec: Any) -> Any:
        return UnneededModule(spec.name)

    def exec_module(self, module: Any) -> None:
        pass


class Log(logging.Handler):
    """Collects the lines of the log."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(folder: Path, job: Path) -> None:
    """Load the file as ComfyUI's LoRA loaders do, and patch each weight as its model patcher does."""
    sys.meta_path.append(Finder())
    import comfy.cli_args  # pyright: ignore[reportMissingImports]

    comfy.cli_args.args.cpu = True  # before the device is chosen
    import comfy.lora  # pyright: ignore[reportMissingImports]
    import comfy.lora_convert  # pyright: ignore[reportMissingImports]
    import comfy.utils  # pyright: ignore[reportMissingImports]
    import torch
    from safetensors.torch import load_file, save_file

    options = json.loads((job / "job.json").read_text(encoding="utf-8"))
    log = Log()
    logging.getLogger().addHandler(log)
    for number, path in enumerate([*installed(folder), *map(Path, options["nodes"])]):
        load_node(path, number)

    weights = load_file(job / "weights.safetensors")
    places = {name: f"{name}.weight" for name in weights if not name.endswith(".bias")}
    file = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(options["file"], safe_load=True))
    patches = comfy.lora.load_lora(file, places)
    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[options["dtype"]]
    effects = {}
    for name, weight in weights.items():
        patch = patches.get(places.get(name, name))
        if patch is not None:
            given = [(options["strength"], patch, 1.0, None, None)]
            found = comfy.lora.calculate_weight(given, weight.to(dtype, copy=True), name, intermediate_dtype=dtype)
            effects[name] = found.detach().contiguous()
    save_file(effects, job / "effects.safetensors")
    said = {"version": version(folder), "lines": log.lines}
    (job / "said.json").write_text(json.dumps(said), encoding="utf-8")


def installed(folder: Path) -> list[Path]:
    """The installed custom nodes that affect reading adapter files."""
    nodes = sorted((folder / "custom_nodes").glob("*/__init__.py"))
    return [path for path in nodes if any(
        "weight_adapter" in source.read_text(encoding="utf-8", errors="replace")
        for source in (*path.parent.glob("*.py"), *path.parent.glob("*/*.py"))
    )]


def load_node(path: Path, number: int) -> None:
    """Import a custom node as a package of its own name. One that cannot be imported is reported, as ComfyUI does."""
    name = f"custom_node_{number}"
    spec: Any = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        logging.warning("the custom node %s cannot be imported: %s", path.parent.name, error)


def version(folder: Path) -> str:
    """ComfyUI's version, or empty."""
    path = folder / "comfyui_version.py"
    found = path.read_text(encoding="utf-8").partition("__version__ = ")[2] if path.exists() else ""
    return found.strip().strip("\"'")


if __name__ == "__main__":
    sys.path[0] = sys.argv[1]  # instead of this file's folder, whose modules are not meant for ComfyUI
    main(Path(sys.argv[1]), Path(sys.argv[2]))
