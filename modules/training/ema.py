"""The exponential moving average (EMA) of the trained parameters, which validation, sample pictures and exported files
may show instead of them.

Averaging of Polyak and Juditsky (1992) with the warm-up of diffusers' `EMAModel.get_decay`: the decay grows as
(1 + s) / (10 + s), up to the one that is set, so that the first values are soon forgotten. The training itself is the
same with it, bit for bit.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from modules.preset.schema import Preset, Training
from modules.training.optimizer_options import Options


def decay(options: Training, step: int) -> float:
    """The weight that the average keeps when it takes in the parameters of step `step` (from 1)."""
    after = max(0, step - options.ema_start - 1)
    return min(options.ema_decay, (1 + after) / (10 + after)) if after else 0.0


def takes_in(options: Training, step: int) -> bool:
    """Whether the parameters of step `step` (from 1) are averaged."""
    after = step - options.ema_start
    return after > 0 and after % options.ema_every == 0


def has_begun(options: Training, step: int) -> bool:
    """Whether there is an average after step `step` (from 1)."""
    return options.ema != "none" and step >= options.ema_start + options.ema_every


class Ema:
    """The average of `parameters` (by name, of one dtype, on one device): one flat tensor in their order.

    It follows from the parameters after each step, and is the same in all processes. Before the first step that is
    taken in there is none, and the trained parameters stand for it.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], options: Training):
        self.parameters, self.options = dict(parameters), options
        self.average: Tensor | None = None

    def update(self, step: int) -> None:
        """Take in the parameters after step `step` (from 1), if it is one of those that are averaged."""
        if not takes_in(self.options, step):
            return
        now = self._placed(self._trained())
        if self.average is None:
            self.average = now
        else:
            self.average.lerp_(now, 1 - decay(self.options, step))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the parameters have the averaged values. Afterwards they are restored bit for bit."""
        if self.average is None:
            yield
            return
        trained = self._placed(self._trained())
        self._set(self.average)
        try:
            yield
        finally:
            self._set(trained)

    def tensors(self) -> dict[str, Tensor]:
        """The average by parameter; not copies. Nothing where there is none yet."""
        return {} if self.average is None else dict(zip(self.parameters, self._parts(self.average), strict=True))

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Continue from the `tensors` of a state, for which `check` has been called."""
        if saved:
            flat = torch.cat([saved[name].reshape(-1) for name in self.parameters])
            self.average = self._placed(flat.to(self._device()))

    def _trained(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters.values()])

    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def _placed(self, flat: Tensor) -> Tensor:
        return flat.to("cpu") if self.options.ema == "main_memory" else flat

    def _parts(self, flat: Tensor) -> list[Tensor]:
        shapes = [p.shape for p in self.parameters.values()]
        parts = flat.split([math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    @torch.no_grad()
    def _set(self, flat: Tensor) -> None:
        flat = flat.to(self._device())
        for parameter, part in zip(self.parameters.values(), self._parts(flat), strict=True):
            parameter.copy_(part)


def check(
    options: Training, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor], step: int
) -> None:
    """Raise ValueError if `Ema.tensors` of a state of step `step` are not of these parameters, or missing."""
    expected = {name: p.shape for name, p in parameters.items()} if has_begun(options, step) else {}
    wrong = sorted(expected.keys() ^ saved.keys())
    wrong += [name for name in expected.keys() & saved.keys() if expected[name] != saved[name].shape]
    if wrong:
        raise ValueError(f"its moving average (training.ema) is of other parameters: {wrong[0]} ({len(wrong)})")


def problems(options: Training, optimizer: Options, resetting: str) -> list[str]:
    """Sentences about what cannot work; `resetting`: the method, if it is one that `sets_parameters`."""
    if options.ema == "none":
        return []
    remedy = "set training.ema to none"
    found = []
    if optimizer.averages:
        found.append(f"training.ema is {options.ema}, but a schedule-free optimizer averages the weights itself: "
                     f"{remedy}, or choose another optimizer")
    if resetting:
        found.append(f"training.ema is {options.ema}, but {resetting} resets some of the weights during training, "
                     f"which an average does not follow: {remedy}, or choose another method")
    return found


def notes(preset: Preset, steps: int) -> list[str]:
    """Sentences about what has no effect in a training of `steps` steps, or may surprise."""
    options = preset.training
    if options.ema == "none":
        return []
    if not has_begun(options, steps):
        return [f"training.ema {options.ema} has no effect: the first step that is averaged is "
                f"{options.ema_start + options.ema_every} (training.ema_start, training.ema_every), and the training "
                f"has {steps}"]
    if preset.saving.keep_best and preset.validation.ema != preset.export.ema:
        shown, written = ("averaged" if one else "trained" for one in (preset.validation.ema, preset.export.ema))
        return [f"saving.keep_best chooses by the loss of the {shown} weights (validation.ema), and exports the "
                f"{written} ones (export.ema)"]
    return []
