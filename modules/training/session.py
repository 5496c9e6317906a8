"""One training: what it consists of, the processes and the device that it runs on."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn

from modules.adapters.base import Adapted, Adapter
from modules.adapters.derived import Derived
from modules.data import references
from modules.data.batches import Batches
from modules.data.cache import LatentCache, MaskCache, ReferenceCache
from modules.data.captions import as_prompt, filled_in, whole_caption
from modules.data.index import Index
from modules.families.base import Caption, Texts, about, text_of
from modules.losses import Loss
from modules.objectives import Noise
from modules.preset.schema import Preset, Training
from modules.training import fingerprints, finite, freezing, new_tokens, setup, sharding
from modules.training.clock import Clock
from modules.training.ema import Ema
from modules.training.events import Events
from modules.training.flat import Flat
from modules.training.freezing import Stop
from modules.training.optimizers import averaged
from modules.training.run import Run
from modules.training.text_groups import TextGroups
from modules.training.training_adapter import TrainingAdapter

PATIENCE = timedelta(hours=6)
"""How long processes wait for the main one, which makes samples and exports alone."""


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
    training_adapter: TrainingAdapter
    derived: Derived
    flat: Flat
    optimizer: Any
    index: Index
    validation: Index | None
    batches: Batches
    latents: LatentCache
    masks: MaskCache
    references: ReferenceCache | None
    """None where no picture has any."""
    texts: TextGroups | None
    """None where text encoders are trained, and encode captions in each step."""
    steps: int
    ema: Ema | None = None
    """None without one, and in processes that only train."""
    step: int = 0
    baseline: float | None = None
    """Validation loss before training."""
    average: float | None = None
    """Running average of the loss."""
    reference: float | None = None
    """Loss before training on the samples of the first steps, see `collapse`."""
    collapsed: dict[str, str] = field(default_factory=dict)
    """What is wrong with the loss now, in sentences, by what it was measured on."""
    measured: tuple[int, float] | None = None
    """Step and loss of the last validation of this process, where it validates."""
    clock: Clock = field(default_factory=Clock)
    started: float = field(default_factory=time.time)
    """Unix time of the first start, s."""
    leave_if_asked: Callable[[], None] = lambda: None
    """Raises KeyboardInterrupt where a stop was requested and may end what is being made, see `beside.watched`."""
    made: Future[fingerprints.Made] | None = None
    """The run's fingerprints; in the process that writes states."""

    @property
    def prediction(self) -> str:
        """The prediction type."""
        return self.model.process.prediction

    @property
    def noise(self) -> Noise:
        """The kind of noise."""
        own = self.preset.objective
        return Noise(own.noise_offset, own.adaptive_offset, own.pyramid_noise, own.pyramid_discount, own.perturbation)

    @property
    def loss(self) -> Loss:
        """The loss function."""
        own = self.preset.objective
        mix = ("mse", own.mix_mse), ("l1", own.mix_l1), ("log_cosh", own.mix_log_cosh), ("huber", own.mix_huber)
        return Loss(own.loss, own.loss_delta, own.delta_schedule, mix)

    @cached_property
    def stops(self) -> tuple[Stop, ...]:
        """Layers that are no longer trained after some step."""
        given = self.model, self.preset.targets, self.adapted
        return freezing.stops(freezing.parameters(*given), freezing.shares(*given), self.steps)

    @cached_property
    def texts_until(self) -> int:
        """The step from which on no text encoder is trained."""
        names = freezing.shares(self.model, self.preset.targets, self.adapted)
        return freezing.texts_until(self.model, names, self.stops, self.steps)

    @property
    def takes_part(self) -> bool:
        """Whether this process validates and samples: the main one, or with a sharded base all of them."""
        return self.accelerator.is_main_process or sharding.is_wanted()

    def shown(self, ema: bool) -> AbstractContextManager[None]:
        """Inside, parameters are what others see: the moving average, if there is one and `ema`; else those of a
        schedule-free optimizer; else the trained ones."""
        return self.ema.shown() if self.ema is not None and ema else averaged(self.optimizer)

    def encode(self, captions: Sequence[Caption]) -> Texts:
        """Conditions of captions on the device, from the cache where the text encoders are frozen."""
        if self.texts is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.step < self.texts_until):
                return self.model.encode_texts(captions)
        return {name: value.to(self.accelerator.device) for name, value in self.texts.get(captions).items()}

    def check_folder(self) -> None:
        """Raise FileNotFoundError where the run folder was deleted meanwhile; in the process that writes there."""
        if self.run.is_ours:
            self.run.check_there()

    @property
    def learned(self) -> dict[str, Adapted]:
        """All that is trained: the adapted layers, and text encoders' tables with new tokens."""
        return {**self.adapted, **new_tokens.learned(self.model)}

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of all that is trained, `<full layer name>.<tensor>`; not copies."""
        named = [(name, layer.adapter.state_dict()) for name, layer in self.learned.items()]
        return {f"{name}.{key}": value for name, tensors in named for key, value in tensors.items()}

    def check_finite(self) -> dict[str, Tensor]:
        """`tensors`. Raises FloatingPointError where they or the optimizer's state are non-finite: these must not
        be saved. Call it in every process, so that all of them stop."""
        tensors = self.tensors()
        finite.check_finite(tensors, self.optimizer, self.step, self.preset.training)
        return tensors

    def learning(self) -> list[Adapter]:
        """The adapters that are trained in this step."""
        stopped = {name for stop in self.stops if self.step >= stop.last for name in stop.names}
        return [layer.adapter for name, layer in self.adapted.items() if name not in stopped]

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss of each step, or None."""
        adapters = self.learning()
        return type(adapters[0]).penalty(adapters) if adapters else None

    def after_step(self) -> list[nn.Parameter]:
        """Run the method's `after_step`; the parameters whose optimizer state has to be reset."""
        adapters = self.learning()
        with torch.no_grad():
            return type(adapters[0]).after_step(adapters, self.step + 1, self.steps) if adapters else []


def total_steps(training: Training, batches: Batches) -> int:
    """Optimizer steps of the whole training."""
    return training.steps if training.epochs is None else batches.steps(training.epochs)


def validation_captions(validation: Index | None) -> list[Caption]:
    """Captions of the validation pictures as they are used."""
    pairs = [] if validation is None else zip(whole_captions(validation), validation.pictures, strict=True)
    return [about(caption, picture.references) for caption, picture in pairs]


def usual_captions(training: Index) -> set[Caption]:
    """Those that pictures have whenever nothing is changed, and the empty one."""
    pairs = zip(whole_captions(training), training.pictures, strict=True)
    return {"", *(about(text, picture.references) for caption, picture in pairs for text in (caption, ""))}


def whole_captions(index: Index) -> list[str]:
    """Captions of all pictures with the trigger, and with nothing shuffled or dropped."""
    return [whole_caption(picture.options, picture.caption) for picture in index.pictures]


def sample_captions(preset: Preset, model: Any, training: Index) -> list[Caption]:
    """The preset's prompts, with the trigger for `[trigger]`, or captions of the first four pictures to be learned;
    with the reference pictures that they are about. Raises ValueError, naming the file, for one that cannot be used."""
    given = preset.samples.prompts
    shown = [() if isinstance(one, str) else references.read(one.references, model.reference_size) for one in given]
    texts = [filled_in(preset.data, text) for text in preset.samples.texts]
    if given:
        return [about(text, own) for text, own in zip(texts, shown, strict=True)]
    learned: dict[Path, Caption] = {}
    for picture in training.pictures:
        if picture.role == "train":
            learned.setdefault(picture.path, about(as_prompt(picture.options, picture.caption), picture.references))
    return list(learned.values())[:4]


def sample_prompts(preset: Preset, training: Index) -> list[str]:
    """The prompts alone."""
    plain = preset.samples.model_copy(update={"prompts": tuple(preset.samples.texts)})
    return [*map(text_of, sample_captions(preset.model_copy(update={"samples": plain}), None, training))]
