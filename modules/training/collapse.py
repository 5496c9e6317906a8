"""Detects a training that makes the model worse than the base, and names the usual cause.

The loss of a step says little: noise levels and pictures differ. So the samples of the first steps, with their noise,
are measured before training, and the same samples again when the loss of the steps looks suspicious, and at the end.
"""

import math
from collections import deque
from dataclasses import dataclass, field

import torch

from modules.preset.schema import Training
from modules.training import feed, sharding
from modules.training.optimizers import averaged
from modules.training.session import Session

SAMPLES = 10
"""Steps whose samples are measured, at most: one micro-batch of each."""

WINDOW = 20
"""Steps over which the loss is averaged before it is judged."""

FACTOR = 1.5
"""A loss on the same samples above this multiple of the loss before training is a collapse. Good trainings lower it;
overfitting raises it on other pictures by 10 to 20 percent."""

SAMPLED = "on the samples of the first steps"


@dataclass
class Watch:
    """What is kept between steps. It is not saved: a resumed training has it again after `WINDOW` steps."""

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    next: int = 0
    """The first step at which the samples may be measured again."""
    wait: int = WINDOW
    """Steps until then; more after each measurement."""


def begin(session: Session) -> None:
    """Measure the samples before training. Non-finite values are reported by the steps themselves."""
    loss = measured(session) if session.takes_part else 0.0
    session.reference = loss if 0 < loss < math.inf else None


def is_suspected(session: Session, seen: Watch, loss: float) -> bool:
    """Record the loss of a step; whether `look` should be called, because the last ones are high. The same in all
    processes."""
    if session.reference is None or not math.isfinite(loss):
        return False
    seen.losses.append(loss)
    if len(seen.losses) < WINDOW or session.step < seen.next:
        return False
    if sum(seen.losses) / WINDOW <= FACTOR * session.reference:
        return False
    seen.next, seen.wait = session.step + seen.wait, 2 * seen.wait
    return True


def look(session: Session) -> None:
    """Measure the samples of the first steps again, and judge."""
    if session.reference is not None and session.takes_part:
        judge(session, session.reference, measured(session), SAMPLED)


@torch.no_grad()
def measured(session: Session) -> float:
    """Mean loss on the samples of the first steps. With a sharded base all processes have to call this."""
    steps = range(min(SAMPLES, session.steps))
    with averaged(session.optimizer), session.derived.frozen(), session.accelerator.autocast():
        batches = (session.batches.at(step, 0) for step in steps)
        losses = [feed.errors(session, feed.prepare(session, batch)).mean().float() for batch in batches]
    mean = torch.stack(losses).mean()
    if sharding.is_wanted():  # each process has its own samples, and all have to agree
        mean = session.accelerator.reduce(mean, "mean")
    return float(mean)  # pyright: ignore


def judge(session: Session, before: float | None, now: float, where: str) -> None:
    """Compare the loss on the same samples before training and now; warn once, and remember it while it holds."""
    if before is None or not 0 < before < math.inf:  # a validation loss may be anything
        return
    if now <= FACTOR * before:
        session.collapsed.pop(where, None)
        return
    session.collapsed[where] = message = sentence(session.preset.training, before, now, where)
    session.events.warn_once("collapse", message, f"after step {session.step}")


def sentence(training: Training, before: float, now: float, where: str) -> str:
    """What has happened, and what to try."""
    tries = [f"training.learning_rate {training.learning_rate / 10:g} instead of {training.learning_rate:g}"]
    if training.max_grad_norm == 0:
        tries.append("training.max_grad_norm 1 instead of 0 (no clipping)")
    if (training.warmup if training.warmup_share is None else training.warmup_share) == 0:
        tries.append("training.warmup 50 instead of 0")
    return (
        f"the loss {where} is {now:.3g} and was {before:.3g} before training: the adapter makes the model worse. The "
        f"usual cause is a learning rate that is too high: try {', '.join(tries)}, under another --name"
    )
