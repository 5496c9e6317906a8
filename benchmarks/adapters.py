"""Time and saved bytes of one adapted layer, forward and backward, beside peft's and LyCORIS' own.

    python benchmarks/adapters.py                                   # CPU, one thread, the whole table
    python benchmarks/adapters.py --layers linear-1280 --tokens 1024 --rounds 15
    python benchmarks/adapters.py --device cuda --dtype bfloat16 --write

Per layer and number of tokens all candidates run in turn, round after round, and medians are compared, so that a busy
machine slows all of them alike. A step is what an optimizer step does with one layer: deriving, `--accumulation`
times forward and backward, pulling gradients back. "saved" is what the forward pass keeps for the backward pass beside
parameters and the base weight. --write puts the table into docs/performance.md.
"""

import argparse
import logging
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn

from benchmarks import full_size
from modules import adapters
from modules.adapters.base import Adapted, attach
from modules.adapters.derived import Derived

BEGIN, END = "<!-- adapters: begin -->", "<!-- adapters: end -->"
RANK = 16
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear-640": lambda: nn.Linear(640, 640),
    "linear-1280": lambda: nn.Linear(1280, 1280),
    "linear-3072": lambda: nn.Linear(3072, 3072),
    "conv-320": lambda: nn.Conv2d(320, 320, 3, padding=1),
}
TOKENS = (256, 1024, 4096)
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("lora", {"rank": RANK}),
    "DoRA, input": ("dora", {"rank": RANK, "axis": "input"}),
    "DoRA, output": ("dora", {"rank": RANK, "axis": "output"}),
    "WoRA, input": ("wora", {"rank": RANK, "axis": "input"}),
    "WoRA, output": ("wora", {"rank": RANK, "axis": "output"}),
    "OFT": ("oft", {}),
    "OFT, planes": ("oft", {"rotation": {"kind": "planes"}}),
    "DOFT": ("doft", {}),
    "DOFT, planes": ("doft", {"rotation": {"kind": "planes"}}),
    "DeLoRA, peft's form": ("delora", {"rank": RANK, "form": "peft", "step_size": "raw"}),
    "DeLoRA": ("delora", {"rank": RANK}),
    "LoHa": ("loha", {"rank": RANK}),
    "LoKr": ("lokr", {"rank": RANK}),
}
REFERENCE = "LoRA"

Step = Callable[[Tensor], None]
"""One optimizer step's work on an input, gradients and all."""


class Holder(nn.Module):
    """A network of one layer, as other programs want it."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The layer."""
        return self.layer(x)


def ours(layer: nn.Module, method: str, options: dict[str, Any], accumulation: int) -> tuple[nn.Module, Step]:
    """A layer with an adapter of ours, moved off its start, and its step."""
    holder = Holder(layer)
    attach(holder, "layer", adapters.methods()[method].Config(method=method, **options), 0)
    adapted: Any = holder.layer
    return holder, partial(our_step, adapted, Derived([adapted]), accumulation)


def our_step(adapted: Adapted, derived: Derived, accumulation: int, x: Tensor) -> None:
    """Derive, forward and backward for each part of the batch, pull back."""
    derived.begin()
    for _ in range(accumulation):
        y = adapted(x)
        y.backward(torch.ones_like(y))
    derived.pull_back()


def theirs(network: nn.Module, accumulation: int) -> tuple[nn.Module, Step]:
    """A network of peft's or LyCORIS' and its step."""

    def step(x: Tensor) -> None:
        for _ in range(accumulation):
            y = network(x)
            y.backward(torch.ones_like(y))

    return network, step


def by_peft(layer: nn.Module, config: Any, accumulation: int) -> tuple[nn.Module, Step]:
    """peft's adapter on the layer."""
    from peft import get_peft_model

    return theirs(get_peft_model(Holder(layer), config), accumulation)  # pyright: ignore


def by_lycoris(layer: nn.Module, options: dict[str, Any], accumulation: int) -> tuple[nn.Module, Step]:
    """LyCORIS' adapter on the layer."""
    from lycoris import LycorisNetwork, create_lycoris

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    LycorisNetwork.apply_preset({"target_module": ["Holder"]})
    holder = Holder(layer)
    network = create_lycoris(holder, 1.0, linear_dim=RANK, linear_alpha=RANK, **options)
    network.apply_to()
    holder.add_module("lycoris", network)
    return theirs(holder, accumulation)


def candidates(make: Callable[[], nn.Module], accumulation: int) -> dict[str, Callable[[], tuple[nn.Module, Step]]]:
    """All that are compared on a layer, by name; some raise on some layers."""
    from peft import DeloraConfig, LoraConfig, OFTConfig

    found: dict[str, Callable[[], tuple[nn.Module, Step]]] = {
        name: partial(lambda m, o: ours(make(), m, o, accumulation), method, options)
        for name, (method, options) in OURS.items()
    }
    peft = {
        "LoRA, peft": LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["layer"]),
        "DoRA, output, peft": LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["layer"], use_dora=True),
        "OFT, peft": OFTConfig(r=0, oft_block_size=32, target_modules=["layer"]),
        "DeLoRA, peft": DeloraConfig(r=RANK, target_modules=["layer"]),
    }
    lycoris = {
        "LoRA, LyCORIS": {"algo": "lora"},
        "DoRA, input, LyCORIS": {"algo": "lora", "dora_wd": True, "wd_on_output": False},
        "DoRA, output, LyCORIS": {"algo": "lora", "dora_wd": True, "wd_on_output": True},
        "OFT, LyCORIS": {"algo": "diag-oft"},
        "DOFT, LyCORIS": {"algo": "diag-oft", "rescaled": True},
        "LoHa, LyCORIS": {"algo": "loha"},
        "LoKr, LyCORIS": {"algo": "lokr", "factor": 8},
    }
    found |= {name: partial(lambda c: by_peft(make(), c, accumulation), config) for name, config in peft.items()}
    return found | {name: partial(lambda o: by_lycoris(make(), o, accumulation), o) for name, o in lycoris.items()}


def prepared(start: Callable[[], tuple[nn.Module, Step]], device: str, dtype: torch.dtype) -> tuple[nn.Module, Step]:
    """The network with a frozen base in `dtype` and float32 adapters, every trained parameter moved a little."""
    torch.manual_seed(0)
    network, step = start()
    network.to(device)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and not name.endswith(("base.weight", "base.bias", "layer.weight", "layer.bias")):
            parameter.data += 0.01 * torch.randn_like(parameter)
        else:
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(dtype)
    return network, step


def inputs(layer: str, tokens: int, device: str, dtype: torch.dtype) -> Tensor:
    """Random activations that need a gradient, as inside a network."""
    channels, side = int(layer.rpartition("-")[2]), int(tokens**0.5)
    shape = (1, channels, side, side) if layer.startswith("conv") else (1, tokens, channels)
    return torch.randn(shape, device=device, dtype=dtype, requires_grad=True)


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """What a forward pass keeps for the backward pass, without parameters and buffers; each storage once."""
    own = {t.untyped_storage().data_ptr() for t in [*network.parameters(), *network.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = network(x)
    del y
    return sum(kept.values())


def seconds(step: Step, x: Tensor, device: str) -> float:
    """Of one step."""
    x.grad = None
    if device == "cpu":
        start = time.perf_counter()
        step(x)
        return time.perf_counter() - start
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    step(x)
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000


def measure(layer: str, tokens: int, arguments: argparse.Namespace) -> dict[str, tuple[float, int]]:
    """Median seconds and saved bytes by candidate."""
    dtype = getattr(torch, arguments.dtype)
    steps, saved = {}, {}
    for name, start in candidates(LAYERS[layer], arguments.accumulation).items():
        if arguments.only and not any(word in name for word in (*arguments.only, REFERENCE)):
            continue
        try:
            network, step = prepared(start, arguments.device, dtype)
            x = inputs(layer, tokens, arguments.device, dtype)
            with torch.autocast(arguments.device, dtype, enabled=dtype != torch.float32):
                saved[name] = saved_bytes(network, x)
                step(x)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            if name in OURS:
                raise
            print(f"{layer}, {tokens} tokens: {name} does not run: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        steps[name] = (network, step, x)
    times: dict[str, list[float]] = {name: [] for name in steps}
    draw = random.Random(0)
    for _ in range(arguments.rounds):
        # In another order each time: whoever comes after a large one would always find the caches cold.
        for name in draw.sample(list(steps), len(steps)):
            _, step, x = steps[name]
            with torch.autocast(arguments.device, dtype, enabled=dtype != torch.float32):
                times[name].append(seconds(step, x, arguments.device))
    return {name: (statistics.median(found), saved[name]) for name, found in times.items()}


Cells = dict[int, dict[str, tuple[float, int]]]
"""Median seconds and saved bytes by number of tokens and candidate."""


def table(layer: str, cells: Cells) -> str:
    """One Markdown table of a layer: time, and saved bytes, as multiples of our LoRA's with as many tokens; "-" where
    another program cannot adapt the layer."""
    sizes = [f"{found[REFERENCE][0] * 1000:.1f} ms and {found[REFERENCE][1] / 1e6:.1f} MB with {tokens} tokens"
             for tokens, found in cells.items()]
    heads = [f"{what}, {tokens}" for what in ("time", "saved") for tokens in cells]
    lines = [f"{layer} (LoRA: {', '.join(sizes)})", ""]
    lines += [f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in dict.fromkeys(name for found in cells.values() for name in found):
        ratios = [
            f"{found[name][part] / found[REFERENCE][part]:.2f}" if name in found else "-"
            for part in (0, 1)
            for found in cells.values()
        ]
        lines.append(f"| {name} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def machine(arguments: argparse.Namespace) -> str:
    """What was measured on, in words."""
    cpu = f"{platform.processor() or 'CPU'}, 1 thread"
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else cpu
    return (
        f"{device}, {arguments.dtype}, torch {torch.__version__}, accumulation {arguments.accumulation}, medians of "
        f"{arguments.rounds} interleaved rounds; time and saved bytes as multiples of our LoRA's."
    )


def main() -> None:
    """Read the arguments, measure, print, and perhaps write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="candidates with one of these words in their name, and our LoRA")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pages = [machine(arguments)]
    for layer in arguments.layers:
        pages.append(table(layer, {tokens: measure(layer, tokens, arguments) for tokens in arguments.tokens}))
        print(f"\n{pages[-1]}", flush=True)
    if arguments.write:
        full_size.write("\n\n".join(pages), BEGIN, END)


if __name__ == "__main__":
    main()
