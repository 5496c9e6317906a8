"""Models in their real sizes, without weights: the published configurations in tests/data/full_size.

`python -m tests.full_size` writes docs/families.md from them (what each shipped preset adapts, and its file size),
modules/families/layers (all their layers), and tests/data/keys (how each host spells the layers), which a person has to
compare with docs of the hosts when it changes.
"""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from modules import families
from modules.adapters.base import detach
from modules.export.export import expected_size
from modules.families.parts import published
from modules.preset.files import every, resolve
from modules.preset.schema import Base, Preset
from modules.training import setup
from tests.tiny_sdxl import tokenizer as clip_tokenizer

ROOT = Path(__file__).parents[1]
CONFIGS = Path(__file__).parent / "data/full_size"
KEYS = Path(__file__).parent / "data/keys"
HOSTS = ("comfyui", "kohya", "diffusers")
PAGE = ROOT / "docs/families.md"

class Known(NamedTuple):
    """A published model: `model.json` in its folder of `CONFIGS`."""

    family: str
    pipeline: str
    """diffusers' class."""
    title: str
    weights: int
    """Of the denoiser, as published."""
    presets: bool
    """Whether it is the one that its family's presets name."""
    source: str = ""
    """Where its configuration is from, if not from its own files."""
    memory: str = ""
    """What cards of different sizes need, as arithmetic."""


def models() -> dict[str, Known]:
    """Those in `CONFIGS` by family, in each the one that presets name first."""
    found = {path.parent.name: Known(**json.loads(path.read_text())) for path in CONFIGS.glob("*/model.json")}
    return dict(sorted(found.items(), key=lambda one: (one[1].family, not one[1].presets, one[0])))


MODELS = models()

INTRODUCTION = """# Families

What the shipped presets adapt in the models of real size that they name. Counted on networks without weights, built
from the published configurations (`tests/data/full_size`); written by `python -m tests.full_size`; a test fails when it
is stale. File sizes are those of the ComfyUI file in float16; a method that ComfyUI can only hold as full differences
has the size of the adapted layers.

"""


def make_folder(name: str, folder: Path) -> Path:
    """A diffusers folder of the model without weights, with small tokenizers; its path."""
    place = folder / name
    shutil.copytree(CONFIGS / name, place, ignore=shutil.ignore_patterns("model.json"))
    index: dict[str, Any] = {"_class_name": MODELS[name].pipeline}
    for part in sorted(place.iterdir()):
        config = json.loads(next(part.glob("*.json")).read_text())
        index[part.name] = (
            ["diffusers", config["_class_name"]]
            if "_class_name" in config
            else ["transformers", *config["architectures"]]
        )
    named = families.load_class(MODELS[name].family).TOKENIZERS
    classes = {"processor": "Qwen3VLProcessor"}
    for part in [part for part in index if part.startswith("text_")]:
        tokens = named.get(part, part.replace("text_encoder", "tokenizer"))
        found = save_tokenizer(index[part][1], place / tokens)
        index[tokens] = ["transformers", classes.get(tokens, found)]
    (place / "model_index.json").write_text(json.dumps(index))
    return place


def save_tokenizer(encoder: str, folder: Path) -> str:
    """A small tokenizer for an encoder of this class; the tokenizer's class."""
    if encoder.startswith(("T5", "AnimaText")):
        from tests.tiny_t5 import tokenizer as t5_tokenizer

        t5_tokenizer().save_pretrained(folder)
        return "T5TokenizerFast"
    if encoder.startswith("Qwen"):
        from tests.tiny_qwen3 import tokenizer as qwen_tokenizer

        qwen_tokenizer().save_pretrained(folder)
        return "Qwen2Tokenizer"
    if encoder.startswith("Mistral"):
        from tests.tiny_mistral import tokenizer as mistral_tokenizer

        mistral_tokenizer().save_pretrained(folder)
        return "PixtralProcessor"
    clip_tokenizer(folder).save_pretrained(folder)
    return "CLIPTokenizer"


def skeleton(name: str, folder: Path) -> Any:
    """The model of this name, without weights."""
    base = Base(path=str(make_folder(name, folder)))
    model, problems = families.read(MODELS[name].family, base)
    assert not problems, problems
    return model


def key_list(model: Any, host: str) -> str:
    """How `host` spells the model's layers: one line for all that differ in numbers only, in the model's order."""
    lines = {}
    for layer in setup.layer_names(model):
        try:
            key = model.export_key(layer, host)
        except ValueError:
            key = "(has no name there)"
        lines[f"{numberless(layer)} -> {numberless(key)}"] = None
    return "\n".join(lines) + "\n"


def layer_table(family: str) -> str:
    """All layers with weights of the family's models, as `published.layers` reads them."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        for model in (skeleton(name, Path(place)) for name, row in MODELS.items() if row.family == family):
            for network, whole in model.networks.items():
                for path, module in whole.named_modules():
                    if "weight" in dict(module.named_parameters(recurse=False)):
                        own = model.split(f"{network}.{path}")[1]
                        original = model.original(network, own, "weight").name
                        found.append(published.Published(type(module).__name__, network, own, original))
    return published.table(found)


def numberless(name: str) -> str:
    """A name with # for each number that stands alone: `down_blocks.#.attn1`, `lora_unet_input_blocks_#_#_proj_in`."""
    return re.sub(r"(?<=[._])\d+(?=[._]|$)", "#", name)


def presets(family: str) -> list[str]:
    """Names of the shipped presets of a family, without those for the demo's small models."""
    return sorted(one.name for one in every() if one.family == family and not one.purpose)


def row(preset: Preset, model: Any) -> str:
    """A line of the table. `model` is as it was afterwards."""
    adapted, problems = setup.attach_all(model, preset)
    assert not problems, problems
    size, forms = expected_size(model, adapted, preset.export)
    parameters = sum(row.parameters for row in setup.layer_rows(adapted, model, preset.targets))
    counted = ", ".join(f"{number} {form}" for form, number in forms.items())
    for network in model.networks.values():
        detach(network)
    return f"| `{preset.name}` | {len(adapted)} | {parameters:,} | {size / 2**20:,.1f} MiB | {counted} |"


def page(every: int = 1) -> str:
    """docs/families.md; or with a row for one of `every` presets, in each family for others."""
    text, number = INTRODUCTION, 0
    with tempfile.TemporaryDirectory() as place:
        for name, known in MODELS.items():
            family = known.family
            model = families.load_class(family).skeleton(Base(path=str(make_folder(name, Path(place)))))
            denoiser = next(iter(model.networks.values()))
            weights = sum(parameter.numel() for parameter in denoiser.parameters())
            text += f"## {known.title}\n\nFamily `{family}`; the denoiser has {weights:,} weights and "
            text += f"{len(setup.layer_names(model))} layers (text encoders included) that can be adapted. Named sets: "
            text += ", ".join(f"`{target}`" for target in model.named_targets()) + ".\n\n"
            text += f"{known.memory}\n\n" if known.memory else ""
            if not known.presets:
                continue  # hardly anything else than in the first
            text += "| preset | layers | parameters | file | form of the layers in it |\n|---|---|---|---|---|\n"
            for name in presets(family):
                number += 1
                text += f"{row(resolve(name).preset, model)}\n" if number % every == 0 else ""
            text += "\n"
    return text.rstrip() + "\n"


def write_keys() -> None:
    """All lists of keys."""
    KEYS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for name in MODELS:
            model = skeleton(name, Path(place))
            for host in HOSTS:
                (KEYS / f"{name}_{host}.txt").write_text(key_list(model, host), encoding="utf-8")


if __name__ == "__main__":
    write_keys()
    for family in families.names():
        (published.FOLDER / f"{family}.txt").write_text(layer_table(family), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)
