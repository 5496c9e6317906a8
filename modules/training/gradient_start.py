"""Initial values from the data: the directions in which the loss falls fastest, before the first step.

Where a method's options ask for it, `down` of a low-rank pair starts as the largest right singular vectors of the
gradient of the loss with respect to the layer's weight, and `up` at zero. This is ours; the idea is LoRA-GA's
(arXiv 2407.05000), which starts both away from zero and subtracts their product from the base. With `up` at zero
nothing has to be subtracted, the adapter starts as the identity, and the change by the first step of gradient descent,
`-lr G down^T down`, is the best approximation of the full one, `-lr G`, that has this rank (Eckart-Young).

The gradient G `(out, fan_in)` itself is never formed. While `up` is zero, its own gradient is `G down^T`; while `down`
is zero, its own is `up^T G`. So the passes of a block power iteration are ordinary training passes with other values
in the pair, with the memory of ordinary steps.
"""

import math
from collections.abc import Callable, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn

from modules.adapters import linalg
from modules.adapters.low_rank import root_mean_square
from modules.data.batches import Batch
from modules.training.session import Session

PICTURES = 32
"""How many pictures, at least, the gradient is the mean of: those of the first steps, with their noise."""

ROUNDS = 2
"""Of the power iteration. Each sees the pictures twice."""

SCALES = (2.0**16, 2.0**12, 2.0**8, 1.0)
"""With float16, factors on the loss; the first that keeps all gradients finite is used."""


def begin(session: Session, loss: Callable[[Session, Batch], Tensor]) -> None:
    """Set the fresh pairs of adapters that ask for it. `loss`: the mean error of a micro-batch."""
    found = [pair for layer in session.adapted.values() if (pair := layer.adapter.gradient_pair()) is not None]
    if not found:
        return
    batches = first_batches(session)
    seen = len(batches) * session.batches.total
    session.events.write("stage", {"name": "start", "detail": f"initial values from gradients of {seen} pictures"})
    ups, downs = [up for up, _ in found], [down for _, down in found]
    at_random = [down.detach().clone() for down in downs]
    for _ in range(ROUNDS):
        for up, gradient in zip(ups, gradients(session, loss, batches, ups), strict=True):
            set_to(up, torch.linalg.qr(gradient).Q)
        zero(downs)
        rows = [linalg.principal(gradient, len(gradient))[2] for gradient in gradients(session, loss, batches, downs)]
        zero(ups)
        for down, start, vectors in zip(downs, at_random, rows, strict=True):
            set_to(down, start)  # remains where the gradient has lower rank
            set_to(down[: len(vectors)], vectors * (root_mean_square(start) * math.sqrt(down.shape[1])))
    share(downs)
    session.flat.clear()
    silent = sum(len(vectors) == 0 for vectors in rows)
    if silent:
        message = f"{silent} of {len(downs)} layers have a zero gradient on the first pictures: random initial values"
        session.events.write("warning", {"message": message, "detail": ""})


def first_batches(session: Session) -> list[Batch]:
    """The micro-batches of this process with which the training begins."""
    accumulation = session.preset.training.accumulation
    count = batches_of(session, session.steps)
    return [session.batches.at(*divmod(number, accumulation)) for number in range(count)]


def batches_of(session: Session, steps: int) -> int:
    """How many micro-batches the initial values of a training of `steps` steps come from."""
    return min(math.ceil(PICTURES / session.batches.total), steps * session.preset.training.accumulation)


def replanned(session: Session, before: int, now: int, inputs: bool) -> str:
    """Whether a training of `now` steps would have begun with other values than one of `before`, in a clause; `inputs`:
    whether they came from the layers' inputs."""
    counts = batches_of(session, before), batches_of(session, now)
    asked = inputs or any(layer.adapter.gradient_pair() is not None for layer in session.adapted.values())
    if not asked or counts[0] == counts[1]:
        return ""
    what = "inputs" if inputs else "gradients"
    return f"the initial values came from {what} of {counts[0]} batches instead of {counts[1]}"


def gradients(
    session: Session, loss: Callable[[Session, Batch], Tensor], batches: list[Batch], wanted: list[nn.Parameter]
) -> list[Tensor]:
    """Gradients of the loss over the batches of all processes, up to a common factor. Raises FloatingPointError where
    they are non-finite."""
    for scale in (1.0,) if session.accelerator.scaler is None else SCALES:
        session.flat.clear()
        session.derived.begin()
        for batch in batches:
            with session.accelerator.autocast():
                error = loss(session, batch)
            (error * (scale / len(batches))).backward()
        session.derived.pull_back()
        found = [torch.zeros_like(one) if one.grad is None else one.grad for one in wanted]
        flat: Tensor = session.accelerator.reduce(torch.cat([one.flatten() for one in found]), "mean")  # pyright: ignore
        if flat.isfinite().all():
            parts = flat.split([one.numel() for one in wanted])
            return [part.view_as(one) for part, one in zip(parts, wanted, strict=True)]
    raise FloatingPointError("Non-finite gradients on the first pictures, from which the adapters' initial values are "
                             "computed; check the pictures, or try adapter.init kaiming")


@torch.no_grad()
def set_to(target: Tensor, values: Tensor) -> None:
    """Set a parameter, or some rows of it; fewer columns than it has leave zeros in the others."""
    target.zero_()
    target[:, : values.shape[1]] = values


def zero(parameters: list[nn.Parameter]) -> None:
    """Set all to zero."""
    for parameter in parameters:
        parameter.detach().zero_()


@torch.no_grad()
def share(tensors: Sequence[Tensor]) -> None:
    """The main process' values everywhere: on another device a singular vector may come out with the other sign."""
    if PartialState().num_processes == 1:
        return
    flat: Tensor = broadcast(torch.cat([one.flatten() for one in tensors]))  # pyright: ignore
    for one, part in zip(tensors, flat.split([one.numel() for one in tensors]), strict=True):
        one.copy_(part.view_as(one))
