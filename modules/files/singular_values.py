"""The singular values of a layer's change `D = W' - W`: its size, and the number of directions it has.

Stable rank: `||D||_F^2 / ||D||_2^2` (Rudelson and Vershynin, J. ACM 54(4), 2007). Effective rank: the exponential of
the entropy of the singular values divided by their sum (Roy and Vetterli, EUSIPCO 2007). Both are 1 for a single
direction, and r for r equal singular values. Overlap: the normalised subspace similarity of Hu et al., arXiv
2106.09685, section 7.2, eq. 4: `||A^T B||_F^2 / min(i, j)` of orthonormal bases A and B of i and j directions; 0 where
they are orthogonal, 1 where one contains the other.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.adapters import linalg
from modules.adapters.base import Terms
from modules.adapters.layers import Layer
from modules.files import forms

SHARE = 0.9
"""The leading directions of a change are as few as hold this share of its squared norm."""

NEARLY_ONE, FROM_RANK = 1.1, 4
"""A change whose stable rank is below the first, of a rank of at least the second, is nearly of rank 1."""


@dataclass(frozen=True)
class Singular:
    """A change as `left (out, k) diag(values) right (k, fan_in)`, float64, values descending; k may be 0."""

    left: Tensor
    values: Tensor
    right: Tensor
    rank: int
    """The largest rank that the change may have in its form."""

    def leading(self) -> tuple[Tensor, Tensor]:
        """The leading directions (`SHARE`): of the outputs `(out, i)`, of the inputs `(fan_in, i)`."""
        squares = self.values.square()
        before = squares.cumsum(0) - squares
        count = int((before < SHARE * squares.sum()).sum())
        return self.left[:, :count], self.right[:count].mT


@dataclass(frozen=True)
class Spectrum:
    """What the singular values of one layer's change say."""

    spectral_norm: float
    """The largest singular value."""
    frobenius_norm: float
    stable_rank: float
    """0 for a change that is zero."""
    effective_rank: float
    """0 for a change that is zero."""
    rank: int
    """The largest rank that the change may have in its form."""

    @property
    def is_nearly_one(self) -> bool:
        """Whether it is nearly of rank 1, although it may have more."""
        return self.rank >= FROM_RANK and 0 < self.stable_rank < NEARLY_ONE


@dataclass(frozen=True)
class Stacked:
    """Two changes of a layer, added to the same weight."""

    outputs: float
    """Overlap of the leading directions of the outputs, 0 to 1."""
    inputs: float
    """The same of the inputs."""
    directions: tuple[int, int]
    """Leading directions of either. By chance two sets of i and j directions of n overlap by max(i, j) / n."""
    spectral_norm: float
    """Of the sum."""
    growth: float
    """That as a multiple of the larger of the two: 1 where they share no direction, 2 where they are equal."""


def singular(terms: Terms, layer: Layer, base: Callable[[], Tensor]) -> Singular:
    """The change that the terms are. `base`: the layer's weight `(out, fan_in)`, only needed with a rotation or a
    magnitude; everything is computed in float64."""
    terms = forms.expanded(terms)
    if forms.is_pair(terms):
        return of_pair(terms)
    if terms.rotation is None and terms.magnitude is None:
        W = torch.zeros((), dtype=torch.float64).expand(layer.out_features, layer.fan_in)
        given = [t for t in (terms.up, terms.difference) if t is not None]
        W = W.to(given[0].device) if given else W
    else:
        W = base().double()
    left, values, right = linalg.principal(forms.applied(terms, layer, W) - W, min(W.shape))
    return Singular(left, values, right, min(W.shape))


def of_pair(terms: Terms) -> Singular:
    """The product of the pair in `terms` alone, without a dense matrix."""
    assert terms.up is not None and terms.down is not None
    left, values, right = linalg.product_svd(terms.up, terms.down)
    return Singular(left, values, right, len(values))


def spectrum(found: Singular) -> Spectrum:
    """From the singular values."""
    values = found.values
    if not values.any():
        return Spectrum(0.0, 0.0, 0.0, 0.0, found.rank)
    shares = values[values > 0] / values.sum()
    entropy = -(shares * shares.log()).sum()
    largest, whole = values[0].item(), values.norm().item()
    return Spectrum(largest, whole, (whole / largest) ** 2, entropy.exp().item(), found.rank)


def stacked(first: Singular, second: Singular) -> Stacked:
    """Both together. The overlap with a change that is zero is 0."""
    (outputs, inputs), (other_outputs, other_inputs) = first.leading(), second.leading()
    count = max(1, min(outputs.shape[1], other_outputs.shape[1]))
    overlaps = [((A.mT @ B).square().sum() / count).item()
                for A, B in ((outputs, other_outputs), (inputs, other_inputs))]
    up = torch.cat([first.left * first.values, second.left * second.values], 1)
    down = torch.cat([first.right, second.right])
    if len(down) < min(len(up), down.shape[1]):
        together = linalg.product_svd(up, down)[1]
    else:
        together = linalg.principal(up @ down, 1)[1]
    norm = together[0].item() if len(together) else 0.0
    alone = max(values[0].item() if len(values) else 0.0 for values in (first.values, second.values))
    directions = (outputs.shape[1], other_outputs.shape[1])
    return Stacked(overlaps[0], overlaps[1], directions, norm, norm / alone if alone else 0.0)


def note(spectra: Sequence[Spectrum]) -> str:
    """A sentence if most layers that were changed are nearly of rank 1, else empty."""
    able = [one for one in spectra if one.rank >= FROM_RANK and one.stable_rank > 0]
    found = [one for one in able if one.is_nearly_one]
    if 2 * len(found) <= len(able):
        return ""
    median = statistics.median(one.stable_rank for one in able)
    return (f"the changes of {len(found)} of {len(able)} layers are nearly of rank 1 (median stable rank "
            f"{median:.2f}): stacked with other files they may add up in one direction; lower the learning "
            "rate or the rank, or train fewer steps")
