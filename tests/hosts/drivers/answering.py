"""What the drivers share. A driver runs inside a program's own code, in its own process, and imports nothing of ours.

    python <driver>.py FOLDER-OF-THE-PROGRAM

It reads one request per line from standard input, as JSON, and answers each with a line on what was standard output.
Whatever the program prints goes to standard error. Requests:

    file      the adapter file
    base      safetensors file with the base's tensors, in the layout that the driver's program has
    folder    the base as a diffusers folder
    family    sd15, sdxl, sd3 or flux
    dtype     float32, float16 or bfloat16: the numbers in which the program has the base
    strength  as the user gives it
    way       which of the program's ways to apply a file, where it has several
    out       where the changed tensors go, as safetensors

Answers: `absent` (why there is nothing to be tried: the program has not this family or these numbers), `version`,
`errors` (what the program raised or logged), `unread` (keys of the file that it did not use) and `failed`, the
exception that ended it.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import logging
import os
import sys
import traceback
import types
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

CHANNEL = os.fdopen(os.dup(1), "w", encoding="utf-8")
"""What was standard output, before the program is imported and may print."""
os.dup2(2, 1)
sys.stdout = sys.stderr


class Anything:
    """Stands for whatever a missing package has: a class, a decorator, a base class, a context."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain = len(args) == 1 and not kwargs and (isinstance(args[0], type) or callable(args[0]))
        return args[0] if plain else Anything()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Anything,), {}) if name[:1].isupper() else Anything()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *reason: Any) -> None:
        return None

    def __iter__(self) -> Any:
        return iter(())

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__


class Stub(types.ModuleType):
    """A module that has everything, and nothing of it does anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = type(name, (Anything,), {"__module__": self.__name__}) if name[:1].isupper() else Anything()
        setattr(self, name, found)
        return found


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that are not installed: those of the named packages, with all that is inside of them but for the
    modules `real`, which are in `folder`."""

    def __init__(self, packages: tuple[str, ...], real: Collection[str] = (), folder: Path = Path()):
        self.packages, self.real, self.folder = packages, set(real), folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        is_inside = any(name == package or name.startswith(package + ".") for package in self.packages)
        if not is_inside or name in self.real:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, is_package=True)
        spec.submodule_search_locations = [str(self.folder.joinpath(*name.split(".")))]
        return spec

    def create_module(self, spec: Any) -> Any:
        return Stub(spec.name)

    def exec_module(self, module: Any) -> None:
        return None


def stub(*packages: str) -> None:
    """Let `import` find these where they are not installed, or where the program's own are not wanted."""
    sys.meta_path.append(Stubs(packages))


def stub_first(*packages: str, real: Collection[str] = (), folder: Path = Path()) -> None:
    """The same, also where they could be imported; but for the modules `real`, which are in `folder`."""
    sys.meta_path.insert(0, Stubs(packages, real, folder))


class Log(logging.Handler):
    """Keeps the lines of the log."""

    def __init__(self, level: int = logging.WARNING):
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def taken(self) -> list[str]:
        """The lines since the last call."""
        found, self.lines = self.lines, []
        return found


def serve(answer: Callable[[dict], dict], layers: Callable[[dict], dict] | None = None) -> None:
    """Answer requests until standard input ends; those with `layers` are about single layers, whose weights are `base`
    and whose names are those of the file, and are answered with what was said of each (`layers`)."""
    channel = CHANNEL
    channel.write(json.dumps({"ready": True}) + "\n")
    channel.flush()
    for line in sys.stdin:
        try:
            request = json.loads(line)
            found = layers(request) if layers and request.get("layers") else answer(request)
        except Exception as error:  # whatever the program raises is what the user would see
            traceback.print_exc()
            because = f" ({error.__cause__})" if error.__cause__ else ""
            found = {"failed": f"{type(error).__name__}: {error}{because}"}
        channel.write(json.dumps({"version": "", "errors": [], "unread": [], "failed": "", **found}) + "\n")
        channel.flush()


def folder() -> Path:
    """The program's folder, in place of this file's on the path."""
    found = Path(sys.argv[1]).resolve()
    sys.path[0] = str(found)
    os.chdir(found)
    return found


def changed(before: dict[str, Any], after: dict[str, Any], path: str) -> None:
    """Save the tensors that are not as they were."""
    import torch
    from safetensors.torch import save_file

    moved = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in after.items()
             if not torch.equal(tensor.detach().to(before[name]), before[name]) or tensor.isnan().any()}
    save_file(moved, path)


def restore(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Give tensors their old values."""
    import torch

    with torch.no_grad():
        for name, tensor in now.items():
            tensor.copy_(before[name])
