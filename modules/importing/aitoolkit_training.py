"""ai-toolkit's settings about steps, optimizer, schedule, noise and loss; `aitoolkit` has the others."""

from modules.importing import base, optimizers
from modules.importing.ledger import Ledger
from modules.preset.section import NUMBER_FORMATS

DTYPES = NUMBER_FORMATS | {long: long for long in NUMBER_FORMATS.values()} | {"float": "float32"}
LOSSES = {"mse": "mse", "l2": "mse", "mae": "l1"}


def convert(ledger: Ledger, family: str) -> str:
    """Write these sections; the name of our optimizer."""
    _training(ledger, "transformer" if base.is_flow(family) else "unet")
    name = _optimizer(ledger)
    _schedule(ledger)
    _average(ledger)
    _objective(ledger, family)
    return name


def _training(ledger: Ledger, denoiser: str) -> None:
    ledger.to("train.steps", "training.steps", ledger.whole("train.steps"))
    ledger.to("train.batch_size", "training.batch_size", ledger.whole("train.batch_size"))
    keys = [key for key in ("train.gradient_accumulation_steps", "train.gradient_accumulation") if ledger.written(key)]
    for key in keys or ["train.gradient_accumulation_steps"]:
        counts = [ledger.whole(one) for one in keys]
        ledger.to(key, "training.accumulation", max([1, *counts]))
    own = "train.unet_lr"
    if ledger.written(own):
        ledger.to(own, "training.learning_rate", ledger.number(own))
        ledger.drop("train.lr", "without effect there: train.unet_lr decides")
    else:
        ledger.to("train.lr", "training.learning_rate", ledger.number("train.lr"))
    texts = ledger.flag("train.train_text_encoder")
    ledger.to("train.train_text_encoder", "targets.text_encoders", texts)
    if texts:
        key = "train.text_encoder_lr"
        rate = ledger.number(key if ledger.written(key) else "train.lr")
        base.text_encoder_rates(ledger, {"": (key, rate)}, ledger.values["training.learning_rate"])
    ledger.to("train.max_grad_norm", "training.max_grad_norm", ledger.number("train.max_grad_norm"))
    ledger.to(
        "train.gradient_checkpointing", "training.gradient_checkpointing", ledger.flag("train.gradient_checkpointing")
    )
    ledger.to("train.dtype", "training.precision", DTYPES.get(ledger.text("train.dtype"), "auto"))
    if ledger.written("training_seed") and ledger.value("training_seed") is not None:
        ledger.to("training_seed", "training.seed", ledger.whole("training_seed"))
    if not ledger.flag("train.train_unet"):
        if not texts:
            raise ValueError(
                f"{ledger.path}: train.train_unet is off, and so are the text encoders: nothing was trained"
            )
        sentence = "Only the text encoders were trained; the denoiser's layers are excluded."
        ledger.change("train.train_unet", sentence, {"targets.exclude": [f"{denoiser}.*"]})


def _optimizer(ledger: Ledger) -> str:
    key = "train.optimizer"
    name = optimizers.choose(ledger, key, ledger.text(key))
    if name in ("adamw", "adamw8bit", "ademamix8bit", "prodigy"):
        ledger.set({"optimizer.eps": 1e-6}, key)
    prefix = "train.optimizer_params."
    given = {one.removeprefix(prefix): (one, ledger.value(one)) for one in ledger.given if one.startswith(prefix)}
    optimizers.set_options(ledger, name, given)
    return name


def _schedule(ledger: Ledger) -> None:
    key, params = "train.lr_scheduler", "train.lr_scheduler_params."
    kind = ledger.text(key)
    warmup, rate = f"{params}num_warmup_steps", ledger.values["training.learning_rate"]
    ledger.set({"training.warmup": 0}, key)
    if kind in ("cosine", "cosine_with_restarts"):
        ledger.to(key, "training.schedule", "cosine")
        if kind != "cosine":
            ledger.change(key, "Its restart comes after all steps, so it is one fall.")
            ledger.drop(f"{params}T_0", "without effect there: all steps are taken instead")
        lowest = ledger.maybe(f"{params}eta_min") or 0.0
        ledger.set({"training.final_lr": min(1.0, lowest / rate)}, f"{params}eta_min")
        if lowest:
            ledger.to(f"{params}eta_min", "training.final_lr", min(1.0, float(f"{lowest / rate:.6g}")))
    elif kind in ("constant", "constant_with_warmup"):
        ledger.to(key, "training.schedule", "constant")
        if kind == "constant_with_warmup":
            steps = ledger.whole(warmup) if ledger.written(warmup) else 1000
            ledger.to(warmup if ledger.written(warmup) else key, "training.warmup", steps)
    elif kind == "linear" and ledger.written(f"{params}end_factor"):
        ledger.to(key, "training.schedule", "linear")
        ledger.to(f"{params}end_factor", "training.final_lr", ledger.number(f"{params}end_factor"))
        ledger.drop(f"{params}start_factor", "no counterpart: the schedule begins at the full learning rate")
    elif kind == "linear":
        sentence = "Its linear schedule rises from a third of the learning rate to all of it; it is constant here."
        ledger.change(key, sentence, {"training.schedule": "constant"})
    else:
        ours = "cosine" if "cosine" in kind else "constant"
        ledger.change(key, f"There is no schedule {kind} here; {ours} is the nearest.", {"training.schedule": ours})
    if ledger.written(warmup) and warmup not in ledger.entries:
        ledger.to(warmup, "training.warmup", ledger.whole(warmup))


def _average(ledger: Ledger) -> None:
    """Its moving average of the weights."""
    key, place = "train.ema_config.use_ema", "train.ema_config."
    if not ledger.flag(key):
        ledger.drop(f"{place}ema_decay", "without effect there: use_ema is off")
        return
    sentence = (
        "It begins with the untrained adapter there; here with that of the first step and a lower decay, so that the "
        "first steps are soon forgotten."
    )
    ledger.change(key, sentence, {"training.ema": "device"})
    ledger.to(f"{place}ema_decay", "training.ema_decay", ledger.number(f"{place}ema_decay"))


def _objective(ledger: Ledger, family: str) -> None:
    gamma = "train.min_snr_gamma" if ledger.value("train.min_snr_gamma") else "train.snr_gamma"
    ledger.to(gamma, "objective.min_snr_gamma", ledger.maybe(gamma) or None)
    ledger.to("train.noise_offset", "objective.noise_offset", ledger.number("train.noise_offset"))
    key, loss = "train.loss_type", ledger.text("train.loss_type")
    if loss in LOSSES:
        ledger.to(key, "objective.loss", LOSSES[loss])
    elif loss == "pseudo_huber":
        ours = {"objective.loss": "pseudo_smooth_l1", "objective.loss_delta": 0.01}
        ledger.change(key, "It is twice as large here, which optimizers of Adam's kind do not notice.", ours)
    else:
        ledger.change(key, f"There is no loss {loss} here; the squared error is taken.", {"objective.loss": "mse"})
    if ledger.written("train.noise_scheduler"):
        ledger.agree("train.noise_scheduler", "the base's kind of noise is used")
    if base.is_flow(family):
        _flow_times(ledger)
    else:
        ledger.drop("train.timestep_type", "without effect there: for rectified flows only")
    _bounds(ledger, family)
    key, kind = "train.content_or_style", ledger.text("train.content_or_style")
    if kind != "balanced":
        mean = 1.0 if kind == "content" else -1.0
        sentence = (
            f"It favours {'much' if mean > 0 else 'little'} noise; a logit-normal density does so nearly as much."
        )
        ours = {"objective.density": "logit_normal", "objective.density_mean": mean}
        ledger.change(key, sentence, ours)


def _bounds(ledger: Ledger, family: str) -> None:
    """The steps that are trained, counted from pure noise there."""
    kind = ledger.text("train.timestep_type")
    even = not base.is_flow(family) or kind == "linear"
    for key, ours, whole in (("min_denoising_steps", "max_noise", 0), ("max_denoising_steps", "min_noise", 999)):
        key, value = f"train.{key}", ledger.number(f"train.{key}")
        if value == whole:
            continue
        level = {f"objective.{ours}": min(1.0, max(0.0, (1000 - value - (whole > 0)) / 1000))}
        if even:
            ledger.to(key, *next(iter(level.items())))
        else:
            sentence = f"It leaves out draws of the distribution {kind} there; here it is squeezed between the bounds."
            ledger.change(key, sentence, level)


def _flow_times(ledger: Ledger) -> None:
    key, kind = "train.timestep_type", ledger.text("train.timestep_type")
    density = {"sigmoid": "logit_normal", "lognorm_blend": "logit_normal"}.get(kind, "uniform")
    shift = None if "shift" in kind else 1.0
    ours = {"objective.density": density, "objective.shift": shift}
    if kind in ("sigmoid", "linear", "shift", "flux_shift"):
        ledger.to(key, "objective.density", density)
        ledger.to(key, "objective.shift", shift)
    else:
        sentence = f"There is no {kind} here; {density} is the nearest density, and its loss weights are left out."
        ledger.change(key, sentence, ours)
