"""Everything a training needs, prepared in order: model, pictures, caches, adapters, optimizer, state."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from tqdm import tqdm

from modules.adapters.base import Adapted
from modules.adapters.derived import Derived
from modules.data.batches import Batches
from modules.data.cache import LatentCache, TextCache
from modules.data.captions import whole_caption
from modules.data.index import Index, Progress
from modules.disk import write_whole
from modules.families.base import Texts
from modules.files.facts import Facts, facts_of
from modules.objectives import Density
from modules.preset.files import to_json
from modules.preset.schema import Preset, Training
from modules.training import (
    fingerprints,
    finite,
    first_values,
    flat,
    gradient_start,
    memory,
    pool,
    resuming,
    setup,
    sharding,
    state,
)
from modules.training.collapse import Watch
from modules.training.events import Events
from modules.training.feed import Feed
from modules.training.flat import Flat
from modules.training.run import Run

PATIENCE = timedelta(hours=6)
"""How long processes wait for the main one, which makes samples and exports alone."""

BAR = "{desc}: {n_fmt} of {total_fmt} |{bar}| {remaining} left"
"""How a progress bar of the preparations looks."""


def start_processes() -> PartialState:
    """Device and processes as accelerate's launcher set them. `PartialState` by itself ignores the launcher's
    `--cpu`, and then does not connect CPU processes."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)


def start_accelerator(preset: Preset, machine: PartialState) -> Accelerator:
    """Accelerate on `machine` with the preset's precision."""
    assert machine.device is not None
    name = setup.precision(preset, machine.device)
    return Accelerator(mixed_precision={"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[name])


@dataclass(frozen=True)
class Pictures:
    """The pictures for training and for validation."""

    training: Index
    validation: Index | None


@dataclass
class Session:
    """One training, ready to continue at step `step`."""

    preset: Preset
    run: Run
    events: Events
    accelerator: Accelerator
    model: Any
    adapted: dict[str, Adapted]
    derived: Derived
    flat: Flat
    optimizer: Any
    index: Index
    validation: Index | None
    batches: Batches
    latents: LatentCache
    texts: TextCache | None
    steps: int
    step: int = 0
    baseline: float | None = None
    """Validation loss before training."""
    average: float | None = None
    """Running average of the loss."""
    reference: float | None = None
    """Loss before training on the samples of the first steps, see `collapse`."""
    watch: Watch = field(default_factory=Watch)
    collapsed: dict[str, str] = field(default_factory=dict)
    """What is wrong with the loss now, in sentences, by what it was measured on."""
    started: float = field(default_factory=time.time)
    """Unix time of the first start, s."""
    made: Future[fingerprints.Made] | None = None
    """The run's fingerprints; in the process that writes states."""

    def __post_init__(self) -> None:
        self.feed = Feed(self)

    @property
    def prediction(self) -> str:
        """The prediction type."""
        return self.model.process.prediction

    @property
    def density(self) -> Density:
        """The timestep distribution."""
        wanted = self.preset.objective
        kind = self.model.process.density if wanted.density == "auto" else wanted.density
        return Density(kind, wanted.density_mean, wanted.density_spread, wanted.mode_scale)

    @property
    def takes_part(self) -> bool:
        """Whether this process validates and samples: the main one, or with a sharded base all of them."""
        return self.accelerator.is_main_process or sharding.is_wanted()

    def encode(self, captions: list[str]) -> Texts:
        """Conditions of captions on the device, from the cache where the text encoders are frozen."""
        if self.texts is None:
            return self.model.encode_texts(captions)
        return {name: value.to(self.accelerator.device) for name, value in self.texts.get(captions).items()}

    def check_folder(self) -> None:
        """Raise FileNotFoundError where the run folder was deleted meanwhile; in the process that writes there."""
        if self.run.is_ours:
            self.run.check_there()

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of all adapters, `<full layer name>.<tensor>`; not copies."""
        named = [(name, layer.adapter.state_dict()) for name, layer in self.adapted.items()]
        return {f"{name}.{key}": value for name, tensors in named for key, value in tensors.items()}

    def check_finite(self) -> dict[str, Tensor]:
        """`tensors`. Raises FloatingPointError where they or the optimizer's state are non-finite: these must not
        be saved. Call it in every process, so that all of them stop."""
        tensors = self.tensors()
        finite.check_finite(tensors, self.optimizer, self.step, self.preset.training)
        return tensors

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss of each step, or None."""
        adapters = [layer.adapter for layer in self.adapted.values()]
        return type(adapters[0]).penalty(adapters)

    def after_step(self) -> list[nn.Parameter]:
        """Run the method's `after_step`; the parameters whose optimizer state has to be reset."""
        adapters = [layer.adapter for layer in self.adapted.values()]
        with torch.no_grad():
            return type(adapters[0]).after_step(adapters, self.step + 1, self.steps)


def prepare(preset: Preset, pictures: Pictures, run: Run, events: Events, accelerator: Accelerator) -> Session:
    """Prepare a run up to its first step, or from its last state if there is one. Raises ValueError for bad input.

    Everything is encoded before the denoiser is moved to the device: both never have to fit at the same time.
    """
    for note in run.notes:
        resuming.warn(events, note)
    events.write("stage", {"name": "load", "detail": f"loading {preset.base.path}"})
    model = setup.load(preset, accelerator.device)
    index, validation, training = pictures.training, pictures.validation, preset.training
    make = partial(fingerprints.make, preset, index, validation, run.folder)
    made = fingerprints.in_background(make) if run.is_ours else None  # the base is here now, and so is what is encoded
    batches = make_batches(preset, index, accelerator)
    steps = total_steps(training, batches)
    write_pictures(preset, index, run, events, accelerator.num_processes)
    caches = make_caches(preset, model)
    captions = captions_needed(preset, pictures, batches, steps, model)
    with memory.while_encoding(preset, accelerator.device):
        fill_caches(caches, pictures, captions, events, accelerator)
    model.release_encoders(texts=caches.texts is not None)

    place(model, preset, events, accelerator)
    adapted = attach(model, preset, run, events)
    groups = setup.parameter_groups(adapted, model, preset.targets)
    gradients, optimizer = flat.build(preset.optimizer, groups, training.learning_rate)
    # Not accelerate's `prepare`: it would shard the optimizer's parameters too.
    session = Session(
        preset=preset,
        run=run,
        events=events,
        accelerator=accelerator,
        model=model,
        adapted=adapted,
        derived=Derived(adapted.values()),
        flat=gradients,
        optimizer=accelerator.prepare_optimizer(optimizer),
        index=index,
        validation=validation,
        batches=batches,
        latents=caches.latents,
        texts=caches.texts,
        steps=steps,
        made=made,
    )
    write_layers(session)
    resuming.resume(session)
    return session


def make_batches(preset: Preset, index: Index, accelerator: Accelerator) -> Batches:
    """The batches of this process."""
    return Batches(
        index,
        preset.data,
        preset.training.batch_size,
        preset.training.accumulation,
        accelerator.num_processes,
        accelerator.process_index,
        preset.training.seed,
    )


def attach(model: Any, preset: Preset, run: Run, events: Events) -> dict[str, Adapted]:
    """The adapters, by full layer name: fresh ones; in a new run with the values of adapter.start_from or of a pool of
    adapters."""
    begun = first_values.is_begun(run.folder)
    given, beside = {}, None
    if not begun:
        given, beside = first_values.read(preset, model), pool.read(preset, model)
    adapted = setup.attach_ready(model, preset)
    for note in [*first_values.apply(given, adapted), *pool.apply(beside, adapted)]:
        events.write("warning", {"message": note, "detail": ""})
    for note in setup.unmoved(adapted):  # `check`, which reads no weights, cannot say it
        resuming.warn(events, note)
    if not begun:  # computed values may differ between devices
        values = [tensor for layer in adapted.values() for tensor in layer.adapter.state_dict().values()]
        gradient_start.share([tensor for tensor in values if tensor.is_floating_point()])
    return adapted


def place(model: Any, preset: Preset, events: Events, accelerator: Accelerator) -> None:
    """Move the denoiser, or this process' shard of it, to the device."""
    if not sharding.is_wanted():
        setup.place(model, preset)
        return
    events.write("stage", {"name": "shard", "detail": sharding.shard(model, preset, accelerator.device)})


def total_steps(training: Training, batches: Batches) -> int:
    """Optimizer steps of the whole training."""
    return training.steps if training.epochs is None else training.epochs * batches.steps_per_epoch


def write_pictures(preset: Preset, index: Index, run: Run, events: Events, processes: int) -> None:
    """`pictures.tsv` in the run folder."""
    if events.main:
        write_whole(run.folder / "pictures.tsv", index.rows())
    events.write("stage", {"name": "buckets", "detail": index.table(preset.training.batch_size * processes)})


def write_layers(session: Session) -> None:
    """`layers.tsv` in the run folder."""
    if session.events.main:
        layers = setup.layer_table(session.adapted, session.model, session.preset)
        write_whole(session.run.folder / "layers.tsv", layers)
    count = sum(p.numel() for p in session.flat.parameters)
    detail = f"{len(session.adapted)} layers, {count:,} trainable parameters, {session.steps} steps"
    session.events.write("stage", {"name": "adapters", "detail": detail})


@dataclass(frozen=True)
class Caches:
    """What has been encoded."""

    latents: LatentCache
    texts: TextCache | None
    """None where captions are encoded in each step."""


def make_caches(preset: Preset, model: Any) -> Caches:
    """Captions are cached where neither they nor the text encoders change."""
    stable = not (preset.data.shuffle or preset.data.part_dropout) and not setup.trains_texts(model, preset.targets)
    return Caches(LatentCache(preset.data, model), TextCache(preset.data, model) if stable else None)


def captions_needed(preset: Preset, pictures: Pictures, batches: Batches, steps: int, model: Any) -> set[str]:
    """Every caption and prompt of a training."""
    wanted = {*batches.captions(steps), *validation_captions(preset, pictures.validation)}
    if preset.samples.enabled:
        negative = model.negative_prompt(preset.samples.negative)
        wanted |= {*sample_prompts(preset, pictures.training), *(() if negative is None else (negative,))}
    return wanted


def fill_caches(
    caches: Caches, pictures: Pictures, captions: set[str], events: Events, accelerator: Accelerator
) -> None:
    """Encode what is not in the cache yet."""
    events.write("stage", {"name": "cache", "detail": "encoding pictures and captions"})
    everything = [*pictures.training.pictures, *(pictures.validation.pictures if pictures.validation else ())]
    main = accelerator.is_main_process
    with accelerator.main_process_first():
        with progress_bar("encoding pictures", main) as move:
            caches.latents.fill(everything, move)
        if caches.texts is not None:
            with progress_bar("encoding captions", main) as move:
                caches.texts.fill(captions, move)


@contextmanager
def progress_bar(title: str, shown: bool) -> Iterator[Progress]:
    """A progress bar. It only appears for what takes a second or more, and is removed afterwards."""
    with tqdm(desc=title, total=1, delay=1, leave=False, disable=not shown, bar_format=BAR) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move


def validation_captions(preset: Preset, validation: Index | None) -> list[str]:
    """Captions of the validation pictures as they are used: with the trigger, never shuffled or dropped."""
    if validation is None:
        return []
    return [whole_caption(preset.data, picture.caption) for picture in validation.pictures]


def sample_prompts(preset: Preset, training: Index) -> list[str]:
    """The preset's prompts, or the captions of the first four pictures."""
    return list(preset.samples.prompts) or [picture.caption for picture in training.pictures[:4]]


def training_facts(session: Session) -> Facts:
    """Facts about this training for its files' metadata."""
    epoch = int(session.batches.epoch(session.step))
    prompts = sample_prompts(session.preset, session.index)
    pictures = session.index.pictures
    return facts_of(pictures, session.preset, session.step, epoch, session.started, time.time(), prompts)


def save(session: Session) -> None:
    """Write a training state; older ones are deleted. Raises FloatingPointError, in all processes, rather than save
    non-finite values."""
    tensors = session.check_finite()
    if not session.accelerator.is_main_process:
        return
    session.check_folder()
    facts = {
        "baseline": session.baseline,
        "average": session.average,
        "reference": session.reference,
        "started": session.started,
        "processes": session.accelerator.num_processes,
        "steps": session.steps,
        "training": training_facts(session).json(),
    }
    texts = {"preset.json": to_json(session.preset), **made_from(session)}
    folder, step = session.run.folder, session.step
    path = state.save_state(folder, step, tensors, session.optimizer, facts, texts)
    resuming.prune(session, path)
    size = sum(file.stat().st_size for file in path.iterdir())
    session.events.write("saved", {"what": "state", "path": os.fspath(path), "step": step, "bytes": size})


def made_from(session: Session) -> dict[str, str]:
    """The fingerprints for a state. It is saved without them where files have become unreadable."""
    if session.made is None:
        return {}
    try:
        return {fingerprints.RECORD: fingerprints.as_text(session.made.result())}
    except OSError as error:
        resuming.warn(session.events, f"this training state is saved without fingerprints: {error}")
        return {}


def memory_mb(device: torch.device) -> float:
    """Peak memory of this process in MiB: of the device where there is one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import psutil

    return psutil.Process().memory_info().rss / 2**20
