"""Writes docs/optimizers.md: which optimizers of the packages can train here, found by trying each.

    python -m modules.training.optimizer_table
"""

import importlib.metadata
from pathlib import Path

from modules.training.optimizer_trial import Trial
from modules.training.packaged import AdvOptm, Packaged, PytorchOptimizer, classes

PATH = Path(__file__).resolve().parents[2] / "docs" / "optimizers.md"

HEAD = """# Optimizers of the packages

Written by `python -m modules.training.optimizer_table`, which takes a few steps with each class on small parameters: a
low-rank pair, a rotation and a magnitude. `--check` does the same for the optimizer of a preset, so what it says holds
for other versions of the packages too.

Options: `--optimizer.name pytorch_optimizer --optimizer.algorithm ADOPT`, and arguments of the class as a list:
`--optimizer.arguments '["betas=(0.9, 0.99)", "weight_decouple=True"]'`.

Muon, CAME, Adafactor and StableAdamW have names and options of their own (`muon`, `came`, `adafactor`,
`stable_adamw`), as have AdamW, Prodigy, schedule-free AdamW, LoRA-RITE, LoRA-Pre and the 8-bit optimizers:
docs/preset-reference.md.

- **trains**: no means that a preset with it is refused, for the reason given.
- **resumes**: a training that is stopped and resumed equals an uninterrupted one bit for bit.
- **matrices**: the steps depend on the shape of a parameter. Each parameter is given in its own shape; a class that is
  told which parameters are matrices is not told that the angles of a rotation are one.
- **averages**: a schedule-free optimizer, which needs training.schedule constant.
"""


def write() -> str:
    """The page."""
    parts = [HEAD]
    for options in (PytorchOptimizer, AdvOptm):
        version = importlib.metadata.version(options.package)
        parts.append(f"\n## {options.package} {version}\n\n"
                     "| class | trains | resumes | matrices | averages | notes |\n|---|---|---|---|---|---|\n")
        parts += [row(options, made.__name__) for _, made in sorted(classes(options.package).items())]
    return "".join(parts)


def row(options: type[Packaged], algorithm: str) -> str:
    """One line of the table."""
    chosen = options(algorithm=algorithm)
    try:
        found = chosen.tried(1e-3, "cpu")
    except ValueError as error:
        found = Trial(error=f"{error}".partition("which ")[2])
    if why := found.error or found.unsaved and f"its state cannot be saved: {found.unsaved}":
        return f"| {algorithm} | no | | | | {why.replace('|', '/')} |\n"
    said = [found.resumes, found.matrices, chosen.averages]
    note = "" if found.uses_rate else "does not use training.learning_rate"
    return f"| {algorithm} | yes | {' | '.join('yes' if one else 'no' for one in said)} | {note} |\n"


if __name__ == "__main__":
    PATH.write_text(write(), encoding="utf-8")
