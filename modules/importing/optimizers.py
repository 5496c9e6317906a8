"""Optimizers of other trainers: which of ours they are, and their options."""

import math
from typing import Any

from modules.importing import packaged_optimizers
from modules.importing.ledger import Ledger, as_number
from modules.preset import options
from modules.preset.problems import shown
from modules.preset.schema import Preset
from modules.training import packaged

EXACT = {
    "adamw": "adamw",
    "adamw8bit": "adamw8bit",
    "pagedadamw8bit": "paged_adamw8bit",
    "lion8bit": "lion8bit",
    "pagedlion8bit": "paged_lion8bit",
    "ademamix8bit": "ademamix8bit",
    "pagedademamix8bit": "paged_ademamix8bit",
    "adafactor": "adafactor",
    "came": "came",
    "stableadamw": "stable_adamw",
    "prodigy": "prodigy",
    "adamwschedulefree": "schedulefree_adamw",
    "schedulefreeadamw": "schedulefree_adamw",
}
"""Their names in small letters without `_`, and ours."""

NEAREST = {
    "adam": ("adamw", "is Adam with coupled weight decay"),
    "adam8": ("adamw8bit", "is Adam with 8-bit states of another kind"),
    "adamw8": ("adamw8bit", "keeps its 8-bit states in another format"),
    "adam8bit": ("adamw8bit", "is Adam with coupled weight decay"),
    "pagedadamw": ("paged_adamw8bit", "keeps float32 states"),
    "pagedadamw32bit": ("paged_adamw8bit", "keeps float32 states"),
    "lion": ("lion8bit", "keeps a float32 state"),
    "ademamix": ("ademamix8bit", "keeps float32 states"),
    "came8bit": ("came", "keeps 8-bit states"),
    "muon": ("muon", "scales its steps in another way"),
    "prodigy8bit": ("prodigy", "keeps 8-bit states"),
    "prodigyplusschedulefree": ("prodigy", "is Prodigy without a schedule"),
    "radamschedulefree": ("schedulefree_adamw", "has no need of a warm-up"),
    "sgdschedulefree": ("schedulefree_adamw", "is without Adam's scaling"),
    "schedulefreesgd": ("schedulefree_adamw", "is without Adam's scaling"),
}
"""What is none of ours: the nearest, and how theirs differs."""

LIBRARY: dict[str, dict[str, Any]] = {
    "lion8bit": {"weight_decay": 0.0},
    "paged_lion8bit": {"weight_decay": 0.0},
    "prodigy": {"weight_decay": 0.0, "bias_correction": False, "safe_warmup": False},
    "adafactor": {"weight_decay": 0.0},
    "came": {"weight_decay": 0.0},
    "schedulefree_adamw": {"weight_decay": 0.0},
}
"""What the libraries do without options, where it is not our default."""

FIELDS = {
    "weight_decay": "weight_decay",
    "beta1": "beta1",
    "beta2": "beta2",
    "beta3": "beta3",
    "alpha": "alpha",
    "eps": "eps",
    "d0": "first_lr",
    "d_coef": "factor",
    "growth_rate": "growth",
    "use_bias_correction": "bias_correction",
    "safeguard_warmup": "safe_warmup",
    "r": "late_weight",
    "clip_threshold": "clip",
    "decay_rate": "beta2_decay",
    "t_alpha": "slow_warmup",
}
"""Their options and ours."""

HARMLESS = {
    "fused": "how it is computed, not what",
    "fused_back_pass": "saves memory only: the step is taken inside the backward pass there",
    "foreach": "how it is computed, not what",
    "stochastic_rounding": "not needed here: adapters are kept in float32",
    "block_wise": "not needed here: 8-bit states are always rounded block by block",
    "min_8bit_size": "not needed here: states of tensors under 4096 elements are always float32",
    "optim_bits": "not needed here: the optimizer's name says it",
    "is_paged": "not needed here: the optimizer's name says it",
    "decouple": "not needed here: weight decay is always decoupled",
    "warmup_init": "no counterpart: the first steps are set with training.warmup",
    "slice_p": "saves memory only",
}


def plain(name: str) -> str:
    """An optimizer's name for `EXACT` and `NEAREST`: the last part of an import path, in small letters."""
    return name.rpartition(".")[2].replace("_", "").replace("-", "").lower()


def choose(ledger: Ledger, key: str, name: str, paged: bool = False) -> str:
    """Write optimizer.name for theirs; ours."""
    if found := packaged_optimizers.find(name):
        return packaged_optimizers.choose(ledger, key, found)
    theirs = plain(name)
    theirs = f"paged{theirs}" if paged and f"paged{theirs}" in EXACT else theirs
    if theirs.startswith("dadapt"):
        ours, how = "prodigy", "finds the learning rate too, in another way"
    else:
        ours, how = NEAREST.get(theirs, ("adamw8bit", "is another algorithm"))
    if theirs in EXACT:
        ours = EXACT[theirs]
        ledger.to(key, "optimizer.name", ours)
    else:
        sentence = f"There is no {name} here; {ours} is the nearest ({name} {how}), and may want another learning rate."
        ledger.change(key, sentence, {"optimizer.name": ours})
    ledger.set({f"optimizer.{field}": value for field, value in LIBRARY.get(ours, {}).items()}, key)
    return ours


def set_options(ledger: Ledger, name: str, given: dict[str, tuple[str, Any]]) -> None:
    """Write the options of optimizer `name`: `given` has key and value by the names that optimizers give them."""
    if name in packaged.PACKAGES:
        packaged_optimizers.set_options(ledger, name, given)
        return
    have = {
        field.removeprefix("optimizer.")
        for field in options.options(Preset, {"optimizer": {"name": name}})
        if field.startswith("optimizer.")
    }
    for option, (key, value) in given.items():
        field = FIELDS.get(option, "")
        if option == "betas":
            _betas(ledger, key, value, have)
        elif name == "adafactor" and option in ("eps", "eps2", "scale_parameter", "relative_step"):
            continue
        elif field not in have:
            reason = HARMLESS.get(option, f"the optimizer {name} has no such option here")
            ledger.drop(key, reason)
        elif isinstance(value, bool) or value is None:
            ledger.to(key, f"optimizer.{field}", value)
        else:
            _number(ledger, key, f"optimizer.{field}", value)
    if name == "adafactor":
        _adafactor(ledger, given)


def _number(ledger: Ledger, key: str, field: str, value: Any) -> None:
    number = as_number(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        ledger.to(key, field, value.lower() == "true")
        return
    if number is None:
        raise ledger.wrong(key, "a number")
    if field.endswith("growth"):
        ledger.to(key, field, None if math.isinf(number) else number)
    else:
        ledger.to(key, field, int(number) if field.endswith("slow_warmup") else number)


def _betas(ledger: Ledger, key: str, value: Any, have: set[str]) -> None:
    parts = value if isinstance(value, list | tuple) else str(value).strip("()[] ").split(",")
    numbers = [as_number(part) for part in parts]
    if any(number is None for number in numbers):
        raise ledger.wrong(key, "a list of numbers")
    for number, field in zip(numbers, ("beta1", "beta2", "beta3"), strict=False):
        if field in have:
            ledger.to(key, f"optimizer.{field}", number)


def _adafactor(ledger: Ledger, given: dict[str, tuple[str, Any]]) -> None:
    """Its step size: relative, scaled by the weights, or plain. Ours scales by the weights, but at least by
    `least_scale`: 1 is no scaling, since an adapter's weights are smaller than that."""
    relative = _truth(given.get("relative_step", ("", False))[1])
    scaled = _truth(given.get("scale_parameter", ("", False))[1])
    eps2 = given.get("eps2", ("", None))
    pair = given.get("eps", ("", None))
    floor = as_number(eps2[1]) or 1e-3
    if isinstance(pair[1], list | tuple) and len(pair[1]) == 2:
        floor = as_number(pair[1][1]) or floor
    if "eps" in given and pair[1] is not None:
        first = as_number(pair[1][0] if isinstance(pair[1], list | tuple) else pair[1])
        if first is None:
            raise ledger.wrong(pair[0], "a number")
        sentence = "It is added to squares there, and is the least root of one here."
        ledger.change(pair[0], sentence, {"optimizer.eps": float(f"{math.sqrt(max(first, 1e-45)):.4g}")})
    if "scale_parameter" in given:
        ledger.to(given["scale_parameter"][0], "optimizer.least_scale", floor if scaled else 1.0)
    if "eps2" in given and eps2[1] is not None:
        if scaled:
            ledger.to(eps2[0], "optimizer.least_scale", floor)
        else:
            ledger.drop(eps2[0], "without effect there: scale_parameter is off")
    if "relative_step" in given and relative:
        sentence = (
            "Adafactor's own step size, the smaller of 0.01 and 1 / sqrt(step), replaces the learning rate there; it "
            "is what the optimizer does here with a learning rate of 0.01 and a constant schedule."
        )
        rate = {"training.learning_rate": 0.01, "training.schedule": "constant", "training.warmup": 0}
        ledger.change(given["relative_step"][0], sentence, rate)
    elif "relative_step" in given:
        ledger.drop(given["relative_step"][0], "off, as here")


def _truth(value: Any) -> bool:
    return str(value).lower() in ("true", "1")


def settle(ledger: Ledger, name: str) -> None:
    """Options of the training that cannot go with this optimizer."""
    values = ledger.values
    if name == "schedulefree_adamw" and values.get("training.schedule") != "constant":
        key = ledger.origin.get("training.schedule", "")
        sentence = "A schedule-free optimizer replaces the schedule, so it is constant here."
        ledger.change(key, sentence, {"training.schedule": "constant"})
    if name == "schedulefree_adamw" and values.get("training.ema", "none") != "none":
        sentence = "A schedule-free optimizer averages the weights itself, so there is no second average here."
        ledger.change(ledger.origin["training.ema"], sentence, {"training.ema": "none"})
    if name != "prodigy":
        return
    rate = values.get("training.learning_rate", 0.0)
    if rate < 0.1:
        key = ledger.origin.get("training.learning_rate", "")
        sentence = f"Prodigy finds the learning rate itself and multiplies it by this number; {shown(rate)} becomes 1."
        ledger.change(key, sentence, {"training.learning_rate": 1.0})
    for option in ("targets.rules", "targets.encoders"):
        entries = values.get(option, [])
        if any("lr_scale" in one for one in entries):
            kept = [{k: v for k, v in one.items() if k != "lr_scale"} for one in entries]
            sentence = "Prodigy finds one learning rate for all layers here."
            ledger.change(ledger.origin[option], sentence, {option: [one for one in kept if len(one) > 1]})
    if values.get("targets.text_encoder_lr_scale", 0.5) != 1:
        key = ledger.origin.get("targets.text_encoder_lr_scale", "")
        sentence = "Prodigy finds one learning rate for all layers here."
        if key and values.get("targets.text_encoders"):
            ledger.change(key, sentence, {"targets.text_encoder_lr_scale": 1.0})
        elif values.get("targets.text_encoders"):
            ledger.set({"targets.text_encoder_lr_scale": 1.0})
