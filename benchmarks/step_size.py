"""How far one optimizer step moves a layer's weight, for every method, size and layer: what "calibrated" promises.

    python benchmarks/step_size.py                                        # the whole table, a few minutes on one core
    python benchmarks/step_size.py --methods oft lora --layers "linear 320" --steps 20
    python benchmarks/step_size.py --write

Numbers are relative changes of the weight in units of the learning rate: `||W_t - W_(t-1)|| / (lr ||W||)` for the first
and the last step, and the length of the whole way, `||W_t - W_0|| / (t lr ||W||)`. 1 is what calibrated steps promise.

The model. Adam moves a parameter by `lr m / sqrt(v)`: by `lr` times a sign where its gradient keeps its direction, by
less where it does not; of pure noise, by a quarter of lr. How noisy a training is, is no matter of the method. So the
loss here is linear in the weight with a fixed random direction, `<G, W'>`, and to each parameter's gradient comes noise
of `--noise` times its root mean square, which is little. eps is as good as 0. What then differs from 1 is the method's:
the unit of its parameters, and how it bends on the way (a tensor that starts to matter, a rotation that is no longer
small). lr is 5e-4, as in the presets for real models: 100 steps change the weight by a twentieth. A gradient that
grows, as that of a LoRA's `down` does while `up` grows, makes Adam's steps larger than lr, up to 1.7 times; that is in
the numbers.

Weights are normal numbers whose rows and channels have different norms (a spread of exp(0.3 n)), as trained ones have.
Methods and their options are found, not listed: every option that is called as in `SIZES`, one at a time, the others as
they come; and every kind of a section that has kinds. Not all sizes are tried on all layers, and on the largest one the
first step alone is taken, to keep within some minutes. What a method does after a step (`after_step`) is done, a
penalty is left out: how strong it is depends on the loss. --write puts the table into docs/methods.md.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn

from modules import adapters
from modules.adapters.base import attach
from modules.answer import put
from modules.preset.options import models_of, tag_value
from modules.training.optimizers import forget

PAGE = ROOT / "docs/methods.md"
BEGIN, END = "<!-- step_size: begin -->", "<!-- step_size: end -->"
LR, SPREAD, AIM = 5e-4, 0.3, 1.3

SIZES = {"rank": (4, 16, 64), "block_size": (16, 64, 256), "planes": (4, 16, 64)}
"""Options that say how large an adapter is, and what they are set to."""

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear 320": lambda: nn.Linear(320, 320, bias=False),
    "linear 1280": lambda: nn.Linear(1280, 1280, bias=False),
    "linear 5120 to 1280": lambda: nn.Linear(5120, 1280, bias=False),
    "conv 320, 3x3": lambda: nn.Conv2d(320, 320, 3, bias=False),
}
ALL_SIZES = ("linear 320", "linear 1280")
"""Layers on which every size is tried; on the others the middle one is."""

ONE_STEP = ("linear 5120 to 1280",)
"""Layers on which the first step alone is taken, because a step takes long."""


class Moved(NamedTuple):
    """Relative changes of a weight in units of lr."""

    first: float
    last: float | None = None
    whole: float | None = None


@dataclass(frozen=True, eq=False)
class Variant:
    """A method with options."""

    method: str
    options: dict[str, Any]
    """As in a preset."""
    words: str
    calibrated: bool
    middle: bool
    """Whether it has the size that is tried on every layer."""


# -- what is measured -------------------------------------------------------------------------------------------------


def variants(method: str) -> Iterator[Variant]:
    """The method in all sizes with calibrated steps, and in one with raw steps if these are its default."""
    config = adapters.methods()[method].Config
    found = list(sized(config))
    for options, words, middle in found:
        yield Variant(method, {**options, "step_size": "calibrated"}, words, True, middle)
    if config.model_fields["step_size"].default == "raw":
        options, words, _ = next(one for one in found if one[2])
        yield Variant(method, {**options, "step_size": "raw"}, f"{words} raw".strip(), False, True)


def sized(model: Any) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """Each size of a section's options one at a time, and each kind of a section in it; in words; whether middling."""
    alone = True
    for name, field in model.model_fields.items():
        tag = field.discriminator
        for inner in models_of(field):
            kind = {tag: tag_value(inner, tag)} if isinstance(tag, str) else {}
            for options, words, middle in sized(inner):
                yield {name: {**kind, **options}}, " ".join([*kind.values(), words]).strip(), middle
            alone = False
        for number, size in enumerate(SIZES.get(name, ())):
            yield {name: size}, f"{name} {size}", number == 1
            alone = False
    if alone:
        yield {}, "", True


def weighted(layer: nn.Module, seed: int) -> tuple[nn.Module, Tensor]:
    """The layer with realistic weights, and the direction `G (out, fan_in)` of the loss."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weight: Any = layer.weight
    out, channels, *kernel = weight.shape
    ones = [1] * len(kernel)
    rows, columns = (SPREAD * normal(out, 1, *ones)).exp(), (SPREAD * normal(1, channels, *ones)).exp()
    with torch.no_grad():
        weight.copy_(normal(*weight.shape) * rows * columns / math.sqrt(channels * math.prod(kernel)))
    return layer, normal(out, channels * math.prod(kernel))


def moved(variant: Variant, layer: nn.Module, G: Tensor, steps: int, noise: float) -> Moved:
    """Train the layer with the loss `<G, W'>`. Raises ValueError where the method does not take layer or options."""
    config = adapters.methods()[variant.method].Config(method=variant.method, **variant.options)
    network = nn.Sequential(layer)
    adapted = attach(network, "0", config, seed=0)
    adapter, W = adapted.adapter, adapted.layer.dense()
    generator = torch.Generator().manual_seed(1)
    trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LR, eps=1e-30)
    with torch.no_grad():
        start, lengths = adapter.weight(W), []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        before = adapter.weight(W)
        before.backward(G)
        for gradient in (parameter.grad for parameter in trained if parameter.grad is not None):
            scale = noise * gradient.square().mean().sqrt()
            gradient += scale * torch.randn(gradient.shape, generator=generator)
        optimizer.step()
        with torch.no_grad():
            if step in (1, steps):
                lengths.append((adapter.weight(W) - before).norm().item())
            forget(optimizer, type(adapter).after_step([adapter], step, steps))
    with torch.no_grad():
        whole = (adapter.weight(W) - start).norm().item()
    unit = LR * start.norm().item()
    return Moved(lengths[0] / unit, *((lengths[-1] / unit, whole / (steps * unit)) if steps > 1 else ()))


# -- what is shown ----------------------------------------------------------------------------------------------------

Found = dict[Variant, dict[str, Moved | None]]
"""By variant and layer; None where the method refuses."""


def measure(arguments: argparse.Namespace) -> Found:
    """All that was asked for. What a method refuses is said on stderr."""
    layers = {name: weighted(LAYERS[name](), number) for number, name in enumerate(arguments.layers)}
    found: Found = {}
    for variant in (variant for method in arguments.methods for variant in variants(method)):
        for name in (name for name in layers if variant.middle or name in ALL_SIZES):
            row, (layer, G) = found.setdefault(variant, {}), layers[name]
            begun = time.perf_counter()
            try:
                steps = 1 if name in ONE_STEP else arguments.steps
                row[name] = moved(variant, layer, G, steps, arguments.noise)
            except ValueError as error:
                row[name] = None
                print(f"{variant.method} {variant.words}, {name}: {error}", file=sys.stderr)
            if arguments.verbose:
                print(f"{variant}, {name}: {row[name]}, {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    return found


def table(found: Found, layers: list[str], steps: int) -> str:
    """Markdown: a row for each variant, a column for each layer, and below it how far apart they are."""
    lines = [["method", *layers]]
    for variant, row in found.items():
        line = [f"{variant.method}{', ' if variant.words else ''}{variant.words}"]
        for name in layers:
            one = row.get(name, ())
            line.append("refused" if one is None else " / ".join(f"{part:.2f}" for part in one if part is not None))
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    text = [f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in lines]
    return "\n".join([*text, "", *(apart(found, part, steps) for part in ("first", "last"))])


def apart(found: Found, part: str, steps: int) -> str:
    """How far apart the first or last steps of calibrated variants are, in a sentence."""
    places = [
        (moved._asdict()[part], f"{variant.method} {variant.words}".strip() + f" on {name}")
        for variant, row in found.items()
        for name, moved in row.items()
        if variant.calibrated and moved is not None and moved._asdict()[part] is not None
    ]
    which = "First step" if part == "first" else f"Step {steps}"
    if not places:
        return f"{which}, calibrated: not measured."
    least, most = min(places), max(places)
    return (f"{which}, calibrated: {least[0]:.2f} ({least[1]}) to {most[0]:.2f} ({most[1]}), a factor of "
            f"{most[0] / least[0]:.2f} (aim: {AIM}).")


def main() -> int:
    """Measure, print, and perhaps write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(adapters.methods()), default=list(adapters.methods()))
    parser.add_argument("--layers", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--noise", type=float, default=0.1, help="of each gradient, as a part of its root mean square")
    parser.add_argument("--write", action="store_true", help="put the table into docs/methods.md")
    parser.add_argument("--verbose", action="store_true", help="say each number, and its seconds, when it is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    how = (f"Relative change of the weight in units of lr, by the first step of Adam / by step {arguments.steps} / per "
           f"step of the whole way; lr {LR:g}, noise {arguments.noise:g}, torch {torch.__version__}.")
    text = f"{how}\n\n{table(measure(arguments), arguments.layers, arguments.steps)}"
    print(text)
    if arguments.write:
        put(PAGE, text, BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
