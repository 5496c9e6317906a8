"""The training loop. It reads from top to bottom; the same command on the same run folder resumes where it stopped."""

import math
import time
from dataclasses import dataclass, field
from functools import partial

import torch
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from modules.data.batches import Batch
from modules.training import (
    best,
    collapse,
    due,
    feed,
    gradient_start,
    input_start,
    optimizers,
    rank_one,
    schedules,
    stopping,
)
from modules.training.beside import beside, interrupted, made, step_name, told
from modules.training.collapse import Watch
from modules.training.feed import Feed
from modules.training.outputs import export_now, sample, save_adapter, validate
from modules.training.run import REQUESTS
from modules.training.saving import memory_mb, save
from modules.training.session import Session

CURVES_EVERY = 10
"""Steps between values of the adapters' own curves: they read every layer."""

SCALER_PATIENCE = 20
"""With float16, this many steps in a row may overflow while the loss scale is being found."""


FLAGS = (*REQUESTS, *(f"due {kind}" for kind in due.KINDS))
"""What the main process tells the others with each step."""

STOPPING = {"name": "stopping", "detail": "stop requested; saving the state"}
"""A `stage` event."""


class NotFinite(FloatingPointError):
    """The loss or a gradient is non-finite; the step was not taken."""


@dataclass
class Progress:
    """What this process keeps between steps. All times are of `time.monotonic`, s."""

    feed: Feed
    watch: Watch = field(default_factory=Watch)
    overflows: int = 0
    started: float = field(default_factory=time.monotonic)
    steps_done: int = 0
    step_seconds: float = 0.0
    """Time in steps alone, without samples, validation and saving."""


def train(session: Session) -> bool:
    """Train to the last step. True when done, False when stopped by the user (the state is saved).

    Raises NotFinite before a step with a non-finite loss or gradient; the last good state is kept.
    """
    progress = Progress(Feed(session))
    main = session.accelerator.is_main_process

    before_steps(session)
    bar = tqdm(total=session.steps, initial=session.step, desc=session.run.name, unit="step", disable=not main)
    stopped = False
    with bar, stopping.deferred(main):
        while session.step < session.steps and not stopped:
            session.check_folder()
            set_step(session)
            loss, norm, requests = take_step(session, progress)
            session.step += 1
            report(session, progress, bar, loss, norm)
            stopped = requests["stop"]  # agreed by all processes, unlike stopping.asked
            due.record(session, [kind for kind in due.KINDS if requests[f"due {kind}"]])

            if stopped:
                session.events.write("stage", STOPPING)

            # The state comes first: if the run is killed or stopped now, the rest is made from it on resuming.
            wanted = due.due(session) + ["sample"] * requests["sample"]
            wanted += ["look"] * collapse.is_suspected(session, progress.watch, loss)
            last = session.step == session.steps  # saved too: should the export fail, no step is lost
            saved = stopped or last or requests["save"] or due.state_is_due(session)
            if saved:
                save(session)
            if (wanted or last) and not stopped and interrupted(session, partial(make, session, wanted)):
                stopped = True
                session.events.write("stage", STOPPING)
                if not saved:
                    save(session)
            if "validation" in wanted and not stopped:
                best.keep(session)
    if stopped:
        return False

    # After the last step.
    make(session, [*lacking(session, ["validation", "sample"]), "look"])
    best.keep(session)
    save_adapter(session)
    beside(session, "the ranks of the updates", rank_one.look)
    export_now(session, session.run.name)
    session.accelerator.wait_for_everyone()
    return True


def before_steps(session: Session) -> None:
    """Initial values from the data, and validation and samples of the base model. Or, in a resumed run, what was due
    at the step of its state and was not made before it was killed or stopped."""
    due.begin(session)
    if session.step > 0:
        wanted = due.due(session)
        make(session, lacking(session, wanted))
        if "validation" in wanted:
            best.keep(session)
        return
    gradient_start.begin(session, batch_loss)
    input_start.begin(session, batch_loss)
    beside(session, "the loss before training", collapse.begin)
    session.reference = told(session, session.reference)
    make(session, ["validation", "sample"])


def lacking(session: Session, wanted: list[str]) -> list[str]:
    """What of it the events do not have for this step."""
    found = made(session) if wanted else set()
    return [what for what in wanted if what not in found]


def make(session: Session, wanted: list[str]) -> None:
    """Make what is wanted of `validation`, `sample`, `look` (whether the training collapses) and `export`."""
    if "validation" in wanted:
        beside(session, "the validation", validate)
    if "sample" in wanted:
        beside(session, "the sample pictures", sample)
    if "look" in wanted:
        beside(session, "the loss on the samples of the first steps", collapse.look)
    if "export" in wanted:
        beside(session, "the export", export_step)


def export_step(session: Session) -> None:
    """The file of this step. The state is saved, so nothing is lost if it is interrupted."""
    with stopping.at_once():
        export_now(session, step_name(session))


# -- one step ---------------------------------------------------------------------------------------------------------


def set_step(session: Session) -> None:
    """Set what follows from the number of the step: the learning rate, and what is still trained."""
    training = session.preset.training
    schedules.apply(session.optimizer, schedules.factor(training, session.steps, session.step))
    for stop in session.stops:
        stop.apply(session.step)


def take_step(session: Session, progress: Progress) -> tuple[float, float, dict[str, bool]]:
    """One optimizer step: mean loss, gradient norm before clipping, and what was requested."""
    accelerator, training, begun = session.accelerator, session.preset.training, time.monotonic()
    progress.feed.reach(session.step)
    session.flat.clear()
    session.derived.begin()
    losses = []
    for micro in range(training.accumulation):
        prepared = progress.feed.at(session.step, micro)
        with progress.feed.masking(session.step, prepared):
            with accelerator.autocast():
                loss = feed.errors(session, prepared).mean()
            accelerator.backward(loss / training.accumulation)
        losses.append(loss.detach())
        progress.feed.look_ahead(session.step, micro)
    if (penalty := session.penalty()) is not None:
        accelerator.backward(penalty)
    session.derived.pull_back()
    session.flat.collect()

    wanted = [float(accelerator.is_main_process and session.run.requested(name)) for name in REQUESTS]
    wanted[0] += stopping.asked()
    wanted += [float(is_due) for is_due in due.by_clock(session)]
    shared = average(session, torch.stack(losses).mean(), wanted)
    accelerator.unscale_gradients(session.optimizer)
    norm = session.flat.clip(training.max_grad_norm)
    loss, *flags, norm = torch.cat([shared, norm.view(1).float()]).tolist()
    check_finite(session, progress, loss, norm)
    session.optimizer.step()
    if not session.optimizer.step_was_skipped:
        optimizers.forget(session.optimizer, session.flat.seen(session.after_step()))
    if session.ema is not None:
        session.ema.update(session.step + 1)
    progress.steps_done += 1
    progress.step_seconds += time.monotonic() - begun
    return loss, norm, {name: flag > 0 for name, flag in zip(FLAGS, flags, strict=True)}


def batch_loss(session: Session, batch: Batch) -> Tensor:
    """Mean weighted error of one micro-batch."""
    return feed.errors(session, feed.prepare(session, batch)).mean()


def average(session: Session, loss: Tensor, wanted: list[float]) -> Tensor:
    """Mean over processes of all gradients, in one all-reduce; `[loss, *wanted]`, averaged too.

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
    """Raise NotFinite for a step with a non-finite loss or gradient, naming the pictures. An overflow of float16's loss
    scale is no error."""
    if math.isfinite(loss) and math.isfinite(norm):
        progress.overflows = 0
        return
    progress.overflows += 1
    if session.accelerator.scaler is not None and math.isfinite(loss) and progress.overflows <= SCALER_PATIENCE:
        session.events.write("warning", {"message": "float16 overflow: step skipped", "detail": ""})
        return
    what = "loss" if not math.isfinite(loss) else "gradient"
    micros = range(session.preset.training.accumulation)
    own = [str(p.path) for micro in micros for p in session.batches.at(session.step, micro).pictures]
    files = sorted(set(gather_object(own)))  # all processes are here: they share loss and gradient
    session.check_finite()  # if a step before this one has made them non-finite, the pictures are not the cause
    raise NotFinite(
        f"Non-finite {what} at step {session.step + 1}; the step was not applied and the last saved state is kept. "
        f"Pictures of this batch: {', '.join(files)}. Lower training.learning_rate, or check these pictures and their "
        "captions; with float16, try training.precision bfloat16 or float32."
    )


def report(session: Session, progress: Progress, bar: tqdm, loss: float, norm: float) -> None:
    """The step's line in events.jsonl and on the screen."""
    if math.isfinite(loss):
        session.average = loss if session.average is None else 0.95 * session.average + 0.05 * loss
    per_step = progress.step_seconds / progress.steps_done
    rate = session.optimizer.param_groups[0]["lr"]
    own: dict[str, float] = {}
    if session.step % CURVES_EVERY == 0 or session.step == session.steps:
        beside(session, "the adapter's curves", lambda session: own.update(curves(session)))
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
        "adapter": own,
    }
    session.events.write("step", facts)
    shown = "unknown" if session.average is None else f"{session.average:.4f}"
    bar.set_postfix(loss=shown, lr=f"{rate:.1e}", refresh=False)
    bar.update()


def curves(session: Session) -> dict[str, float]:
    """The adapters' own values, averaged over layers."""
    values: dict[str, list[Tensor]] = {}
    for layer in session.adapted.values():
        for name, value in layer.adapter.curves().items():
            values.setdefault(name, []).append(value)
    return {name: float(torch.stack(found).mean()) for name, found in values.items()}
