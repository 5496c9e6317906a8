"""kohya's sd-scripts: a TOML file for --config_file, or the command line itself in a text file.

Keys, defaults and their meaning: kohya-ss/sd-scripts `library/train_util.py`, `library/config_util.py`,
`library/flux_train_utils.py`, `library/sd3_train_utils.py`, `networks/*.py` at commit 48d368fa, and LyCORIS 4
`lycoris/kohya.py`.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from modules.importing import base, kohya_data, kohya_network, optimizers
from modules.importing.documents import Document
from modules.importing.ledger import Imported, Ledger

NAME = "kohya sd-scripts"

SCRIPTS = {
    "sdxl_train_network.py": "sdxl",
    "flux_train_network.py": "flux",
    "sd3_train_network.py": "sd3",
    "train_network.py": "",
}
"""Programs that train adapters, and families; "" is Stable Diffusion 1 and 2."""

FILES = {"flux": ("clip_l", "t5xxl"), "sd3": ("clip_l", "clip_g", "t5xxl")}
"""Files of text encoders, which only these scripts take; the VAE's is `ae` for FLUX.1 and `vae` for all others."""

OWN_RATES = ("networks.lora_flux", "networks.lora_sd3")
"""Modules that give each text encoder its own learning rate; others take the first one for all."""

PRECISIONS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16", "float": "float32"}


def recognises(document: Document) -> bool:
    """TOML or a command line with arguments of sd-scripts; JSON with them too."""
    known, _ = base.table("kohya")
    plain = {key for key in known if "." not in key}
    names = {name for key, value in document.values.items() for name in (value if isinstance(value, dict) else [key])}
    found = plain & (names | document.values.keys())
    marks = {"pretrained_model_name_or_path", "network_module", "network_dim", "train_data_dir", "dataset_config"}
    foreign = not {"LoRA_type", "max_resolution"}.isdisjoint(document.values)
    return not (foreign or kohya_data.is_sectioned(document.values)) and (
        bool(document.script)
        or bool(found & marks)
        or isinstance(document.values.get("datasets"), list)
        or (document.kind != "JSON" and len(found) > 2)
    )


def convert(document: Document, wishes: base.Wishes) -> Imported:
    """The preset. Raises ValueError with one sentence for what cannot be trained here."""
    known, reasons = base.table("kohya")
    ledger = Ledger(NAME, document.path, kohya_data.given(document, known), known)
    for number, word in enumerate(document.others):
        ledger.given[f"launcher[{number}]"] = word
    family = _family(ledger, document, wishes)
    return train(ledger, family, wishes, reasons)


def train(ledger: Ledger, family: str, wishes: base.Wishes, reasons: dict[str, str]) -> Imported:
    """All after the family is known; the window's files come here too."""
    ledger.to("pretrained_model_name_or_path", "base.path", ledger.text("pretrained_model_name_or_path"))
    texts = FILES.get(family, ())
    base.split_files(ledger, texts, ["ae" if family == "flux" else "vae"])
    _memory(ledger)
    _training(ledger)
    method = kohya_network.set_method(ledger, wishes)
    name = _optimizer(ledger)
    _schedule(ledger)
    if name != "prodigy":
        kohya_network.set_step(ledger, method)
    _text_encoders(ledger, family)
    kohya_network.set_layers(ledger, family, method)
    kohya_data.convert(ledger, family)
    optimizers.settle(ledger, name)
    title = ledger.text("output_name")
    if title:
        ledger.to("output_name", "name", base.safe_name(title))
    return base.finish(ledger, family, title, reasons)


def _family(ledger: Ledger, document: Document, wishes: base.Wishes) -> str:
    script, module = document.script, ledger.text("network_module")
    if script and script not in SCRIPTS:
        known = ", ".join(SCRIPTS)
        raise ValueError(
            f"{ledger.path}: {script} trains no adapter of a family of Gimbal's; of sd-scripts, {known} do"
        )
    found = wishes.family or SCRIPTS.get(script, "") or kohya_network.MODULES.get(module, "")
    if not found and script:
        found = "sd15"
    if not found and (ledger.written("clip_g") or ledger.written("training_shift")):
        found = "sd3"
    if not found and (ledger.written("ae") or ledger.written("timestep_sampling")):
        found = "flux"
    path = Path(ledger.text("pretrained_model_name_or_path")).name.lower()
    if not found and (ledger.flag("no_half_vae") or re.search(r"xl|pony|illustrious|noob", path)):
        found = "sdxl"
    if not found and (ledger.flag("v2") or re.search(r"v1-5|v1\.5|sd15|sd-v1|v2-1|1_5", path)):
        found = "sd15"
    if not found:
        raise ValueError(
            f"{ledger.path}: whether this is for Stable Diffusion 1.5 or XL stands in the command, not in the file; "
            "give --family sd15 or --family sdxl"
        )
    if module and module not in kohya_network.MODULES and not wishes.method:
        raise ValueError(
            f"{ledger.path}: network_module {module} is unknown here; give --method to take one of Gimbal's"
        )
    found = wishes.family or of_type(ledger, found)
    ledger.set({"family": found}, "pretrained_model_name_or_path")
    if ledger.flag("v2"):
        ledger.agree("v2", "the base tells whether it is Stable Diffusion 2")
    return found


def of_type(ledger: Ledger, family: str) -> str:
    """The family, which an option tells where two have one program."""
    if family != "flux" or ledger.text("model_type") != "chroma":
        return family
    ledger.to("model_type", "family", "chroma")
    ledger.agree("apply_t5_attn_mask", "this family always has the mask")
    return "chroma"


def _memory(ledger: Ledger) -> None:
    ledger.to("mixed_precision", "training.precision", PRECISIONS.get(ledger.text("mixed_precision"), "auto"))
    ledger.to("gradient_checkpointing", "training.gradient_checkpointing", ledger.flag("gradient_checkpointing"))
    for key in ("fp8_base", "fp8_base_unet"):
        if ledger.flag(key):
            ledger.to(key, "base.quantization", "fp8")
    blocks = ledger.maybe("blocks_to_swap")
    if blocks:
        ledger.change(
            "blocks_to_swap", "The last blocks are kept in main memory here.", {"base.offload_blocks": int(blocks)}
        )
    if ledger.flag("torch_compile"):
        ledger.to("torch_compile", "training.compile", True)


def _training(ledger: Ledger) -> None:
    epochs = ledger.maybe("max_train_epochs")
    if epochs:
        ledger.change(
            "max_train_epochs",
            "An epoch is every picture times its repeats in both; incomplete batches are filled up here.",
            {"training.epochs": int(epochs)},
        )
        ledger.drop("max_train_steps", "without effect there: max_train_epochs decides")
    else:
        ledger.to("max_train_steps", "training.steps", ledger.whole("max_train_steps"))
    ledger.to("gradient_accumulation_steps", "training.accumulation", ledger.whole("gradient_accumulation_steps"))
    own = ledger.maybe("unet_lr")
    ledger.to("unet_lr" if own else "learning_rate", "training.learning_rate", own or ledger.number("learning_rate"))
    if own:
        ledger.drop("learning_rate", "without effect there: unet_lr and text_encoder_lr decide")
    ledger.to("max_grad_norm", "training.max_grad_norm", ledger.number("max_grad_norm"))
    seed = ledger.maybe("seed")
    if seed is not None:
        ledger.to("seed", "training.seed", int(seed))


def _optimizer(ledger: Ledger) -> str:
    key, name = "optimizer_type", ledger.text("optimizer_type") or "AdamW"
    for flag, meant in {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}.items():
        if ledger.flag(flag):
            key, name = flag, meant
    ours = optimizers.choose(ledger, key, name)
    prefix = "optimizer_args."
    options = {one.removeprefix(prefix): (one, ledger.value(one)) for one in ledger.given if one.startswith(prefix)}
    if ours == "adafactor" and "relative_step" not in options and optimizers.plain(name) == "adafactor":
        options = {"relative_step": (key, "true"), "scale_parameter": (key, "true"), **options}
    optimizers.set_options(ledger, ours, options)
    return ours


SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "inverse_sqrt": "inverse_sqrt",
    "warmup_stable_decay": "warmup_stable_decay",
}
NEAREST = {
    "CosineAnnealingLR": "cosine",
    "CosineAnnealingWarmRestarts": "cosine_with_restarts",
    "RexAnnealingWarmRestarts": "rex",
    "REXScheduler": "rex",
}
"""Schedules by the name of their class, and which of ours is nearest."""


def _schedule(ledger: Ledger) -> None:
    key, kind = "lr_scheduler", ledger.text("lr_scheduler")
    if ledger.origin.get("training.schedule"):  # Adafactor's own
        ledger.drop(key, "without effect there: Adafactor's own step size")
        ledger.drop("lr_warmup_steps", "without effect there: Adafactor's own step size")
        return
    custom = ledger.text("lr_scheduler_type")
    if custom:
        ledger.drop(key, "without effect there: lr_scheduler_type decides")
        ours = NEAREST.get(custom.rpartition(".")[2], "constant")
        sentence = f"There is no schedule {custom} here; {ours} is the nearest."
        ledger.change("lr_scheduler_type", sentence, {"training.schedule": ours})
        if ours != "constant":
            ledger.set({"training.final_lr": 0.0}, "lr_scheduler_type")
    elif kind in SCHEDULES:
        ledger.to(key, "training.schedule", SCHEDULES[kind])
        _shape(ledger, kind)
    else:
        ledger.change(key, f"There is no schedule {kind} here; it is constant.", {"training.schedule": "constant"})
    _warmup(ledger, "" if custom else kind)


def _shape(ledger: Ledger, kind: str) -> None:
    """The options of one of their schedules, of which each takes its own."""
    cycles, lowest = ledger.number("lr_scheduler_num_cycles"), "lr_scheduler_min_lr_ratio"
    if kind == "cosine_with_restarts":
        ledger.to("lr_scheduler_num_cycles", "training.cycles", cycles)
    elif kind == "cosine_with_min_lr":
        ledger.to("lr_scheduler_num_cycles", "training.cycles", cycles / 2)
    elif kind == "polynomial":
        ledger.to("lr_scheduler_power", "training.power", ledger.number("lr_scheduler_power"))
    elif kind == "inverse_sqrt":
        timescale = ledger.maybe("lr_scheduler_timescale")
        ledger.to("lr_scheduler_timescale", "training.timescale", int(timescale) if timescale else None)
    elif kind == "warmup_stable_decay":
        _decay(ledger)
    if kind in ("cosine_with_min_lr", "warmup_stable_decay"):
        ledger.to(lowest, "training.final_lr", ledger.maybe(lowest) or 0.0)
    elif kind == "polynomial":
        end = "lr_scheduler_args.lr_end"
        rate = (ledger.number(end) if ledger.written(end) else 1e-7) / ledger.values["training.learning_rate"]
        ledger.to(end, "training.final_lr", min(1.0, float(f"{rate:.6g}")))
    elif kind in ("linear", "cosine", "cosine_with_restarts"):
        ledger.set({"training.final_lr": 0.0}, "lr_scheduler")
        ledger.drop(lowest, f"without effect there: the schedule {kind} falls to zero")


def _decay(ledger: Ledger) -> None:
    """The steps in which the schedule falls at the end, or their part of all steps."""
    key, steps = "lr_decay_steps", ledger.values.get("training.steps")
    given = ledger.maybe(key) or 0.0
    if not given:
        ledger.change("lr_scheduler", "Without lr_decay_steps it never falls there.", {"training.schedule": "constant"})
    elif given < 1:
        ledger.to(key, "training.decay_share", given)
    elif steps:
        ledger.to(key, "training.decay_share", min(1.0, given / steps))
    else:
        sentence = (
            f"It is a share of all steps here, whose number is not known yet: 0.2 is taken for {given:g} steps; "
            "--check shows the steps."
        )
        ledger.change(key, sentence, {"training.decay_share": 0.2})
    if ledger.number("lr_scheduler_num_cycles") != 1:
        ledger.change("lr_scheduler_num_cycles", "The fall at the end is half a wave here.")


def _warmup(ledger: Ledger, kind: str) -> None:
    key = "lr_warmup_steps"
    warmup = ledger.maybe(key) or 0.0
    if kind == "constant" and warmup:
        sentence = "kohya's constant schedule has no warm-up, so this had no effect there, and there is none here."
        ledger.change(key, sentence, {"training.warmup": 0})
    elif 0.9 < warmup < 1:
        ledger.change(key, "The warm-up is at most 90 % of the steps here.", {"training.warmup_share": 0.9})
    elif 0 < warmup < 1:
        ledger.to(key, "training.warmup_share", warmup)
    else:
        ledger.to(key, "training.warmup", int(warmup))


def _text_encoders(ledger: Ledger, family: str) -> None:
    if ledger.flag("network_train_text_encoder_only"):
        denoiser = "transformer" if base.is_flow(family) else "unet"
        ours = {"targets.exclude": [f"{denoiser}.*"]}
        ledger.change("network_train_text_encoder_only", "The denoiser's layers are excluded.", ours)
    value = ledger.value("text_encoder_lr")
    words = value if isinstance(value, list) else [] if value in (None, "") else [value]
    rates = [base.as_number(word) for word in words]
    if any(rate is None for rate in rates):
        raise ledger.wrong("text_encoder_lr", "a number")
    alone = ledger.flag("network_train_unet_only") or (bool(rates) and not any(rates))
    alone |= family == "chroma" and not ledger.flag("network_args.train_t5xxl")  # it has no other text encoder
    key = "network_train_unet_only" if ledger.flag("network_train_unet_only") else "text_encoder_lr"
    ledger.to(key, "targets.text_encoders", not alone)
    if alone:
        if key != "text_encoder_lr":
            ledger.drop("text_encoder_lr", "without effect there: text encoders are not trained")
        return
    base_rate = ledger.values["training.learning_rate"]
    factor = base_rate / (ledger.maybe("unet_lr") or ledger.number("learning_rate"))  # a rotation's
    _rates(ledger, family, [rate or 0.0 for rate in rates] or [ledger.number("learning_rate")], factor)
    third = {"flux": "text_encoder_2", "sd3": "text_encoder_3"}.get(family)
    if third and not ledger.flag("network_args.train_t5xxl"):
        out = [*ledger.values.get("targets.exclude", []), f"{third}.*"]
        ledger.change(key, "T5 is not trained there, so its layers are excluded.", {"targets.exclude": out})
    elif third:
        ledger.agree("network_args.train_t5xxl", "all text encoders are trained together here")


def _rates(ledger: Ledger, family: str, given: Sequence[float], factor: float) -> None:
    """The text encoders' learning rates in their order, each times `factor`."""
    if ledger.text("network_module") not in OWN_RATES:
        if len(set(given)) > 1:
            ledger.change("text_encoder_lr", "Of several rates the first one is that of all text encoders there, too.")
        given = given[:1]
    names = ["text_encoder", "text_encoder_2", "text_encoder_3"][: len(FILES.get(family, ()))] or ["text_encoder*"]
    trained = names if ledger.flag("network_args.train_t5xxl") or family not in FILES else names[:-1]
    rates = {name: given[min(number, len(given) - 1)] for number, name in enumerate(trained)}
    if still := [f"{name}.*" for name, rate in rates.items() if rate == 0]:
        out = [*ledger.values.get("targets.exclude", []), *still]
        ledger.change("text_encoder_lr", "A rate of 0 trains nothing.", {"targets.exclude": out})
    found = {name: ("text_encoder_lr", rate * factor) for name, rate in rates.items() if rate}
    base.text_encoder_rates(ledger, found, ledger.values["training.learning_rate"])
