"""By-products of a training, which must not end it: their failures are warnings, and they can be interrupted.

What is due at a step follows from the step alone. What was made of it is read from the events, so that a run which was
killed between a state and what is due at its step makes it when it resumes.
"""

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object

from modules.data.augment import encodes_in_steps
from modules.reasons import sentence
from modules.training import memory, sharding, stopping
from modules.training.events import each_event, skipped
from modules.training.session import Session, sample_prompts

WITHOUT = {
    "the sample pictures": "turn them off with --samples.enabled false",
    "the validation": "change or remove the folders of role validation in data.folders",
}
"""What to do about a by-product that fails every time."""


def beside(session: Session, what: str, make: Callable[[Session], object], together: bool = True) -> None:
    """Make a by-product. A failure is a warning, once for each `what`, and the training continues.

    Raises FloatingPointError, since then the training itself is wrong. Raises every error with a sharded base: all
    processes read it together, and the others would wait for hours for one that has left. `together`: whether the base
    may be read.
    """
    try:
        make(session)
        return
    except FloatingPointError:
        raise
    except Exception as error:  # noqa: BLE001  reported and logged; no by-product is worth the training
        if together and sharding.is_wanted():
            raise
        reason = "out of memory" if memory.ran_out(error) else sentence(error, session.run.folder)
        more = f"; {WITHOUT[what]}" if what in WITHOUT else ""
        message = f"{what} of step {session.step} failed, the training continues: {reason}{more}"
        session.events.warn_once(what, message, traceback.format_exc())
    give_back(session)  # not above: the error's traceback keeps references


def give_back(session: Session) -> None:
    """Free the memory that an unfinished by-product has left in use."""
    images = not encodes_in_steps(session.index.pictures)
    session.model.release_encoders(session.texts is not None, images)  # it may have brought them to the device
    gc.collect()
    if session.accelerator.device.type == "cuda":
        torch.cuda.empty_cache()


# -- stopping in the middle -------------------------------------------------------------------------------------------


def interrupted(session: Session, make: Callable[[], object]) -> bool:
    """Make by-products of a step; whether a stop was requested meanwhile, in any process.

    They end early then, between two forward passes of the denoiser: elsewhere parameters may temporarily differ from
    the training's (see `averaged`). A second Ctrl-C is raised.
    """
    try:
        with watched(session):
            make()
    except KeyboardInterrupt:
        if stopping.insisted() or not (stopping.asked() or sharding.is_wanted()):
            raise
        give_back(session)
    return agreed(session, stopping.asked())


@contextmanager
def watched(session: Session) -> Iterator[None]:
    """Inside, a forward pass of the denoiser raises KeyboardInterrupt when a stop was requested."""

    def look(*call: Any) -> None:
        # With a sharded base all processes run the denoiser together, and have to leave together.
        if agreed(session, stopping.asked()) if sharding.is_wanted() else stopping.asked():
            raise KeyboardInterrupt

    denoiser = next(iter(session.model.networks.values()))
    hook = denoiser.register_forward_pre_hook(look, prepend=True)  # before the shards are gathered
    before, session.leave_if_asked = session.leave_if_asked, look
    try:
        yield
    finally:
        hook.remove()
        session.leave_if_asked = before


def agreed(session: Session, flag: bool) -> bool:
    """Whether the flag is set in any process; all have to call this."""
    return flag if session.accelerator.num_processes == 1 else any(gather_object([flag]))


def told(session: Session, value: Any) -> Any:
    """The main process' value, in all processes; all have to call this."""
    return value if session.accelerator.num_processes == 1 else gather_object([value])[0]


# -- what was made ----------------------------------------------------------------------------------------------------


def made(session: Session) -> set[str]:
    """What the events have of the step at which this process begins: `validation`, `sample`, `export` and `state`.

    Only the main process reads them; the others are given its answer.
    """
    return told(session, _made(session) if session.accelerator.is_main_process else set())


def step_name(session: Session) -> str:
    """The exported file of this step, without its ending. (The last step's has the run's own name.)"""
    return f"{session.run.name}-step-{session.step:06d}"


def _made(session: Session) -> set[str]:
    path = session.run.folder / "events.jsonl"
    found, pictures, damaged = set(), set(), 0
    try:
        for event in each_event(path):
            if event is None:
                damaged += 1
            elif event["event"] == "validation" and event["step"] == session.step:
                found.add("validation")
            elif event["event"] == "sample" and event["step"] == session.step:
                pictures.add(event["path"])
            elif event["event"] == "saved" and event["what"] == "state" and event["step"] == session.step:
                found.add("state")
            elif event["event"] == "saved" and event["path"] == f"{step_name(session)}.safetensors":
                found.add("export")
    except (OSError, ValueError) as error:
        session.events.warn_once("events", f"events.jsonl cannot be read: {sentence(error, path)}")
    if damaged:
        session.events.warn_once("events", skipped(path, damaged))
    if len(pictures) >= len(sample_prompts(session.preset, session.index)):
        found.add("sample")
    return found
