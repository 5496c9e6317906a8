"""Time and memory of the tools on files of real size: a rank-64 SDXL file (456 MB), a rank-16 FLUX one (172 MB).

    python benchmarks/files.py                                # all tools; some minutes, 20 GB of disk in --folder
    python benchmarks/files.py --models sdxl --tools inspect convert --write
    python benchmarks/files.py --narrow                       # networks of a sixteenth of the width: seconds

Names and shapes are those of the published configurations (tests/data/full_size), values are random. The base is
written too, for the tools that need one: SDXL's denoiser and text encoders whole; of FLUX.1-dev's denoiser a quarter of
the blocks, with small text encoders, and a file for just these. Every tool is a process of its own. Memory is the peak
of its anonymous pages (RssAnon) above what there is when everything is imported; mapped pages of files do not count.
Exit code 1 if a tool needs more than twice its file and one layer of the base, or fails. --write puts the table into
docs/performance.md.
"""

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn

from benchmarks import full_size
from benchmarks.scale import HEADS, NARROW, WIDTHS, scaled
from modules import families
from modules.adapters.layers import as_layer
from modules.preset.schema import Base
from modules.tensorfile import WORDS, Entry
from modules.tools.merge.stream import header_bytes
from tests.full_size import MODELS, make_folder

BEGIN, END = "<!-- files: begin -->", "<!-- files: end -->"
HEAD = "| file | tool | seconds | CPU seconds | peak memory | times the file | allowed |\n|---|---|---|---|---|---|---|"

SMALL_WORDS = 4096
"""Words and tokens of a narrow model; and of FLUX.1-dev's text encoders, which its files do not have."""
QUARTER = 0.25
"""Of FLUX.1-dev's blocks, where a base is needed."""
UNEXPLAINED = 60e6
"""Bytes that are no fault of a tool: the allocator's, threads' stacks, modules that are imported late."""

TOOLS = ("inspect", "resize", "convert", "verify", "merge")
"""In this order."""
WITHOUT_BASE = ("inspect", "resize")


@dataclass(frozen=True)
class Kind:
    """A file that people have."""

    model: str
    """In tests/full_size.MODELS."""
    title: str
    rank: int
    host: str
    """The program that the file is converted for, from another one's names."""
    wanted: tuple[str, ...]
    """Parts of the names of adapted layers."""
    peft: bool
    """Whether it has peft's names, else kohya's with alpha."""


KINDS = {
    "sdxl": Kind("sdxl", "SDXL, rank 64", 64, "diffusers", ("attentions", "self_attn", "mlp"), False),
    "flux_dev": Kind("flux_dev", "FLUX.1-dev, rank 16", 16, "kohya", ("transformer_blocks",), True),
}


@dataclass(frozen=True)
class Case:
    """Files on disk."""

    kind: Kind
    path: Path
    base: Path
    layer: int
    """Bytes of the largest adapted layer of the base."""


# -- files ------------------------------------------------------------------------------------------------------------


def configured(kind: Kind, folder: Path, narrow: bool, share: float) -> Path:
    """A folder of configurations, with a share of the denoiser's blocks; `narrow`: a sixteenth of all widths."""
    place = make_folder(kind.model, folder)
    for path in place.glob("*/config.json"):
        config, is_encoder = json.loads(path.read_text(encoding="utf-8")), path.parent.name.startswith("text_encoder")
        small = narrow or (is_encoder and kind.model != "sdxl")
        widths = (*WIDTHS, HEADS) if "num_single_layers" in config else WIDTHS
        if small and not path.parent.name.startswith("vae"):
            config |= {key: scaled(config[key], 1 / NARROW) for key in widths if key in config}
        elif not is_encoder and not path.parent.name.startswith("vae"):
            config |= {key: scaled(config[key], share) for key in ("num_layers", "num_single_layers") if key in config}
        if "norm_num_groups" in config and narrow:
            config["norm_num_groups"] = math.gcd(*config["block_out_channels"])
        path.write_text(json.dumps(config), encoding="utf-8")
    return place


def write_base(kind: Kind, place: Path, dtype: torch.dtype) -> None:
    """Weights for a folder of configurations."""
    family = families.load_class(MODELS[kind.model].family)
    pipeline = family.skeleton_pipeline(str(place))
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
            shapes = {key: (tuple(tensor.shape), dtype) for key, tensor in part.state_dict().items()}
            write_random(place / name / f"{stem}.safetensors", shapes, 0.02, {"format": "pt"})


def write_random(
    path: Path, shapes: dict[str, tuple[tuple[int, ...], torch.dtype]], size: float, metadata: dict[str, str]
) -> None:
    """A safetensors file of random numbers of this `size`, one tensor after the other; an alpha is half a rank."""
    entries, start = {}, 0
    for key, (shape, dtype) in shapes.items():
        length = math.prod(shape) * dtype.itemsize
        entries[key], start = Entry(WORDS[dtype], shape, start, length), start + length
    torch.manual_seed(0)
    noise = {dtype: (size * torch.randn(1 << 22)).to(dtype) for dtype in {dtype for _, dtype in shapes.values()}}
    ranks = {key.removesuffix(".lora_down.weight"): shape[0] for key, (shape, _) in shapes.items()}
    with path.open("wb") as file:
        file.write(header_bytes(entries, metadata))
        for number, (key, (shape, dtype)) in enumerate(shapes.items()):
            if key.endswith(".alpha"):
                content = torch.tensor([ranks[key.removesuffix(".alpha")] / 2]).to(dtype)
                file.write(content.view(torch.uint8).numpy().data)
            else:
                write_tiled(file, noise[dtype].roll(number * 9973), math.prod(shape))


def write_tiled(file: Any, noise: Tensor, count: int) -> None:
    """`count` numbers of `noise`, over and over."""
    content = noise.view(torch.uint8).numpy()
    each = noise.element_size()
    while count:
        some = min(count, noise.numel())
        file.write(content[: some * each].data)
        count -= some


def adapted(kind: Kind, model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Name in the file, and layer."""
    for prefix, network in model.networks.items():
        is_encoder = prefix.startswith("text_encoder")
        for path, module in network.named_modules():
            wanted = type(module) is nn.Linear and any(word in path for word in kind.wanted)
            if wanted and not (is_encoder and kind.peft):
                yield model.export_key(f"{prefix}.{path}", "diffusers" if kind.peft else "comfyui"), module


def make(kind: Kind, folder: Path, narrow: bool, share: float, with_base: bool) -> Case:
    """Write a file and perhaps its base."""
    folder.mkdir(parents=True, exist_ok=True)
    place, rank = configured(kind, folder, narrow, share), 4 if narrow else kind.rank
    model = families.load_class(MODELS[kind.model].family).skeleton(Base(path=str(place)))
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    largest, dtype = 0, torch.bfloat16 if kind.peft else torch.float16
    for name, module in adapted(kind, model):
        out, fan_in = as_layer(module, name).out_features, module.in_features
        up, down = ("lora_B", "lora_A") if kind.peft else ("lora_up", "lora_down")
        shapes[f"{name}.{up}.weight"], shapes[f"{name}.{down}.weight"] = ((out, rank), dtype), ((rank, fan_in), dtype)
        if not kind.peft:
            shapes[f"{name}.alpha"] = ((1,), dtype)
        largest = max(largest, out * fan_in * dtype.itemsize)
    path = folder / "file.safetensors"
    write_random(path, shapes, 0.02, {} if kind.peft else {"ss_network_module": "networks.lora"})
    if with_base:
        write_base(kind, place, dtype)
    return Case(kind, path, place, largest)


# -- measuring --------------------------------------------------------------------------------------------------------


def command(tool: str, case: Case, out: Path) -> list[str]:
    """What a user would type."""
    path, base, half = str(case.path), str(case.base), str(case.kind.rank // 2)
    return {
        "inspect": ["inspect_adapter.py", path],
        "resize": ["resize.py", path, "--rank", half, "--out", f"{out}.safetensors"],
        "convert": ["convert.py", path, "--base", base, "--host", case.kind.host, "--out", f"{out}.safetensors"],
        "verify": ["verify.py", path, "--base", base, "--host", "comfyui"],
        "merge": ["merge.py", base, "--adapter", path, "--out", str(out)],
    }[tool]


@dataclass(frozen=True)
class Row:
    """What one tool needed."""

    title: str
    tool: str
    seconds: float
    processor: float
    """Seconds of the processor's time, all threads together."""
    peak: int
    file: int
    """Bytes."""
    allowed: int

    @property
    def is_too_large(self) -> bool:
        """Whether it needed more than it may."""
        return self.peak > self.allowed + UNEXPLAINED

    def line(self) -> str:
        """Of the table."""
        return (f"| {self.title}, {self.file / 1e6:.0f} MB | {self.tool} | {self.seconds:.1f} | {self.processor:.1f} "
                f"| {self.peak / 1e6:.0f} MB | {self.peak / self.file:.2f} | {self.allowed / self.file:.2f} |")


def measure(tool: str, case: Case, folder: Path, limit: float) -> Row:
    """Run a tool as a process. Raises ValueError with what it said if it fails."""
    out, result = folder / "out", folder / "result.json"
    script, *arguments = command(tool, case, out)
    watched = [sys.executable, str(ROOT / "benchmarks/watched.py"), str(result), script, *arguments]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        watched, capture_output=True, text=True, timeout=limit, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    for left in (out, Path(f"{out}.safetensors")):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    if done.returncode:
        raise ValueError(f"{case.kind.title}: {tool} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    found, size = json.loads(result.read_text(encoding="utf-8")), case.path.stat().st_size
    return Row(case.kind.title, tool, seconds, processor, found["peak"], size, 2 * size + case.layer)


def rows(kind: Kind, tools: list[str], folder: Path, narrow: bool, limit: float) -> Iterator[Row]:
    """All tools on one file; those that need a base of FLUX's on a file for a quarter of its blocks."""
    share = 1.0 if narrow or kind.model == "sdxl" else QUARTER
    needed = [tool for tool in tools if tool not in WITHOUT_BASE]
    whole = make(kind, folder / "whole", narrow, 1.0, bool(needed) and share == 1)
    part = whole if share == 1 or not needed else make(kind, folder / "part", narrow, share, True)
    for tool in tools:
        yield measure(tool, whole if tool in WITHOUT_BASE else part, folder, limit)


def main() -> int:
    """Read the arguments, measure, print, and perhaps write the page; 1 if anything needs too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--narrow", action="store_true", help="networks of a sixteenth of the width, without a page")
    parser.add_argument("--folder", type=Path, help="where files are made for a while; the system's place if not given")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a tool may take")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    arguments = parser.parse_args()
    lines, wrong = [HEAD], []
    print(HEAD, flush=True)
    for name in arguments.models:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for row in rows(KINDS[name], arguments.tools, Path(folder), arguments.narrow, arguments.limit):
                lines.append(row.line())
                wrong += [row.tool] if row.is_too_large else []
                print(lines[-1], flush=True)
    print(f"\nneeds more than twice its file and a layer: {', '.join(wrong) or 'nothing'}")
    if arguments.write and not arguments.narrow:
        full_size.write("\n".join(lines), BEGIN, END)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
