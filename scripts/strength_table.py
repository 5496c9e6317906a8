"""Write docs/strength.md: the effect of a strength other than 1 in each program, from its arithmetic.

    python scripts/strength_table.py

Exit codes: 0 done.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from modules import hosts
from modules.answer import script
from modules.files import keys
from modules.hosts import How, Unread
from modules.hosts.parts import arithmetic

PAGE = Path(__file__).resolve().parents[1] / "docs" / "strength.md"

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 1.5)

COLUMNS = hosts.programs()

INTRODUCTION = """# Strength

What the strength `s` of a program's adapter loader does, for each form a file can have. `W` is the base weight, `W'`
the weight at strength 1, `D` the added update, `V = W + D` the weight before a magnitude `m`, `R` a stored rotation
and `c` the factors of the rows stored with it; `B(s)` is a butterfly of several stages with `s R + 1 - s` instead of
each stage's `R`. The number is the norm of the change at strength 0.5, relative to that at strength 1, of a random
layer. All of it is computed by `scripts/strength_table.py` from the same arithmetic that checks every exported file
(`modules/hosts`); a test repeats it.

At strength 1 every form that is read gives `W'`, with two exceptions: A1111 computes another weight from an output
magnitude (so files of `export.host kohya` have none for it), and sd-scripts ignores magnitudes. At other strengths
the programs differ, and only a plain LoRA and a full difference are linear in all programs that read them. ComfyUI
ignores the factors of a stored rotation, and skips both kinds of stored rotations where it computes in 16 bits.

At strength 0.5, ComfyUI, A1111 and Forge apply half of the trained change for every file that Gimbal writes with
`export.form auto` or `svd`, for every method; so does our node for its files. A plain LoRA, which includes rotations
in planes without a magnitude, is scaled linearly in every program. There are two exceptions. With a magnitude along
the output (`adapter.axis output`, and every rotation with a magnitude), diffusers and LyCORIS scale only one of the
two parts and still apply most of the change, see "LoRA with output magnitude"; use `--form svd` for them, or merge
the adapter at its strength with `scripts/merge.py`, which is linear for all. And ComfyUI squares the strength of
stored rotations (the orthogonal adapters of LyCORIS and others): 0.5 applies a quarter, and half the change needs
0.71; a butterfly of several stages is similar. For ComfyUI Gimbal stores rotations only with `export.form compact`.
For LyCORIS `auto` does, if the output is rotated, and LyCORIS applies most of the change of those with factors at
0.5.

"""


@dataclass(frozen=True)
class Sample:
    """A random layer and the parts of its update."""

    tensors: dict[str, Tensor]
    """The file's, in kohya's names."""
    D: Tensor
    turn: Callable[[Tensor], Tensor]
    """The rotation, of any weight."""
    m: Tensor
    c: Tensor
    blended: Callable[[float, Tensor], Tensor] | None = None
    """The butterfly of any weight, with `s R + 1 - s` instead of each stage's R."""


def normal(*shape: int, seed: int) -> Tensor:
    """Random numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W = normal(12, 8, seed=0)

Rule = Callable[[float, Sample, Tensor], Tensor]

RULES: dict[str, Rule] = {
    "`W + s (W' - W)`": lambda s, x, end: W + s * (end - W),
    "`W + s^2 (W' - W)`": lambda s, x, end: W + s**2 * (end - W),
    "`W'`, whatever s is": lambda s, x, end: end,
    "`m (W + s D) / norm(W + s D)`": lambda s, x, end: x.m * (W + s * x.D) / arithmetic.row_norm(W + s * x.D),
    "`V (1 + s (m / norm(V) - 1))`": lambda s, x, end: (
        (W + x.D) * (1 + s * (x.m / arithmetic.row_norm(W + x.D) - 1))
    ),
    "`c (W + s (R W - W))`": lambda s, x, end: x.c * (W + s * (x.turn(W) - W)),
    "`W + s (c (W + s (R W - W)) - W)`": lambda s, x, end: W + s * (x.c * (W + s * (x.turn(W) - W)) - W),
    "`B(s) W`": lambda s, x, end: x.blended(s, W) if x.blended else W,
    "`W + s (B(s) W - W)`": lambda s, x, end: W + s * (x.blended(s, W) - W) if x.blended else W,
}
"""What a program may compute, by formula, from the strength, the layer's parts and the weight at strength 1."""


def samples() -> dict[str, Sample]:
    """A layer in each form."""
    up, down, blocks = normal(12, 3, seed=1), normal(3, 8, seed=2), 0.3 * normal(6, 2, 2, seed=3)
    m, c = normal(12, 1, seed=4).abs(), normal(12, 1, seed=5).abs()
    factors = 0.3 * normal(2, 2, 6, 6, seed=13)
    R, stages = arithmetic.cayley(blocks, 0.0), arithmetic.cayley(factors, 0.0)
    alpha, none = {keys.KOHYA.alpha: torch.tensor(3.0)}, {keys.KOHYA.alpha: torch.tensor(0.0)}
    pair = {keys.KOHYA.up: up, keys.KOHYA.down: down, **alpha}
    # One pair of each kind of two is of ones, so that the update stays `up down`.
    entries = (up, down, torch.ones(12, 3).double() / 3, torch.ones(3, 8).double())
    general = (normal(8, 3, seed=6), normal(3, 8, seed=7), up, down)
    first, second = normal(3, 2, seed=8), normal(4, 4, seed=9)
    scale, columns = {keys.KOHYA.magnitude: m}, {keys.KOHYA.magnitude: normal(1, 8, seed=10)}
    moved = W @ general[0] @ general[1] + up @ down
    # The node's own tensors, each layer's with the format's number and how many there are.
    node = {
        "rotation": {".gimbal_skew_out": normal(6, 1, seed=11), ".gimbal_ratio": c.flatten()},
        "LoRA": {".gimbal_up": up, ".gimbal_down": down, ".gimbal_magnitude_in": normal(8, seed=12).abs()},
    }
    node = {kind: {".gimbal_format": torch.tensor([1.0, len(t)]), **t} for kind, t in node.items()}

    def rows(matrix: Tensor) -> Tensor:
        return arithmetic.turned_rows(matrix, R.mT)

    def made(tensors: dict[str, Tensor], D: Tensor, turn: Callable[[Tensor], Tensor] = rows) -> Sample:
        return Sample(tensors, D, turn, m, c)

    def blended(s: float, matrix: Tensor) -> Tensor:
        return arithmetic.butterfly(matrix, s * stages + (1 - s) * torch.eye(6, dtype=torch.float64))

    product, rescale = up @ down, {keys.RESCALE: c}
    return {
        "LoRA": made(pair, product),
        "LoRA with input magnitude": made(pair | columns, product),
        "LoRA with output magnitude": made(pair | scale, product),
        "LoHa": made(dict(zip(keys.HADAMARD, entries, strict=True)) | alpha, product),
        "LoKr": made({".lokr_w1": first, ".lokr_w2": second[:, :4]} | alpha, torch.kron(first, second)),
        "GLoRA": made(dict(zip(keys.GENERAL, general, strict=True)) | alpha, moved),
        "GLoRA with output magnitude": made(dict(zip(keys.GENERAL, general, strict=True)) | alpha | scale, moved),
        "stored rotation": made({keys.BLOCKS: blocks, **none}, rows(W) - W),
        "stored rotation with factors": made({keys.BLOCKS: blocks, **none, **rescale}, rows(W) - W),
        "stored butterfly with factors": made(
            {keys.BLOCKS: blocks.unsqueeze(0), **none, **rescale}, W, lambda M: arithmetic.turned_rows(M, R)
        ),
        "stored butterfly of several stages": replace(made({keys.BLOCKS: factors, **none}, W), blended=blended),
        "full difference": made({keys.KOHYA.difference: product}, product),
        "whole weight": made({keys.SET: W + product}, product),
        "rotation with magnitude for the node": made(node["rotation"], product),
        "LoRA with magnitude for the node": made(node["LoRA"], product),
    }


def spelled(sample: Sample, host: str) -> dict[str, Tensor]:
    """The sample's tensors in the program's names; a pair and its magnitude have others in peft's files."""
    names, tensors = hosts.load(host).NAMES, sample.tensors
    if keys.KOHYA.up not in tensors or names.up == keys.KOHYA.up:
        return tensors
    found = {names.up: tensors[keys.KOHYA.up], names.down: tensors[keys.KOHYA.down]}
    scale = tensors.get(keys.KOHYA.magnitude)
    return found if scale is None else {**found, names.magnitude: scale.flatten()}


def rule(host: str, form: str) -> tuple[str, float] | None:
    """The formula of `RULES` by which the program reads the form, and the size of the change at 0.5 relative to that at
    1; None where it does not read it.

    Raises ValueError if no formula fits.
    """
    sample, program = samples()[form], hosts.load(host)
    tensors = spelled(sample, host)
    how = How(magnitudes=program.NAMES.magnitude in tensors)
    try:
        found = {s: program.effect(W, tensors, s, how) for s in STRENGTHS}
    except Unread:
        return None
    for formula, compute in RULES.items():
        if all(torch.allclose(found[s], compute(s, sample, found[1.0]), atol=1e-9) for s in STRENGTHS):
            return formula, ((found[0.5] - W).norm() / (found[1.0] - W).norm()).item()
    raise ValueError(f"{host} reads {form} by a formula that is not in the list")


def page() -> str:
    """docs/strength.md."""
    names = COLUMNS
    lines = ["| form | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for form in samples():
        cells = []
        for host in names:
            found = rule(host, form)
            cells.append("not read" if found is None else f"{found[0]}: {found[1]:.2f}")
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    bases = ", ".join(host for host in names if _moves_at_zero(host))
    end = f"\nStrength 0 is not the base weight in: {bases}, for forms with a magnitude or factors.\n" if bases else ""
    return INTRODUCTION + "\n".join(lines) + "\n" + end


def _moves_at_zero(host: str) -> bool:
    """Whether a form that the program reads changes the weight at strength 0."""
    for sample in samples().values():
        if keys.SET in sample.tensors:
            continue
        try:
            how = How(magnitudes=hosts.load(host).NAMES.magnitude in spelled(sample, host))
            if not torch.allclose(hosts.load(host).effect(W, spelled(sample, host), 0.0, how), W):
                return True
        except Unread:
            continue
    return False


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(script(main))
