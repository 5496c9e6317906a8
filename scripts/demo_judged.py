"""Accuracy of the demo's judges on unseen pictures: drawings of the subjects, also changed and through an autoencoder.

Subjects are classified with the prototypes of one set on the other set's drawings. An answer "none" counts as wrong.
"""

# diffusers annotates tuples of any length as tuple[int], and outputs as their tuple form:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from modules.judges.judges import NONE, STYLES, Answer, Judges
from scripts import demo_augment
from scripts.demo_augment import DAMAGES

SEED = 20_000
"""Seed of the damage that is judged, which was not used in training."""

CHANGED = {"bent and smeared drawings": (1.0, 0.15, 1.0), "recoloured, bent and smeared drawings": (1.0, 1.0, 1.0)}
"""Kinds of drawings that are judged beside the plain ones: strengths of moving, tinting and smearing."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    count: int
    right: int
    wanted: float
    """Required share."""
    wrong: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of correct answers."""
        return self.right / self.count

    @property
    def reached(self) -> bool:
        """Whether the required share is reached."""
        return self.share >= self.wanted


def judged(judges: Judges, pairs: Tensor, vae: Path | None) -> list[Row]:
    """The table for both drawings of all subjects, `pairs (set, name, 3, SIDE, SIDE)` in [0, 1]."""
    chance = torch.Generator().manual_seed(SEED + 1)
    kinds = {"drawings": pairs}
    for kind, strengths in CHANGED.items():
        kinds[kind] = demo_augment.changed(pairs.flatten(0, 1), strengths, chance).unflatten(0, (2, -1))
    if vae is not None:
        kinds["drawings through the autoencoder"] = through(vae, pairs)
    rows = [row for kind, pictures in kinds.items() for row in drawings(judges, pictures, kind)]
    chance = torch.Generator().manual_seed(SEED)
    return rows + [damage(judges, pairs.flatten(0, 1), name, chance) for name in DAMAGES]


def drawings(judges: Judges, pairs: Tensor, kind: str) -> Iterator[Row]:
    """Subject by the other set's prototypes, style, and how many are not classified as "none"."""
    for own, other in ((1, 0), (0, 1)):
        answers = judges.answers(pairs[own], slice(other, other + 1))
        subjects = [answer.subject for answer in answers]
        what = f"subject: {STYLES[own]} {kind}, {STYLES[other]} prototypes"
        yield row(what, subjects, list(judges.names), judges.names, 0.97)
    answers = [judges.answers(half) for half in pairs]
    in_use = [answer.subject for half in answers for answer in half]
    yield row(f"subject, as in use: {kind} of both, prototypes of both", in_use, list(judges.names) * 2,
              judges.names * 2, 0.97)
    for style, half in zip(STYLES, answers, strict=True):
        styles = [answer.style for answer in half]
        yield row(f"style: {style} {kind}", styles, [style] * len(styles), judges.names, 0.97)
    every: list[Answer] = sum(answers, [])
    named = ["named" if answer.subject != NONE else NONE for answer in every]
    yield row(f'not "none": {kind} of both', named, ["named"] * len(named), judges.names * 2, 0.98)


def damage(judges: Judges, pictures: Tensor, name: str, chance: Generator) -> Row:
    """How many damaged drawings are classified as "none"."""
    subjects = [answer.subject for answer in judges.answers(DAMAGES[name](pictures, chance))]
    return row(f'"none": {name}', subjects, [NONE] * len(subjects), judges.names * 2, 0.9)


def row(what: str, said: list[str], right: list[str], names: tuple[str, ...], wanted: float) -> Row:
    """Compare the answers for `names` with the correct ones."""
    pairs = list(zip(names, said, right, strict=True))
    wrong = tuple(f"{name} ({answer})" for name, answer, truth in pairs if answer != truth)
    return Row(what, len(pairs), len(pairs) - len(wrong), wanted, wrong)


@torch.no_grad()
def through(vae: Path, pairs: Tensor) -> Tensor:
    """Pictures in [0, 1], encoded and decoded by the autoencoder in this folder."""
    import diffusers

    coder = diffusers.AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32).eval()
    given = [coder(some * 2 - 1).sample for some in pairs.flatten(0, 1).split(32)]
    return (torch.cat(given) / 2 + 0.5).clamp(0, 1).unflatten(0, (2, -1))


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = [f"| {row.what} | {row.right} of {row.count} | {row.share:.1%} | {row.wanted:.0%} |" for row in rows]
    return "\n".join(["| what | right | share | wanted |", "|---|---|---|---|", *lines])
