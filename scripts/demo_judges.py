"""Who says what a picture of the demo shows, and in whose style: two small classifiers, trained from scratch.

`judge(pictures, subjects)` needs torch, safetensors and demo/judges.safetensors alone. The subject is that of the
nearest prototype: the mean embedding of a subject's Twemoji or Noto drawing under a few changes. Style and "none"
(nothing that could be named: blurred, half missing, noise) come from a second network. demo/JUDGES.md has how they were
trained and judged in turn; `python scripts/demo_quality.py --train` remakes them.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

FILE = Path(__file__).resolve().parents[1] / "demo" / "judges.safetensors"
SIDE = 64
"""Pixels of a picture's side, as the networks see it."""
STYLES = ("Twemoji", "Noto")
NONE = "none"
SHIFTS = ((2, 2), (0, 0), (4, 4), (0, 4), (4, 0))
"""Where the views of a picture begin in it with a margin of 2; its embedding is their mean."""


def block(channels: int, out: int, size: int, stride: int) -> list[nn.Module]:
    """A convolution with its normalization and rectifier."""
    return [nn.Conv2d(channels, out, size, stride, size // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


class Outlines(nn.Module):
    """What is looked at in place of colours of pixels: which way edges run and what colour is around, on a grid of 16.

    Not learned: that takes a network longer than all else, and more drawings than there are. `(n, 3, 64, 64)` in [0, 1]
    to `(n, 19, 16, 16)`: 8 directions in cells of 4 and of 12 pixels (of all edges there, as in a histogram of
    gradients), and the mean colour.
    """

    def forward(self, pictures: Tensor) -> Tensor:
        """A few pictures at a time, which stay in the processor's cache."""
        return torch.cat([self.of_some(some) for some in pictures.split(8)])

    def of_some(self, pictures: Tensor) -> Tensor:
        """Directions as twice the angle, so that light to dark and dark to light are one, summed over the colours."""
        margin = F.pad(pictures, (1, 1, 1, 1), value=1.0)
        one, other = margin[..., 1:, 1:] - margin[..., :-1, :-1], margin[..., :-1, 1:] - margin[..., 1:, :-1]
        double = torch.stack([(2 * one * other).sum(1), (one.square() - other.square()).sum(1)], 1)  # (n, 2, 65, 65)
        size = (one.square() + other.square()).sum(1, keepdim=True).clamp(1e-9)
        double, size = F.avg_pool2d(double, 2, 1), F.avg_pool2d(size, 2, 1)  # (n, 2, 64, 64)
        double = double / size.pow(0.75)
        twice = torch.arange(8).view(8, 1, 1) * (math.pi / 4)
        edges = (double[:, :1] * twice.cos() + double[:, 1:] * twice.sin()).clamp_(0).square_()  # (n, 8, 64, 64)
        fine = F.avg_pool2d(edges, 4)
        coarse = F.avg_pool2d(F.pad(fine, (1, 1, 1, 1)), 3, 1)
        colour = 2 * F.avg_pool2d(pictures - 0.8, 8, 4, 2)
        return torch.cat([*((m / (m.sum(1, keepdim=True) + 0.1)).sqrt() for m in (fine, coarse)), colour], 1)


def subject_net(size: int = 192) -> nn.Sequential:
    """Pictures to embeddings `(n, size)` in which drawings of one thing are near. Keeps a coarse sense of place."""
    layers = [Outlines(), nn.BatchNorm2d(19), *block(19, 64, 3, 1), *block(64, 128, 3, 2), nn.Dropout2d(0.1)]
    layers += [*block(128, 128, 3, 1), *block(128, 192, 3, 2), *block(192, 48, 1, 1), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(48 * 16, size))


def style_net(widths: tuple[int, ...] = (16, 32, 64, 96)) -> nn.Sequential:
    """Pictures to two numbers `(n, 2)`: above 0 for Noto, and the higher the more like nothing that could be named."""
    layers = block(3, widths[0], 5, 2)
    for channels, out in zip(widths, widths[1:], strict=False):
        layers += [*block(channels, out, 3, 2), *block(out, out, 3, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 2))


# -- what they say ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What one picture was taken for."""

    subject: str
    """A name, or "none"."""
    style: str
    """"Twemoji" or "Noto", or "none"."""


@dataclass(frozen=True)
class Facts:
    """What all pictures were taken for; shares are of all pictures."""

    subject: float
    """Show what was asked for."""
    noto: float
    """Are drawn in Noto's style."""
    none: float
    """Show nothing that could be named."""
    answers: tuple[Answer, ...]
    """One for each picture."""


@dataclass(frozen=True)
class Judges:
    """The networks with what they compare with."""

    subject: nn.Sequential
    style: nn.Sequential
    names: tuple[str, ...]
    prototypes: Tensor
    """Unit vectors `(set, name, size)`, Twemoji's first."""
    limit: float
    """What the second number of the style network is above for "none"."""

    @torch.inference_mode()
    def answers(self, pictures: Tensor, sets: slice = slice(None)) -> list[Answer]:
        """Of `pictures (n, 3, SIDE, SIDE)` in [0, 1], compared with the prototypes of these sets."""
        found = []
        for some in pictures.split(64):
            near = (self.embedded(some) @ self.prototypes[sets].transpose(1, 2)).amax(0)  # (n, name)
            for number, (noto, none) in zip(near.argmax(1).tolist(), self.style(some).tolist(), strict=True):
                named = none <= self.limit
                found.append(Answer(self.names[number], STYLES[noto > 0]) if named else Answer(NONE, NONE))
        return found

    def embedded(self, pictures: Tensor) -> Tensor:
        """Unit vectors `(n, size)`."""
        return embedded(self.subject, pictures)


def embedded(net: nn.Module, pictures: Tensor) -> Tensor:
    """Unit vectors `(n, size)`: the mean over a picture and the same shifted by two pixels along both diagonals."""
    wide = F.pad(pictures, (2, 2, 2, 2), value=1.0)
    views = [wide[..., row : row + SIDE, column : column + SIDE] for row, column in SHIFTS]
    return F.normalize(sum(F.normalize(net(view), dim=1) for view in views), dim=1)


def judge(pictures: list[Image.Image], subjects: list[str], file: Path = FILE) -> Facts:
    """What the judges say of `pictures`, each drawn for the subject beside it (a name, without words of style).

    Raises ValueError for a subject that they do not know and for no pictures.
    """
    judges = load(file)
    unknown = sorted(set(subjects) - set(judges.names))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no subject that {file.name} knows; its subjects are those of SUBJECTS in "
                         "scripts/demo_data.py")
    if not pictures:
        raise ValueError("there are no pictures to judge")
    answers = judges.answers(torch.stack([tensor(picture) for picture in pictures]))
    right = [answer.subject == subject for answer, subject in zip(answers, subjects, strict=True)]
    styles = [answer.style for answer in answers]
    count = len(answers)
    return Facts(sum(right) / count, styles.count(STYLES[1]) / count, styles.count(NONE) / count, tuple(answers))


def tensor(picture: Image.Image) -> Tensor:
    """`(3, SIDE, SIDE)` in [0, 1], on white."""
    on_white = Image.new("RGBA", picture.size, "white")
    on_white.alpha_composite(picture.convert("RGBA"))
    small = on_white.convert("RGB")
    if small.size != (SIDE, SIDE):
        small = small.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


# -- their file -------------------------------------------------------------------------------------------------------


def save(judges: Judges, facts: dict[str, float | int], file: Path) -> None:
    """Write the networks in float16, with `facts` (how they were made) for whoever reads the file's metadata."""
    tensors = {f"{part}.{name}": value for part, net in (("subject", judges.subject), ("style", judges.style))
               for name, value in net.state_dict().items()}
    tensors["prototypes"] = judges.prototypes
    told = {"names": json.dumps(judges.names), "limit": str(judges.limit), "made": json.dumps(facts)}
    save_file({name: value.half().contiguous() for name, value in tensors.items()}, file, told)


@cache
def load(file: Path = FILE) -> Judges:
    """The judges in `file`. Raises ValueError if there is none, or if it is not theirs."""
    if not file.is_file():
        raise ValueError(f"{file} is not there; `python scripts/demo_quality.py --train` makes it")
    with safe_open(file, "pt") as opened:
        told = opened.metadata() or {}
        if not {"names", "limit"} <= told.keys():
            raise ValueError(f"{file} is no file of judges: its metadata has no names and no limit")
        tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118  (no dictionary)
    nets = {"subject": subject_net(), "style": style_net()}
    for part, net in nets.items():
        own = {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
        net.load_state_dict(own)
        net.eval().requires_grad_(False)
    return Judges(**nets, names=tuple(json.loads(told["names"])), prototypes=tensors["prototypes"],
                  limit=float(told["limit"]))
