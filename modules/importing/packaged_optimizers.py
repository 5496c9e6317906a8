"""Optimizers of other trainers that come from the packages pytorch_optimizer and adv_optm, which are here too."""

import inspect
from typing import Any

from modules.importing.ledger import Ledger, as_number
from modules.training import packaged

CLASSES = {
    "adopt": ("pytorch_optimizer", "ADOPT"),
    "tiger": ("pytorch_optimizer", "Tiger"),
    "aida": ("pytorch_optimizer", "Aida"),
    "yogi": ("pytorch_optimizer", "Yogi"),
    "adamwadv": ("adv_optm", "AdamW_adv"),
    "adoptadv": ("adv_optm", "Adopt_adv"),
    "prodigyadv": ("adv_optm", "Prodigy_adv"),
    "signsgdadv": ("adv_optm", "SignSGD_adv"),
    "lionadv": ("adv_optm", "Lion_adv"),
    "muonadv": ("adv_optm", "Muon_adv"),
    "adamuonadv": ("adv_optm", "AdaMuon_adv"),
    "sinksgdadv": ("adv_optm", "SinkSGD_adv"),
}
"""OneTrainer's names in small letters without `_`: package and class."""

CALLED = {"decoupled_decay": "weight_decouple"}
"""OneTrainer's words for arguments of the classes."""


def find(name: str) -> tuple[str, str] | None:
    """Package and class of an optimizer's name or import path; None if it is of neither package."""
    package, last = name.partition(".")[0], name.rpartition(".")[2]
    if package in packaged.PACKAGES:
        made = packaged.classes(package).get(last.lower())
        return (package, made.__name__) if made else None
    return CLASSES.get(name.replace("_", "").replace("-", "").lower())


def choose(ledger: Ledger, key: str, found: tuple[str, str]) -> str:
    """Write optimizer.name, optimizer.algorithm and the class's own weight decay; ours."""
    package, algorithm = found
    ledger.to(key, "optimizer.name", package)
    decay = inspect.signature(packaged.classes(package)[algorithm.lower()]).parameters.get("weight_decay")
    ledger.set({"optimizer.algorithm": algorithm, "optimizer.weight_decay": decay.default if decay else 0.0}, key)
    return package


def set_options(ledger: Ledger, package: str, given: dict[str, tuple[str, Any]]) -> None:
    """Write the options: as arguments of the class where it has them and they are not its defaults."""
    made = packaged.classes(package)[ledger.values["optimizer.algorithm"].lower()]
    known, found = packaged.takes(made), dict[str, tuple[str, Any]]()
    given = _with_betas(given, known)
    for option, (key, value) in given.items():
        name = CALLED.get(option, option)
        if name == "weight_decay":
            if (decay := as_number(value)) is None:
                raise ledger.wrong(key, "a number")
            ledger.to(key, "optimizer.weight_decay", decay)
        elif name not in known:
            ledger.drop(key, f"{made.__name__} has no such argument")
        else:
            found[name] = key, value
    arguments = {name: f"{name}={value}" for name, (_, value) in found.items() if value != known[name][1]}
    for name, (key, _) in found.items():
        if name in arguments:
            ledger.to(key, "optimizer.arguments", list(arguments.values()))
        else:
            ledger.drop(key, "as the class has it without")


def _with_betas(given: dict[str, tuple[str, Any]], known: Any) -> dict[str, tuple[str, Any]]:
    """With `betas` in place of `beta1`, `beta2` and `beta3`, where the class takes them together."""
    parts = [name for name in ("beta1", "beta2", "beta3") if name in given]
    if "betas" not in known or "betas" in given or not parts:
        return given
    betas = list(known["betas"][1])
    for name in parts[: len(betas)]:
        betas[int(name[-1]) - 1] = given[name][1]
    rest = {name: value for name, value in given.items() if name not in parts}
    return {**rest, "betas": (given[parts[0]][0], tuple(betas))}
