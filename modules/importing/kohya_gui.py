"""kohya_ss, the window around sd-scripts: the JSON file of its LoRA page.

How its settings become arguments of sd-scripts: bmaltais/kohya_ss `kohya_gui/lora_gui.py` at commit 45088f04.
"""

from typing import Any

from modules.importing import base, kohya
from modules.importing.documents import Document, arguments
from modules.importing.kohya_data import words
from modules.importing.ledger import Imported, Ledger, as_number, same

NAME = "kohya_ss"

FLAGS = {"flux1_checkbox": "flux", "sd3_checkbox": "sd3", "sdxl": "sdxl", "sdxl_checkbox": "sdxl"}
FOREIGN = ("anima_checkbox", "lumina_checkbox", "hunyuan_image_checkbox")

ALGORITHMS = {
    "LoCon": "locon",
    "LyCORIS/LoCon": "locon",
    "LyCORIS/LoHa": "loha",
    "LyCORIS/LoKr": "lokr",
    "LyCORIS/iA3": "ia3",
    "LyCORIS/DyLoRA": "dylora",
    "LyCORIS/GLoRA": "glora",
    "LyCORIS/Diag-OFT": "diag-oft",
    "LyCORIS/BOFT": "boft",
    "LyCORIS/Native Fine-Tuning": "full",
}
MODULES = {
    "Standard": "networks.lora",
    "Kohya LoCon": "networks.lora",
    "Flux1": "networks.lora_flux",
    "Flux1 OFT": "networks.oft_flux",
    "Kohya DyLoRA": "networks.dylora",
    "LoRA-FA": "networks.lora_fa",
    "Kohya LoHa": "networks.loha",
    "Kohya LoKr": "networks.lokr",
}

RENAMED = {
    "optimizer": "optimizer_type",
    "max_resolution": "resolution",
    "sdxl_no_half_vae": "no_half_vae",
    "lora_network_weights": "network_weights",
    "LyCORIS_preset": "network_args.preset",
    "constrain": "network_args.constraint",
    "epoch": "max_train_epochs",
}
NETWORK_ARGS = (
    "conv_dim",
    "conv_alpha",
    "rank_dropout",
    "module_dropout",
    "dora_wd",
    "rescaled",
    "use_tucker",
    "use_cp",
    "use_scalar",
    "train_norm",
    "bypass_mode",
    "factor",
    "decompose_both",
    "block_dims",
    "block_alphas",
    "conv_block_dims",
    "conv_block_alphas",
    "down_lr_weight",
    "mid_lr_weight",
    "up_lr_weight",
    "block_lr_zero_threshold",
    "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio",
    "train_blocks",
    "split_qkv",
    "loraplus_text_encoder_lr_ratio",
    "rank_dropout_scale",
    "train_t5xxl",
    "unit",
    "train_on_input",
)
LOCON = ("LoCon", "LyCORIS/LoCon")
PRODUCTS = ("LyCORIS/LoHa", "LyCORIS/LoKr")
NATIVE = ("Kohya LoHa", "Kohya LoKr")
WITH_CONV = (*(set(ALGORITHMS) - {"LyCORIS/Native Fine-Tuning"}), *NATIVE, "Kohya LoCon", "Kohya DyLoRA")
PASSED = {
    "conv_dim": WITH_CONV,
    "conv_alpha": WITH_CONV,
    "dora_wd": (*LOCON, *PRODUCTS),
    "bypass_mode": (*LOCON, *PRODUCTS),
    "use_scalar": (*LOCON, *PRODUCTS),
    "rescaled": ("LyCORIS/Diag-OFT",),
    "constrain": ("LyCORIS/Diag-OFT",),
    "factor": ("LyCORIS/LoKr", "Kohya LoKr"),
    "decompose_both": ("LyCORIS/LoKr",),
    "use_cp": ("LyCORIS/LoKr",),
    "use_tucker": (*(set(ALGORITHMS) - {"LyCORIS/LoKr", "LyCORIS/iA3"}), *NATIVE),
    "train_on_input": ("LyCORIS/iA3",),
    "train_norm": (*ALGORITHMS,),
    "unit": ("LyCORIS/DyLoRA", "Kohya DyLoRA"),
}
"""Fields of the network that the window passes on for some kinds only."""
ARGUMENTS = ("optimizer_args", "lr_scheduler_args", "network_args")

OFF = ("", 0, "0", None, False, "None", "none", 0.0)
"""What switches a setting off."""
ZEROS = (
    "keep_tokens",
    "caption_dropout_rate",
    "caption_tag_dropout_rate",
    "lr_warmup",
    "max_grad_norm",
    "min_bucket_reso",
    "network_alpha",
    "text_encoder_lr",
    "factor",
    "gradient_checkpointing",
    "enable_bucket",
)
"""Settings that mean nought by it."""

COMMON = {
    "caption_extension": ".txt",
    "max_data_loader_n_workers": 0,
    "min_bucket_reso": 256,
    "max_bucket_reso": 2048,
    "multires_noise_discount": 0.3,
    "num_cpu_threads_per_process": 2,
    "sample_sampler": "euler_a",
    "save_model_as": "safetensors",
    "max_token_length": 75,
    "num_machines": 1,
    "num_processes": 1,
    "bucket_no_upscale": True,
    "prior_loss_weight": 1.0,
    "max_timestep": 1000,
    "save_every_n_epochs": 1,
    "dynamo_mode": "default",
    "t5xxl_max_token_length": 512,
    "noise_offset_type": "Original",
    "cache_latents": True,
    "huber_schedule": "snr",
    "save_precision": "fp16",
    "mixed_precision": "fp16",
}
"""What its page begins with, where sd-scripts has another default."""


def recognises(document: Document) -> bool:
    """One of its pages."""
    return document.kind == "JSON" and not {"LoRA_type", "max_resolution"}.isdisjoint(document.values)


def convert(document: Document, wishes: base.Wishes) -> Imported:
    """The preset. Raises ValueError with one sentence for what cannot be trained here."""
    known, reasons = base.table("kohya")
    page, own = base.table("kohya_gui")
    if "LoRA_type" not in document.values:
        raise ValueError(f"{document.path}: this is not of kohya_ss' LoRA page; its other pages train no adapters")
    ledger = Ledger(NAME, document.path, document.values, {**known, **page, **COMMON})
    family = _family(ledger, wishes)
    _noise(ledger)
    _switched_off(ledger, ledger.text("LoRA_type"))
    _network(ledger, wishes)
    _warmup(ledger)
    _words(ledger)
    page_of = {"flux": "flux1", "sd3": "sd3"}.get(family, "")
    parts = {f"{page_of}_{name}": name for name in ("clip_l", "t5xxl")}
    for old, new in {**RENAMED, **parts, **{name: f"network_args.{name}" for name in NETWORK_ARGS}}.items():
        if old not in ledger.entries:
            ledger.rename(old, new)
    _additional(ledger)
    return kohya.train(ledger, family, wishes, {**own, **reasons})


def _family(ledger: Ledger, wishes: base.Wishes) -> str:
    foreign = [key for key in FOREIGN if ledger.flag(key)]
    if foreign and not wishes.family:
        kind = foreign[0].removesuffix("_checkbox")
        raise ValueError(f"{ledger.path}: {foreign[0]}: {kind} is none of Gimbal's families ({base.FAMILIES})")
    found = [(key, family) for key, family in FLAGS.items() if ledger.flag(key)]
    family = wishes.family or kohya.of_type(ledger, found[0][1] if found else "sd15")
    for key, _ in found:
        ledger.to(key, "family", family)
    ledger.set({"family": family}, "LoRA_type")
    return family


def _network(ledger: Ledger, wishes: base.Wishes) -> None:
    """Its kind of LoRA as a module and an algorithm."""
    kind = ledger.text("LoRA_type")
    algorithm = ALGORITHMS.get(kind)
    module = "lycoris.kohya" if algorithm else MODULES.get(kind)
    if module is None and not wishes.method:
        raise ValueError(f"{ledger.path}: LoRA_type {kind} is unknown here; give --method to take one of Gimbal's")
    ledger.rename("LoRA_type", "network_module")
    ledger.originals |= dict.fromkeys(("network_module", "network_args.algo"), kind)
    ledger.given["network_module"] = module or "networks.lora"
    if algorithm:
        ledger.given["network_args.algo"] = algorithm
        ledger.names["network_args.algo"] = "LoRA_type"


def _switched_off(ledger: Ledger, kind: str) -> None:
    """A nought or an empty text is not passed on to sd-scripts."""
    for key, value in list(ledger.given.items()):
        usual = ledger.known.get(RENAMED.get(key, f"network_args.{key}"))
        idle = same(value, usual) or (value in OFF and not usual)
        if key in PASSED and kind not in PASSED[key] and not idle:
            ledger.drop(key, f"without effect there: of another kind of network than {kind}")
        elif key not in ZEROS and value in OFF and not isinstance(value, bool):
            del ledger.given[key]
            ledger.idle.add(key)
    ledger.given.setdefault("caption_extension", ".txt")
    if "max_train_epochs" in ledger.given or "max_train_steps" in ledger.given:
        ledger.drop("epoch", "without effect there: the number of steps or epochs is given on its own")
        if "epoch" not in ledger.entries and "epoch" in ledger.given:
            del ledger.given["epoch"]
            ledger.idle.add("epoch")


def _noise(ledger: Ledger) -> None:
    """Of its two kinds of noise, only the fields of the one that is chosen are passed on. Restarts without a number are
    as many as epochs."""
    kind = ledger.text("noise_offset_type") or "Original"
    fields = {"Original": ("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength"),
              "Multires": ("multires_noise_iterations", "multires_noise_discount")}  # fmt: skip
    for other, keys in fields.items():
        for key in keys:
            if other != kind and ledger.given.get(key) not in OFF:
                _unused(ledger, key, f"without effect there: noise_offset_type is {kind}")
    ledger.agree("noise_offset_type", "its fields are taken")
    cycles = "lr_scheduler_num_cycles"
    if ledger.given.get(cycles) == "" and ledger.text("lr_scheduler") == "cosine_with_restarts":
        ledger.given[cycles] = ledger.value("epoch") or 1


def _warmup(ledger: Ledger) -> None:
    """In percent of all steps, or in steps."""
    percent = as_number(ledger.given.get("lr_warmup", 0)) or 0.0
    if "lr_warmup_steps" not in ledger.given and "lr_warmup" in ledger.given:
        ledger.given["lr_warmup_steps"] = percent / 100
        ledger.names["lr_warmup_steps"] = "lr_warmup"
        ledger.originals["lr_warmup_steps"] = ledger.given.pop("lr_warmup")


def _words(ledger: Ledger) -> None:
    """Arguments in one text."""
    for key in ARGUMENTS:
        value: Any = ledger.given.pop(key, None)
        for word in words(value) if isinstance(value, str) else value or []:
            option, _, text = str(word).partition("=")
            ledger.given[f"{key}.{option}"] = text


def _additional(ledger: Ledger) -> None:
    """Words for the command, which come after all fields of the page and win over them; quotes have no meaning."""
    key = "additional_parameters"
    words = ledger.text(key).replace('"', "").split()
    if not words:
        return
    try:
        given = arguments(ledger.path, words)
    except ValueError as error:
        raise ValueError(f"{error}; it is in {key}") from None
    ledger.agree(key, "each of its arguments is an entry of its own")
    for name, value in given.items():
        if name not in ARGUMENTS:
            _override(ledger, name, name, value)
            continue
        for old in [old for old in ledger.given if old.startswith(f"{name}.")]:
            _overridden(ledger, old, name)
        for word in value:
            option, _, text = word.partition("=")
            _override(ledger, f"{name}.{option}", name, text)


def _override(ledger: Ledger, key: str, flag: str, value: Any) -> None:
    if key in ledger.given:
        _overridden(ledger, key, flag)
    ledger.given[key] = value
    ledger.originals.pop(key, None)
    option = key.removeprefix(flag).replace(".", " ", 1)
    ledger.names[key] = f"additional_parameters --{flag}{option}"


def _overridden(ledger: Ledger, key: str, flag: str) -> None:
    """A field of the page that an argument replaces."""
    _unused(ledger, key, f"without effect there: additional_parameters --{flag} replaces it")


def _unused(ledger: Ledger, key: str, reason: str) -> None:
    """A field of the page that is not passed on, under a key of its own."""
    page = f"page.{key}"
    ledger.given[page] = ledger.given.pop(key)
    ledger.known[page] = None
    ledger.names[page] = ledger.names.get(key, key)
    if key in ledger.originals:
        ledger.originals[page] = ledger.originals[key]
    ledger.drop(page, reason)
