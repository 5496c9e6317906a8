"""ai-toolkit: a job as YAML, or as the JSON that its web page keeps.

Keys, defaults and their meaning: ostris/ai-toolkit `toolkit/config_modules.py`, `toolkit/lora_special.py`,
`toolkit/optimizer.py`, `toolkit/scheduler.py`, `toolkit/samplers/custom_flowmatch_sampler.py`,
`jobs/process/BaseSDTrainProcess.py`, at commit 27a03a91.
"""

import re
from pathlib import Path
from typing import Any

from modules.importing import aitoolkit_data, aitoolkit_training, base, methods, optimizers
from modules.importing.documents import Document
from modules.importing.ledger import Imported, Ledger, flat

NAME = "ai-toolkit"

ARCHES = {"sd1": "sd15", "sd2": "sd15", "sd15": "sd15", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux",
          "chroma": "chroma", "zimage": "zimage", "flux2": "flux2", "flux2_klein_4b": "flux2",
          "flux2_klein_9b": "flux2", "qwen_image": "qwenimage", "flux_kontext": "flux",
          "qwen_image_edit": "qwenimage", "qwen_image_edit_plus": "qwenimage", "krea2": "krea2", "anima": "anima"}
FLAGS = {"is_flux": "flux", "is_v3": "sd3", "is_xl": "sdxl", "is_v2": "sd15"}
ORIGINAL = {
    "flux2": ((r"single_blocks", "single_transformer_blocks"), (r"double_blocks", "transformer_blocks")),
    "krea2": ((r"attn\.w([qkv])", r"attn.to_\1"), (r"attn\.wo", "attn.to_out"), (r"attn\.gate", "attn.to_gate"),
              (r"mlp", "ff"), (r"txtfusion", "text_fusion")),
}
"""Families whose layers have the names of the original checkpoints there, and patterns of these with what they are
here; it adapts those of the blocks."""
WHOLE = ("chroma",)
"""Families of which it adapts layers outside of the blocks, too."""
FOREIGN_FLAGS = ("is_pixart", "is_pixart_sigma", "is_auraflow", "is_lumina2", "is_ssd", "is_vega")
"""How older files name the kind of model."""

SINGLE_FILES = {"lodestones/Chroma": "lodestones/Chroma1-HD"}
"""Models on the hub that are not in diffusers layout, and which of that layout to take."""

TRAINERS = ("sd_trainer", "diffusion_trainer", "ui_trainer", "internal_trainer", "")
BLOCKS = {"zimage": "layers"}
"""What the names of a transformer's layers contain that it trains, where that is not `blocks`."""
METHODS = {"lora": "lora", "locon": "lora", "dora": "dora", "lokr": "lokr"}
ASSISTANT = "pytorch_lora_weights.safetensors"
"""The file that is read of a folder, or of a model on the hub, with a training adapter."""


def recognises(document: Document) -> bool:
    """A job has processes."""
    config = document.values.get("config")
    return isinstance(config, dict) and isinstance(config.get("process"), list) and len(config["process"]) > 0


def convert(document: Document, wishes: base.Wishes) -> Imported:
    """The preset. Raises ValueError with one sentence for what cannot be trained here."""
    known, reasons = base.table("aitoolkit")
    ledger = Ledger(NAME, document.path, _given(document, known), known)
    kind = ledger.text("type")
    if kind not in TRAINERS:
        raise ValueError(f"{document.path}: type {kind} is no training of an adapter, so there is no preset for it")
    family = _family(ledger, wishes)
    if any(key.startswith("adapter") for key in ledger.given) and not wishes.method:
        raise ValueError(f"{document.path}: adapter: is of a kind that reads pictures, which is not trained here")
    if not any(key.startswith("network.") for key in ledger.given) and not wishes.method:
        raise ValueError(f"{document.path}: there is no network section, so all weights were trained; give --method")
    _model(ledger, family)
    name = aitoolkit_training.convert(ledger, family)
    _method(ledger, family, wishes)
    _layers(ledger, family)
    aitoolkit_data.convert(ledger)
    _samples(ledger)
    _saving(ledger)
    optimizers.settle(ledger, name)
    title = ledger.text("config.name")
    if title:
        ledger.to("config.name", "name", base.safe_name(title))
    return base.finish(ledger, family, title, reasons)


def _given(document: Document, known: dict[str, Any]) -> dict[str, Any]:
    """Keys of the first process by their own names; others with where they stand."""
    config = dict(document.values["config"])
    first, *more = config.pop("process")
    if not isinstance(first, dict):
        raise ValueError(f"{document.path}: config.process[0]: is no section; indent its settings below it")
    rest = {key: value for key, value in document.values.items() if key != "config"}
    given = (
        flat(first, known) | {f"config.{key}": value for key, value in flat(config, known).items()} | flat(rest, known)
    )
    for number, process in enumerate(more, start=1):
        given[f"config.process[{number}]"] = process
    return given


def _family(ledger: Ledger, wishes: base.Wishes) -> str:
    arch = ledger.text("model.arch").partition(":")[0]
    flags = [flag for flag in (*FLAGS, *FOREIGN_FLAGS) if ledger.flag(f"model.{flag}")]
    found = ARCHES.get(arch, "") if arch else FLAGS.get(flags[0], "") if flags else "sd15"
    if not wishes.family and not found:
        known = ", ".join(dict.fromkeys(ARCHES.values()))
        which = f"arch {arch}" if arch else flags[0]
        raise ValueError(
            f"{ledger.path}: model.{which} is none of Gimbal's families ({known}), so it cannot be trained"
        )
    family = wishes.family or found
    for key in (f"model.{flag}" for flag in flags):
        ledger.to(key, "family", family)
    if arch or not flags:
        ledger.to("model.arch", "family", family)
    return family


def _model(ledger: Ledger, family: str) -> None:
    key, path = "model.name_or_path", ledger.text("model.name_or_path")
    if path in SINGLE_FILES or path.startswith(tuple(f"{one}/" for one in SINGLE_FILES)):
        path = SINGLE_FILES["/".join(path.split("/")[:2])]
        sentence = f"The hub has this version as a single file, not as a folder; {path} is the finished model."
        ledger.change(key, sentence, {"base.path": path})
    else:
        ledger.to(key, "base.path", path)
    base.split_files(ledger, ["model.te_name_or_path"], ["model.vae_path"])
    _assistant(ledger)
    if ledger.written("model.dtype"):
        ledger.to("model.dtype", "base.dtype", aitoolkit_training.DTYPES.get(ledger.text("model.dtype"), "auto"))
    if ledger.flag("model.is_v_pred"):
        ledger.to("model.is_v_pred", "objective.prediction", "v_prediction")
    if ledger.flag("model.quantize"):
        kind = ledger.text("model.qtype").lower()
        exact = {"qfloat8": "fp8", "float8": "fp8", "qint8": "int8", "int8": "int8", "uint8": "int8"}
        ours = exact.get(kind, "nf4")
        ledger.to("model.quantize", "base.quantization", ours)
        if kind in exact:
            ledger.to("model.qtype", "base.quantization", ours)
        else:
            ledger.change("model.qtype", f"There is no {kind} here; {ours} is taken.", {"base.quantization": ours})
    else:
        ledger.drop("model.qtype", "without effect there: nothing is quantized")
    for key in ("model.compile", "model.block_compile"):
        if ledger.flag(key):
            ledger.to(key, "training.compile", True)


def _assistant(ledger: Ledger) -> None:
    """The LoRA with which distilled bases are trained, which may come from the hub there: `owner/name`, or
    `owner/name/file`."""
    key = "model.assistant_lora_path"
    given = ledger.text(key)
    if not given:
        return
    file = given if given.endswith(".safetensors") else f"{given.rstrip('/')}/{ASSISTANT}"
    if file.startswith((".", "/", "~")) or file.count("/") < 2 or Path(given).exists():
        ledger.to(key, "base.training_adapter", file)
        return
    sentence = "It comes from the Hugging Face hub there; download this file, and give its path here."
    ledger.change(key, sentence, {"base.training_adapter": file})


def _method(ledger: Ledger, family: str, wishes: base.Wishes) -> None:
    kind = (ledger.text("network.type") or "lora").lower()
    method = methods.set_method(ledger, "network.type", kind, METHODS.get(kind, ""), wishes)
    rank_key = "network.rank" if ledger.value("network.rank") is not None else "network.linear"
    rank = 4 if ledger.value(rank_key) is None else ledger.whole(rank_key)
    alpha_key = "network.linear_alpha" if ledger.written("network.linear_alpha") else "network.alpha"
    alpha = None if base.is_flow(family) else ledger.number(alpha_key)
    if method in methods.ROTATIONS:
        methods.set_blocks(ledger, rank_key, 32, "A rank is no block size, so the usual one is taken.")
    elif kind == "lokr" and method == "lokr":
        _kronecker(ledger, (rank_key, rank), (alpha_key, alpha))
    else:
        methods.set_rank(ledger, method, (rank_key, rank), (alpha_key, alpha))
        if alpha is None and ledger.written(alpha_key) and ledger.number(alpha_key) != rank:
            sentence = "ai-toolkit ignores alpha for transformers and takes alpha = rank, and so it is here."
            ledger.change(alpha_key, sentence, {"adapter.alpha": None})
    if method in ("dora", "wora"):
        sentence = "The magnitudes are per output feature there, and so here; Gimbal's default is the input axis."
        ledger.change("network.type", sentence, {"adapter.axis": "output"})
    if kind == method == "lora":
        methods.set_dropout(ledger, "network.dropout")
    if ledger.text("network.pretrained_lora_path"):
        ledger.to("network.pretrained_lora_path", "adapter.start_from", ledger.text("network.pretrained_lora_path"))


def _kronecker(ledger: Ledger, rank: tuple[str, int], alpha: tuple[str, float | None]) -> None:
    """Its large factor is a full matrix unless the file says otherwise."""
    whole = "network.lokr_full_rank" if ledger.flag("network.lokr_full_rank") else ""
    methods.set_kronecker(ledger, rank, alpha, ("network.lokr_factor", ledger.whole("network.lokr_factor")), whole)
    if not whole:
        ledger.agree("network.lokr_full_rank", "the large factor has a rank")
    ledger.drop("network.old_lokr_format", "of its file only; export.host chooses the format here")


def _layers(ledger: Ledger, family: str) -> None:
    conv, denoiser = ledger.maybe("network.conv"), "transformer" if base.is_flow(family) else "unet"
    out = list(ledger.values.get("targets.exclude", []))
    if base.is_flow(family):
        layers, outside = "all", [] if family in WHOLE else base.outside(family)
        if family in BLOCKS:
            layers, outside = f"{denoiser}.{BLOCKS[family]}.*", []
        if family in ORIGINAL:
            layers, outside = "attention-mlp", []
        ledger.drop("network.conv", "without effect there: this family has no convolutions in its blocks")
    elif conv:
        layers, outside = "attention-mlp-conv", []
        ledger.to("network.conv", "targets.layers", layers)
        base.conv_rank(ledger, "network.conv", int(conv))
        ledger.drop("network.conv_alpha", "no counterpart: alpha is the same for all layers")
    else:
        layers, outside = "attention-mlp", []
    key = "network.network_kwargs.only_if_contains"
    if ledger.value(key):
        part = BLOCKS.get(family, "blocks") if base.is_flow(family) else "" if conv else "attentions"
        names = [_containing(name, part, denoiser) for name in _names(ledger, key, family)]
        layers, outside = base.layer_patterns(ledger, names), []
        ledger.to(key, "targets.layers", layers)
    ledger.set({"targets.layers": layers}, "network.type")
    key = "network.network_kwargs.ignore_if_contains"
    if ledger.value(key):
        sentence = "Layers are named as in diffusers here; a pattern that matches none is an error in --check."
        out = [*out, *outside, *(f"*{name}*" for name in _names(ledger, key, family))]
        ledger.change(key, sentence, {"targets.exclude": out})
    elif out or outside:
        ledger.set({"targets.exclude": [*out, *outside]}, "network.type")


def _names(ledger: Ledger, key: str, family: str) -> list[str]:
    """Parts of layers' names as patterns; `a$$b` and `a.b` are the same there. Some families' blocks have the names of
    the original checkpoints there."""
    value = ledger.value(key)
    names = [str(name).replace("$$", ".") for name in (value if isinstance(value, list) else [value])]
    for theirs, ours in ORIGINAL.get(family, ()):
        names = [re.sub(theirs, ours, name) for name in names]
    return [re.sub(r"([*?[])", r"[\1]", name) for name in names]


def _containing(name: str, part: str, denoiser: str) -> str:
    """A pattern of the denoiser's layers with `name` in theirs, and `part` in it or before it."""
    if name.startswith(f"{denoiser}."):
        return f"{name}*"
    return f"{denoiser}.*{name}*" if part in name else f"{denoiser}.*{part}*.*{name}*"


def _samples(ledger: Ledger) -> None:
    items = sorted({int(found[1]) for key in ledger.given if (found := re.match(r"sample\.samples\[(\d+)\]", key))})
    trigger = ledger.text("trigger_word")
    prompts = [(f"sample.samples[{number}].prompt") for number in items]
    texts = [ledger.text(key) for key in prompts]
    shown = aitoolkit_data.references_of_samples(ledger, items)
    if not items and isinstance(ledger.value("sample.prompts"), list):
        prompts, texts = ["sample.prompts"], [str(prompt) for prompt in ledger.value("sample.prompts")]
    replaced: list[Any] = [text.replace("[trigger]", trigger) for text in texts]
    for number, own in shown.items():
        replaced[items.index(number)] = {"prompt": replaced[items.index(number)], "references": own}
    what = "[trigger] is replaced." if any("[trigger]" in text for text in texts) else ""
    for key in prompts:
        base.sample_prompts(ledger, key, replaced, what)
    for theirs, ours in {
        "sample_every": "every",
        "width": "width",
        "height": "height",
        "seed": "seed",
        "sample_steps": "steps",
    }.items():
        ledger.to(f"sample.{theirs}", f"samples.{ours}", ledger.whole(f"sample.{theirs}"))
    ledger.to("sample.guidance_scale", "samples.guidance", ledger.number("sample.guidance_scale"))
    if ledger.value("sample.neg") not in (False, None):
        ledger.to("sample.neg", "samples.negative", ledger.text("sample.neg"))
    if ledger.flag("sample.walk_seed"):
        ledger.change("sample.walk_seed", "Every prompt has its own noise here anyway, always the same for one prompt.")
    if ledger.flag("train.disable_sampling"):
        ledger.to("train.disable_sampling", "samples.enabled", False)


def _saving(ledger: Ledger) -> None:
    every = ledger.whole("save.save_every")
    sentence = (
        "A training state and an exported file are written this often; a file of weights alone is not a state here."
    )
    ledger.change("save.save_every", sentence, {"saving.state_every": every, "saving.export_every": every})
    kept = max(1, ledger.whole("save.max_step_saves_to_keep"))
    ledger.to("save.max_step_saves_to_keep", "saving.keep_states", kept)
    ledger.to("save.max_step_saves_to_keep", "saving.keep_exports", kept)
    ledger.to("save.dtype", "export.dtype", aitoolkit_training.DTYPES.get(ledger.text("save.dtype"), "float16"))
