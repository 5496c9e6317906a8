"""What importing from all trainers has in common: families, layers, and how our preset is completed."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules import families
from modules.families.parts.flow import FlowModel
from modules.importing.ledger import Imported, Ledger, as_number

OUTSIDE = ["transformer.*_embed*", "transformer.proj_out"]
"""Layers of a transformer that are in none of its blocks."""
OWN_OUTSIDE = {"anima": ["transformer.norm_out.*"],
               "qwenimage": ["transformer.???_in", "transformer.norm_out.linear"]}
"""The same that only some families have."""

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


def squares(ledger: Ledger, key: str, value: Any) -> list[tuple[int, bool]]:
    """The sizes in `512`, `"512,768"`, `[512, 768]` and `"768x1024"`: the side of a square of the same area, and
    whether it is given as a square. Raises ValueError."""
    parts = value if isinstance(value, list) else re.split(r"[,;]", str(value).strip().strip("[]()"))
    found = []
    for part in parts:
        sides = [as_number(side) for side in (part if isinstance(part, list) else re.split(r"[xX]", str(part)))]
        if not sides or any(side is None or side <= 0 or math.isinf(side) for side in sides):
            raise ledger.wrong(key, "a resolution")
        first, last = sides[0] or 0.0, sides[-1] or 0.0
        found.append((round(math.sqrt(first * last)), first == last))
    if not found:
        raise ledger.wrong(key, "a resolution")
    return found


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


def sample_prompts(ledger: Ledger, key: str, prompts: Sequence[Any], what: str = "") -> None:
    """Prompts to draw; `what` was taken from the first prompt for all."""
    found = [prompt for prompt in prompts if prompt]
    if not found:
        return
    if what:
        ledger.change(key, what, {"samples.prompts": found})
    else:
        ledger.to(key, "samples.prompts", found)


def text_encoder_rates(ledger: Ledger, rates: Mapping[str, tuple[str, float]], base: float) -> None:
    """Learning rates as multiples of training.learning_rate: for each text encoder their key and the rate. The first
    one is that of all, others get an entry in targets.encoders."""
    if not rates or base <= 0:
        return
    ratios = {name: min(max(float(f"{rate / base:.6g}"), 1e-6), 10.0) for name, (_, rate) in rates.items()}
    first, (_, rate) = next(iter(ratios.values())), next(iter(rates.values()))
    sentence = f"All text encoders learn at {first:g} times training.learning_rate ({rate:g} of {base:g})."
    own = {name: ratio for name, ratio in ratios.items() if ratio != first}
    if own:
        sentence = f"Text encoders learn at {first:g} times training.learning_rate, {', '.join(own)} at its own rate."
    for number, (name, (key, _)) in enumerate(rates.items()):
        if first == 1 and not own:
            ledger.to(key, "targets.text_encoder_lr_scale", 1.0)
        elif number == 0 or ledger.written(key):
            ledger.change(key, sentence, {"targets.text_encoder_lr_scale": first})
        if name in own:
            ledger.change(key, sentence, {"targets.encoders": with_encoder(ledger, name, lr_scale=own[name])})


def with_encoder(ledger: Ledger, name: str, **values: float) -> list[dict[str, Any]]:
    """The entries of targets.encoders, with these values for one text encoder."""
    entries = {one["name"]: one for one in ledger.values.get("targets.encoders", [])}
    entries[name] = {**entries.get(name, {"name": name}), **values}
    return list(entries.values())


def split_files(ledger: Ledger, texts: Sequence[str], vae: Sequence[str]) -> None:
    """Files of text encoders and of the VAE: the keys that may have one."""
    files = {key: ledger.text(key) for key in (*texts, *vae) if ledger.text(key)}
    for key in [key for key, path in files.items() if not path.lower().endswith(".safetensors")]:
        option = "base.texts takes" if key in texts else "base.vae is"
        ledger.drop(key, f"no counterpart: {option} .safetensors files, and {files.pop(key)} is none")
    found = [path for key, path in files.items() if key in texts]
    for key, path in files.items():
        ledger.to(key, *(("base.texts", found) if key in texts else ("base.vae", path)))


def outside(family: str) -> list[str]:
    """The layers of a family's transformer that are in none of its blocks."""
    return [*OUTSIDE, *OWN_OUTSIDE.get(family, [])]


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
