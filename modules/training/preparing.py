"""Prepares a training in order: model, pictures, caches, adapters, optimizer, state."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from accelerate import Accelerator

from modules.adapters.base import Adapted
from modules.adapters.derived import Derived
from modules.data.augment import encodes_in_steps
from modules.data.batches import Batches
from modules.data.cache import LatentCache, MaskCache, ReferenceCache, TextCache
from modules.data.index import Index, Picture
from modules.disk import write_whole
from modules.families.base import Caption, negative_of
from modules.preset.schema import Preset
from modules.training import (
    collapse,
    fingerprints,
    first_values,
    flat,
    gradient_start,
    memory,
    new_tokens,
    pool,
    resuming,
    setup,
    sharding,
    text_groups,
    training_adapter,
)
from modules.training.bars import progress_bar
from modules.training.ema import Ema
from modules.training.events import Events
from modules.training.run import Run
from modules.training.session import (
    Pictures,
    Session,
    sample_captions,
    total_steps,
    usual_captions,
    validation_captions,
)
from modules.training.text_groups import TextGroups
from modules.training.training_adapter import TrainingAdapter


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
    caches = make_caches(preset, model, pictures)
    captions = captions_needed(preset, pictures, batches, steps, model) if caches.texts is not None else set()
    with memory.while_encoding(preset, accelerator.device):
        fill_caches(caches, pictures, captions, events, accelerator)
    model.release_encoders(texts=caches.texts is not None, images=not encodes_in_steps(index.pictures))
    groups = make_groups(preset, caches.texts, batches, captions, model, events)
    place(model, preset, events, accelerator)
    adapted, beside = attach(model, preset, run, events)
    parameters = setup.parameter_groups(adapted, model, preset.targets)
    gradients, optimizer = flat.build(preset.optimizer, parameters, training.learning_rate)
    session = Session(
        preset=preset,
        run=run,
        events=events,
        accelerator=accelerator,
        model=model,
        adapted=adapted,
        training_adapter=beside,
        derived=Derived(adapted.values()),
        flat=gradients,
        optimizer=accelerator.prepare_optimizer(optimizer),  # `prepare` would shard its parameters too
        index=index,
        validation=validation,
        batches=batches,
        latents=caches.latents,
        masks=caches.masks,
        references=caches.references,
        texts=groups,
        steps=steps,
        made=made,
        ema=make_ema(preset, {**adapted, **new_tokens.learned(model)}, accelerator),
    )
    write_layers(session)
    resuming.resume(session)
    return session


def make_batches(preset: Preset, index: Index, accelerator: Accelerator) -> Batches:
    """The batches of this process."""
    return Batches(
        index,
        preset.training.batch_size,
        preset.training.accumulation,
        accelerator.num_processes,
        accelerator.process_index,
        preset.training.seed,
    )


def attach(model: Any, preset: Preset, run: Run, events: Events) -> tuple[dict[str, Adapted], TrainingAdapter]:
    """The adapters, by full layer name: fresh ones; in a new run with the values of adapter.start_from or of a pool of
    adapters. And the training adapter beside them."""
    begun, changes = first_values.is_begun(run.folder), training_adapter.read(preset, model)
    given, others = {}, None
    if not begun:
        given, others = first_values.read(preset, model), pool.read(preset, model)
    adapted = setup.attach_ready(model, preset)
    for note in [*first_values.apply(given, adapted), *pool.apply(others, adapted)]:
        events.write("warning", {"message": note, "detail": ""})
    for note in setup.unmoved(adapted):  # `check`, which reads no weights, cannot say it
        resuming.warn(events, note)
    if not begun:  # computed values may differ between devices
        values = [tensor for layer in adapted.values() for tensor in layer.adapter.state_dict().values()]
        gradient_start.share([tensor for tensor in values if tensor.is_floating_point()])
    return adapted, training_adapter.add(changes, model)


def make_ema(preset: Preset, adapted: dict[str, Adapted], accelerator: Accelerator) -> Ema | None:
    """The moving average of what is trained, in processes that show or save it."""
    if preset.training.ema == "none" or not (accelerator.is_main_process or sharding.is_wanted()):
        return None
    return Ema(setup.trained(adapted), preset.training)


def place(model: Any, preset: Preset, events: Events, accelerator: Accelerator) -> None:
    """Move the denoiser, or this process' shard of it, to the device."""
    if not sharding.is_wanted():
        setup.place(model, preset)
        return
    events.write("stage", {"name": "shard", "detail": sharding.shard(model, preset, accelerator.device)})


def write_pictures(preset: Preset, index: Index, run: Run, events: Events, processes: int) -> None:
    """`pictures.tsv` in the run folder, and `broken.tsv` if pictures were skipped."""
    if events.main:
        write_whole(run.folder / "pictures.tsv", index.rows())
        broken = run.folder / "broken.tsv"
        if index.skipped:
            write_whole(broken, index.skipped_rows())
        else:
            broken.unlink(missing_ok=True)  # of an earlier start
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
    masks: MaskCache
    texts: TextCache | None
    """None where captions are encoded in each step."""
    references: ReferenceCache | None
    """None where no picture has any."""


def make_caches(preset: Preset, model: Any, pictures: Pictures) -> Caches:
    """Captions are cached where the text encoders do not change."""
    texts = None if setup.trains_texts(model, preset.targets) else TextCache(preset.data, model)
    references = ReferenceCache(preset.data, model) if any(one.references for one in all_of(pictures)) else None
    return Caches(LatentCache(preset.data, model), MaskCache(preset.data, model), texts, references)


def all_of(pictures: Pictures) -> tuple[Picture, ...]:
    """Those for training and those for validation."""
    return pictures.training.pictures + (pictures.validation.pictures if pictures.validation else ())


def captions_needed(preset: Preset, pictures: Pictures, batches: Batches, steps: int, model: Any) -> set[Caption]:
    """Every caption and prompt of a training that is encoded before its first step: all but those that one group of
    steps uses alone."""
    usual = usual_captions(pictures.training)
    ahead = preset.data.encode_ahead if preset.data.cache else steps  # nothing adds up in memory instead of on disk
    wanted = text_groups.lasting(batches, steps, ahead, usual)
    wanted |= {*batches.captions(outside_of_steps(preset, batches, steps)),
               *validation_captions(pictures.validation)}
    if preset.samples.enabled:
        negative = preset.samples.negative if preset.samples.base else model.negative_prompt(preset.samples.negative)
        prompts = sample_captions(preset, model, pictures.training)
        wanted |= {*prompts, *(() if negative is None else (negative_of(one, negative) for one in prompts))}
    return wanted


def outside_of_steps(preset: Preset, batches: Batches, steps: int) -> int:
    """The samples of how many of the first steps are used at other times too: for initial values, and to notice a
    collapse."""
    first = -(-gradient_start.PICTURES // (batches.total * preset.training.accumulation))
    return min(steps, max(first, collapse.SAMPLES))


def make_groups(
    preset: Preset, cache: TextCache | None, batches: Batches, kept: set[Caption], model: Any, events: Events
) -> TextGroups | None:
    """Where the steps' conditions come from; None where the text encoders are trained."""
    if cache is None:
        return None

    @contextmanager
    def alone(what: str) -> Iterator[None]:
        events.write("stage", {"name": "captions", "detail": f"encoding {what}"})
        with memory.while_encoding(preset, model.device), text_groups.apart(model):
            yield

    return TextGroups(cache, batches, kept, preset.data.encode_ahead, alone)


def fill_caches(
    caches: Caches, pictures: Pictures, captions: set[Caption], events: Events, accelerator: Accelerator
) -> None:
    """Encode what is not in the cache yet."""
    events.write("stage", {"name": "cache", "detail": "encoding pictures and captions"})
    training, validation = pictures.training.pictures, pictures.validation.pictures if pictures.validation else ()
    main = accelerator.is_main_process
    with accelerator.main_process_first():
        with progress_bar("encoding pictures", main) as move:
            caches.latents.fill(training, move, validation)
        caches.masks.fill(training, validation)
        if caches.references is not None:
            caches.references.fill(all_of(pictures))
        if caches.texts is not None:
            with progress_bar("encoding captions", main) as move:
                caches.texts.fill(captions, move)
