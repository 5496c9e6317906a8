"""How well the forms of LoRA-Pre follow AdamW, on the demo: errors of their averages, and the loss after some steps.

    python benchmarks/moments.py --write            # some minutes on one core
    python benchmarks/moments.py --steps 40 --presets lora_demo --ranks 4

Errors: a training of each preset (with LoRA-Pre at a rank at which nothing is lost) is recorded, the gradients of
`--matrices` of its tensors in each step; AdamW and every form see the same gradients. m, the root of v and the step
`m / sqrt(v)` are compared with AdamW's: the norm of the difference over AdamW's norm, the mean over matrices and the
steps from `SETTLED` on. The loss is that of the validation pictures after the last step of a training with each form,
at the preset's learning rate. --write puts the table into docs/methods.md.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_pre_hook

from modules.answer import put
from modules.training import low_rank_moments
from modules.training.command import main as train
from modules.training.events import read_events
from modules.training.optimizers import LowRankMoments

PAGE = ROOT / "docs/methods.md"
BEGIN, END = "<!-- moments: begin -->", "<!-- moments: end -->"
FORMS: tuple[low_rank_moments.Form, ...] = ("previous", "updated", "sequential")
SETTLED = 10
WHOLE = 4096
"""A rank of moments that no matrix has."""


def command(preset: str, steps: int, folder: Path, *options: str) -> list[str]:
    """Arguments of scripts/train.py for a short training."""
    place = ("--saving.folder", str(folder.parent), "--name", folder.name)
    return ["--preset", preset, "--training.steps", str(steps), "--samples.enabled", "false", *place, *options]


def recorded(preset: str, steps: int, matrices: int, runs: str) -> list[list[Tensor]]:
    """Gradients of some matrices in each step of a training."""
    found: list[list[Tensor]] = []

    def record(optimizer, *_) -> None:
        if not isinstance(optimizer, low_rank_moments.LowRankMoments):
            return
        every = [p for group in optimizer.param_groups for p in group["params"] if p.dim() == 2 and min(p.shape) > 1]
        found.append([p.grad.clone() for p in every[:: max(1, len(every) // matrices)][:matrices]])

    hook = register_optimizer_step_pre_hook(record)
    options = ("--optimizer.name", "lora_pre", "--optimizer.moment_rank", str(WHOLE))
    code = train(command(preset, steps, Path(runs) / "recorded", *options))
    hook.remove()
    if code:
        raise ValueError(f"the training of {preset} failed with code {code}")
    return [list(one) for one in zip(*found, strict=True)]


def averages(options: LowRankMoments, gradients: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """`m` and `v` of each step of LoRA-Pre, as `moments` returns them."""
    parameter = Parameter(torch.zeros_like(gradients[0]))
    group = {"params": [parameter], "lr_scale": 1.0, "decay": True, "pairs": [], "calibrated": False}
    optimizer, seen, real = options.build([group], 1e-3), [], low_rank_moments.moments

    def watched(*given):
        seen.append(real(*given))
        return seen[-1]

    low_rank_moments.moments = watched
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
        m, v = (average[0] for average in seen.pop())
        yield (m, v) if m.shape == gradient.shape else (m.mT, v.mT)
    low_rank_moments.moments = real


def errors(form: low_rank_moments.Form, rank: int, matrices: list[list[Tensor]]) -> list[float]:
    """Of m, sqrt(v) and their ratio."""
    options, found = LowRankMoments(form=form, moment_rank=rank), []
    for gradients in matrices:
        m, v = (torch.zeros_like(gradients[0]) for _ in range(2))
        beta1, beta2 = options.beta1, options.beta2
        for step, (gradient, ours) in enumerate(zip(gradients, averages(options, gradients), strict=True), 1):
            m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient.square()
            if step >= SETTLED:
                pairs = zip(parts(*ours), parts(m / (1 - beta1**step), v / (1 - beta2**step)), strict=True)
                found.append([((one - other).norm() / other.norm()).item() for one, other in pairs])
    return [statistics.fmean(column) for column in zip(*found, strict=True)]


def parts(m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is compared."""
    return m, v.sqrt(), m / (v.sqrt() + 1e-8)


def loss(preset: str, steps: int, runs: str, *options: str) -> float:
    """The validation loss after a training."""
    folder = Path(runs) / f"{len(list(Path(runs).iterdir()))}"
    script = [sys.executable, str(ROOT / "scripts/train.py"), *command(preset, steps, folder, *options)]
    subprocess.run(script, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    events = read_events(folder / "events.jsonl")
    return [event["loss"] for event in events if event["event"] == "validation"][-1]


def table(presets: list[str], ranks: list[int], steps: int, matrices: int) -> Iterator[str]:
    """Its lines."""
    yield "| training | rank of the moments | form | error of m | of sqrt(v) | of the step | loss |"
    yield "|---|---|---|---|---|---|---|"
    for preset in presets:
        with tempfile.TemporaryDirectory() as runs:
            gradients = recorded(preset, steps, matrices, runs)
            adamw = loss(preset, steps, runs, "--optimizer.name", "adamw")
            yield f"| `{preset}` | - | AdamW | 0 | 0 | 0 | {adamw:.4f} |"
            for rank in ranks:
                for form in FORMS:
                    options = {"name": "lora_pre", "moment_rank": rank, "form": form}
                    flags = [flag for key, value in options.items() for flag in (f"--optimizer.{key}", str(value))]
                    cells = [f"{error:.2f}" for error in errors(form, rank, gradients)]
                    cells.append(f"{loss(preset, steps, runs, *flags):.4f}")
                    yield f"| `{preset}` | {rank} | {form} | {' | '.join(cells)} |"


def main() -> int:
    """Measure, print, and perhaps write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["lora_demo", "mora_demo"], help="trainings")
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 8], help="ranks of the moments")
    parser.add_argument("--steps", type=int, default=30, help="of each training")
    parser.add_argument("--matrices", type=int, default=12, help="tensors whose averages are compared")
    parser.add_argument("--write", action="store_true", help="put the table into docs/methods.md")
    given = parser.parse_args()
    lines = []
    for line in table(given.presets, given.ranks, given.steps, given.matrices):
        lines.append(line)
        print(line, flush=True)
    if given.write:
        words = f"{given.steps} steps of each demo preset, betas 0.9 and 0.999, torch {torch.__version__}."
        put(PAGE, "\n".join([words, "", *lines]), BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
