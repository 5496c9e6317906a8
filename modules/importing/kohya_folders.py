"""sd-scripts' data sets: folders with what they and the data set, the general section and the arguments say of them.

`library/config_util.py`, and `library/train_util.py` (`process_caption`, `read_caption`, `DreamBoothDataset`,
`AugHelper`, `apply_masked_loss`) at commit 48d368fa.
"""

import re

from modules.importing import folders
from modules.importing.folders import Plan
from modules.importing.ledger import Ledger, same

CAPTIONS = {
    "shuffle_caption": ("shuffle", "flag"),
    "keep_tokens": ("keep_tokens", "whole"),
    "keep_tokens_separator": ("keep_separator", "text"),
    "caption_separator": ("separator", "text"),
    "caption_dropout_rate": ("caption_dropout", "number"),
    "caption_tag_dropout_rate": ("part_dropout", "number"),
    "caption_prefix": ("prefix", "text"),
    "caption_suffix": ("suffix", "text"),
    "enable_wildcard": ("wildcards", "flag"),
    "flip_aug": ("flip", "flag"),
}
"""What a folder, a data set or the whole training may have, and our options."""

ENDINGS = {"txt": "txt", "caption": "caption"}
"""Endings of files with captions, and our sources."""

HUE = 8 / 180
"""How far color_aug turns the colours, as a part of the circle."""


def convert(ledger: Ledger) -> None:
    """Write these sections."""
    found = {match[1] for key in ledger.given if (match := re.match(r"(datasets\[\d+\]\.subsets\[\d+\])", key))}
    places = sorted(found, key=lambda place: [int(number) for number in re.findall(r"\d+", place)])
    plans = [_plan(ledger, place) for place in places]
    if not plans:
        plans = _arguments(ledger)
    if plans:
        folders.write(ledger, plans)
    else:
        plan = Plan("resolution", "")
        _folder(ledger, plan, "")
        _captions(ledger, plan, "", named=True)
        folders.write_alone(ledger, plan)
    _batch(ledger, places)
    for key in ("cache_latents", "cache_latents_to_disk"):
        if ledger.flag(key):
            ledger.to(key, "data.cache", True)
    _lengths(ledger, places)
    _unused(ledger)


def _plan(ledger: Ledger, place: str) -> Plan:
    """A subset. The pictures directly in its folder are used, none in folders below."""
    image, table = f"{place}.image_dir", f"{place}.metadata_file"
    if not ledger.text(image) and not ledger.text(table):
        raise ValueError(f"{ledger.path}: {place}: has no image_dir; add it")
    plan = Plan(image if ledger.text(image) else table, ledger.text(image) or str(ledger.value(table)))
    plan.options["recursive"] = (plan.key, False)
    folders.remark_on_numbered(ledger, plan)
    key = _nearest(ledger, "num_repeats", place)
    key = key if ledger.written(key) else "dataset_repeats"
    plan.own["repeats"] = (key, ledger.number(key))
    if ledger.flag(f"{place}.is_reg"):
        _regularisation(ledger, plan, f"{place}.is_reg", _nearest(ledger, "prior_loss_weight", place))
    _folder(ledger, plan, place)
    if ledger.text(table):
        plan.options["captions"] = (table, "metadata")
        sentence = "Captions are read from metadata files in the pictures' folder here; put it there as metadata.json."
        ledger.change(table, sentence)
    else:
        _captions(ledger, plan, place)
    return plan


def _arguments(ledger: Ledger) -> list[Plan]:
    """Folders of the command itself: of each, the folders N_name directly below are used."""
    plans = []
    for key in ("train_data_dir", "reg_data_dir"):
        if not ledger.text(key):
            continue
        plan = Plan(key, ledger.text(key))
        plan.options["recursive"] = (key, False)
        folders.remark_on_loose(ledger, plan)
        if ledger.number("dataset_repeats") != 1:
            plan.own["repeats"] = ("dataset_repeats", ledger.number("dataset_repeats"))
        if key == "reg_data_dir":
            _regularisation(ledger, plan, key, "prior_loss_weight")
        _folder(ledger, plan, "")
        _captions(ledger, plan, "", named=True)
        plans.append(plan)
    return plans


def _regularisation(ledger: Ledger, plan: Plan, key: str, weight: str) -> None:
    """As many pictures of such folders as of the others are used in an epoch, as with our default ratio."""
    plan.role = "regularisation"
    plan.own["loss_weight"] = (weight, ledger.number(weight))
    ledger.agree(key, "the folder's role; an epoch has as many of these pictures as of the others")


def _nearest(ledger: Ledger, name: str, place: str) -> str:
    """The key that decides for a folder: its own, its data set's, the general one, or the argument."""
    places = [f"{place}.", f"{place.partition('.subsets')[0]}."] if place else []
    keys = [f"{one}{name}" for one in (*places, "general.")]
    return next((key for key in keys if ledger.written(key)), name)


def _folder(ledger: Ledger, plan: Plan, place: str) -> None:
    """Size, captions' changes, crop, colours and masks."""
    key = _nearest(ledger, "resolution", place)
    value = ledger.value(key)
    if value in (None, ""):
        plan.options["resolutions"] = (key, [512])
    else:
        parts = value if isinstance(value, list) else str(value).strip("[]() ").split(",")
        sides = [str(part).strip() for part in parts]
        folders.resolutions(ledger, plan, key, sides[0] if len(set(sides)) == 1 else "x".join(sides[:2]))
    key = _nearest(ledger, "enable_bucket", place)
    plan.options["buckets"] = (key, ledger.flag(key))
    for name, (option, kind) in CAPTIONS.items():
        key = _nearest(ledger, name, place)
        read = {"flag": ledger.flag, "whole": ledger.whole, "text": ledger.text, "number": ledger.number}[kind]
        value = read(key)
        plan.options[option] = (key, min(float(value), 0.99) if option == "part_dropout" else value)
    key = _nearest(ledger, "enable_wildcard", place)
    plan.options["caption_lines"] = (key, "random" if ledger.flag(key) else "first")
    _augmentation(ledger, plan, place)
    _masks(ledger, plan, place)


def _augmentation(ledger: Ledger, plan: Plan, place: str) -> None:
    key = _nearest(ledger, "random_crop", place)
    plan.options["crop"] = (key, "random" if ledger.flag(key) else "centre")
    colour = _nearest(ledger, "color_aug", place)
    plan.options["hue"] = (colour, round(HUE, 4) if ledger.flag(colour) else 0.0)
    if ledger.flag(colour):
        sentence = (
            "A sixth of all uses has its colours turned by up to this there, and another sixth a gamma of 0.95 to "
            "1.05; here all uses have their colours turned."
        )
        ledger.change(colour, sentence)
    if ledger.flag(key) or ledger.flag(colour):
        cached = ledger.flag("cache_latents") or ledger.flag("cache_latents_to_disk")
        plan.options["variants"] = (key if ledger.flag(key) else colour, 1 if cached else 0)


def _masks(ledger: Ledger, plan: Plan, place: str) -> None:
    """A folder with masks, or the transparency; outside nothing counts, and the area does not matter."""
    alpha = _nearest(ledger, "alpha_mask", place)
    folder = _nearest(ledger, "conditioning_data_dir", place)
    if ledger.flag("masked_loss") and ledger.text(folder):
        plan.options["masks"] = (folder, ledger.text(folder))
        ledger.agree("masked_loss", "see conditioning_data_dir")
    elif ledger.flag(alpha):
        plan.options["masks"] = (alpha, "alpha")
        ledger.agree("masked_loss", "see alpha_mask")
    else:
        ledger.drop(folder, "without effect there: masked_loss is off")
        plan.options["masks"] = (alpha, "none")
        return
    ledger.set({"data.unmasked_weight": 0.0, "data.normalize_mask": False}, plan.options["masks"][0])


def _captions(ledger: Ledger, plan: Plan, place: str, named: bool = False) -> None:
    """Files with captions; and without one the words of the folder, which with `named` are in its name."""
    key = _nearest(ledger, "caption_extension", place)
    if not ledger.written(key) and ledger.text("caption_extention"):
        key = "caption_extention"
    ending, words = ledger.text(key).lstrip("."), _nearest(ledger, "class_tokens", place)
    if ledger.text(words):
        plan.options["caption_text"] = (words, ledger.text(words))
    if ending in ENDINGS:
        plan.options["captions"] = (key, ENDINGS[ending])
        if not named:
            plan.options["missing_captions"] = (key, "empty")
        return
    source = "foldername" if named else "text" if ledger.text(words) else "none"
    instead = {"foldername": "the folder's name", "text": "class_tokens", "none": "no caption"}[source]
    where = "" if ledger.written(key) else f" The file does not say so, it is the default of {ledger.trainer}."
    sentence = (
        f"Captions stand in .{ending} files there, and pictures without one have {instead}; such files are not read "
        f"here, so all have {instead}. If there are any, rename them to .txt and set data.captions txt.{where}"
    )
    plan.options["captions"] = (key, source)
    ledger.change(key, sentence)


def _batch(ledger: Ledger, places: list[str]) -> None:
    """One number for all data sets."""
    keys = list(dict.fromkeys(_nearest(ledger, "batch_size", place) for place in places))
    keys = [key if ledger.written(key) else "train_batch_size" for key in keys] or ["train_batch_size"]
    ledger.to(keys[0], "training.batch_size", ledger.whole(keys[0]))
    for key in keys[1:]:
        if same(ledger.value(key), ledger.value(keys[0])):
            ledger.agree(key, f"the same as {keys[0]}")
        else:
            ledger.change(key, f"All batches are of one size here, as {keys[0]} says.")


def _lengths(ledger: Ledger, places: list[str]) -> None:
    """Tokens of captions; the argument, or of the first data set."""
    key = _nearest(ledger, "max_token_length", places[0] if places else "")
    length = ledger.maybe(key)
    if length and length > 75:
        ledger.to(key, "data.caption_tokens", ledger.whole(key))
    elif ledger.written(key):
        ledger.to(key, "data.caption_tokens", 75)
    if ledger.flag("weighted_captions"):
        ledger.to("weighted_captions", "data.emphasis", True)


def _unused(ledger: Ledger) -> None:
    """Values of the general section, of data sets and arguments that a nearer one replaces; masked_loss without
    masks."""
    if "masked_loss" not in ledger.entries:
        ledger.drop("masked_loss", "without effect there: no folder has masks")
    names = {*CAPTIONS, "resolution", "batch_size", "num_repeats", "caption_extension", "enable_bucket", "random_crop"}
    for key in ledger.given:
        name = key.rpartition(".")[2]
        if name in ("train_data_dir", "reg_data_dir") and key not in ledger.entries:
            ledger.drop(key, "without effect there: the data sets have folders of their own")
        elif name in names and key not in ledger.entries:
            ledger.drop(key, "without effect there: all folders have a value of their own")
