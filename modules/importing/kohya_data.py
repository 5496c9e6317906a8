"""sd-scripts' settings about noise, pictures, samples and saving; `kohya` has the others."""

import re
import shlex
from pathlib import Path
from typing import Any

from modules.documents import is_file
from modules.importing import base, kohya_folders
from modules.importing.documents import Document, read, read_text
from modules.importing.ledger import Ledger, flat

SAMPLE_FLAGS = {
    "w": "width",
    "h": "height",
    "d": "seed",
    "s": "steps",
    "l": "guidance",
    "g": "guidance",
    "n": "negative",
}
"""What stands behind a prompt, and our options."""

FILE_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "float": "float32"}

ARGS = ("network_args", "optimizer_args", "lr_scheduler_args")
"""Arguments that are lists of `key=value`."""

def convert(ledger: Ledger, family: str) -> None:
    """Write these sections."""
    _loss(ledger)
    _noise(ledger, family)
    if family in ("flux", "chroma"):
        _flux_times(ledger)
        _embedded_guidance(ledger, family)
    elif family == "sd3":
        _sd3_times(ledger)
    read_data_sets(ledger)
    kohya_folders.convert(ledger)
    _clip_skip(ledger, family)
    _samples(ledger)
    _saving(ledger)


def given(document: Document, known: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name; sections of a TOML file, which have no meaning, taken apart; files that it names read."""
    values: dict[str, Any] = {}
    for key, value in document.values.items():
        if isinstance(value, dict) and key != "general":
            values |= value
        else:
            values[key] = value
    for key, wanted in (("config_file", "settings"), ("dataset_config", "datasets")):
        path = _named_file(document.path, values.get(key))
        if path is not None:
            inner = read(path)
            inner.values.pop("config_file", None)  # their program follows none of a settings file
            values = {**given(inner, {}), **values} if wanted == "settings" else {**inner.values, **values}
    for name in ARGS:
        words = values.get(name)
        if words is None:
            continue
        values.pop(name)
        words = words.split() if isinstance(words, str) else words
        for word in words:
            option, equals, text = str(word).partition("=")
            if not equals:
                raise ValueError(f"{document.path}: {name}: {word!r} is not key=value; correct it in the file")
            values[f"{name}.{option.strip()}"] = text.strip().strip("\"'")
    return flat(values, known) if known else values


def is_sectioned(values: dict[str, Any]) -> bool:
    """Whether these are the sections of a window around sd-scripts, with arguments below `args`."""
    sections = [value for value in values.values() if isinstance(value, dict)]
    return any({"args", "dataset_args"} & section.keys() for section in sections)


def has_sets(ledger: Ledger) -> bool:
    """Whether data sets are known."""
    return any(key.startswith("datasets[") for key in ledger.given)


def read_data_sets(ledger: Ledger) -> None:
    """Read the file of data sets that `dataset_config` names, where it was not yet, and say what became of it."""
    key = "dataset_config"
    if not ledger.text(key):
        return
    path = None if has_sets(ledger) else _named_file(ledger.path, ledger.text(key))
    if path is not None:
        for one, value in flat(read(path).values, ledger.known).items():
            ledger.given.setdefault(one, value)
        ledger.check_size()
    if has_sets(ledger):
        ledger.agree(key, "its data sets were read")
    else:
        ledger.change(key, "The data sets stand in this file, which was not found; set data.folders yourself.")


def _named_file(path: Path, name: Any) -> Path | None:
    """A file that a setting names, where it can be found."""
    if not isinstance(name, str) or not name:
        return None
    for place in (path.parent / name, Path(name), path.parent / f"{name}.toml"):
        if is_file(place) and place.resolve() != path.resolve():
            return place
    return None


# -- objective --------------------------------------------------------------------------------------------------------


def _loss(ledger: Ledger) -> None:
    gamma = ledger.maybe("min_snr_gamma") or None
    ledger.to("min_snr_gamma", "objective.min_snr_gamma", gamma)
    if ledger.flag("debiased_estimation_loss"):
        if gamma:
            ledger.change("debiased_estimation_loss", "There is one loss weight here; min-SNR is taken.")
        else:
            ledger.to("debiased_estimation_loss", "objective.debiased", True)
    if ledger.flag("v_parameterization"):
        ledger.to("v_parameterization", "objective.prediction", "v_prediction")
    if ledger.flag("zero_terminal_snr"):
        ledger.to("zero_terminal_snr", "objective.zero_terminal_snr", True)
    kind = ledger.text("loss_type")
    if kind in ("huber", "smooth_l1"):
        ledger.to("loss_type", "objective.loss", f"pseudo_{kind}")
        _threshold(ledger)
        return
    if kind in ("l1", "l2"):
        ledger.to("loss_type", "objective.loss", {"l2": "mse", "l1": "l1"}[kind])
    else:
        sentence = f"There is no loss {kind} here; the squared error is taken."
        ledger.change("loss_type", sentence, {"objective.loss": "mse"})
    for key in ("huber_c", "huber_schedule", "huber_scale"):
        ledger.drop(key, f"without effect there: the loss is {kind}")


def _threshold(ledger: Ledger) -> None:
    """Where its two Huber losses become linear, which may follow the noise level."""
    delta, scale, kind = ledger.number("huber_c"), ledger.number("huber_scale"), ledger.text("huber_schedule")
    ledger.to("huber_schedule", "objective.delta_schedule", kind)
    ledger.to("huber_c", "objective.loss_delta", delta * scale if kind == "constant" else delta)
    if kind == "constant":
        ledger.to("huber_scale", "objective.loss_delta", delta * scale)
    elif kind == "snr":
        ledger.drop("huber_scale", "without effect there: the threshold follows the noise level")
    elif scale != 1:
        ledger.change("huber_scale", "It scales the whole threshold there, which is 1 without noise here.")


def _noise(ledger: Ledger, family: str) -> None:
    """What is done to the noise, and which noise levels are trained; not all scripts take all of it."""
    offset = ledger.maybe("noise_offset") or 0.0
    ledger.to("noise_offset", "objective.noise_offset", offset)
    if (adaptive := ledger.maybe("adaptive_noise_scale")) and offset:
        ledger.to("adaptive_noise_scale", "objective.adaptive_offset", adaptive)
    elif adaptive:
        ledger.drop("adaptive_noise_scale", "without effect there: there is no noise_offset")
    if sizes := ledger.maybe("multires_noise_iterations"):
        ledger.to("multires_noise_iterations", "objective.pyramid_noise", int(sizes))
        ledger.to("multires_noise_discount", "objective.pyramid_discount", ledger.number("multires_noise_discount"))
    if gamma := ledger.maybe("ip_noise_gamma"):
        ledger.to("ip_noise_gamma", "objective.perturbation", gamma)
    for key, ours, whole in (("min_timestep", "min_noise", 0), ("max_timestep", "max_noise", 1000)):
        value = ledger.maybe(key)
        if value is None or value == whole:
            continue
        if family in ("flux", "chroma"):
            ledger.drop(key, "without effect there: this family's script does not read it")
        elif family == "sd3":
            sentence = "The density is squeezed between the bounds after the shift there, and before it here."
            ledger.change(key, sentence, {f"objective.{ours}": value / 1000})
        else:
            ledger.to(key, f"objective.{ours}", value / 1000)


def _flux_times(ledger: Ledger) -> None:
    key, kind = "timestep_sampling", ledger.text("timestep_sampling")
    if kind == "sigma":
        _weighting(ledger, flipped=True)
        shift = ledger.number("discrete_flow_shift")
        ledger.to("discrete_flow_shift", "objective.shift", shift)
        ledger.agree(key, "see weighting_scheme")
    elif kind in ("uniform", "sigmoid", "shift", "flux_shift"):
        density = "uniform" if kind == "uniform" else "logit_normal"
        ledger.to(key, "objective.density", density)
        if density == "logit_normal":
            ledger.to("sigmoid_scale", "objective.density_spread", ledger.number("sigmoid_scale"))
        shift = None if kind == "flux_shift" else ledger.number("discrete_flow_shift") if kind == "shift" else 1.0
        ledger.to("discrete_flow_shift" if kind == "shift" else key, "objective.shift", shift)
        ledger.drop("weighting_scheme", "no counterpart: noise levels are not weighted so here")
    else:
        sentence = f"There is no {kind} here; the base's own density is taken."
        ledger.change(key, sentence, {"objective.density": "auto"})
    ledger.drop("discrete_flow_shift", "without effect there: timestep_sampling does not use it")
    key = "model_prediction_type"
    if ledger.text(key) == "raw":
        ledger.agree(key, "the network's output is compared as it is")
    else:
        sentence = (
            f"It weighs noise levels by {ledger.text(key)} there; here the network's output is compared as it is."
        )
        ledger.change(key, sentence)


def _embedded_guidance(ledger: Ledger, family: str) -> None:
    if family == "chroma":
        ledger.drop("guidance_scale", "not needed here: this family has no guidance embedding")
    elif ledger.written("guidance_scale"):
        sentence = "Guidance is always embedded as 1 in training here, as for pictures that come from none."
        if ledger.number("guidance_scale") == 1:
            ledger.agree("guidance_scale", "it is always 1 in training here")
        else:
            ledger.change("guidance_scale", sentence)


def _sd3_times(ledger: Ledger) -> None:
    _weighting(ledger, flipped=False)
    ledger.to("training_shift", "objective.shift", ledger.number("training_shift"))


def _weighting(ledger: Ledger, flipped: bool) -> None:
    """Density of noise levels. `flipped`: it counts from much noise to little, so the mean changes its sign."""
    key, kind = "weighting_scheme", ledger.text("weighting_scheme")
    if kind == "logit_normal":
        mean = ledger.number("logit_mean")
        ledger.to(key, "objective.density", "logit_normal")
        ledger.to("logit_std", "objective.density_spread", ledger.number("logit_std"))
        if flipped and mean:
            sentence = "Its axis runs from much noise to little, ours the other way, so the sign changes."
            ledger.change("logit_mean", sentence, {"objective.density_mean": -mean})
        else:
            ledger.to("logit_mean", "objective.density_mean", mean + 0.0)
    elif kind == "mode":
        ledger.to(key, "objective.density", "mode")
        ledger.to("mode_scale", "objective.mode_scale", ledger.number("mode_scale"))
    elif kind in ("uniform", "none", ""):
        ledger.to(key, "objective.density", "uniform")
    else:
        sentence = f"{kind} weighs the loss there and draws noise levels evenly; only the latter has a counterpart."
        ledger.change(key, sentence, {"objective.density": "uniform"})


# -- samples and files ------------------------------------------------------------------------------------------------


def _clip_skip(ledger: Ledger, family: str) -> None:
    skip = ledger.maybe("clip_skip")
    if not skip:
        return
    if family == "sd15":
        ledger.to("clip_skip", "base.clip_skip", ledger.whole("clip_skip"))
    else:
        ledger.drop("clip_skip", "without effect there: this family reads a fixed layer")


def _samples(ledger: Ledger) -> None:
    key, text = "sample_prompts", ledger.text("sample_prompts")
    if text:
        _prompts(ledger, key, text)
    _every(ledger, "sample", "samples.every")


def _every(ledger: Ledger, what: str, field: str) -> None:
    """Every so many epochs or steps. Of samples, epochs come first there, and of files both are written."""
    steps, epochs = f"{what}_every_n_steps", f"{what}_every_n_epochs"
    if ledger.maybe(epochs) and (what == "sample" or not ledger.maybe(steps)):
        ledger.to(epochs, field, ledger.whole(epochs))
        ledger.to(epochs, f"{field}_unit", "epochs")
        ledger.drop(steps, f"without effect there: {epochs} decides")
    elif ledger.maybe(steps):
        ledger.to(steps, field, ledger.whole(steps))
        if ledger.maybe(epochs):
            ledger.change(epochs, f"{field} is one number here, and counts steps, as {steps} says.")


def _prompts(ledger: Ledger, key: str, text: str) -> None:
    """Prompts in a file, or in the setting itself as the window has them: `a cat --w 512 --d 1 --n ugly`."""
    found = next((place for place in (ledger.path.parent / text, Path(text)) if is_file(place)), None)
    looks_like_file = "\n" not in text and re.search(r"\.(txt|toml|json)$", text.strip())
    if found is None and looks_like_file:
        ledger.change(key, "The prompts stand in this file, which was not found; set samples.prompts yourself.")
        return
    if found is not None and found.suffix != ".txt":
        ledger.change(key, "Prompts are read from .txt files only; set samples.prompts yourself.")
        return
    lines = (read_text(found) if found else text).splitlines()
    parsed = [_prompt(line.strip()) for line in lines if line.strip() and not line.strip().startswith("#")]
    if not parsed:
        return
    shared = {f"samples.{name}": value for name, value in parsed[0][1].items()}
    sentence = "All samples are made alike here, as the first prompt says." if shared else ""
    base.sample_prompts(ledger, key, [prompt for prompt, _ in parsed], sentence)
    if shared:
        ledger.change(key, sentence, shared)


def _prompt(line: str) -> tuple[str, dict[str, Any]]:
    prompt, *flags = re.split(r"\s--(?=\w)", line)
    found: dict[str, Any] = {}
    for flag in flags:
        name, _, value = flag.partition(" ")
        number = base.as_number(value)
        if name == "n":
            found["negative"] = value.strip()
        elif name in SAMPLE_FLAGS and number is not None:
            option = SAMPLE_FLAGS[name]
            found[option] = min(number, 50.0) if option == "guidance" else max(0, int(number))
    return prompt.strip(), found


def _saving(ledger: Ledger) -> None:
    ratio, epochs = ledger.maybe("save_n_epoch_ratio"), ledger.values.get("training.epochs")
    if ratio and epochs and not ledger.maybe("save_every_n_epochs"):
        every = max(1, int(epochs / ratio))
        ours = {"saving.export_every": every, "saving.export_every_unit": "epochs"}
        ledger.change("save_n_epoch_ratio", f"{ratio:g} files in {epochs} epochs are one every {every}.", ours)
    else:
        _every(ledger, "save", "saving.export_every")
    _every(ledger, "validate", "validation.every")
    _kept(ledger)
    if ledger.flag("save_state"):
        ledger.agree("save_state", "training states are always saved, every saving.state_every steps")
    precision = ledger.text("save_precision")
    ledger.to("save_precision", "export.dtype", FILE_DTYPES.get(precision, "float32"))
    ledger.set({"export.host": "kohya"}, "network_module")
    for theirs, ours in {"metadata_title": "title", "metadata_author": "author", "metadata_license": "license"}.items():
        if ledger.text(theirs):
            ledger.to(theirs, f"export.{ours}", ledger.text(theirs))
    folder = ledger.maybe("validation_split") or 0
    if folder:
        sentence = "Validation pictures lie in a folder of their own here: add one with the role validation."
        ledger.change("validation_split", sentence)


def _kept(ledger: Ledger) -> None:
    """How many files and states are kept. Of epochs a number of files is said there, of steps a stretch of them."""
    epochs, steps, every = (ledger.maybe(f"save_{one}") for one in ("last_n_epochs", "last_n_steps", "every_n_steps"))
    if epochs and "saving.export_every" in ledger.values:
        ledger.to("save_last_n_epochs", "saving.keep_exports", int(epochs))
    elif steps and every:
        files = int(steps // every) + 1
        sentence = f"The files of the last {steps:g} steps are {files}."
        ledger.change("save_last_n_steps", sentence, {"saving.keep_exports": files})
    states = ledger.maybe("save_last_n_epochs_state")
    if states and ledger.flag("save_state"):
        ledger.to("save_last_n_epochs_state", "saving.keep_states", int(states))


def words(text: str) -> list[str]:
    """`a=1 b="2 3"` as the window has arguments: one word each."""
    return shlex.split(text)
