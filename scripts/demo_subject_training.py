"""Training of the demo's judge of subjects: a published trunk with a linear head.

The trunk is frozen. The head is a linear discriminant: directions in which the drawings of different names differ most,
and the two drawings of a name, each also mirrored and changed, least. It is deterministic.
"""

import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from modules.judges.trunk import EMBEDDING, FEATURES, SubjectNet, Trunk
from scripts import demo_augment
from scripts.demo_training import draw

SHRINKAGE = 0.1
"""Shrinkage: how much of the mean variance is added to each one, since there are few drawings for so many features."""
STRENGTHS = (0.7, 1.0, 1.3, 1.6)
"""Of the changed copies of each drawing: without them a bent drawing is taken for another thing."""


def mirrored(pictures: Tensor) -> Tensor:
    """Pictures `(..., height, width)` and their mirror images: (2, ...)."""
    return torch.stack([pictures, pictures.flip(-1)])


@torch.no_grad()
def features_of(trunk: Trunk, pictures: Tensor, file: Path) -> Tensor:
    """The trunk's features of `pictures (n, 3, SIZE, SIZE)` uint8: (n, FEATURES). Resumes from what is in `file`."""
    found = torch.load(file, weights_only=True) if file.exists() else torch.zeros(0, FEATURES)
    part = file.with_suffix(".part")
    left = pictures[len(found) :].split(64) if len(found) < len(pictures) else ()
    for some in tqdm(left, desc=file.stem, unit="batch", mininterval=5):
        found = torch.cat([found, trunk(some.float() / 255)])
        torch.save(found, part)
        part.replace(file)
    return found


def changed(pictures: Tensor) -> Tensor:
    """Copies `(4, n, 3, SIZE, SIZE)` uint8 of drawings `(n, ...)` uint8, bent, tinted and smeared."""
    chance = draw(0, 0)
    copies = [
        torch.cat([demo_augment.varied(some.float() / 255, strength, chance) for some in pictures.split(64)])
        for strength in STRENGTHS
    ]
    return torch.stack([(255 * copy).round().byte() for copy in copies])


def train_subject(pairs: Tensor, trunk: Trunk, work: Path) -> tuple[SubjectNet, Tensor]:
    """The network, and its embeddings `(2 * set * n, EMBEDDING)` of drawings and mirror images that it learned from.

    `pairs (set, n, 3, SIZE, SIZE)` uint8.
    """
    same = mirrored(pairs).flatten(0, 1)
    drawn = torch.cat([same, *(changed(one) for one in pairs)])  # (kind, n, ...): 12 pictures of each name
    features = features_of(trunk, drawn.flatten(0, 1), work / "features.pt")
    net = SubjectNet(trunk)
    net.usual.copy_(features.mean(0))
    net.spread.copy_(features.std(0).clamp(1e-3))
    even = ((features - net.usual) / net.spread).unflatten(0, (len(drawn), -1))
    with torch.no_grad():
        net.head.weight.copy_(discriminants(even, EMBEDDING))
        return net.eval(), net.of_features(features[: same.flatten(0, 1).shape[0]])


def discriminants(features: Tensor, count: int) -> Tensor:
    """Directions `(count, size)` along which names differ most and pictures of one name least, in
    `features (picture, name, size)`; scaled so that pictures of one name vary equally along all of them."""
    means = features.mean(0)
    within = (features - means).flatten(0, 1)
    scatter = within.T @ within / len(within)
    scatter += SHRINKAGE * scatter.diagonal().mean() * torch.eye(len(scatter))
    white = torch.linalg.inv(torch.linalg.cholesky(scatter))
    across = (means - means.mean(0)) @ white.T
    head = torch.linalg.svd(across, full_matrices=False).Vh[:count] @ white
    return head / (head.square().mean().sqrt() * math.sqrt(features.shape[2]))


def found(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Share of unit vectors `(n, size)` nearest to their partner among all: one's among the other's, and reversed."""
    near, right = one @ other.T, torch.arange(len(one))
    return float((near.argmax(1) == right).float().mean()), float((near.argmax(0) == right).float().mean())
