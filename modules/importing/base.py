"""What importing from all trainers has in common: families, layers, and how our preset is completed."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules import families
from modules.families.parts.flow import FlowModel
from modules.importing.ledger import Imported, Ledger, as_number

OUTSIDE = ["transformer.*_embed*", "transformer.proj_out"]
"""Layers of a transformer that are in none of its blocks."""

FAMILIES = ", ".join(families.names())
"""As sentences list them."""


@dataclass(frozen=True)
class Wishes:
    """What the user decides about an import."""

    method: str = ""
    family: str = ""


def table(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A trainer's keys with their defaults, and reasons for dropping by pattern over keys (`[[]` is a bracket)."""
    found = json.loads((Path(__file__).parent / "defaults" / f"{name}.json").read_text(encoding="utf-8"))
    return found["keys"], found["reasons"]


def resolution(ledger: Ledger, key: str, value: Any) -> None:
    """One number for `512`, `"512,768"`, `[512, 768]` and `"768x1024"`."""
    parts = value if isinstance(value, list) else re.split(r"[,;]", str(value).strip().strip("[]()"))
    sizes = []
    for part in parts:
        sides = [as_number(side) for side in (part if isinstance(part, list) else re.split(r"[xX]", str(part)))]
        if not sides or any(side is None or side <= 0 for side in sides):
            raise ledger.wrong(key, "a resolution")
        sizes.append([side or 0 for side in sides])
    if not sizes:
        raise ledger.wrong(key, "a resolution")
    if all(len(size) == 1 for size in sizes) and len({size[0] for size in sizes}) == 1:
        ledger.to(key, "data.resolution", int(sizes[0][0]))
        return
    if len(sizes) == 1:
        side = round(math.sqrt(sizes[0][0] * sizes[0][-1]))
        sentence = f"An exact size has no counterpart; buckets of about {side} px squared have as many pixels."
    else:
        side = int(max(math.sqrt(size[0] * size[-1]) for size in sizes))
        sentence = f"There is one resolution here, not several; the largest, {side}, is taken."
    ledger.change(key, sentence, {"data.resolution": side})


def pair_resolution(ledger: Ledger, key: str, value: Any) -> None:
    """kohya's way: `512`, `"512,768"` and `[512, 768]` are width and height."""
    parts = value if isinstance(value, list) else str(value).strip("[]() ").split(",")
    resolution(
        ledger, key, parts[0] if len(set(map(str, parts))) == 1 else "x".join(str(part).strip() for part in parts)
    )


def repeats(ledger: Ledger, key: str, many: float) -> None:
    """Repeats of a folder's pictures, which are in folder names here."""
    count = max(1, round(many))
    sentence = (
        f"Repeats are in folder names here: put the pictures into a sub-folder called {count}_name of this folder to "
        "repeat them as often; until then every picture is shown once per epoch."
    )
    ledger.change(key, sentence)


def caption_ending(ledger: Ledger, key: str, ending: str) -> None:
    """Captions in other files than .txt."""
    where = "" if ledger.written(key) else f" The file does not say so, it is the default of {ledger.trainer}."
    ledger.change(
        key, f"Captions are read from .txt files here; .{ending.lstrip('.')} files have to be renamed.{where}"
    )


def conv_rank(ledger: Ledger, key: str, rank: int) -> None:
    """A rank of their own for the convolutions of a UNet's residual blocks and samplers."""
    if rank == ledger.values.get("adapter.rank") or "adapter.rank" not in ledger.values:
        return
    rank = min(rank, 4096)  # what a rule allows, and a full matrix in any convolution
    rules = [{"match": f"unet.*{where}", "rank": rank} for where in (".resnets.*.conv[12]", "samplers.0.conv")]
    ledger.to(key, "targets.rules", rules)


def layer_patterns(ledger: Ledger, patterns: Iterable[str]) -> str:
    """Exactly these layers, for targets.layers; and those of text encoders, where these are trained."""
    return ", ".join([*patterns, *(["text_encoder*"] if ledger.values.get("targets.text_encoders") else [])])


def nearest_layers(patterns: str) -> str:
    """The set of layers nearest to parts of names, a comma between."""
    parts = [part.strip() for part in patterns.split(",")]
    if all("attn" in part or "to_" in part for part in parts):
        return "attention"
    return "attention-mlp" if all("att" in part or "ff" in part or "mlp" in part for part in parts) else "all"


def sample_prompts(ledger: Ledger, key: str, prompts: list[str], what: str = "") -> None:
    """Prompts to draw; `what` was taken from the first prompt for all."""
    found = [prompt for prompt in prompts if prompt]
    if not found:
        return
    if what:
        ledger.change(key, what, {"samples.prompts": found})
    else:
        ledger.to(key, "samples.prompts", found)


def text_encoder_rates(ledger: Ledger, rates: dict[str, float], base: float) -> None:
    """Learning rates of text encoders (by key) as a multiple of training.learning_rate."""
    if not rates or base <= 0:
        return
    key, rate = next(iter(rates.items()))
    ratio = min(max(float(f"{rate / base:.6g}"), 1e-6), 10.0)
    sentence = f"All text encoders learn at {ratio:g} times training.learning_rate ({rate:g} of {base:g})."
    if len(set(rates.values())) > 1:
        sentence += " Their own rates differed there; the first one is taken for all."
    for number, key in enumerate(rates):
        if ratio == 1 and len(set(rates.values())) == 1:
            ledger.to(key, "targets.text_encoder_lr_scale", 1.0)
        elif number == 0 or ledger.written(key):
            ledger.change(key, sentence, {"targets.text_encoder_lr_scale": ratio})


def is_flow(family: str) -> bool:
    """Whether a family is a rectified flow; the others are diffusions in steps."""
    return issubclass(families.load_class(family), FlowModel)


def finish(ledger: Ledger, family: str, name: str, reasons: dict[str, str]) -> Imported:
    """Turn off what our defaults would do for this family and the other trainer does not, and close the ledger."""
    if is_flow(family):
        for option in ("objective.min_snr_gamma", "objective.debiased", "objective.zero_terminal_snr"):
            for entry in [entry for entry in ledger.entries.values() if option in entry.ours]:
                if entry.ours[option] in (None, False):
                    continue
                del entry.ours[option]
                entry.part = "dropped"
                entry.sentence = "does not apply: this family is a rectified flow, and the weight is for diffusion"
            ledger.values.pop(option, None)
        ledger.set({"objective.min_snr_gamma": None})
    ledger.set({"description": f"Imported from {ledger.trainer}: {ledger.path.name}."})
    return ledger.close(safe_name(name or ledger.path.stem), reasons)


def safe_name(name: str) -> str:
    """A name that can be a file's and a folder's."""
    return re.sub(r"[^\w.+-]+", "_", Path(name).name).strip("._") or "imported"
