"""Training of the demo's judge of subjects: a published trunk with a linear head.

The trunk is frozen. The head is a linear discriminant: directions in which the drawings of different names differ most,
and the two drawings of a name, each also mirrored, least. It is deterministic.
"""

import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from modules.judges.trunk import EMBEDDING, FEATURES, SubjectNet, Trunk

SHRINKAGE = 0.5
"""Shrinkage: how much of the mean variance is added to each one, since there are few drawings for so many features."""


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


def train_subject(pairs: Tensor, trunk: Trunk, work: Path) -> tuple[SubjectNet, Tensor]:
    """The network, and its embeddings `(2 * set * n, EMBEDDING)` of what it learned from: drawings and mirror images.

    `pairs (set, n, 3, SIZE, SIZE)` uint8.
    """
    drawn = mirrored(pairs).flatten(0, 1)  # (kind, n, ...): four pictures of each name
    features = features_of(trunk, drawn.flatten(0, 1), work / "features.pt")
    net = SubjectNet(trunk)
    net.usual.copy_(features.mean(0))
    net.spread.copy_(features.std(0).clamp(1e-3))
    even = ((features - net.usual) / net.spread).unflatten(0, (len(drawn), -1))
    with torch.no_grad():
        net.head.weight.copy_(discriminants(even, EMBEDDING))
        return net.eval(), net.of_features(features)


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
