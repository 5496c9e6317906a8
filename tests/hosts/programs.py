"""The real programs, each in a process of its own.

    program("comfyui").effect(file, "sdxl", "float16", 1.0)

`GIMBAL_HOSTS` names a folder with checkouts: ComfyUI, sd-scripts, stable-diffusion-webui, stable-diffusion-webui-forge,
OneTrainer, each optional, and several versions of a program side by side (`stable-diffusion-webui-1.9.4`). Their code
is run, never copied. Packages that they need and this Python lacks may lie in its folder `packages` (OneTrainer needs
`parse`); what has nothing to do with adapter files is stubbed. diffusers and LyCORIS are packages and always there.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.hosts import bases

DRIVERS = Path(__file__).parent / "drivers"
NODE = Path(__file__).parents[2] / "comfyui_node/__init__.py"


@dataclass(frozen=True)
class Driver:
    """How a kind of program is run."""

    script: str
    layout: str
    """Of `bases.LAYOUTS`."""
    checkouts: tuple[str, ...] = ()
    """Beginnings of the folders' names; none for a package."""
    marks: tuple[str, ...] = ()
    """Files without which a folder is not the program."""
    ways: tuple[str, ...] = ("",)
    """The program's ways to apply a file, its default first."""
    file: str = ""
    """The value of export.host that its files are written with."""
    nodes: tuple[Path, ...] = ()


COMFYUI = ("ComfyUI",)
DRIVER = {
    "comfyui": Driver("comfyui.py", "original", COMFYUI, ("comfy/lora.py",), ("on the fly", "loaded"), "comfyui"),
    "comfyui_node": Driver("comfyui.py", "original", COMFYUI, ("comfy/lora.py",), ("on the fly", "loaded"),
                           "comfyui_node", (NODE,)),
    "a1111": Driver("a1111.py", "open_clip", ("stable-diffusion-webui",),
                    ("extensions-builtin/Lora/networks.py", "extensions-builtin/Lora/network_oft.py"), file="kohya"),
    "forge": Driver("forge.py", "original", ("stable-diffusion-webui-forge",), ("backend/patcher/lora.py",),
                    file="kohya"),
    "forge, file for ComfyUI": Driver("forge.py", "original", ("stable-diffusion-webui-forge",),
                                      ("backend/patcher/lora.py",), file="comfyui"),
    "sd-scripts": Driver("sd_scripts.py", "kohya", ("sd-scripts",), ("networks/lora.py",), file="kohya"),
    "onetrainer": Driver("one_trainer.py", "diffusers", ("OneTrainer",), ("modules/module/LoRAModule.py",),
                         file="kohya"),
    "onetrainer, file for diffusers": Driver("one_trainer.py", "diffusers", ("OneTrainer",),
                                             ("modules/module/LoRAModule.py",), file="diffusers"),
    "diffusers": Driver("of_diffusers.py", "diffusers", file="diffusers"),
    "lycoris": Driver("of_lycoris.py", "diffusers", file="lycoris"),
}
OTHERS = {"stable-diffusion-webui": "stable-diffusion-webui-forge"}
"""Beginnings that are also those of another program's folder."""


@dataclass(frozen=True)
class Effect:
    """What a program made of a file."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    """Of every adapted layer of the base, by our names, in our shapes: as they are in the program afterwards."""
    stray: tuple[str, ...] = ()
    """Tensors that the program changed although no adapted layer has them, by the program's names."""
    unread: tuple[str, ...] = ()
    """Keys of the file that the program did not use."""
    errors: tuple[str, ...] = ()
    """What the program logged as a warning or an error."""
    failed: str = ""
    """The exception that ended it; there are no weights then."""
    absent: str = ""
    """Why nothing could be tried: the program has not this family or these numbers."""


class Program:
    """One version of one program. Its process starts with the first file."""

    def __init__(self, kind: str, folder: Path | None):
        self.kind, self.folder, self.driver = kind, folder, DRIVER[kind]
        self.name = kind if folder is None else f"{kind} ({folder.name})"
        self.version = ""
        self._process: subprocess.Popen | None = None
        self._bases: dict[str, Path] = {}
        self._place = Path(tempfile.mkdtemp(prefix="gimbal_host_"))

    def effect(self, file: Path, family: str, dtype: str, strength: float, way: str = "") -> Effect:
        """What the program makes of a file on the tiny base of a family, which it has in `dtype`."""
        found = bases.base(family)
        out = self._place / "out.safetensors"
        out.unlink(missing_ok=True)
        said = self._ask({
            "file": str(file.resolve()), "base": str(self._base(family)), "folder": str(found.folder),
            "family": family, "dtype": dtype, "strength": strength, "way": way or self.driver.ways[0],
            "out": str(out), "nodes": [str(path) for path in self.driver.nodes],
        })
        self.version = said.get("version") or self.version
        about = {name: tuple(said.get(name, ())) for name in ("unread", "errors")}
        if said.get("failed") or said.get("absent"):
            return Effect(failed=said["failed"], absent=said.get("absent", ""), **about)
        moved = load_file(out)
        places = found.places(self.driver.layout)
        layout = {**_layout(family, self.driver.layout), **moved}
        weights = {layer: place.of(layout, found.weights[f"{layer}.weight"].shape) for layer, place in places.items()}
        stray = set(moved) - {place.name for place in places.values()}
        return Effect(weights, tuple(sorted(stray)), **about)

    def layers(self, weights: dict[str, Tensor], tensors: dict[str, Tensor], strength: float) -> tuple[
            dict[str, Tensor], dict[str, str]]:
        """What the program makes of single layers in float32: the changed weights by name, and what it said of them.
        For programs whose driver has it: ComfyUI, A1111, Forge, LyCORIS."""
        base, file, out = (self._place / f"{name}.safetensors" for name in ("layers", "file", "out"))
        save_file(weights, base)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
        said = self._ask({"layers": True, "base": str(base), "file": str(file), "strength": strength, "out": str(out),
                          "nodes": [str(path) for path in self.driver.nodes]})
        if said["failed"]:
            raise RuntimeError(f"{self.name}: {said['failed']}")
        return load_file(out), said["layers"]

    def about(self) -> dict[str, str]:
        """Which version this is, as far as the checkout says."""
        if self.folder is None:
            return {"version": self.version}
        listed = self.folder.parent / "versions.json"
        known = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}
        found = {"folder": self.folder.name, **known.get(self.folder.name, {})}
        done = subprocess.run(["git", "-C", str(self.folder), "rev-parse", "HEAD"], capture_output=True, text=True)
        if done.returncode == 0 and (self.folder / ".git").exists():
            found["commit"] = done.stdout.strip()
        return found | ({"version": self.version} if self.version else {})

    def _base(self, family: str) -> Path:
        if family not in self._bases:
            self._bases[family] = self._place / f"{family}.safetensors"
            save_file(_layout(family, self.driver.layout), self._bases[family])
        return self._bases[family]

    def start(self) -> None:
        """Start its process. Raises RuntimeError with its last words."""
        if self._process is None or self._process.poll() is not None:
            self._start()

    def starts(self) -> bool:
        """Whether it can be run here."""
        try:
            self.start()
        except RuntimeError:
            return False
        return True

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.start()
        process = self._process
        assert process and process.stdin and process.stdout
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        return json.loads(line) if line else {"failed": f"its process ended: {self.last_words()}"}

    def _start(self) -> None:
        script = DRIVERS / self.driver.script
        log = (self._place / "log.txt").open("w", encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = str((checkouts() or DRIVERS) / "packages")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(self.folder or DRIVERS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=log, text=True, env=environment,
        )
        atexit.register(self.close)
        assert self._process.stdout
        if not self._process.stdout.readline():
            raise RuntimeError(f"{self.name} does not start: {self.last_words()}")

    def last_words(self) -> str:
        """The last line of its process's log."""
        lines = (self._place / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"

    def close(self) -> None:
        """End the process."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
            self._process.wait(10)
            self._process = None


@cache
def _layout(family: str, layout: str) -> dict[str, Tensor]:
    return bases.base(family).layout(layout)


def checkouts() -> Path | None:
    """The folder that GIMBAL_HOSTS names."""
    named = os.environ.get("GIMBAL_HOSTS", "")
    return Path(named).expanduser().resolve() if named else None


def folders(kind: str) -> list[Path]:
    """The checkouts of a program that are there."""
    driver, place = DRIVER[kind], checkouts()
    if place is None:
        return []
    found = [path for path in sorted(place.iterdir()) for start in driver.checkouts if path.name.startswith(start)
             and not (start in OTHERS and path.name.startswith(OTHERS[start]))]
    return [path for path in found if all((path / mark).exists() for mark in driver.marks)]


@cache
def programs(kind: str) -> tuple[Program, ...]:
    """All versions of a program that can be run here."""
    if not DRIVER[kind].checkouts:
        return (Program(kind, None),)
    return tuple(Program(kind, folder) for folder in folders(kind))


def program(kind: str, folder: str = "") -> Program:
    """The program of this kind, of several versions the one in the folder of this name."""
    return next(one for one in programs(kind) if not folder or (one.folder and one.folder.name == folder))
