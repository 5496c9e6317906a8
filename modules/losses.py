"""The loss functions: the error of a prediction, element by element, and its mean over a sample."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from modules.objectives import Process

THRESHOLDED = ("huber", "smooth_l1", "pseudo_huber", "pseudo_smooth_l1")
"""Kinds with a threshold."""


@dataclass(frozen=True)
class Loss:
    """A loss function."""

    kind: str = "mse"
    """"mse", "l1", "log_cosh", one of `THRESHOLDED`, or "mix"."""
    delta: float = 0.1
    """The threshold."""
    schedule: str = "constant"
    """How the threshold follows the noise level, see `thresholds`."""
    mix: tuple[tuple[str, float], ...] = ()
    """Kinds and weights of a "mix"."""

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """Kinds and weights of what is added."""
        return tuple(one for one in self.mix if one[1]) if self.kind == "mix" else ((self.kind, 1.0),)


def thresholds(loss: Loss, process: Process, times: Tensor) -> Tensor | None:
    """The threshold of each sample at its time, `(n)` float64 for `(n)`; None where it is the same for all.

    Both fall from 1 without noise to `delta`. "exponential": `delta^(t / T)`. "snr": `(1 - delta) / (1 + s)^2 + delta`
    with `s` the ratio of noise to signal. As kohya-ss/sd-scripts has them (`get_huber_threshold_if_needed`), after
    Khrapov et al., arXiv 2403.16728.
    """
    if loss.schedule == "constant" or not any(kind in THRESHOLDED for kind, _ in loss.parts):
        return None
    if loss.schedule == "exponential":
        return torch.exp(math.log(loss.delta) / process.count * times.double())
    assert loss.schedule == "snr", loss.schedule
    ratio = process.snr(times).double().rsqrt()
    return (1 - loss.delta) / (1 + ratio).square() + loss.delta


def errors(
    loss: Loss, predicted: Tensor, wanted: Tensor, parts: Tensor | None = None, deltas: Tensor | None = None
) -> Tensor:
    """Mean error of each sample, `(n, ...) -> (n)`, in float32 (float64 for predictions in it). `parts` are weights of
    its elements, `(n, 1, h, w)` for `(n, c, h, w)`; `deltas` are the samples' own `thresholds`."""
    dtype = torch.float64 if predicted.dtype == torch.float64 else torch.float32
    predicted, wanted = predicted.to(dtype), wanted.to(dtype)
    delta = loss.delta if deltas is None else deltas.to(dtype).view(-1, *[1] * (predicted.ndim - 1))
    kinds = [(_each(kind, delta, predicted, wanted), weight) for kind, weight in loss.parts]
    (each, weight), *more = kinds
    each = each if weight == 1 else weight * each
    for other, weight in more:
        each = each + weight * other
    if parts is not None:
        each = each * parts.to(dtype)
    return each.flatten(1).mean(1)


def _each(kind: str, delta: float | Tensor, predicted: Tensor, wanted: Tensor) -> Tensor:
    """The error of each element. `delta`: a number, or one that can be multiplied with the elements.

    "huber" and "smooth_l1" are torch's. Their smooth forms are those of sd-scripts: with `d` the difference and `c` the
    threshold, `2 c (sqrt(d^2 + c^2) - c)`, which is nearly `d^2` where `d` is small, and the same divided by `c`.
    """
    if kind == "mse":
        return (predicted - wanted).square()
    if kind == "l1":
        return (predicted - wanted).abs()
    if kind == "log_cosh":
        difference = predicted - wanted
        return difference + functional.softplus(-2 * difference) - math.log(2)
    if kind in ("pseudo_huber", "pseudo_smooth_l1"):
        square = (predicted - wanted).square()
        soft = 2 * square / (torch.sqrt(square + delta**2) + delta)  # the difference below, without its cancellation
        return soft * delta if kind == "pseudo_huber" else soft
    assert kind in ("huber", "smooth_l1"), kind
    if not isinstance(delta, Tensor):
        if kind == "huber":
            return functional.huber_loss(predicted, wanted, reduction="none", delta=delta)
        return functional.smooth_l1_loss(predicted, wanted, reduction="none", beta=delta)
    scaled = functional.huber_loss(predicted / delta, wanted / delta, reduction="none", delta=1.0)
    return scaled * delta.square() if kind == "huber" else scaled * delta
