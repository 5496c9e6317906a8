"""How orthogonal and how fast the maps from learned numbers to rotations are.

    python benchmarks/rotations.py                            # CPU, one thread, float32
    python benchmarks/rotations.py --device cuda --sizes 32 64
    python benchmarks/rotations.py --write                    # into docs/methods.md, where that has a place for it

Random skew blocks of as many channels as layers of an image model have together, forward and backward pass. All maps
run in turn, round after round, and medians are compared with Cayley's. The error is `||R R^T - I||_F / sqrt(b)`, its
mean over the blocks; ||Q|| is the spectral norm.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor

from modules.adapters import linalg
from modules.adapters.blocks import MAPS

PAGE, BEGIN, END = ROOT / "docs/methods.md", "<!-- rotations: begin -->", "<!-- rotations: end -->"
SIZES, NORMS = (16, 32, 64, 128, 256), (0.1, 0.5, 0.9, 1.5)
REFERENCE = "cayley"
THEIRS = "torch.linalg.matrix_exp"
COLUMNS = ["map", "block", *(f"error at {norm}" for norm in NORMS), "time"]
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def maps() -> dict[str, Callable[[Tensor], Tensor]]:
    """`R - I` of `Q (n, b, b)`: ours, and torch's exponential."""
    return {**{name: one.excess for name, one in MAPS.items()}, THEIRS: torch_exponential}


def torch_exponential(skew: Tensor) -> Tensor:
    """By scaling and squaring."""
    return torch.linalg.matrix_exp(skew) - torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)


def skews(count: int, size: int, norm: float) -> Tensor:
    """Random `(count, size, size)` of this spectral norm, float64."""
    vectors = torch.randn(count, size * (size - 1) // 2, generator=torch.Generator().manual_seed(size)).double()
    skew = linalg.skew_blocks(vectors, size)
    return skew * (norm / torch.linalg.matrix_norm(skew, 2))[:, None, None]


def error(excess: Callable[[Tensor], Tensor], skew: Tensor) -> float:
    """Of a map in float32."""
    R = excess(skew.float()).double()
    R = R + torch.eye(skew.shape[-1], dtype=R.dtype, device=R.device)
    off = R @ R.mT - torch.eye(skew.shape[-1], dtype=R.dtype, device=R.device)
    return (torch.linalg.matrix_norm(off) / skew.shape[-1] ** 0.5).mean().item()


def finish(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(excess: Callable[[Tensor], Tensor], skew: Tensor, gradient: Tensor) -> float:
    """Of one forward and backward pass."""
    device = skew.device
    finish(device)
    begun = time.perf_counter()
    excess(skew).backward(gradient)
    finish(device)
    skew.grad = None
    return time.perf_counter() - begun


def times(size: int, channels: int, rounds: int, device: str) -> dict[str, float]:
    """Medians of the interleaved rounds."""
    skew = skews(channels // size, size, 0.5).float().to(device).requires_grad_()
    gradient = torch.randn(skew.shape, generator=torch.Generator().manual_seed(0)).to(device)
    found: dict[str, list[float]] = {name: [] for name in maps()}
    for _ in range(rounds + 1):
        for name, excess in maps().items():
            found[name].append(seconds(excess, skew, gradient))
    return {name: statistics.median(several[1:]) for name, several in found.items()}


def rows(size: int, channels: int, rounds: int, device: str) -> list[str]:
    """Lines of the table."""
    measured = times(size, channels, rounds, device)
    lines = []
    for name, excess in maps().items():
        errors = [error(excess, skews(8, size, norm).to(device)) for norm in NORMS]
        cells = [f"`{name}`", str(size), *(f"{one:.1e}" for one in errors)]
        lines.append(f"| {' | '.join(cells)} | {measured[name] / measured[REFERENCE]:.2f} |")
    return lines


def write(text: str) -> None:
    """Put `text` between the marks of docs/methods.md. Ends the program where there are none."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if BEGIN not in page or END not in page:
        sys.exit(f"{PAGE} has no place for the table: {BEGIN} and {END}")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    """Read the arguments, measure, print, and perhaps write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="of the blocks")
    parser.add_argument("--channels", type=int, default=10240, help="of all blocks together")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--write", action="store_true", help="put the table into docs/methods.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[str] = []
    for size in arguments.sizes:
        lines += rows(size, arguments.channels, arguments.rounds, arguments.device)
        print(f"blocks of {size} done", file=sys.stderr, flush=True)
    cpu = f"{platform.processor() or 'CPU'}, 1 thread"
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else cpu
    about = (f"{device}, float32, torch {torch.__version__}, {arguments.channels} channels, medians of "
             f"{arguments.rounds} interleaved rounds of forward and backward pass; time as a multiple of cayley's.")
    text = "\n".join([about, "", HEAD, *lines])
    print(text)
    if arguments.write:
        write(text)


if __name__ == "__main__":
    main()
