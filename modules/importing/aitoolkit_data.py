"""ai-toolkit's data sets, its folders of pictures; `aitoolkit` has the other settings.

`toolkit/config_modules.py` (`DatasetConfig`, `preprocess_dataset_raw_config`), `toolkit/data_loader.py`,
`toolkit/dataloader_mixins.py` and `extensions_built_in/sd_trainer/SDTrainer.py` at commit 27a03a91.
"""

import re
from typing import Any

from modules.importing import folders
from modules.importing.folders import Plan
from modules.importing.ledger import Ledger

EDITORS = ("flux_kontext", "qwen_image_edit", "qwen_image_edit_plus", "flux2", "flux2_klein_4b", "flux2_klein_9b")
"""Values of model.arch whose control pictures are what pictures are made from."""

CONTROLS = ("control_path", "control_path_1", "control_path_2", "control_path_3")
"""Keys of folders of control pictures; the numbered ones replace the first."""

SOURCES = {"txt": "txt", "caption": "caption", "json": "json"}
"""Endings of files with captions, and our sources."""


def convert(ledger: Ledger) -> None:
    """Write these sections."""
    numbers = sorted({int(found[1]) for key in ledger.given if (found := re.match(r"datasets\[(\d+)\]", key))})
    plans = [_plan(ledger, f"datasets[{number}]") for number in numbers]
    if plans:
        _ratio(ledger, plans)
        folders.write(ledger, plans)
    if ledger.text("trigger_word"):
        sentence = "It is put in front of captions that do not begin with it; there, of those that do not contain it."
        ledger.change("trigger_word", sentence, {} if plans else {"data.trigger": ledger.text("trigger_word")})


def _plan(ledger: Ledger, place: str) -> Plan:
    """A data set, with all folders below."""
    key = f"{place}.{'folder_path' if ledger.text(f'{place}.folder_path') else 'dataset_path'}"
    plan = Plan(key, ledger.text(key))
    ledger.agree(key, f"with all folders below; {folders.NUMBERED}")
    if plan.path.lower().endswith(".json"):
        sentence = "A file of paths and captions is no folder: give the folder, with the captions in metadata.json."
        ledger.change(key, sentence)
    _role(ledger, plan, place)
    plan.own["repeats"] = (f"{place}.num_repeats", float(max(1, ledger.whole(f"{place}.num_repeats"))))
    folders.resolutions(ledger, plan, f"{place}.resolution", ledger.value(f"{place}.resolution"))
    cached = any(ledger.flag(f"{place}.cache_latents{end}") for end in ("", "_to_disk"))
    wanted: dict[str, tuple[str, Any]] = {
        "caption_dropout_rate": ("caption_dropout", ledger.number(f"{place}.caption_dropout_rate")),
        "token_dropout_rate": ("part_dropout", min(ledger.number(f"{place}.token_dropout_rate"), 0.99)),
        "shuffle_tokens": ("shuffle", ledger.flag(f"{place}.shuffle_tokens")),
        "keep_tokens": ("keep_tokens", ledger.whole(f"{place}.keep_tokens")),
        "flip_x": ("flip", ledger.flag(f"{place}.flip_x")),
        "buckets": ("buckets", ledger.flag(f"{place}.buckets")),
        "random_crop": ("crop", "random" if ledger.flag(f"{place}.random_crop") else "centre"),
        "cache_latents_to_disk": ("cache", cached or not ledger.written(f"{place}.cache_latents_to_disk")),
    }
    if ledger.flag(f"{place}.random_crop"):
        plan.options["variants"] = (f"{place}.random_crop", 1 if cached else 0)
    if ledger.text(f"{place}.trigger_word"):
        wanted["trigger_word"] = ("trigger", ledger.text(f"{place}.trigger_word"))
    elif ledger.text("trigger_word"):
        regular = ledger.flag(f"{place}.is_reg")
        plan.options["trigger"] = (f"{place}.is_reg", "") if regular else ("trigger_word", ledger.text("trigger_word"))
    plan.options |= {option: (f"{place}.{name}", value) for name, (option, value) in wanted.items()}
    _captions(ledger, plan, place)
    _masks(ledger, plan, place)
    if edits(ledger):
        _references(ledger, plan, place)
    return plan


def edits(ledger: Ledger) -> bool:
    """Whether the model edits pictures."""
    return ledger.text("model.arch").partition(":")[0] in EDITORS


def _references(ledger: Ledger, plan: Plan, place: str) -> None:
    """Folders of control pictures, matched by name there too; with them nothing is varied here."""
    keys = [key for name in CONTROLS if ledger.value(key := f"{place}.{name}")]
    keys = [key for key in keys if not key.endswith("control_path")] or keys
    if not keys:
        return
    given = [ledger.value(key) for key in keys]
    paths = [str(path) for one in given for path in (one if isinstance(one, list) else [one])]
    plan.own["references"] = (keys[0], paths)
    for key in keys[1:]:
        ledger.agree(key, "one of the folder's references")
    unvaried = (("flip_x", "flip", False), ("random_crop", "crop", "centre"))
    for theirs, ours, value in unvaried:
        if ledger.flag(f"{place}.{theirs}"):
            plan.options[ours] = (f"{place}.{theirs}", value)
            sentence = "Pictures with references are cropped to their middle and never mirrored here."
            ledger.change(f"{place}.{theirs}", sentence)
    plan.options.pop("variants", None)


def references_of_samples(ledger: Ledger, items: list[int]) -> dict[int, list[str]]:
    """The control pictures of those of the samples that have some, for a model that edits."""
    found: dict[int, list[str]] = {}
    for place, number in enumerate(items if edits(ledger) else ()):
        keys = [key for end in ("", "_1", "_2", "_3") if ledger.text(key := f"sample.samples[{number}].ctrl_img{end}")]
        paths = list(dict.fromkeys(map(ledger.text, keys)))
        for key in keys:
            ledger.note(key, {f"samples.prompts[{place}].references": paths})
        if paths:
            found[number] = paths
    return found


def _role(ledger: Ledger, plan: Plan, place: str) -> None:
    """Regularisation takes every second batch, which is a ratio of 1; its weight is one for all such folders."""
    key, weight = f"{place}.loss_multiplier", ledger.number(f"{place}.loss_multiplier")
    prior = f"{place}.prior_reg"
    if ledger.flag(f"{place}.is_reg") or ledger.flag(prior):
        plan.role = "regularisation"
    if ledger.flag(f"{place}.is_reg"):
        ledger.agree(f"{place}.is_reg", "the folder's role: as many of these pictures as of the others")
        factor = ledger.number("train.reg_weight")
        key, weight = (key, weight * factor) if factor == 1 else ("train.reg_weight", weight * factor)
    if ledger.flag(prior):
        plan.options["prior_prediction"] = (prior, True)
    plan.own["loss_weight"] = (key, weight)
    if key != f"{place}.loss_multiplier":
        ledger.drop(f"{place}.loss_multiplier", "in the folder's loss_weight, with train.reg_weight")


def _ratio(ledger: Ledger, plans: list[Plan]) -> None:
    """Data sets with prior_reg alone are among all others there, used as often as their repeats say."""
    regular = [plan.key.rpartition(".")[0] for plan in plans if plan.role == "regularisation"]
    alone = [place for place in regular if not ledger.flag(f"{place}.is_reg")]
    for place in alone:
        if alone == regular:
            ledger.to(f"{place}.prior_reg", "data.regularisation_ratio", None)
        else:
            sentence = (
                "An epoch has as many of these and the is_reg pictures together as of the others here; there these "
                "are used as often as their repeats say."
            )
            ledger.change(f"{place}.prior_reg", sentence)


def _captions(ledger: Ledger, plan: Plan, place: str) -> None:
    key = f"{place}.caption_type" if ledger.text(f"{place}.caption_type") else f"{place}.caption_ext"
    ending, default = ledger.text(key).lstrip("."), f"{place}.default_caption"
    if ledger.text(default):
        plan.options["caption_text"] = (default, ledger.text(default))
    plan.options["captions"] = (key, SOURCES.get(ending, "text" if ledger.text(default) else "none"))
    if ending in SOURCES:
        plan.options["missing_captions"] = (key, "empty")
        return
    instead = "default_caption" if ledger.text(default) else "no caption"
    sentence = (
        f"Captions in .{ending} files are not read here: all pictures have {instead}, as there pictures without such a "
        "file. If there are any, rename them to .txt and set data.captions txt."
    )
    ledger.change(key, sentence)


def _masks(ledger: Ledger, plan: Plan, place: str) -> None:
    """A folder of masks or the transparency. The loss is divided by the mean of a batch's masks there."""
    path, alpha, least = f"{place}.mask_path", f"{place}.alpha_mask", f"{place}.mask_min_value"
    if not ledger.flag(alpha) and not ledger.text(path):
        plan.options["masks"] = (path, "none")
        for key in (least, f"{place}.invert_mask"):
            ledger.drop(key, "without effect there: the folder has no masks")
        return
    key, value = (alpha, "alpha") if ledger.flag(alpha) else (path, ledger.text(path))
    plan.options["masks"] = (key, value)
    plan.options["unmasked_weight"] = (least, ledger.number(least))
    sentence = "Masks are weighed by the mean of a batch's masks there, and by each picture's own here."
    ledger.change(key, sentence, {"data.normalize_mask": True})
    if ledger.flag(f"{place}.invert_mask"):
        ledger.change(f"{place}.invert_mask", "White is trained here; invert the masks themselves.")
