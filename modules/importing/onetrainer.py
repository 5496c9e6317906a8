"""OneTrainer: what its window saves, its presets, and the packed file of its Export button (JSON, all versions).

Keys, defaults and their meaning: `modules/util/config/TrainConfig.py`, `ConceptConfig.py`, `SampleConfig.py`,
`modules/util/create.py`, `modules/modelSetup/`, at commit 23df3832.
"""

import math
from pathlib import Path

from modules.importing import base, onetrainer_data, onetrainer_method, optimizers
from modules.importing.documents import Document
from modules.importing.ledger import Imported, Ledger, flat
from modules.preset.base_options import is_hub_id

NAME = "OneTrainer"

FAMILIES = {
    "STABLE_DIFFUSION_15": "sd15",
    "STABLE_DIFFUSION_20": "sd15",
    "STABLE_DIFFUSION_20_BASE": "sd15",
    "STABLE_DIFFUSION_21": "sd15",
    "STABLE_DIFFUSION_21_BASE": "sd15",
    "STABLE_DIFFUSION_XL_10_BASE": "sdxl",
    "STABLE_DIFFUSION_3": "sd3",
    "STABLE_DIFFUSION_35": "sd3",
    "FLUX_DEV_1": "flux",
    "CHROMA_1": "chroma",
    "FLUX_2": "flux2",
    "Z_IMAGE": "zimage",
    "QWEN": "qwenimage",
    "KREA_2": "krea2",
    "ANIMA": "anima",
}
DTYPES = {
    "FLOAT_32": "float32",
    "TFLOAT_32": "float32",
    "FLOAT_16": "float16",
    "BFLOAT_16": "bfloat16",
}
PACKED = {
    "NFLOAT_4": "nf4",
    "FLOAT_8": "fp8",
    "FLOAT_W8A8": "fp8",
    "INT_8": "int8",
    "INT_W8A8": "int8",
}
OLD_PARTS = {"unet": "unet", "prior": "prior", "text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2"}


def recognises(document: Document) -> bool:
    """A configuration has one of these; kohya's window has none."""
    marks = {
        "training_method",
        "model_type",
        "base_model_name",
        "peft_type",
        "concept_file_name",
        "learning_rate_scaler",
    }
    return document.kind == "JSON" and len(marks & document.values.keys()) > 0 and "LoRA_type" not in document.values


def convert(document: Document, wishes: base.Wishes) -> Imported:
    """The preset. Raises ValueError with one sentence for what cannot be trained here."""
    known, reasons = base.table("onetrainer")
    ledger = Ledger(NAME, document.path, flat(document.values, known), known)
    _old_names(ledger)
    family = _family(ledger, wishes)
    denoiser = "unet" if not base.is_flow(family) else "transformer"
    if base.is_flow(family) and not any(key.startswith("transformer.") for key in ledger.given):
        for key in [key for key in ledger.given if key.startswith("prior.")]:
            ledger.rename(key, f"transformer.{key.removeprefix('prior.')}")
    _old_parts(ledger, denoiser)
    onetrainer_data.listed(ledger, "concepts", "concept_file_name")
    onetrainer_data.listed(ledger, "samples", "sample_definition_file_name")
    _model(ledger, denoiser)
    _training(ledger)
    name = optimizers.choose(
        ledger, "optimizer.optimizer", ledger.text("optimizer.optimizer"), ledger.flag("optimizer.is_paged")
    )
    options = {
        key.removeprefix("optimizer."): (key, ledger.value(key))
        for key in ledger.given
        if key.startswith("optimizer.") and key != "optimizer.optimizer" and ledger.value(key) is not None
    }
    if name == "lion8bit" and "beta2" not in options and ledger.text("optimizer.optimizer") == "LION_8BIT":
        ledger.set({"optimizer.beta2": 0.999}, "optimizer.optimizer")
    optimizers.set_options(ledger, name, options)
    _text_encoders(ledger, family, denoiser)
    onetrainer_method.convert(ledger, name, family, denoiser, wishes)
    onetrainer_data.convert(ledger, family)
    optimizers.settle(ledger, name)
    return base.finish(ledger, family, _name(ledger), reasons)


def _name(ledger: Ledger) -> str:
    """The name of the file that it would have written, where somebody chose one."""
    key = "output_model_destination"
    stem = Path(ledger.text(key).replace("\\", "/")).stem
    if not ledger.differs(key) or stem in ("", "model", "lora"):
        ledger.drop(key, "not needed here: a run's file lies in its folder, and has its name")
        return ""
    ledger.to(key, "name", base.safe_name(stem))
    return stem


def _old_names(ledger: Ledger) -> None:
    """Keys of versions 0 to 10 under today's names."""
    for key in [key for key in ledger.given if key == "optimizer" or key.startswith("optimizer_")]:
        if key != "optimizer_defaults":
            ledger.rename(key, "optimizer." + key.removeprefix("optimizer_"))
    for old, new in OLD_PARTS.items():
        ledger.rename(f"train_{old}", f"{new}.train")
        ledger.rename(f"train_{old}_epochs", f"{new}.stop_training_after")
    for part in (*OLD_PARTS, "vae", "effnet_encoder", "decoder", "decoder_text_encoder", "decoder_vqgan"):
        for what in ("learning_rate", "weight_dtype", "model_name"):
            ledger.rename(f"{part}_{what}", f"{part}.{what}")
    for old, new in {
        "save_after": "save_every",
        "save_after_unit": "save_every_unit",
        "lora_layers": "layer_filter",
        "lora_layer_preset": "layer_filter_preset",
        "lora_layers_regex": "layer_filter_regex",
        "enable_async_offloading": "async_offloading",
    }.items():
        ledger.rename(old, new)
    for key in [key for key in ledger.given if key.startswith("quantization_")]:
        ledger.rename(key, key.replace("_", ".", 1))
    for number in range(sum(1 for key in ledger.given if key.startswith("concepts[") and key.endswith("].path"))):
        ledger.rename(f"concepts[{number}].repeats", f"concepts[{number}].balancing")


def _old_parts(ledger: Ledger, denoiser: str) -> None:
    """Settings that were once for all parts: memory and number format."""
    if ledger.written("gradient_checkpointing"):
        kind = str(ledger.value("gradient_checkpointing")).upper()
        ledger.to("gradient_checkpointing", "training.gradient_checkpointing", kind not in ("OFF", "FALSE"))
        if kind == "CPU_OFFLOADED":
            sentence = "Activations stay on the GPU here; base.offload_blocks moves weights instead."
            ledger.change("gradient_checkpointing", sentence)
    key = f"{denoiser}.weight_dtype"
    if ledger.written("weight_dtype") and ledger.given.get(key) in (None, "NONE"):
        ledger.given.pop(key, None)
        ledger.rename("weight_dtype", key)


def _family(ledger: Ledger, wishes: base.Wishes) -> str:
    kind = ledger.text("model_type")
    family = wishes.family or FAMILIES.get(kind, "")
    if not family:
        known = ", ".join(dict.fromkeys(FAMILIES.values()))
        raise ValueError(
            f"{ledger.path}: model_type {kind} is none of Gimbal's families ({known}), so it cannot be trained"
        )
    ledger.to("model_type", "family", family)
    method = ledger.text("training_method")
    if method == "LORA":
        ledger.agree("training_method", "every method here is of this kind")
    elif wishes.method and method == "FINE_TUNE":
        ledger.change("training_method", "All weights were trained there; here it is an adapter.")
    else:
        raise ValueError(
            f"{ledger.path}: training_method is {method}, but Gimbal trains adapters only (LORA)"
            + ("; give --method to train one with these settings" if method == "FINE_TUNE" else "")
        )
    return family


def _model(ledger: Ledger, denoiser: str) -> None:
    _files(ledger, denoiser)
    key = f"{denoiser}.weight_dtype"
    kind = ledger.text(key)
    if kind in DTYPES:
        ledger.to(key, "base.dtype", DTYPES[kind])
    elif kind in PACKED:
        ours = {"base.quantization": PACKED[kind]}
        if kind.endswith("W8A8"):
            ledger.change(key, "Only the weights are kept in 8 bits here; products are computed in 16 bits.", ours)
        else:
            ledger.to(key, "base.quantization", PACKED[kind])
    elif kind != "NONE":
        ledger.drop(key, f"no counterpart: there is no {kind} here; base.quantization has fp8, int8 and nf4")
    if not ledger.written("gradient_checkpointing"):
        key = f"{denoiser}.gradient_checkpointing"
        ledger.to(key, "training.gradient_checkpointing", ledger.flag(key))
    if not ledger.flag(f"{denoiser}.train"):
        sentence = "Only the text encoders were trained; the denoiser's layers are excluded."
        ledger.change(f"{denoiser}.train", sentence, {"targets.exclude": [f"{denoiser}.*"]})
    rate = ledger.maybe(f"{denoiser}.learning_rate")
    if rate is not None:
        ledger.to(f"{denoiser}.learning_rate", "training.learning_rate", rate)
    ledger.to("compile", "training.compile", ledger.flag("compile"))
    dtype = ledger.text("train_dtype")
    ledger.to("train_dtype", "training.precision", DTYPES.get(dtype, "auto"))


def _files(ledger: Ledger, denoiser: str) -> None:
    """The model; its denoiser may be a file of its own, and its VAE a folder in diffusers layout."""
    whole, own = ledger.text("base_model_name"), f"{denoiser}.model_name"
    if ledger.text(own).lower().endswith(".safetensors"):
        ledger.to(own, "base.path", ledger.text(own))
        if is_hub_id(whole):
            ledger.agree("base_model_name", "a file of the denoiser has its configuration from the family's own model")
        else:
            ledger.to("base_model_name", "base.config", whole)
    else:
        ledger.to("base_model_name", "base.path", whole)
        ledger.drop(own, "no counterpart: base.path is the whole model, or a .safetensors file of the denoiser")
    if (vae := ledger.text("vae.model_name")) and not is_hub_id(vae) and not Path(vae).suffix:
        ledger.to("vae.model_name", "base.vae", str(Path(vae) / "diffusion_pytorch_model.safetensors"))
    else:
        base.split_files(ledger, [], ["vae.model_name"])


def _training(ledger: Ledger) -> None:
    batch, accumulation = ledger.whole("batch_size"), ledger.whole("gradient_accumulation_steps")
    ledger.to("batch_size", "training.batch_size", batch)
    ledger.to("gradient_accumulation_steps", "training.accumulation", accumulation)
    ledger.change(
        "epochs",
        "The length is counted in epochs there. An epoch is every picture times its repeats in both, but what does not "
        "fill a batch is left out there and filled up here, so the number of steps may differ.",
        {"training.epochs": ledger.whole("epochs")},
    )
    if "training.learning_rate" in ledger.values:
        ledger.drop("learning_rate", "without effect there: the denoiser has a learning rate of its own")
    else:
        ledger.to("learning_rate", "training.learning_rate", ledger.number("learning_rate"))
    _scaler(ledger, batch, accumulation)
    _schedule(ledger, accumulation)
    _average(ledger)
    clip = ledger.maybe("clip_grad_norm")
    ledger.to("clip_grad_norm", "training.max_grad_norm", 0.0 if clip is None else clip)


def _scaler(ledger: Ledger, batch: int, accumulation: int) -> None:
    """Its factor on the learning rate: the square root of a product."""
    kind = ledger.text("learning_rate_scaler")
    products = {
        "BATCH": batch,
        "GLOBAL_BATCH": batch,
        "GRADIENT_ACCUMULATION": accumulation,
        "BOTH": batch * accumulation,
        "GLOBAL_BOTH": batch * accumulation,
    }
    if kind not in products:
        return
    factor, rate = math.sqrt(products[kind]), ledger.values["training.learning_rate"]
    several = " (of one GPU)" if kind.startswith("GLOBAL") else ""
    sentence = (
        f"It multiplies all learning rates by the root of {products[kind]}{several}, {factor:.4g}; there is no "
        "such option here, so it is in training.learning_rate."
    )
    ledger.change("learning_rate_scaler", sentence, {"training.learning_rate": float(f"{rate * factor:.6g}")})


SCHEDULES = {
    "CONSTANT": "constant",
    "LINEAR": "linear",
    "COSINE": "cosine",
    "COSINE_WITH_RESTARTS": "cosine",
    "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts",
    "REX": "rex",
}


def _schedule(ledger: Ledger, accumulation: int) -> None:
    key = "learning_rate_scheduler"
    kind = ledger.text(key)
    if kind in SCHEDULES:
        ledger.to(key, "training.schedule", SCHEDULES[kind])
    else:
        ledger.change(key, f"There is no schedule {kind} here; it is constant.", {"training.schedule": "constant"})
    if kind.endswith("_RESTARTS"):
        ledger.to("learning_rate_cycles", "training.cycles", ledger.number("learning_rate_cycles"))
    if kind == "REX":
        ledger.set({"training.rex_curve": 0.9}, key)
    if ledger.values["training.schedule"] != "constant":
        ledger.to("learning_rate_min_factor", "training.final_lr", ledger.number("learning_rate_min_factor"))
    key, warmup = "learning_rate_warmup_steps", ledger.number("learning_rate_warmup_steps")
    if 0.9 < warmup <= 1:
        ledger.change(key, "The warm-up is at most 90 % of the steps here.", {"training.warmup_share": 0.9})
    elif 0 < warmup <= 1:
        ledger.to(key, "training.warmup_share", warmup)
    elif accumulation > 1 and warmup > 1:
        steps = int(warmup / accumulation)
        sentence = f"It counts batches there, and steps here: {warmup:g} batches are {steps} steps of {accumulation}."
        ledger.change(key, sentence, {"training.warmup": steps})
    else:
        ledger.to(key, "training.warmup", max(0, int(warmup)))


def _average(ledger: Ledger) -> None:
    """Its moving average of the weights."""
    kind = ledger.text("ema")
    places = {"GPU": "device", "CPU": "main_memory"}
    if kind not in places:
        for key in ("ema_decay", "ema_update_step_interval", "non_ema_sampling"):
            ledger.drop(key, "without effect there: ema is off")
        return
    sentence = "The first average is the untrained adapter there, and the adapter of the first averaged step here."
    ledger.change("ema", sentence, {"training.ema": places[kind]})
    ledger.to("ema_decay", "training.ema_decay", ledger.number("ema_decay"))
    ledger.to("ema_update_step_interval", "training.ema_every", ledger.whole("ema_update_step_interval"))
    if ledger.flag("non_ema_sampling"):
        ledger.change("non_ema_sampling", "Both are drawn there; samples.ema says which of the two is here.")


def _text_encoders(ledger: Ledger, family: str, denoiser: str) -> None:
    names = ["text_encoder", "text_encoder_2", "text_encoder_3"][: onetrainer_data.ENCODERS[family]]
    trained = [name for name in names if ledger.flag(f"{name}.train")]
    for name in names:
        if trained and name not in trained:
            ours = {"targets.exclude": [*ledger.values.get("targets.exclude", []), f"{name}.*"]}
            ledger.change(f"{name}.train", "Text encoders are trained together here; this one's are excluded.", ours)
        else:
            ledger.to(f"{name}.train", "targets.text_encoders", bool(trained))
    if not trained:
        return
    base_rate = ledger.maybe(f"{denoiser}.learning_rate") or ledger.number("learning_rate")
    rates = {}
    for name in trained:
        own = ledger.maybe(f"{name}.learning_rate")
        rates[name] = f"{name}.learning_rate", ledger.number("learning_rate") if own is None else own
    base.text_encoder_rates(ledger, rates, base_rate)
    for name in trained:
        _stop(ledger, name, f"{name}.stop_training_after")


def _stop(ledger: Ledger, name: str, key: str) -> None:
    """When a text encoder stops to learn."""
    unit, after = ledger.value(f"{key}_unit"), ledger.maybe(key)
    if unit == "STEP" and after:
        ledger.change(key, f"It stops to learn after {after:g} steps there; set targets.encoders to the share of all "
                           "steps, which are counted in epochs there.")
    elif unit == "EPOCH" and after and after < (epochs := ledger.whole("epochs")):
        ledger.to(key, "targets.encoders", base.with_encoder(ledger, name, stop=after / epochs))
    else:
        return
    ledger.agree(f"{key}_unit", "goes with the number")
