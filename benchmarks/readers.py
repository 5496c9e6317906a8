"""Everything that reads files which somebody else may have written: a small valid example of each, and the reading."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.mutating import Bytes, json_bytes, json_header, json_lines
from modules import families
from modules.data.index import build_index
from modules.files import opening as adapter_files
from modules.files import reading
from modules.importing import import_file, report
from modules.importing.base import Wishes
from modules.preset import files as presets
from modules.preset.schema import Base, Data
from modules.tools import inspect_file, resize
from modules.training import state
from modules.training.events import read_events
from modules.training.first_values import on_random_layers
from tests.importing import test_import_aitoolkit, test_import_kohya, test_import_onetrainer
from ui.core.preset import files as window_presets
from ui.core.preset.schema import Schema
from ui.core.runs import jobs, library, states
from ui.core.runs.history import History
from ui.core.runs.tail import Tail

ROOT = Path(__file__).resolve().parents[1]

LANGUAGES: dict[str, Bytes] = {
    ".json": json_bytes, ".yaml": json_bytes, ".jsonl": json_lines, ".safetensors": json_header,
}  # fmt: skip
"""What is known of a file by its ending. The YAML here is written as JSON, which it may be."""


LAYERS = ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "unet.down_blocks.0.resnets.0.conv1")
"""Of the demo's base: what the adapter files are for."""


@dataclass(frozen=True)
class Reader:
    """`make(folder)` writes an example, `read(folder)` reads it: any result, or ValueError with a sentence."""

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    tells: bool = True
    """Whether it refuses; one that may not (the window's lists) shows what is left instead."""


# -- adapter files ----------------------------------------------------------------------------------------------------


@cache
def model() -> Any:
    """The demo's networks, without weights."""
    return families.read("sdxl", Base(path=str(ROOT / "demo/base")))[0]


def tensors_of(kind: str) -> dict[str, torch.Tensor]:
    """A small file of some kind, for layers of the demo."""
    generator, found = torch.Generator().manual_seed(0), {}
    for name in LAYERS:
        layer = model().networks["unet"].get_submodule(name.removeprefix("unet."))
        key = model().export_key(name, "kohya")
        out, rest = layer.weight.shape[0], tuple(layer.weight.shape[1:])
        kernel, channels = rest[1:], rest[0]

        def some(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) / 10

        ones = (1,) * len(kernel)
        pair = {"lora_up.weight": some(out, 2, *ones), "lora_down.weight": some(2, channels, *kernel)}
        fan_in = layer.weight[0].numel()
        parts = {
            "lora": {**pair, "alpha": torch.tensor(2.0)},
            "dora": {**pair, "alpha": torch.tensor(2.0), "dora_scale": some(out, 1, *ones).abs() + 1},
            "loha": {"hada_w1_a": some(out, 2), "hada_w1_b": some(2, fan_in), "hada_w2_a": some(out, 2),
                     "hada_w2_b": some(2, fan_in), "alpha": torch.tensor(2.0)},
            "lokr": {"lokr_w1": some(2, 2), "lokr_w2": some(out // 2, channels // 2, *kernel),
                     "alpha": torch.tensor(2.0)},
            "oft": {"oft_blocks": some(2, out // 2, out // 2), "alpha": torch.tensor(1.0)},
            "full": {"diff": some(out, *rest)},
        }[kind]  # fmt: skip
        found |= {f"{key}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    return found


def adapter(kind: str) -> Callable[[Path], None]:
    """What writes a file of this kind."""
    metadata = {"ss_network_dim": "2", "ss_tag_frequency": '{"a": {"cat": 3}}', "modelspec.title": "x"}
    tensors = tensors_of(kind)
    return lambda folder: save_file(tensors, folder / "x.safetensors", metadata)


def inspected(folder: Path) -> Any:
    """What scripts/inspect_adapter.py prints."""
    found = inspect_file.inspect(adapter_files.read(folder / "x.safetensors"))
    return found.text(), found.json()


def placed(folder: Path) -> Any:
    """What adapter.start_from, convert and verify make of a file, on layers with random weights."""
    found = reading.place(adapter_files.read(folder / "x.safetensors"), model())
    with torch.no_grad():
        changes = [named(folder, on_random_layers(one).changes) for one in found.placed]
    return [sorted(change) for change in changes], found.left_out()


def named(path: Path, read: Callable[[], Any]) -> Any:
    """What a reader answers whose callers say which file it was."""
    try:
        return read()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def resized(folder: Path) -> Any:
    """What scripts/resize.py computes."""
    return resize.resized(adapter_files.read(folder / "x.safetensors"), resize.to_rank(1)).rows


# -- presets, imports, data -------------------------------------------------------------------------------------------


def text_file(name: str, text: str) -> Callable[[Path], None]:
    """What writes a text."""

    def make(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    return make


def imported(name: str) -> Callable[[Path], Any]:
    """What scripts/import_preset.py prints."""

    def read(folder: Path) -> Any:
        found = import_file(folder / name, Wishes("", "sdxl"))
        return report.text(found), json.dumps(report.facts(found))

    return read


def make_data(folder: Path) -> None:
    """Pictures, captions, and captions in a list."""
    for number in range(4):
        Image.new("RGB", (20, 16), (40 * number, 3, 200)).save(folder / f"{number}.{'png' if number % 2 else 'jpg'}")
        (folder / f"{number}.txt").write_text(f"a cat, number {number}")
    Image.new("RGB", (20, 16)).save(folder / "listed.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "listed.png", "text": "a dog"}\n')


def read_data(folder: Path) -> Any:
    """What `--check` looks at."""
    options = Data(folders=(str(folder),), resolution=16)
    return build_index(options, "training", 8)


# -- runs -------------------------------------------------------------------------------------------------------------


def make_run(folder: Path) -> None:
    """A run as the window finds it."""
    shutil.copy(ROOT / "tests/ui/recorded/good.jsonl", folder / "events.jsonl")
    preset = presets.resolve("wora_demo").preset
    (folder / "preset.json").write_text(presets.to_json(preset))
    process = {"pid": 1, "created": 1.5, "host": "x", "folder": "/x"}
    start = {"time": "2026-11-22T12:40:12+00:00", "process": process}
    (folder / "environment.json").write_text(json.dumps([start]))
    (folder / "log.txt").write_text("a line\n")


def seen_by_the_window(folder: Path) -> Any:
    """A run in the window: its line in the list, its curves, its words."""
    glance = states.glance(folder)
    library.scan([folder.parent], [], {})
    tail, history = Tail(folder / "events.jsonl"), History()
    try:
        history.apply(tail.read(1 << 20))
    except OSError as error:  # the window says so and tries again
        return glance, f"{folder}: {error}"
    assert all(len(curve.steps) == len(curve.values) for curve in history.curves.values())
    return replace(glance, folder=Path()), {name: value for name, value in vars(history).items() if name[0] != "_"}


def make_queue(folder: Path) -> None:
    """A queue with a waiting job and one that runs."""
    process = jobs.Process(1, 1.5, "x")
    files = (folder / "x.json", folder / "x", folder / "x.out")
    waiting = jobs.Job("20261130-120000-abcd", "x", *files, "any", False, "", folder)
    jobs.write(folder / "queue.json", [waiting, replace(waiting, id="y", process=process, places=("0",))], False)


def make_state(folder: Path) -> None:
    """A training state."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = state.save_state(folder / "made", 3, {"a": layer.weight.detach()}, optimizer, {"sum": 1.5})
    for path in saved.iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(folder / "made")


def read_state(folder: Path) -> Any:
    """The state, which has to be in a folder of its step's name."""
    place = folder.with_name("step-000003")
    place.unlink(missing_ok=True)
    place.symlink_to(folder, target_is_directory=True)
    return replace(named(folder, lambda: state.load_state(place)), folder=folder)


def all_readers() -> list[Reader]:
    """Every reader."""
    onetrainer = {**test_import_onetrainer.SDXL, "optimizer": {"optimizer": "ADAMW", "beta1": 0.9}}
    toml = test_import_kohya.toml()
    texts = {
        "OneTrainer": ("x.json", json.dumps(onetrainer)),
        "kohya TOML": ("x.toml", toml),
        "kohya arguments": ("x.txt", test_import_kohya.FLUX.format(more="")),
        "kohya_ss": ("x.json", json.dumps(test_import_kohya.GUI)),
        "ai-toolkit": ("x.yaml", json.dumps(test_import_aitoolkit.FLUX)),
    }
    preset = json.dumps({"based_on": "wora_demo", "name": "x", "adapter": {"rank": 4}, "targets": {"rules": []}})
    complete = presets.to_json(presets.resolve("wora_demo").preset)
    schema = Schema.load()
    recorded = (ROOT / "tests/ui/recorded/good.jsonl").read_text()
    return [
        Reader("preset", text_file("x.json", preset), lambda folder: presets.resolve(str(folder / "x.json"))),
        Reader("preset of a run", text_file("preset.json", complete), lambda folder: presets.resolve(str(folder))),
        Reader("preset in the window", text_file("x.json", preset),
               lambda folder: named(folder, lambda: window_presets.read(folder / "x.json", schema))),
        *(Reader(f"import {name}", text_file(file, text), imported(file)) for name, (file, text) in texts.items()),
        *(Reader(f"inspect {kind}", adapter(kind), inspected)
          for kind in ("lora", "dora", "loha", "lokr", "oft", "full")),
        *(Reader(f"place {kind}", adapter(kind), placed) for kind in ("lora", "dora", "lokr", "oft")),
        Reader("resize", adapter("dora"), resized),
        Reader("run in the window", make_run, seen_by_the_window, tells=False),
        Reader("queue", make_queue, lambda folder: named(folder, lambda: jobs.read(folder / "queue.json"))),
        Reader("data", make_data, read_data),
        Reader("state", make_state, read_state),
        Reader("events", text_file("events.jsonl", recorded), lambda folder: read_events(folder / "events.jsonl")),
    ]  # fmt: skip
