"""A few real steps on the device before a training, to measure its memory and time."""

import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from accelerate import Accelerator

from modules.data.folders import without_validation
from modules.data.index import Index, Picture, Shape, by_shape
from modules.preset.schema import Preset
from modules.training import loop, memory, outputs, setup
from modules.training.check import Findings
from modules.training.events import Events
from modules.training.feed import Feed
from modules.training.preparing import prepare
from modules.training.run import Run
from modules.training.session import Pictures, Session, sample_captions

WARM_UP, MEASURED = 1, 3
"""Steps that are not measured, and those that are."""


@dataclass(frozen=True)
class Probe:
    """What was measured."""

    device: str
    bucket: tuple[int, int]
    """The largest: width and height in pixels."""
    preparing_mb: float
    """Peak memory while encoding and loading, MiB. Without CUDA it counts from the start of the process."""
    training_mb: float
    """Peak memory in the steps, MiB."""
    sampling_mb: float
    """Peak memory while another base draws a sample picture (samples.base), MiB; 0 without one."""
    total_mb: float
    """The device's memory, MiB."""
    seconds_per_step: float
    """The median."""
    seconds: float
    """Of all steps of the run at this speed."""

    def facts(self) -> dict:
        """As plain values."""
        return asdict(self)


def probe(preset: Preset, found: Findings, accelerator: Accelerator) -> Probe:
    """Prepare and train a few steps with the pictures of the largest bucket. Nothing is kept: neither a cache nor a
    run folder. Raises ValueError, with what to change, when memory runs out."""
    assert found.training is not None and found.model is not None
    device, shape = accelerator.device, largest_shape(found.training)
    pictures = probed_pictures(preset, found.training, shape, accelerator.num_processes)
    short = shortened(preset)
    memory.reset_peak(device)
    try:
        with tempfile.TemporaryDirectory() as folder, Events(Path(folder), accelerator.is_main_process) as events:
            run = Run(Path(folder), preset.name)
            session = prepare(short, Pictures(Index(pictures), None), run, events, accelerator)
            preparing = memory.peak_mb(device)
            memory.reset_peak(device)
            seconds, progress = [], loop.Progress(Feed(session))
            for session.step in range(WARM_UP + MEASURED):
                begun = time.monotonic()
                loop.take_step(session, progress)  # waits for the device: it reads the loss
                seconds.append(time.monotonic() - begun)
            training = memory.peak_mb(device)
            sampling = _drawing(session) if short.samples.enabled else 0.0
    except Exception as error:
        if not memory.ran_out(error):
            raise
        precision = setup.precision(preset, device)
        raise ValueError(memory.sentence(preset, device, precision, len(found.model.blocks()))) from error
    per_step = sorted(seconds[WARM_UP:])[MEASURED // 2]
    return Probe(
        device=str(device),
        bucket=shape[0],
        preparing_mb=preparing,
        training_mb=training,
        sampling_mb=sampling,
        total_mb=memory.total_mb(device),
        seconds_per_step=per_step,
        seconds=per_step * found.steps,
    )


def _drawing(session: Session) -> float:
    """Peak memory of one step of one sample picture, MiB."""
    memory.reset_peak(session.accelerator.device)
    outputs.drawn(session, sample_captions(session.preset, session.model, session.index)[:1], 1)
    return memory.peak_mb(session.accelerator.device)


def largest_shape(index: Index) -> Shape:
    """That of the pictures with most pixels, references included: they need most memory."""
    return max(by_shape(index.pictures), key=lambda one: (sum(w * h for w, h in (one[0], *one[1])), one))


def probed_pictures(preset: Preset, index: Index, shape: Shape, processes: int) -> tuple[Picture, ...]:
    """Pictures of the shape, as many as the steps need."""
    training = preset.training
    seen = (WARM_UP + MEASURED) * training.accumulation * training.batch_size * processes
    found = (picture for picture in index.pictures if picture.shape == shape)
    return tuple(islice(found, seen))


def shortened(preset: Preset) -> Preset:
    """The preset with a few steps, no by-products but the samples of another base, and no cache. Pictures and captions
    are encoded one by one, so a few of them need as much memory as all."""
    return replace_sections(
        preset,
        training={"steps": WARM_UP + MEASURED, "epochs": None},
        data={"cache": False, "folders": without_validation(preset.data).folders},
        samples={"enabled": preset.samples.enabled and bool(preset.samples.base)},
    )


def replace_sections(preset: Preset, **changes: dict) -> Preset:
    """A copy with some options of some sections changed."""
    sections = {name: preset.__dict__[name].model_copy(update=values) for name, values in changes.items()}
    return preset.model_copy(update=sections)
