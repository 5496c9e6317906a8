"""Training of the demo's judges: on the names outside of SUBJECTS that both emoji sets draw, on one CPU core.

`train(arguments)` resumes from the checkpoints in `arguments.work` and returns the judges. 150 of the names are held
out: all choices (steps, augmentation, the limit of "none") were made on them, none on the subjects.
"""

# diffusers annotates tuples of any length as tuple[int]:
# pyright: reportArgumentType=false
import argparse
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from modules.judges import judges as judging
from scripts import demo_augment, demo_data, demo_subject_training, demo_trunk
from scripts.demo_training import Stage, draw, fast

PAIRS = 128
"""Names in a batch; both drawings of each."""
AWAY = ("Flags", "Component")
"""Categories that are not used to train the subject: their names differ in what no subject differs in."""
HELD = ("Smileys & Emotion", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
"""Categories that the 150 names are taken from: those of the subjects."""
OFTEN = {"Flags": 0.15, "People & Body": 0.3, "Symbols": 0.5, "Component": 0.1}
"""How often a category is used relative to the others: its pictures are nearly alike, and unlike the subjects."""
COPY = 0.95
"""Correlation from which a drawing counts as a subject's in other colours."""
COPIES = 7
"""Changed copies of a drawing, beside itself, that the limit of "none" is set on."""
CHANGES = (
    (0.0, 0.0, 0.0), (0.0, 0.0, 0.3), (0.0, 0.0, 0.6), (1.0, 0.15, 0.0), (1.0, 0.15, 0.3), (1.0, 0.15, 0.6),
    (1.0, 0.3, 0.3), (1.0, 0.3, 0.6), (1.0, 0.5, 1.0), (1.0, 0.5, 0.0), (0.3, 0.3, 1.0),
)  # fmt: skip
"""Strengths of moving, tinting and smearing each copy of a picture in training the style."""


@dataclass
class Names:
    """What both sets draw: names, categories, and pictures `(set, name, 3, SIZE, SIZE)` uint8, Twemoji's first."""

    names: list[str]
    categories: list[str]
    pictures: Tensor

    def floats(self, numbers: Tensor) -> Tensor:
        """Both drawings of some names: (set, n, 3, SIZE, SIZE) in [0, 1]."""
        return self.pictures[:, numbers].float() / 255


@dataclass
class Parts:
    """Indices of names: for training, held out for choices, and the subjects, for testing."""

    learned: Tensor
    held: Tensor
    judged: Tensor


def read_names(arguments: argparse.Namespace) -> Names:
    """All names that both packages draw."""
    sets = []
    for vendor in ("twitter", "google"):
        source = vars(arguments)[vendor] or demo_data.pack(vendor, arguments.work)
        sets.append({picture.names[0]: picture for picture in demo_data.read_pictures(vendor, source)})
    names = [name for name in sets[0] if name in sets[1]]
    pixels = np.stack([[pictures[name].pixels() for name in names] for pictures in sets])
    categories = [sets[0][name].category for name in names]
    return Names(names, categories, torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).contiguous())


def split(known: Names) -> Parts:
    """Names with a drawing that is a subject's in other colours (hearts, an open lock) are in no part."""
    judged = torch.tensor([known.names.index(name) for name in demo_data.SUBJECTS])
    outlines = F.avg_pool2d(known.pictures.float().mean(2), 2).flatten(2)  # (set, name, SIZE * SIZE / 4)
    outlines = F.normalize(outlines - outlines.mean(2, keepdim=True), dim=2)
    copies = (outlines @ outlines[:, judged].transpose(1, 2)).amax((0, 2)) > COPY  # the subjects themselves, too
    free = [number for number in range(len(known.names)) if not copies[number]]
    alike = torch.tensor([number for number in free if known.categories[number] in HELD])
    held = alike[torch.randperm(len(alike), generator=draw(0, 0))[:150]]
    return Parts(torch.tensor(sorted(set(free) - set(held.tolist()))), held, judged)


# -- style and "none" -------------------------------------------------------------------------------------------------


def frequencies(known: Names, numbers: Tensor) -> Tensor:
    """How often each name is used."""
    often = [0.1 if known.names[n].startswith("clock face") else OFTEN.get(known.categories[n], 1.0) for n in numbers]
    return torch.tensor(often)


def train_style(known: Names, parts: Parts, arguments: argparse.Namespace) -> nn.Sequential:
    """The network that distinguishes Noto from Twemoji. Colours change less than shapes: each set has its own."""
    torch.manual_seed(arguments.seed)
    net = judging.style_net()
    stage = Stage("style", net, arguments.style_steps, 2e-3, arguments.work)
    often, noto = frequencies(known, parts.learned), torch.arange(2).repeat_interleave(2 * PAIRS).float()

    @cache
    def seen() -> Tensor:
        drawn = known.floats(parts.learned).flatten(0, 1)
        copies = [(change, draw(arguments.seed, -1 - number)) for number, change in enumerate(CHANGES)]
        return torch.stack([seen_by(net[0], drawn, change, chance) for change, chance in copies])

    def loss_of(step: int) -> Tensor:
        chance = draw(arguments.seed, step)
        chosen = torch.multinomial(often, 2 * PAIRS, generator=chance)
        variants = torch.randint(len(CHANGES), (4 * PAIRS,), generator=chance)
        said = net[1:](seen()[variants, torch.cat([chosen, chosen + len(often)])].float())
        return F.binary_cross_entropy_with_logits(said[:, 0], noto)

    stage.run(loss_of, every=100)
    return net.eval()


def seen_by(front: nn.Module, pictures: Tensor, strengths: tuple[float, float, float], chance: Generator) -> Tensor:
    """Style features of augmented pictures: (n, 1080) float16."""
    return torch.cat([front(demo_augment.changed(some, strengths, chance)).half() for some in pictures.split(64)])


def train_none(known: Names, parts: Parts, arguments: argparse.Namespace) -> nn.Sequential:
    """The network that distinguishes unrecognizable pictures from drawings."""
    torch.manual_seed(arguments.seed)
    net = judging.none_net()
    stage = Stage("none", net, arguments.none_steps, 2e-3, arguments.work)
    often, none = frequencies(known, parts.learned), torch.arange(2).repeat_interleave(PAIRS).float()

    def loss_of(step: int) -> Tensor:
        chance = draw(arguments.seed, step)
        pairs = known.floats(parts.learned[torch.multinomial(often, PAIRS, generator=chance)])
        drawn = demo_augment.tinted(demo_augment.moved(pairs.flatten(0, 1), 0.7, chance), 0.7, chance)
        pictures = torch.cat([drawn[::2], demo_augment.damaged(drawn[1::2], chance)])
        soft = torch.rand(len(pictures), generator=chance) < 0.6
        pictures[soft] = demo_augment.smeared(pictures[soft], 0.7, chance)
        maps = net[0](pictures)
        with fast():
            said = net[1:](maps).float()
        return F.binary_cross_entropy_with_logits(said[:, 0], none)

    stage.run(loss_of, every=100)
    return net.eval()


# -- the judges -------------------------------------------------------------------------------------------------------


def train(known: Names, parts: Parts, arguments: argparse.Namespace) -> judging.Judges:
    """All networks, prototypes of the subjects in both sets, and the limit for "none"."""
    trunk = demo_trunk.pretrained(arguments.trunk)
    learned = torch.tensor([number for number in parts.learned.tolist() if known.categories[number] not in AWAY])
    subject, others = demo_subject_training.train_subject(known.pictures[:, learned], trunk, arguments.work)
    style, none = train_style(known, parts, arguments), train_none(known, parts, arguments)
    with torch.inference_mode():
        prototypes = prototypes_of(subject, known.floats(parts.judged))
        near_all = (prototypes @ others.T).topk(10).values.mean(2)
        held = subject(known.floats(parts.held).flatten(0, 1)).chunk(2)
        print("{:.1%} and {:.1%} of the held-out names are found".format(*demo_subject_training.found(*held)))
        limit = limit_for(none, known.floats(parts.held).flatten(0, 1), draw(arguments.seed, 0))
    return judging.Judges(subject, style, none, demo_data.SUBJECTS, prototypes, near_all, limit)


def prototypes_of(net: nn.Module, pairs: Tensor) -> Tensor:
    """Unit vectors `(set, n, size)`: the mean embedding of each picture and its mirror image."""
    embedded = net(demo_subject_training.mirrored(pairs).flatten(0, 2)).view(2, *pairs.shape[:2], -1)
    return F.normalize(embedded.sum(0), dim=2)


def limit_for(net: nn.Module, pictures: Tensor, chance: Generator) -> float:
    """The output for "none" that 1 % of real drawings exceed, unchanged and slightly augmented."""
    kinds = [pictures, *(demo_augment.varied(pictures, 0.5, chance) for _ in range(COPIES))]
    return float(torch.cat([net(kind)[:, 0] for kind in kinds]).quantile(0.99))
