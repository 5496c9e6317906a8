"""Small classifiers of the demo's pictures: which subject, and in which style.

`judge(pictures, subjects)` only needs torch, safetensors and demo/judges.safetensors. The subject is that of the
nearest prototype: the mean embedding of a subject's Twemoji or Noto drawing and its mirror image, by a network that was
trained on photographs. Two more were trained from scratch. One classifies the style, and one "none": unrecognizable
pictures, blurred, half missing or noise. demo/JUDGES.md describes their training and accuracy;
`python scripts/demo_quality.py --train` remakes them.
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

from modules.judges.trunk import SubjectNet
from modules.tensorfile import read_header

FILE = Path(__file__).resolve().parents[2] / "demo" / "judges.safetensors"
SIDE = 64
"""Pixels of a picture's side, as input of the networks."""
STYLES = ("Twemoji", "Noto")
NONE = "none"
OWN = ("prototypes", "near_all")
"""Tensors of the file beside the networks."""
NEAR_ALL = 0.5
"""How much of a prototype's similarity to other things is subtracted from its similarity."""


def block(channels: int, out: int, size: int, stride: int) -> list[nn.Module]:
    """A convolution with its normalization and rectifier."""
    return [nn.Conv2d(channels, out, size, stride, size // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


class Outlines(nn.Module):
    """Input features instead of pixels: directions of edges and the colour around, on a grid of 16.

    Not learned: that would take longer than all else, and more drawings than there are. `(n, 3, 64, 64)` in [0, 1]
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


class Palette(nn.Module):
    """Features of a style, over the whole picture: which colours there are, which of them cover flat areas, and how
    steep the steps between neighbours are at four scales. `(n, 3, 64, 64)` in [0, 1] to `(n, 1080)`. Not learned.
    """

    COLOURS, SIZES = 8, 14
    """Bins for values of each channel, and for sizes of steps; values in between count for both neighbours."""

    def forward(self, pictures: Tensor) -> Tensor:
        """A few pictures at a time, which stay in the processor's cache."""
        return torch.cat([self.of_some(some) for some in pictures.split(8)])

    def of_some(self, pictures: Tensor) -> Tensor:
        """White paper has no weight in any of it."""
        half = F.avg_pool2d(pictures, 2)
        ink = (8 * (1 - half.amin(1, keepdim=True))).clamp(0, 1)  # (n, 1, 32, 32)
        found = [self.colours(half, ink), self.colours(half, ink * (1 - 12 * self.steps(half)).clamp(0, 1))]
        ink = (8 * (1 - pictures.amin(1, keepdim=True))).clamp(0, 1)
        for _ in range(4):
            found.append(self.sizes(self.steps(pictures), ink))
            pictures, ink = F.avg_pool2d(pictures, 2), F.avg_pool2d(ink, 2)
        return torch.cat(found, 1)

    def colours(self, pictures: Tensor, weight: Tensor) -> Tensor:
        """Root of each colour's share of the weight: (n, COLOURS ** 3)."""
        values = torch.arange(self.COLOURS).view(1, 1, -1, 1)
        near = (1 - ((self.COLOURS - 1) * pictures.flatten(2).unsqueeze(2) - values).abs()).clamp(0)  # (n, 3, 8, h w)
        weight = weight.flatten(2)
        pairs = (near[:, 0].unsqueeze(2) * near[:, 1].unsqueeze(1)).flatten(1, 2) * weight
        return ((pairs @ near[:, 2].transpose(1, 2)).flatten(1) / (weight.sum(2) + 20)).sqrt()

    def steps(self, pictures: Tensor) -> Tensor:
        """Norm of each pixel's difference from its two next ones: (n, 1, h, w)."""
        wide = F.pad(pictures, (0, 1, 0, 1), mode="replicate")
        across, down = wide[..., :-1, 1:] - pictures, wide[..., 1:, :-1] - pictures
        return (across.square() + down.square()).sum(1, keepdim=True).sqrt()

    def sizes(self, steps: Tensor, weight: Tensor) -> Tensor:
        """Root of the share of each size, on a scale of logarithms: (n, SIZES)."""
        sizes = torch.linspace(-7, -0.5, self.SIZES).view(1, -1, 1, 1)
        near = (1 - 2 * ((steps + 1e-3).log() - sizes).abs()).clamp(0) * weight
        return (near.sum((2, 3)) / (weight.sum((2, 3)) + 1)).sqrt()


def style_net() -> nn.Sequential:
    """Pictures to a number `(n, 1)`, above 0 for Noto."""
    inputs = 2 * Palette.COLOURS**3 + 4 * Palette.SIZES
    layers = [Palette(), nn.BatchNorm1d(inputs), nn.Dropout(0.4), nn.Linear(inputs, 128), nn.ReLU(), nn.Dropout(0.4)]
    return nn.Sequential(*layers, nn.Linear(128, 1))


def none_net() -> nn.Sequential:
    """Pictures to a number `(n, 1)`: the higher, the less recognizable."""
    layers = [Outlines(), nn.BatchNorm2d(19), *block(19, 64, 3, 1), *block(64, 96, 3, 2), *block(96, 96, 3, 1)]
    layers += [*block(96, 128, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(128, 1))


# -- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """The classification of one picture."""

    subject: str
    """A name, or "none"."""
    style: str
    """"Twemoji" or "Noto", or "none"."""


@dataclass(frozen=True)
class Facts:
    """The classification of all pictures; shares are of all pictures."""

    subject: float
    """Show the subject of their prompt."""
    noto: float
    """Are drawn in Noto's style."""
    none: float
    """Are unrecognizable."""
    answers: tuple[Answer, ...]
    """One for each picture."""


@dataclass(frozen=True)
class Judges:
    """The networks with their prototypes and limits."""

    subject: SubjectNet
    style: nn.Sequential
    none: nn.Sequential
    names: tuple[str, ...]
    prototypes: Tensor
    """Embeddings `(set, name, size)`, Twemoji's first."""
    near_all: Tensor
    """A prototype's similarity to drawings of other things `(set, name)`: a plain disc is similar to many of them."""
    limit: float
    """The output of `none` above which a picture is "none"."""

    @torch.inference_mode()
    def answers(self, pictures: Tensor, sets: slice = slice(None)) -> list[Answer]:
        """Of `pictures (n, 3, SIDE, SIDE)` in [0, 1], compared with the prototypes of these sets."""
        named = torch.cat([self.none(some)[:, 0] <= self.limit for some in pictures.split(64)])
        answers = [Answer(NONE, NONE)] * len(pictures)
        shown = named.nonzero()[:, 0]  # the rest are "none"
        for numbers in shown.split(64) if len(shown) else ():
            some = pictures[numbers]
            likeness = self.subject(some) @ self.prototypes[sets].transpose(1, 2)  # (set, n, name)
            nearest = (likeness - NEAR_ALL * self.near_all[sets].unsqueeze(1)).amax(0).argmax(1)
            said = zip(numbers.tolist(), nearest.tolist(), self.style(some)[:, 0].tolist(), strict=True)
            for number, name, noto in said:
                answers[number] = Answer(self.names[name], STYLES[noto > 0])
        return answers


def judge(pictures: list[Image.Image], subjects: list[str], file: Path = FILE) -> Facts:
    """The judges' answers for `pictures`, each drawn for the subject beside it (a name, without words of style).

    Raises ValueError for an unknown subject and for no pictures.
    """
    check_subjects(file, subjects)
    judges = load(file)
    if not pictures:
        raise ValueError("no pictures to judge")
    answers = judges.answers(torch.stack([tensor(picture) for picture in pictures]))
    right = [answer.subject == subject for answer, subject in zip(answers, subjects, strict=True)]
    styles = [answer.style for answer in answers]
    count = len(answers)
    return Facts(sum(right) / count, styles.count(STYLES[1]) / count, styles.count(NONE) / count, tuple(answers))


def check_subjects(file: Path, subjects: list[str]) -> None:
    """Raise ValueError if `file` is not one of judges, or if they do not know one of the subjects. Reads its header."""
    names = json.loads(_told(file)["names"])
    unknown = sorted(set(subjects) - set(names))
    if unknown:
        raise ValueError(f"{file} does not know the subject {unknown[0]!r}; it knows {', '.join(names[:5])} and "
                         f"{len(names) - 5} more (`names` in its metadata)")


def subject_of(prompt: str) -> str:
    """The subject that a prompt asks for: what stands before the first comma."""
    return prompt.partition(",")[0].strip()


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
    nets = {"subject": judges.subject, "style": judges.style, "none": judges.none}
    tensors = {f"{part}.{name}": value for part, net in nets.items() for name, value in net.state_dict().items()}
    tensors |= {name: vars(judges)[name] for name in OWN}
    told = {"names": json.dumps(judges.names), "limit": str(judges.limit), "made": json.dumps(facts)}
    save_file({name: value.half().contiguous() for name, value in tensors.items()}, file, told)


@cache
def load(file: Path = FILE) -> Judges:
    """The judges in `file`. Raises ValueError if it is missing or another file."""
    told = _told(file)
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118  (no dictionary)
    nets = {"subject": SubjectNet(), "style": style_net(), "none": none_net()}
    for part, net in nets.items():
        own = {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
        net.load_state_dict(own)
        net.eval().requires_grad_(False)
    own = {name: tensors[name] for name in OWN}
    return Judges(**nets, **own, names=tuple(json.loads(told["names"])), limit=float(told["limit"]))


def _told(file: Path) -> dict[str, str]:
    """The metadata of a file of judges."""
    if not file.is_file():
        raise ValueError(f"{file} is missing; `python scripts/demo_quality.py --train` makes it")
    told = read_header(file).metadata
    if not {"names", "limit"} <= told.keys():
        raise ValueError(f"{file} is not a file of judges: its metadata has no names and no limit")
    return told
