"""Optimizers of the packages pytorch_optimizer and adv_optm by their names there, with arguments as these take them.

Arguments are read and checked from the class's signature, so that a newer package needs nothing here. What a class can
do in a training is found out by trying it on small parameters: `optimizer_trial`.
"""

import ast
import importlib
import inspect
import math
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import Any, ClassVar, Literal, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn
from torch.optim import Optimizer

from modules.adapters import linalg
from modules.preset.section import option
from modules.training import optimizer_trial
from modules.training.optimizer_options import Options, Rates, torch_groups

PACKAGES = ("pytorch_optimizer", "adv_optm")

OURS = {"params", "lr", "max_lr", "weight_decay", "foreach", "maximize", "differentiable", "capturable", "use_muon",
        "model", "process_group", "base_optimizer"}
"""Arguments that the trainer gives, or that would break the training."""

NAMED = 8
"""Classes that a sentence names where none has a similar name; pytorch_optimizer has more than a hundred."""

ANY = ConfigDict(arbitrary_types_allowed=True)

ANGLES, TOKEN = "skew", "token"
"""Parameters with two axes that are vectors to an optimizer of matrices: the angles of a rotation, block by block; the
vectors of a new token."""


class Packaged(Options):
    """An optimizer of a package."""

    highest_lr: ClassVar[float] = 10.0
    keeps_gradients: ClassVar[bool] = False
    package: ClassVar[str]

    algorithm: str = option("")
    """Class of the optimizer in the package; docs/optimizers.md lists them, and what each can do here."""

    arguments: tuple[str, ...] = option((), group="Arguments")
    """Arguments of the class, each as name=value with a value of Python: betas=(0.9, 0.99). Those that are not given
    have the package's default."""

    @property
    def averages(self) -> bool:
        """Whether the class averages the weights: it then has a mode for training and one for everything else."""
        try:
            return averages(classes(self.package)[self.algorithm.lower()])
        except (KeyError, ImportError):
            return False  # `problems` says what is wrong

    def problems(self, lr: float, device_type: str, rates: Rates = (), unpaired: str = "") -> list[str]:
        found = super().problems(lr, device_type, rates, unpaired)
        try:
            tried = self.tried(lr, device_type)
        except ValueError as error:
            return [*found, str(error)]
        if not tried.own_rates:
            found += [f"{where} gives some layers {factor:g} times the learning rate of others, but {self.algorithm} "
                      "has one for all; set it to 1, or choose another optimizer"
                      for where, factor in rates if factor != 1]
        return found + tried.problems(self)

    def notes(self, lr: float, device_type: str) -> list[str]:
        try:
            return self.tried(lr, device_type).notes(self)
        except ValueError:
            return []  # `problems` has it

    @lru_cache(maxsize=16)  # noqa: B019  a check asks for problems and for notes
    def tried(self, lr: float, device_type: str) -> optimizer_trial.Trial:
        """What the optimizer can do, tried. Raises ValueError for an unknown name or a wrong argument."""
        made, values = self.resolved()
        return optimizer_trial.trial(lambda groups: self.made(made, values, groups, lr), device_type)

    def build(self, groups: list[dict], lr: float) -> Optimizer:
        """See `Options`. Raises ValueError as `resolved` does."""
        return self.made(*self.resolved(), groups, lr)

    def made(self, made: type[Optimizer], values: dict[str, Any], groups: list[dict], lr: float) -> Optimizer:
        """`made` over the groups; schedule-free ones in training mode."""
        given = {"lr": lr, "weight_decay": self.weight_decay}
        taken = inspect.signature(made).parameters
        mark(groups)
        split = apart(groups, self.weight_decay, lr) if by_shape(made) else torch_groups(groups, lr, self.weight_decay)
        optimizer = made(split, **{k: v for k, v in given.items() if k in taken}, **values)  # pyright: ignore
        for group in optimizer.param_groups:  # adv_optm reads it from all groups of a state, and sets it in some
            group.setdefault("actual_state_precision", "auto")
        if averages(made):
            cast(Any, optimizer).train()
        return optimizer

    def resolved(self) -> tuple[type[Optimizer], dict[str, Any]]:
        """The class, and its arguments as values. Raises ValueError."""
        known = classes(self.package)
        if self.algorithm.lower() not in known:
            near = get_close_matches(self.algorithm.lower(), known, 3, 0.5) or sorted(known)[:NAMED]
            names = ", ".join(known[name].__name__ for name in near)
            raise ValueError(f"optimizer.algorithm is {self.algorithm!r}, which {self.package} does not have; it has "
                             f"{names} (all: docs/optimizers.md)")
        made = known[self.algorithm.lower()]
        return made, arguments(made, self.arguments)


class PytorchOptimizer(Packaged):
    """An optimizer of pytorch_optimizer (Kim), by name."""

    package: ClassVar[str] = "pytorch_optimizer"

    name: Literal["pytorch_optimizer"] = "pytorch_optimizer"
    """Optimizer."""

    algorithm: str = option("AdaBelief", why="close to AdamW")
    """Class of the optimizer in the package; docs/optimizers.md lists them, and what each can do here."""


class AdvOptm(Packaged):
    """An optimizer of adv_optm (Koratahiu, the author of scaled OFT and DOFT), by name. It is told which parameters are
    factors, rotations and magnitudes, which its spectral_normalization scales apart."""

    package: ClassVar[str] = "adv_optm"

    name: Literal["adv_optm"] = "adv_optm"
    """Optimizer."""

    algorithm: str = option("AdamW_adv", why="the plainest of them")
    """Class of the optimizer in the package; docs/optimizers.md lists them, and what each can do here."""


# -- classes ----------------------------------------------------------------------------------------------------------


@cache
def classes(package: str) -> dict[str, type[Optimizer]]:
    """A package's optimizers by their names in small letters. Raises ImportError where it is not installed."""
    module = importlib.import_module(package)
    if package == "pytorch_optimizer":
        found = [module.load_optimizer(name) for name in module.get_supported_optimizers()]
    else:
        found = list(vars(module).values())
    optimizers = [one for one in found if isinstance(one, type) and issubclass(one, Optimizer)]
    return {one.__name__.lower(): one for one in optimizers if one.__module__.startswith(package + ".")}


def averages(made: type[Optimizer]) -> bool:
    """Whether its parameters are to be averaged for all but training, as schedule-free optimizers do."""
    return {"train", "eval"} <= set(dir(made))


@cache
def by_shape(made: type[Optimizer]) -> bool:
    """Whether its groups say which parameters are matrices, as those of Muon's kind do."""
    return "use_muon" in inspect.getsource(made)


def apart(groups: list[dict], weight_decay: float, lr: float) -> list[dict[str, Any]]:
    """Torch's groups, matrices apart from the rest."""
    made = []
    for given, group in zip(groups, torch_groups(groups, lr, weight_decay), strict=True):
        matrices = [is_matrix(p, name) for p, name in zip(given["params"], given["names"], strict=True)]
        for wanted in (True, False):
            chosen = [p for p, matrix in zip(given["params"], matrices, strict=True) if matrix == wanted]
            if chosen:
                made.append({**group, "params": chosen, "use_muon": wanted})
    return made


def is_matrix(parameter: nn.Parameter, name: str) -> bool:
    """Whether an optimizer of matrices may take it as one."""
    return parameter.ndim > 1 and min(parameter.shape) > 1 and name.rpartition(".")[2] not in (ANGLES, TOKEN)


def mark(groups: list[dict]) -> None:
    """Tell adv_optm what each parameter is, by the attributes that it reads.

    Its step of a rotation is half of `_oft_scale_factor`, in the spectral norm of the parameter. With the divisor of
    scaled OFT, that of calibrated steps, the weight changes by lr in relative spectral norm.
    """
    for group in groups:
        for parameter, name in zip(group["params"], group["names"], strict=True):
            kind = name.rpartition(".")[2]
            said = cast(Any, parameter)
            said._is_oft, said._is_dora_scale = kind == ANGLES and parameter.ndim == 2, kind == "magnitude"
            if said._is_oft and group["calibrated"]:
                said._oft_scale_factor = 2 * math.sqrt(linalg.triangle_size(parameter.shape[1]) - 1)
        for up, down in group["pairs"]:
            cast(Any, group["params"][up])._is_lora_B = True
            cast(Any, group["params"][down])._is_lora_A = True


# -- arguments --------------------------------------------------------------------------------------------------------


def arguments(made: type[Optimizer], given: tuple[str, ...]) -> dict[str, Any]:
    """The values of `name=value` texts. Raises ValueError for one that the class does not take."""
    types, values = takes(made), dict[str, Any]()
    missing = [name for name, (_, default) in types.items() if default is inspect.Parameter.empty]
    for number, text in enumerate(given):
        name, sign, value = (part.strip() for part in text.partition("="))
        here = f"optimizer.arguments[{number}] is {text!r}"
        if not sign or not name.isidentifier():
            raise ValueError(f"{here}: write it as name=value, such as betas=(0.9, 0.99)")
        if name in ("lr", "max_lr", "weight_decay"):
            here_instead = "optimizer.weight_decay" if name == "weight_decay" else "training.learning_rate"
            raise ValueError(f"{here}: set {here_instead} instead")
        if name not in types:
            raise ValueError(f"{here}: {made.__name__} takes {', '.join(types) or 'no arguments'}")
        if name in values:
            raise ValueError(f"{here}: {name} is given twice; remove one")
        values[name] = _valued(here, name, value, types[name])
    if lacking := [name for name in missing if name not in values]:
        raise ValueError(f"optimizer.algorithm is {made.__name__}, which needs the argument {lacking[0]}: add "
                         f"{lacking[0]}=... to optimizer.arguments")
    return values


def takes(made: type[Optimizer]) -> Mapping[str, tuple[Any, Any]]:
    """Type and default of each argument that a preset may give."""
    hints = typing.get_type_hints(made.__init__)
    given = inspect.signature(made).parameters
    return {
        name: (hints.get(name, type(one.default)), one.default)
        for name, one in given.items()
        if name not in OURS and one.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD
    }


def _valued(here: str, name: str, text: str, taken: tuple[Any, Any]) -> Any:
    annotation, default = taken
    if callable(default) and not isinstance(default, type):
        raise ValueError(f"{here}: {name} takes a function, which a preset cannot hold; remove it")
    instead = "it has no default" if default is inspect.Parameter.empty else f"{name} is {default!r} by default"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = math.inf if text == "inf" else text  # texts may be given without quotes
    try:
        strict = isinstance(value, str) or isinstance(default, bool)
        return TypeAdapter(annotation, config=ANY).validate_python(value, strict=strict)
    except ValidationError as error:
        raise ValueError(f"{here}: {error.errors()[0]['msg'].lower()} ({instead})") from error
