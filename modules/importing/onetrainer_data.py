"""OneTrainer's settings about noise, pictures, samples and saving; `onetrainer` has the others."""

import re
from pathlib import Path

from modules.documents import is_file, parse_json
from modules.importing import base, methods, onetrainer_concepts
from modules.importing.documents import read_text
from modules.importing.ledger import Ledger, flat

ENCODERS = {"sd15": 1, "sdxl": 2, "sd3": 3, "flux": 2, "chroma": 1, "zimage": 1, "flux2": 1,
            "qwenimage": 1, "krea2": 1, "anima": 1}
"""How many text encoders there are: `text_encoder`, `text_encoder_2`, ..."""

SAMPLE_SIZES = {"sd15": 512, "sdxl": 1024, "sd3": 1024, "flux": 1024, "chroma": 1024, "zimage": 1024,
                "flux2": 1024, "qwenimage": 1024, "krea2": 1024, "anima": 1024}
SAMPLE_STEPS = {"sd15": (30, 7.5), "sdxl": (30, 7.5), "sd3": (28, 7.0), "flux": (30, 3.5),
                "chroma": (30, 3.5), "zimage": (28, 4.0), "flux2": (30, 4.0),
                "qwenimage": (25, 3.5), "krea2": (28, 3.5), "anima": (25, 4.0)}
"""Steps and guidance of its samples, where they are not given."""

LORA_FORMATS = {"KOHYA_LORA": "kohya", "COMFY_LORA": "comfyui", "DIFFUSERS_LORA": "diffusers"}
FILE_DTYPES = {"FLOAT_32": "float32", "FLOAT_16": "float16", "BFLOAT_16": "bfloat16"}


def convert(ledger: Ledger, family: str) -> None:
    """Write these sections."""
    _loss(ledger)
    _noise(ledger, family)
    onetrainer_concepts.convert(ledger)
    _clip_skip(ledger, family)
    _caption_dropout(ledger, family)
    _samples(ledger, family)
    _intervals(ledger)
    _file(ledger)


LOSSES = {"mse": "mse", "mae": "l1", "log_cosh": "log_cosh", "huber": "huber"}
"""Their losses, and ours."""


# -- objective --------------------------------------------------------------------------------------------------------


def _loss(ledger: Ledger) -> None:
    strengths = {name: ledger.number(f"{name}_strength") for name in ("mse", "mae", "log_cosh", "huber")}
    used = [name for name, strength in strengths.items() if strength]
    if "huber" in used:
        ledger.to("huber_delta", "objective.loss_delta", ledger.number("huber_delta"))
    if not used:
        ledger.change("mse_strength", "Without a loss nothing is learned; it is 1 here.", {"objective.loss": "mse"})
    elif len(used) == 1:
        kind = LOSSES[used[0]]
        ledger.to(f"{used[0]}_strength", "objective.loss", kind)
        if strengths[used[0]] != 1:
            sentence = "The loss is not multiplied here; optimizers of Adam's kind do not notice."
            ledger.change(f"{used[0]}_strength", sentence)
    else:
        ledger.set({"objective.loss": "mix"}, f"{used[0]}_strength")
        for name in used:
            ledger.to(f"{name}_strength", f"objective.mix_{LOSSES[name]}", strengths[name])
    if "mse" not in used and used:
        ledger.agree("mse_strength", "the loss has no squared error")
    key, kind = "loss_weight_fn", ledger.text("loss_weight_fn")
    if ledger.written("min_snr_gamma") and ledger.number("min_snr_gamma"):
        ledger.to("min_snr_gamma", "objective.min_snr_gamma", ledger.number("min_snr_gamma"))
    elif kind == "MIN_SNR_GAMMA":
        gamma = ledger.number("loss_weight_strength")
        ledger.to(key, "objective.min_snr_gamma", gamma)
        ledger.to("loss_weight_strength", "objective.min_snr_gamma", gamma)
    elif kind == "DEBIASED_ESTIMATION":
        ledger.set({"objective.min_snr_gamma": None}, key)
        ledger.to(key, "objective.debiased", True)
    elif kind == "CONSTANT":
        ledger.to(key, "objective.min_snr_gamma", None)
        ledger.drop("loss_weight_strength", "without effect there: the loss weight is constant")
    else:
        sentence = f"There is no loss weight {kind} here; all noise levels count alike."
        ledger.change(key, sentence, {"objective.min_snr_gamma": None})


def _noise(ledger: Ledger, family: str) -> None:
    ledger.to("offset_noise_weight", "objective.noise_offset", ledger.number("offset_noise_weight"))
    for key, prediction in {"force_v_prediction": "v_prediction", "force_epsilon_prediction": "epsilon"}.items():
        if ledger.flag(key):
            ledger.to(key, "objective.prediction", prediction)
    key = "rescale_noise_scheduler_to_zero_terminal_snr"
    if ledger.flag(key):
        ledger.to(key, "objective.zero_terminal_snr", True)
    if ledger.number("perturbation_noise_weight"):
        sentence = "It is in the target too there; here it is in the network's input only, as published."
        ours = {"objective.perturbation": min(1.0, ledger.number("perturbation_noise_weight"))}
        ledger.change("perturbation_noise_weight", sentence, ours)
    _density(ledger, ledger.number("timestep_shift") if base.is_flow(family) else 1.0)
    _bounds(ledger, family)
    shift, dynamic = ledger.number("timestep_shift"), ledger.flag("dynamic_timestep_shifting")
    if not base.is_flow(family):
        ledger.drop("timestep_shift", "no counterpart: this family is a diffusion in steps, which has no shift here")
        ledger.drop("dynamic_timestep_shifting", "without effect there: for rectified flows only")
    elif dynamic:
        ledger.to("dynamic_timestep_shifting", "objective.shift", None)
        ledger.drop("timestep_shift", "without effect there: the shift follows the resolution")
    else:
        ledger.to("timestep_shift", "objective.shift", shift)


def _bounds(ledger: Ledger, family: str) -> None:
    """The smallest and largest noise level, which are meant before the shift there and after it here."""
    shift = ledger.number("timestep_shift") if base.is_flow(family) else 1.0
    for key, ours, whole in (("min_noising_strength", "min_noise", 0), ("max_noising_strength", "max_noise", 1)):
        value = ledger.number(key)
        if value == whole:
            continue
        if base.is_flow(family) and ledger.flag("dynamic_timestep_shifting"):
            sentence = "It is meant before the shift there, which follows the resolution, and after it here."
            ledger.change(key, sentence, {f"objective.{ours}": value})
        else:
            ledger.to(key, f"objective.{ours}", float(f"{shift * value / (1 + (shift - 1) * value):.9g}"))


def _density(ledger: Ledger, shift: float) -> None:
    """Its distribution of noise levels; weight and bias are parameters of it."""
    key, kind = "timestep_distribution", ledger.text("timestep_distribution")
    weight, bias = ledger.number("noising_weight"), ledger.number("noising_bias")
    version = ledger.maybe("__version")
    if version is not None and version < 4 and not ledger.written(key):
        kind, bias = ("SIGMOID", bias - 0.5) if weight else ("UNIFORM", 0.0)
    if kind == "UNIFORM":
        ledger.to(key, "objective.density", "uniform")
    elif kind == "LOGIT_NORMAL":
        ledger.to(key, "objective.density", "logit_normal")
        ledger.to("noising_bias", "objective.density_mean", bias)
        ledger.to("noising_weight", "objective.density_spread", weight + 1)
    elif kind == "HEAVY_TAIL":
        ledger.to(key, "objective.density", "mode")
        ledger.to("noising_weight", "objective.mode_scale", weight)
    elif kind == "COS_MAP":
        ledger.to(key, "objective.density", "cosmap")
    elif kind == "SIGMOID":
        ledger.to(key, "objective.density", "sigmoid")
        if shift != 1:
            ledger.change(key, "The shift is applied to it twice there, and once here.")
        ledger.to("noising_weight", "objective.sigmoid_slope", weight)
        ledger.to("noising_bias", "objective.sigmoid_center", bias + 0.5)
    elif kind == "BETA":
        ledger.to(key, "objective.density", "beta")
        ledger.to("noising_weight", "objective.beta_a", max(0.01, weight))
        ledger.to("noising_bias", "objective.beta_b", max(0.01, bias))
    else:
        near = "logit_normal" if kind == "INVERTED_PARABOLA" else "uniform"
        shown = key if ledger.written(key) else "noising_weight"
        sentence = f"There is no distribution {kind} of noise levels here; {near} is taken."
        ledger.change(shown, sentence, {"objective.density": near})
    for option in ("noising_weight", "noising_bias"):
        if option not in ledger.entries:
            ledger.drop(option, f"no counterpart: it shapes the distribution {kind}")


# -- data -------------------------------------------------------------------------------------------------------------


def _clip_skip(ledger: Ledger, family: str) -> None:
    """Layers of CLIP that are left out, which only Stable Diffusion 1 and 2 do here."""
    key = "text_encoder_layer_skip"
    skipped = ledger.whole(key)
    if family == "sd15" and skipped:
        ledger.to(key, "base.clip_skip", skipped + 1)


def _caption_dropout(ledger: Ledger, family: str) -> None:
    """Each of its encoders has a probability of its own."""
    names = ["text_encoder", "text_encoder_2", "text_encoder_3"]
    keys = [f"{name}.dropout_probability" for name in names[: ENCODERS[family]]]
    rates = [ledger.number(key) for key in keys]
    if len(set(rates)) == 1:
        for key in keys:
            ledger.to(key, "data.caption_dropout", rates[0])
        return
    for key in keys:
        sentence = "A caption is dropped for all text encoders at once here; the largest probability is taken."
        ledger.change(key, sentence, {"data.caption_dropout": max(rates)})


def listed(ledger: Ledger, section: str, file_key: str) -> None:
    """Read the concepts or samples that stand in a file of their own, where it can be found."""
    inline = any(key.startswith(f"{section}[") for key in ledger.given)
    if inline or not ledger.written(file_key):
        reason = "not needed here: the file has them itself" if inline else "no counterpart"
        ledger.drop(file_key, reason)
        return
    name = Path(ledger.text(file_key).replace("\\", "/"))
    folder = ledger.path.resolve().parent
    places = [name, *(parent / name for parent in (folder, *list(folder.parents)[:2]))]
    found = next((place for place in places if is_file(place)), None)
    if found is None:
        what = "data.folders" if section == "concepts" else "samples.prompts"
        ledger.change(file_key, f"The {section} stand in this file, which was not found; set {what} yourself.")
        return
    try:
        entries = parse_json(read_text(found), f"{found}")
    except ValueError as error:
        raise ValueError(f"{error}; {file_key} of {ledger.path} names this file") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{found}: is no list of {section}, but {file_key} names it; correct the name")
    ledger.given |= flat({section: entries}, ledger.known)
    ledger.check_size()
    ledger.change(file_key, f"Its {len(entries)} {section} were read from {found}.")


# -- samples and files ------------------------------------------------------------------------------------------------


def _samples(ledger: Ledger, family: str) -> None:
    numbers = sorted({int(found[1]) for key in ledger.given if (found := re.match(r"samples\[(\d+)\]", key))})
    places = [f"samples[{number}]" for number in numbers if ledger.flag(f"samples[{number}].enabled")]
    for place in (f"samples[{number}]" for number in numbers):
        if place not in places:
            for key in [key for key in ledger.given if key.startswith(f"{place}.")]:
                ledger.drop(key, "of a sample that is switched off")
    if not places:
        return
    prompts = [ledger.text(f"{place}.prompt") for place in places]
    for place in places:
        ledger.to(f"{place}.prompt", "samples.prompts", prompts)
        ledger.drop(f"{place}.noise_scheduler", "no counterpart: the base's own sampler is used")
        if ledger.flag(f"{place}.random_seed"):
            ledger.change(f"{place}.random_seed", "Samples are always made from the same noise here.")
    side, (steps, guidance) = SAMPLE_SIZES[family], SAMPLE_STEPS[family]
    shared = {
        "width": ("width", side),
        "height": ("height", side),
        "diffusion_steps": ("steps", steps),
        "cfg_scale": ("guidance", guidance),
        "seed": ("seed", 42),
        "negative_prompt": ("negative", ""),
    }
    for theirs, (ours, usual) in shared.items():
        values = [
            usual if ledger.value(f"{place}.{theirs}") is None else _plain(ledger, f"{place}.{theirs}")
            for place in places
        ]
        for place in places:
            if len(set(values)) == 1:
                ledger.to(f"{place}.{theirs}", f"samples.{ours}", values[0])
            else:
                sentence = "All samples are made alike here, as the first one."
                ledger.change(f"{place}.{theirs}", sentence, {f"samples.{ours}": values[0]})


def _plain(ledger: Ledger, key: str) -> int | float | str:
    if key.endswith("negative_prompt"):
        return ledger.text(key)
    if key.endswith("cfg_scale"):
        return ledger.number(key)
    return max(ledger.whole(key), 0)


UNITS = {"EPOCH": ("epochs", 1.0), "MINUTE": ("minutes", 1.0), "HOUR": ("minutes", 60.0), "SECOND": ("minutes", 1 / 60)}
"""Its units beside steps: ours, and how many of ours one is."""


def _intervals(ledger: Ledger) -> None:
    """Every so many steps, epochs or minutes."""
    for key, field, wanted in (
        ("sample_after", "samples.every", True),
        ("backup_after", "saving.state_every", True),
        ("save_every", "saving.export_every", True),
        ("validate_after", "validation.every", ledger.flag("validation")),
    ):
        unit = ledger.text(f"{key}_unit")
        if unit == "NEVER" and key == "sample_after":
            ledger.to(f"{key}_unit", "samples.enabled", False)
        elif unit != "NEVER" and wanted:
            _interval(ledger, key, field, unit)
    if ledger.flag("rolling_backup"):
        ledger.to("rolling_backup_count", "saving.keep_states", max(1, ledger.whole("rolling_backup_count")))
        ledger.agree("rolling_backup", "old states are always deleted here")
    if ledger.flag("validation"):
        ledger.agree("validation", "the validation loss is always measured where there is a validation folder")


def _interval(ledger: Ledger, key: str, field: str, unit: str) -> None:
    count, accumulation = ledger.number(key), ledger.values["training.accumulation"]
    if unit == "STEP":
        ledger.to(key, field, max(0, round(count / accumulation)))
        ledger.agree(f"{key}_unit", "it is counted in steps here")
        if accumulation > 1:
            ledger.change(key, f"It counts batches there, and steps of {accumulation} batches here.")
        return
    if unit not in UNITS:
        ledger.change(f"{key}_unit", f"{field} is counted in steps, epochs or minutes here; set it yourself.")
        return
    ours, factor = UNITS[unit]
    every = max(1, round(count * factor))
    ledger.to(key, field, every)
    ledger.to(f"{key}_unit", f"{field}_unit", ours)
    if every != count * factor:
        ledger.change(key, f"It is {count * factor:g} {ours}, rounded to a whole number.")


def _file(ledger: Ledger) -> None:
    key, kind = "output_model_format", ledger.text("output_model_format")
    foreign = ledger.values.get("adapter.axis") == "input" or ledger.values["adapter.method"] not in methods.LOW_RANK
    host = LORA_FORMATS.get(kind, "comfyui")
    if host == "diffusers" and foreign:
        sentence = "diffusers' format cannot hold what this method learns; the file is for ComfyUI."
        ledger.change(key, sentence, {"export.host": "comfyui"})
    elif kind in LORA_FORMATS:
        ledger.to(key, "export.host", host)
    elif ledger.written(key):
        ledger.change(key, f"There is no format {kind} here; the file is for ComfyUI.", {"export.host": "comfyui"})
    dtype = ledger.text("output_dtype")
    if dtype in FILE_DTYPES:
        ledger.to("output_dtype", "export.dtype", FILE_DTYPES[dtype])
