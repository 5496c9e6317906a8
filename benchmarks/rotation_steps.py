"""How far one optimizer step rotates, in relative spectral norm: ours, OneTrainer's and adv_optm's.

    python benchmarks/rotation_steps.py
    python benchmarks/rotation_steps.py --write      # into docs/methods.md; needs adv_optm

A layer of `--channels` inputs with rotations in blocks that have not been trained yet. A step changes the weight by
`W (R - I)^T`: its spectral norm, relative to W's, is at most `||R - I||`, the largest of all blocks; the change of an
isotropic weight in the Frobenius norm is `||R - I||_F / sqrt(channels)`. Both in units of the learning rate.

The gradient of each block's Q is a random skew matrix, or one that pulls a single plane, `x y^T - y x^T` of random
vectors, as that of one strong direction of the weight. It is the same in each step. adv_optm divides the update of each
block by its spectral norm, which it estimates with one power iteration a step from random vectors, and multiplies by lr
after Adam's correction of the bias, `lr / (1 - 0.9^t)`: so its first steps are larger. It knows rotations by attributes
of the parameter; `_oft_scale_factor` is the divisor of scaled OFT. eps is as good as 0.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn

from modules import adapters
from modules.adapters import linalg
from modules.adapters.base import attach
from modules.answer import put

PAGE = ROOT / "docs/methods.md"
BEGIN, END = "<!-- rotation_steps: begin -->", "<!-- rotation_steps: end -->"
SIZES, LR, EPS = (16, 32, 64, 128, 256), 1e-4, 1e-30

Optimizer = Callable[[Iterable[nn.Parameter], int], torch.optim.Optimizer]


def adam(parameters: Iterable[nn.Parameter], size: int) -> torch.optim.Optimizer:
    """torch's; `size` of the blocks."""
    return torch.optim.Adam(parameters, lr=LR, eps=EPS)


def spectral(parameters: Iterable[nn.Parameter], size: int) -> torch.optim.Optimizer:
    """adv_optm's, with the attributes by which it knows scaled OFT."""
    from adv_optm import AdamW_adv

    known = list(parameters)
    for parameter in known:
        parameter._is_oft, parameter._oft_scale_factor = True, 2 * math.sqrt(size - 1)  # pyright: ignore
    return AdamW_adv(known, lr=LR, eps=EPS, weight_decay=0.0, spectral_normalization=True)


BLOCKS = {"kind": "blocks", "map": "neumann_5", "divisor": "nearest"}
ROWS: dict[str, tuple[dict, Optimizer, int]] = {
    "`oft`, calibrated": ({"rotation": {"kind": "blocks"}}, adam, 1),
    "OneTrainer, scaled OFT": ({"rotation": BLOCKS}, adam, 1),
    "OneTrainer, unscaled": ({"rotation": BLOCKS, "step_size": "raw"}, adam, 1),
    "adv_optm, spectral, step 1": ({"rotation": BLOCKS}, spectral, 1),
    "adv_optm, spectral, step 100": ({"rotation": BLOCKS}, spectral, 100),
}
"""A method's options, an optimizer, and which step is measured. OneTrainer's parameters are ours with its map."""


def gradients(kind: str, blocks: int, size: int) -> Tensor:
    """`(blocks, b(b-1)/2)`: "random", or of a single "plane"."""
    random = torch.Generator().manual_seed(size)
    if kind == "random":
        return torch.randn(blocks, size * (size - 1) // 2, generator=random)
    x, y = torch.randn(2, blocks, size, generator=random)
    outer = torch.einsum("ki,kj->kij", x, y)
    return linalg.upper_triangles(outer - outer.mT)


def step(options: dict, optimizer: Optimizer, number: int, kind: str, size: int, channels: int) -> tuple[float, float]:
    """The relative change by step `number`, in units of lr: in the spectral norm, and in the Frobenius norm."""
    options = {**options, "rotation": {**options["rotation"], "block_size": size}}
    network = nn.Sequential(nn.Linear(channels, 2, bias=False))
    adapted = attach(network, "0", adapters.methods()["oft"].Config(method="oft", **options), 0)
    rotation: Any = adapted.adapter.rotation
    torch.manual_seed(0)  # adv_optm draws its vectors
    stepper = optimizer([rotation.skew], size)
    rotation.skew.grad = gradients(kind, channels // size, size)
    before = rotation.derive()["excess"].detach()
    for _ in range(number):
        before = rotation.derive()["excess"].detach()
        stepper.step()
    change = (rotation.derive()["excess"].detach() - before).double()
    spectral_norm = torch.linalg.matrix_norm(change, 2).max().item()
    return spectral_norm / LR, change.norm().item() / math.sqrt(channels) / LR


def table(sizes: Iterable[int], channels: int) -> list[str]:
    """Its lines; without adv_optm its rows are left out."""
    sizes = list(sizes)
    lines = [f"| gradient, optimizer | {' | '.join(f'b = {size}' for size in sizes)} |", f"|---{'|---' * len(sizes)}|"]
    for kind in ("random", "plane"):
        for name, (options, optimizer, number) in ROWS.items():
            if optimizer is spectral and not installed():
                continue
            cells = [step(options, optimizer, number, kind, size, channels) for size in sizes]
            lines.append(f"| {kind}: {name} | {' | '.join(f'{one:.2f} ({other:.2f})' for one, other in cells)} |")
    return lines


def installed() -> str:
    """adv_optm's version; empty if it is not there."""
    try:
        return version("adv_optm")
    except PackageNotFoundError:
        return ""


def main() -> None:
    """Read the arguments, measure, print, and perhaps write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="of the blocks")
    parser.add_argument("--channels", type=int, default=1280)
    parser.add_argument("--write", action="store_true", help="put the table into docs/methods.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.write and not installed():
        sys.exit("adv_optm is not installed: pip install adv_optm")
    about = (f"Change of a weight by one step, in units of lr: in relative spectral norm, and in the Frobenius norm in "
             f"parentheses; {arguments.channels} channels, adv_optm {installed() or 'not installed'}.")
    text = "\n".join([about, "", *table(arguments.sizes, arguments.channels)])
    print(text)
    if arguments.write:
        put(PAGE, text, BEGIN, END)


if __name__ == "__main__":
    main()
