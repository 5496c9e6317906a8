"""OneTrainer's concepts, its folders of pictures, and its settings about all pictures; `onetrainer` has the others.

Keys, defaults and their meaning: `modules/util/config/ConceptConfig.py`, `modules/dataLoader/mixin/
DataLoaderText2ImageMixin.py`, `modules/util/loss/masked_loss.py`, at commit 23df3832; and Nerogar/mgds
`pipelineModules/` (`AspectBucketing`, `VariationSorting`, `DropTags`, `SelectRandomText`, `RandomHue`, ...).
"""

import csv
import re
from pathlib import Path

from modules.documents import is_file
from modules.importing import folders
from modules.importing.documents import read_text
from modules.importing.folders import Plan
from modules.importing.ledger import Ledger

ROLES = {"STANDARD": "train", "VALIDATION": "validation", "PRIOR_PREDICTION": "regularisation"}

STRENGTHS = {
    "rotate": ("random_rotate_max_angle", "rotation", 1.0, 45.0),
    "brightness": ("random_brightness_max_strength", "brightness", 1.0, 1.0),
    "contrast": ("random_contrast_max_strength", "contrast", 1.0, 1.0),
    "saturation": ("random_saturation_max_strength", "saturation", 1.0, 1.0),
    "hue": ("random_hue_max_strength", "hue", 0.5, 0.5),
}
"""Augmentations: their strength, our option, ours over theirs, and the largest that is possible here."""


def convert(ledger: Ledger) -> None:
    """Write these sections."""
    ledger.to("aspect_ratio_bucketing", "data.buckets", ledger.flag("aspect_ratio_bucketing"))
    ledger.to("latent_caching", "data.cache", ledger.flag("latent_caching"))
    numbers = sorted({int(found[1]) for key in ledger.given if (found := re.match(r"concepts\[(\d+)\]", key))})
    plans = [plan for number in numbers if (plan := _plan(ledger, f"concepts[{number}]")) is not None]
    if plans:
        folders.write(ledger, plans)
        if "data.resolutions" not in ledger.values:
            ledger.drop("resolution", "without effect there: the concepts have resolutions of their own")
    else:
        plan = Plan("resolution", "")
        folders.resolutions(ledger, plan, "resolution", ledger.value("resolution"), drawn=True)
        folders.write_alone(ledger, plan)
    _masks(ledger)


def _plan(ledger: Ledger, place: str) -> Plan | None:
    """A concept; None for one that is not used."""
    if not ledger.flag(f"{place}.enabled"):
        folders.left_out(ledger, place, "of a concept that is switched off")
        return None
    plan = Plan(f"{place}.path", ledger.text(f"{place}.path"))
    if not _repeats(ledger, plan, place):
        folders.left_out(ledger, place, "of a concept with a balancing of 0, which is never used")
        return None
    _role(ledger, plan, place)
    plan.own["loss_weight"] = (f"{place}.loss_weight", ledger.number(f"{place}.loss_weight"))
    key = f"{place}.include_subdirectories"
    plan.options["recursive"] = (key, ledger.flag(key))
    if ledger.flag(key):
        ledger.agree(key, folders.NUMBERED)
    else:
        folders.remark_on_numbered(ledger, plan)
    key = f"{place}.image.enable_resolution_override"
    own = f"{place}.image.resolution_override"
    if ledger.flag(key):
        ledger.agree(key, "see resolution_override")
        folders.resolutions(ledger, plan, own, ledger.value(own), drawn=True)
    else:
        ledger.drop(own, "without effect there: enable_resolution_override is off")
        folders.resolutions(ledger, plan, "resolution", ledger.value("resolution"), drawn=True)
    _pictures(ledger, plan, place)
    _captions(ledger, plan, f"{place}.text")
    return plan


def _role(ledger: Ledger, plan: Plan, place: str) -> None:
    key = f"{place}.type"
    kind = ledger.text(key)
    if ledger.flag(f"{place}.validation_concept"):
        key, kind = f"{place}.validation_concept", "VALIDATION"
    if kind not in ROLES:
        raise ledger.wrong(key, f"one of {', '.join(ROLES)}")
    plan.role = ROLES[kind]
    if plan.role == "train":
        return
    if plan.role == "validation":
        off = "" if ledger.flag("validation") else "; its loss was not measured there, where validation is off"
        ledger.agree(key, f"the folder's role{off}")
        return
    plan.options["prior_prediction"] = (key, True)
    ledger.to(key, "data.regularisation_ratio", None)


def _repeats(ledger: Ledger, plan: Plan, place: str) -> bool:
    """Its repeats, whole or a fraction; whether it is used at all."""
    key, strategy = f"{place}.balancing", f"{place}.balancing_strategy"
    many = ledger.number(key)
    if many <= 0:
        return False
    if ledger.text(strategy) == "SAMPLES":
        sentence = (
            f"A fixed number of pictures per epoch has no counterpart: set the folder's repeats to {many:g} over the "
            "number of its pictures. Until then every picture is shown once."
        )
        ledger.change(key, sentence)
        ledger.agree(strategy, "see balancing")
    else:
        plan.own["repeats"] = (key, many)
    return True


def _pictures(ledger: Ledger, plan: Plan, place: str) -> None:
    """Crop, mirroring and colours."""
    image, random = f"{place}.image", False
    key = f"{image}.enable_crop_jitter"
    plan.options["crop"] = (key, "random" if ledger.flag(key) else "centre")
    key = f"{image}.enable_random_flip"
    plan.options["flip"] = (key, ledger.flag(key))
    if ledger.flag(f"{image}.enable_fixed_flip") and not ledger.flag(key):
        ledger.change(f"{image}.enable_fixed_flip", "Every picture is mirrored there; here they are as they are.")
    for name, (strength_key, option, factor, largest) in STRENGTHS.items():
        key, strength_key = f"{image}.enable_random_{name}", f"{image}.{strength_key}"
        strength = ledger.number(strength_key) * factor if ledger.flag(key) else 0.0
        plan.options[option] = (strength_key, min(strength, largest))
        if ledger.flag(key):
            ledger.agree(key, f"see {strength_key.rpartition('.')[2]}")
        elif ledger.flag(f"{image}.enable_fixed_{name}"):
            sentence = "Every picture is changed by the same amount there; here they are as they are."
            ledger.change(f"{image}.enable_fixed_{name}", sentence)
        else:
            ledger.drop(strength_key, "without effect there: it is switched off")
        if strength > largest:
            ledger.change(strength_key, f"At most {largest:g} is possible here.")
        random = random or strength > 0
    key = f"{place}.image_variations"
    if random or plan.options["crop"][1] == "random":
        plan.options["variants"] = (key, max(1, ledger.whole(key)) if ledger.flag("latent_caching") else 0)


def _captions(ledger: Ledger, plan: Plan, text: str) -> None:
    """What is done with a concept's captions."""
    _source(ledger, plan, text)
    wanted = {
        "enable_tag_shuffling": ("shuffle", ledger.flag(f"{text}.enable_tag_shuffling")),
        "keep_tags_count": ("keep_tokens", ledger.whole(f"{text}.keep_tags_count")),
        "tag_delimiter": ("separator", ledger.text(f"{text}.tag_delimiter")),
    }
    for key, (option, value) in wanted.items():
        plan.options[option] = (f"{text}.{key}", value)
    key, rate = f"{text}.tag_dropout_enable", f"{text}.tag_dropout_probability"
    if not ledger.flag(key):
        plan.options["part_dropout"] = (key, 0.0)
        ledger.drop(rate, "without effect there: tag dropout is off")
        for one in ("mode", "special_tags_mode", "special_tags", "special_tags_regex"):
            ledger.drop(f"{text}.tag_dropout_{one}", "without effect there: tag dropout is off")
        return
    ledger.agree(key, "see tag_dropout_probability")
    plan.options["part_dropout"] = (rate, min(ledger.number(rate), 0.99))
    mode = ledger.text(f"{text}.tag_dropout_mode")
    if mode == "RANDOM":
        ledger.agree(f"{text}.tag_dropout_mode", "parts are dropped one by one here")
    else:
        ledger.change(rate, f"Each part is dropped on its own here, not in the way {mode}.")
        ledger.drop(f"{text}.tag_dropout_mode", "goes with the probability")
    _special_tags(ledger, plan, text)


def _special_tags(ledger: Ledger, plan: Plan, text: str) -> None:
    """Tags that are never dropped, or that alone are."""
    mode, key = f"{text}.tag_dropout_special_tags_mode", f"{text}.tag_dropout_special_tags"
    option = {"WHITELIST": "drop_never", "BLACKLIST": "drop_only"}.get(ledger.text(mode))
    if option is None:
        ledger.drop(key, "without effect there: no list is chosen")
        return
    plan.options[option] = (key, _tags(ledger, key, ledger.text(f"{text}.tag_delimiter")))
    ledger.agree(mode, f"see {option}")
    if ledger.flag(f"{text}.tag_dropout_special_tags_regex"):
        sentence = "Tags are compared as they stand here; regular expressions match none."
        ledger.change(f"{text}.tag_dropout_special_tags_regex", sentence)


def _tags(ledger: Ledger, key: str, separator: str) -> list[str]:
    """A list in the setting itself, or in a file, a tag in each line."""
    given = ledger.text(key)
    path = Path(given)
    if path.suffix not in (".txt", ".csv"):
        return [tag.strip() for tag in given.split(separator or ",") if tag.strip()]
    if not is_file(path):
        ledger.change(key, "The tags stand in this file, which was not found; set the option yourself.")
        return []
    lines = read_text(path).splitlines()
    rows = [row[0] for row in csv.reader(lines) if row] if path.suffix == ".csv" else lines
    return [tag.strip() for tag in rows if tag.strip()]


def _source(ledger: Ledger, plan: Plan, text: str) -> None:
    """Where captions are. Each line of a file is one, of which each use of a picture takes one."""
    key, path_key = f"{text}.prompt_source", f"{text}.prompt_path"
    source = ledger.text(key)
    if source == "filename":
        plan.options["captions"] = (key, "filename")
    elif source == "concept":
        _one_file(ledger, plan, key, path_key)
    else:
        plan.options["captions"] = (key, "txt")
        plan.options["missing_captions"] = (key, "empty")
        plan.options["caption_lines"] = (key, "random")
    if source != "concept":
        ledger.drop(path_key, "without effect there: captions come from elsewhere")


def _one_file(ledger: Ledger, plan: Plan, key: str, path_key: str) -> None:
    """A file with the captions of all pictures, where it can be found."""
    path = Path(ledger.text(path_key))
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()] if is_file(path) else []
    plan.options["captions"] = (key, "text")
    if lines:
        plan.options["caption_text"] = (path_key, "\n".join(lines))
        plan.options["caption_lines"] = (key, "random")
    else:
        sentence = (
            "The caption of all pictures stands in this file, which was not found; set the folder's caption_text "
            "yourself."
        )
        ledger.change(path_key, sentence)


def _masks(ledger: Ledger) -> None:
    """Files NAME-masklabel.png beside the pictures."""
    on = ledger.flag("masked_training")
    ledger.to("masked_training", "data.masks", "files" if on else "none")
    if not on:
        prior = "masked_prior_preservation_weight"
        for name in ("unmasked_weight", "normalize_masked_area_loss", prior, "unmasked_probability"):
            ledger.drop(name, "without effect there: masked_training is off")
        return
    ledger.to("unmasked_weight", "data.unmasked_weight", ledger.number("unmasked_weight"))
    ledger.to("normalize_masked_area_loss", "data.normalize_mask", ledger.flag("normalize_masked_area_loss"))
    ledger.set({"data.unmasked_probability": 0.0}, "unmasked_probability")
    why = "without effect there: only models for inpainting use it; data.unmasked_probability is the counterpart"
    ledger.drop("unmasked_probability", why)
    if ledger.number("masked_prior_preservation_weight"):
        sentence = "Outside of masks nothing is trained towards the base here, only with the weight unmasked_weight."
        ledger.change("masked_prior_preservation_weight", sentence)
