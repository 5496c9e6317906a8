"""The training loop. It reads from top to bottom; the same command on the same run folder goes on where it stopped."""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from modules.data.batches import Batch
from modules.training import feed, gradient_start, optimizers, schedules
from modules.training.outputs import export_now, sample, save_adapter, validate
from modules.training.run import REQUESTS
from modules.training.session import Session, memory_mb, save

CURVES_EVERY = 10
"""Steps between values of the adapters' own curves: they need a look at every layer."""

SCALER_PATIENCE = 20
"""With float16, this many steps in a row may overflow while the loss scale is being found."""


ONE_CTRL_C = 1.0
"""Seconds within which signals are one Ctrl-C: a launcher passes it on to processes that the terminal told already."""


class NotFinite(FloatingPointError):
    """The loss or a gradient is not a number; the step was not taken."""


@dataclass
class Progress:
    """What this process keeps between steps. All times are of `time.monotonic`, s."""

    interrupted: float | None = None
    """When Ctrl-C was pressed first."""
    overflows: int = 0
    started: float = field(default_factory=time.monotonic)
    steps_done: int = 0
    step_seconds: float = 0.0
    """Time in steps alone, without samples, validation and saving."""


def train(session: Session) -> bool:
    """Train to the last step. True when done, False when stopped by the user (the state is saved).

    Raises NotFinite before a step with a loss or gradient that is no number; the last good state is kept.
    """
    progress, preset = Progress(), session.preset
    main = session.accelerator.is_main_process

    # Before the first step: first values that come from the data, and what the base model does by itself.
    if session.step == 0:
        gradient_start.begin(session, batch_loss)
        validate(session)
        sample(session)

    bar = tqdm(total=session.steps, initial=session.step, desc=session.run.name, unit="step", disable=not main)
    stopped = False
    with bar, stop_on_interrupt(progress, main):
        while session.step < session.steps and not stopped:
            schedules.apply(session.optimizer, schedules.factor(preset.training, session.steps, session.step))
            loss, norm, requests = take_step(session, progress)
            session.step += 1
            report(session, progress, bar, loss, norm)
            stopped = requests["stop"]  # agreed by all processes, unlike progress.interrupted
            if stopped and session.step < session.steps:
                session.events.write("stage", {"name": "stopping", "detail": "asked to stop; the state is saved"})

            # After the step: whatever is due now, or was asked for by a file in the run folder.
            if due(session, preset.validation.every):
                validate(session)
            if due(session, preset.samples.every) or requests["sample"]:
                sample(session)
            last = session.step == session.steps  # saved too: should the export fail, no step is lost
            if due(session, preset.saving.state_every) or requests["save"] or stopped or last:
                save(session)
            if due(session, preset.saving.export_every):
                export_now(session, f"{session.run.name}-step-{session.step:06d}")
    if session.step < session.steps:
        return False

    # After the last step.
    validate(session)
    sample(session)
    save_adapter(session)
    export_now(session, session.run.name)
    session.accelerator.wait_for_everyone()
    return True


def due(session: Session, every: int) -> bool:
    """Whether something that happens `every` steps happens now; at the last step it happens anyway, later."""
    return every > 0 and session.step % every == 0 and session.step < session.steps


# -- one step ---------------------------------------------------------------------------------------------------------


def take_step(session: Session, progress: Progress) -> tuple[float, float, dict[str, bool]]:
    """One optimizer step: mean loss, gradient norm before clipping, and what was requested."""
    accelerator, training, begun = session.accelerator, session.preset.training, time.monotonic()
    session.flat.clear()
    session.derived.begin()
    losses = []
    for micro in range(training.accumulation):
        prepared = session.feed.at(session.step, micro)
        with accelerator.autocast():
            loss = feed.errors(session, prepared).mean()
        accelerator.backward(loss / training.accumulation)
        losses.append(loss.detach())
        session.feed.look_ahead(session.step, micro)
    if (penalty := session.penalty()) is not None:
        accelerator.backward(penalty)
    session.derived.pull_back()
    session.flat.collect()

    wanted = [float(accelerator.is_main_process and session.run.requested(name)) for name in REQUESTS]
    wanted[0] += progress.interrupted is not None
    shared = average(session, torch.stack(losses).mean(), wanted)
    accelerator.unscale_gradients(session.optimizer)
    norm = session.flat.clip(training.max_grad_norm)
    loss, *flags, norm = torch.cat([shared, norm.view(1).float()]).tolist()
    check_finite(session, progress, loss, norm)
    session.optimizer.step()
    if not session.optimizer.step_was_skipped:
        optimizers.forget(session.optimizer, session.flat.seen(session.after_step()))
    progress.steps_done += 1
    progress.step_seconds += time.monotonic() - begun
    return loss, norm, {name: flag > 0 for name, flag in zip(REQUESTS, flags, strict=True)}


def batch_loss(session: Session, batch: Batch) -> Tensor:
    """Mean weighted error of one micro-batch."""
    return feed.errors(session, feed.prepare(session, batch)).mean()


def average(session: Session, loss: Tensor, wanted: list[float]) -> Tensor:
    """Mean over processes of all gradients, in one message; `[loss, *wanted]`, averaged too.

    Only adapter gradients exist, and the base is the same everywhere, so no wrapper around the model is needed.
    """
    shared = torch.cat([loss.float().view(1), torch.tensor(wanted, device=loss.device)])
    if session.accelerator.num_processes == 1:
        return shared
    gradients = session.flat.gradients
    together: Tensor = session.accelerator.reduce(torch.cat([gradients, shared]), "mean")  # pyright: ignore
    gradients.copy_(together[: len(gradients)])
    return together[len(gradients) :]


def check_finite(session: Session, progress: Progress, loss: float, norm: float) -> None:
    """Refuse to step on numbers that are none, naming the pictures. An overflow of float16's loss scale is no error."""
    if math.isfinite(loss) and math.isfinite(norm):
        progress.overflows = 0
        return
    progress.overflows += 1
    if session.accelerator.scaler is not None and math.isfinite(loss) and progress.overflows <= SCALER_PATIENCE:
        session.events.write("warning", {"message": "float16 overflow: this step is skipped", "detail": ""})
        return
    what = "loss" if not math.isfinite(loss) else "gradient"
    micros = range(session.preset.training.accumulation)
    own = [str(p.path) for micro in micros for p in session.batches.at(session.step, micro).pictures]
    files = sorted(set(gather_object(own)))  # all processes are here: they share loss and gradient
    raise NotFinite(
        f"The {what} is not a finite number at step {session.step + 1}; the step was not taken and the last saved "
        f"state is kept. Pictures of this batch: {', '.join(files)}. Lower training.learning_rate, or look at these "
        "pictures and their captions; with float16, try training.precision bfloat16 or float32."
    )


def report(session: Session, progress: Progress, bar: tqdm, loss: float, norm: float) -> None:
    """The step's line in events.jsonl and on the screen."""
    if math.isfinite(loss):
        session.average = loss if session.average is None else 0.95 * session.average + 0.05 * loss
    per_step = progress.step_seconds / progress.steps_done
    rate = session.optimizer.param_groups[0]["lr"]
    facts = {
        "step": session.step,
        "steps": session.steps,
        "epoch": session.batches.epoch(session.step),
        "loss": loss,
        "loss_average": session.average,
        "learning_rate": rate,
        "grad_norm": norm,
        "seconds": time.monotonic() - progress.started,
        "seconds_per_step": per_step,
        "seconds_left": per_step * (session.steps - session.step),
        "memory_mb": memory_mb(session.accelerator.device),
        "adapter": curves(session) if session.step % CURVES_EVERY == 0 or session.step == session.steps else {},
    }
    session.events.write("step", facts)
    bar.set_postfix(loss=f"{session.average:.4f}", lr=f"{rate:.1e}", refresh=False)
    bar.update()


def curves(session: Session) -> dict[str, float]:
    """The adapters' own values, averaged over layers."""
    values: dict[str, list[Tensor]] = {}
    for layer in session.adapted.values():
        for name, value in layer.adapter.curves().items():
            values.setdefault(name, []).append(value)
    return {name: float(torch.stack(found).mean()) for name, found in values.items()}


# -- beside the steps -------------------------------------------------------------------------------------------------


@contextmanager
def stop_on_interrupt(progress: Progress, main: bool) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) finishes the step and saves; a second Ctrl-C interrupts at once."""

    def on_signal(number: int, frame: object) -> None:
        if progress.interrupted is None:
            progress.interrupted = time.monotonic()
            if main:  # os.write: a signal may come in the middle of a print, which cannot be entered twice
                os.write(2, b"\nStopping after this step; the state is saved. Press Ctrl-C again to stop at once.\n")
        elif number == signal.SIGINT and time.monotonic() - progress.interrupted > ONE_CTRL_C:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
