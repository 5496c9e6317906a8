"""Files as people have them, by names and shapes of the published models: for inspect and the real loaders.

    for case in inspect_corpus.cases(): case.write(folder)

Layers are one of each sort of a model of real size, the numbers are random, the rank is 2.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import full_size
from tests.files.inspect_layers import ANIMA, KREA, LATER, OTHERS, QWEN, QWEN21

RANK = 2
KOHYA = (".lora_up.weight", ".lora_down.weight")
PEFT = (".lora_B.weight", ".lora_A.weight")
FOLDER = tempfile.TemporaryDirectory(prefix="gimbal_full_size_")
TRAINED = ("Linear", "Conv2d")

MODELS = {known.family: name for name, known in full_size.MODELS.items() if known.presets}
"""The model of real size that stands for a family."""

TEXTS = {
    "sd15": {"text_encoder": "lora_te_"},
    "sdxl": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
    "sd3": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"},
    "flux": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te3_"},
    "chroma": {"text_encoder": "lora_te1_"},
    "zimage": {"text_encoder": "lora_te_"},
    "qwenimage": {"text_encoder": "lora_te_"},
    "krea2": {"text_encoder": "lora_te_"},
    "qwenimage21": {"text_encoder": "lora_te_"},
    "anima": {"text_encoder": "lora_te_", "text_conditioner": "lora_unet_llm_adapter_"},
}
"""kohya's beginnings."""


@dataclass(frozen=True)
class Row:
    """A layer."""

    kind: str
    network: str
    path: str
    original: str
    shape: tuple[int, ...]

    @property
    def is_text(self) -> bool:
        """Whether it is a text encoder's."""
        return self.network.startswith("text")


@dataclass(frozen=True)
class Case:
    """A file."""

    name: str
    family: str
    """Of ours, or empty."""
    tensors: dict[str, tuple[int, ...]]
    """Shapes by key."""
    metadata: dict[str, str]

    def write(self, folder: Path) -> Path:
        """The file in this folder."""
        generator = torch.Generator().manual_seed(len(self.tensors))
        path = folder / f"{re.sub(r'[^a-z0-9]+', '_', self.name.lower())}.safetensors"
        save_file({key: _filled(shape, generator) for key, shape in self.tensors.items()}, path, self.metadata)
        return path


def _filled(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).half() if shape else torch.tensor(1.0)


@cache
def folder(family: str) -> Path:
    """The family's model as a diffusers folder without weights."""
    return full_size.make_folder(MODELS[family], Path(FOLDER.name))


@cache
def rows(family: str) -> tuple[Row, ...]:
    """All layers with weights of the family's model."""
    with tempfile.TemporaryDirectory() as place:
        model = full_size.skeleton(MODELS[family], Path(place))
    found = []
    for network, whole in model.networks.items():
        for path, module in whole.named_modules():
            weight = dict(module.named_parameters(recurse=False)).get("weight")
            if weight is not None:
                _, own, _ = model.split(f"{network}.{path}")
                found.append(Row(type(module).__name__, network, own, model.original(network, own, "weight").name,
                                 tuple(weight.shape)))
    return tuple(found)


@cache
def listed(family: str) -> Path:
    """The layers as JSON, for drivers."""
    path = Path(FOLDER.name) / f"{family}.json"
    path.write_text(json.dumps([[*vars(row).values()] for row in rows(family)]), encoding="utf-8")
    return path


@cache
def sample(family: str, texts: bool = False) -> tuple[Row, ...]:
    """One layer of each sort."""
    found = {}
    for row in rows(family):
        if row.kind in TRAINED and (texts or not row.is_text) and "text_projection" not in row.path:
            found.setdefault((row.network, re.sub(r"\d+", "#", row.path)), row)
    return tuple(found.values())


def joined(name: str) -> str:
    """Underscores for dots."""
    return name.replace(".", "_")


def pairs(
    family: str, named: Callable[[Row], str], ends: tuple[str, str] = KOHYA, alpha: bool = True, texts: bool = False
) -> dict[str, tuple[int, ...]]:
    """Low-rank pairs of the family's sample; a matrix of several layers under one name counts once."""
    outputs: dict[str, int] = {}
    inputs: dict[str, tuple[int, ...]] = {}
    for row in sample(family, texts):
        name = named(row)
        if name:
            outputs[name] = outputs.get(name, 0) + row.shape[0]
            inputs[name] = row.shape[1:]
    found: dict[str, tuple[int, ...]] = {}
    for name, out in outputs.items():
        ones = (1,) * (len(inputs[name]) - 1)
        found |= {f"{name}{ends[0]}": (out, RANK, *ones), f"{name}{ends[1]}": (RANK, *inputs[name])}
        found |= {f"{name}.alpha": ()} if alpha else {}
    return found


def original(row: Row) -> str:
    """A denoiser's layer in its original checkpoint, which may have query, key and value as one: the sample has all
    three, which together have the height of that matrix."""
    return row.original.removesuffix(".weight")


def text_name(family: str) -> Callable[[Row], str]:
    """kohya's name of a text encoder's layer."""
    return lambda row: TEXTS[family].get(row.network, "") + joined(row.path)


def kohya(family: str, body: Callable[[Row], str]) -> Callable[[Row], str]:
    """kohya's names with one of the two bodies."""
    text = text_name(family)
    return lambda row: text(row) if row.is_text else f"lora_unet_{joined(body(row))}"


def path(row: Row) -> str:
    """diffusers' path."""
    return row.path


def old(row: Row) -> str:
    """diffusers' first adapters: in the attention's processor."""
    found = f"{row.network}.{row.path}".replace(".to_", ".processor.to_")
    return found.removesuffix(".0") if found.endswith(".to_out.0") else found


def cases() -> list[Case]:
    """All files."""
    found = [Case(name, family, tensors, metadata) for name, family, tensors, metadata in (*_ours(), *_spelled(),
             *_extras(), *_kinds(), *_flux(), *_others())]
    assert len({case.name for case in found}) == len(found)
    return found


Made = tuple[str, str, dict[str, tuple[int, ...]], dict[str, str]]


def _ours() -> Iterator[Made]:
    """Our own names, of every family and host."""
    for family, name in MODELS.items():
        with tempfile.TemporaryDirectory() as place:
            model = full_size.skeleton(name, Path(place))
        known = {f"{part}.{path}" for part, network in model.networks.items() for path, _ in network.named_modules()}
        for host in ("comfyui", "comfyui_node", "kohya", "diffusers", "lycoris"):
            ends = PEFT if host == "diffusers" else KOHYA
            named = partial(_exported, model, host, known)
            yield (f"ours, {family}, {host}", family, pairs(family, named, ends, host != "diffusers", texts=True),
                   {"gimbal.method": "lora", "gimbal.host": host})


def _exported(model: Any, host: str, known: set[str], row: Row) -> str:
    """Our name of a layer, empty where the host has none."""
    bare = row.path if f"{row.network}.{row.path}" in known else row.path.removeprefix("text_model.")
    try:
        return model.export_key(f"{row.network}.{bare}", host)
    except ValueError:
        return ""


def _spelled() -> Iterator[Made]:
    """Every way to write names, each family."""
    for family in MODELS:
        ways: dict[str, tuple[Callable[[Row], str], tuple[str, str], bool]] = {
            "kohya, diffusers' paths": (kohya(family, path), KOHYA, True),
            "kohya, original paths": (kohya(family, original), KOHYA, True),
            "kohya without alpha": (kohya(family, path if family == "sd15" else original), KOHYA, False),
            "peft": (lambda row: f"{row.network}.{row.path}", PEFT, False),
            "peft with alpha": (lambda row: f"{row.network}.{row.path}", PEFT, True),
            "peft with default": (lambda row: f"{row.network}.{row.path}",
                                  (".lora_B.default.weight", ".lora_A.default.weight"), False),
            "base_model in the network": (lambda row: f"{row.network}.base_model.model.{row.path}", PEFT, False),
            "base_model": (lambda row: f"base_model.model.{row.path}", PEFT, False),
            "bare paths": (path, PEFT, False),
            "generic, peft's pair": (lambda row: f"diffusion_model.{original(row)}", PEFT, True),
            "generic, kohya's pair": (lambda row: f"diffusion_model.{original(row)}", KOHYA, True),
            "network and original paths": (lambda row: f"{row.network}.{original(row)}", KOHYA, True),
            "network and paths, kohya's pair": (lambda row: f"{row.network}.{row.path}", KOHYA, True),
            "kohya's beginning and dots": (lambda row: f"lora_unet_{original(row)}", KOHYA, True),
            "LyCORIS": (lambda row: f"lycoris_{joined(row.path)}", KOHYA, True),
            "OneTrainer": (lambda row: f"lora_transformer_{joined(row.path)}", KOHYA, True),
            "diffusers' first": (old, ("_lora.up.weight", "_lora.down.weight"), False),
            "diffusers' second": (lambda row: f"{row.network}.{row.path}", (".lora.up.weight", ".lora.down.weight"),
                                  False),
        }
        for name, (named, ends, alpha) in ways.items():
            tensors = pairs(family, named, ends, alpha, texts=name.startswith("peft"))
            yield f"{family}, {name}", family, tensors, {}


def _extras() -> Iterator[Made]:
    """Something beside the layers, or something missing."""
    for family in ("sd15", "sdxl", "flux"):
        peft = pairs(family, lambda row: f"{row.network}.{row.path}", PEFT, False)
        kohyas = pairs(family, kohya(family, path if family == "sd15" else original), texts=True)
        bundle = {"bundle_emb.word.clip_l": (2, 768)}
        biases = {key.replace(PEFT[0], ".lora_B.bias"): shape[:1] for key, shape in peft.items() if PEFT[0] in key}
        yield f"{family}, peft and an embedding", family, peft | bundle, {}
        yield f"{family}, kohya and an embedding", family, kohyas | bundle, {}
        yield f"{family}, peft with biases", family, peft | biases, {}
        yield f"{family}, kohya and keys of nobody", family, kohyas | {f"some.key.{n}": (3,) for n in range(20)}, {}
        yield f"{family}, kohya and one key of nobody", family, kohyas | {"some.key": (3,)}, {}
        up = next(key for key in kohyas if key.endswith(KOHYA[0]))
        yield f"{family}, kohya without an up", family, {key: kohyas[key] for key in kohyas if key != up}, {}
        head = {key.replace("lora_down.weight", "dora_scale"): (1, shape[1], *(1,) * (len(shape) - 2))
                for key, shape in kohyas.items() if KOHYA[1] in key}
        yield f"{family}, kohya with dora_scale", family, kohyas | head, {}
    peft = pairs("sdxl", lambda row: f"{row.network}.{row.path}", PEFT, False, texts=True)
    yield "sdxl, text encoders without text_model", "sdxl", {key.replace("text_model.", ""): shape
                                                             for key, shape in peft.items()}, {}
    linear = pairs("sdxl", lambda row: f"{row.network}.{row.path}" if row.is_text else "",
                   (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"), False, texts=True)
    yield "sdxl, diffusers' first text encoders", "sdxl", linear, {}
    magnitude = {key.replace(PEFT[0], ".lora_magnitude_vector.weight"): shape[:1] for key, shape in peft.items()
                 if PEFT[0] in key and len(shape) == 2}
    yield "sdxl, peft with magnitudes", "sdxl", {key: shape for key, shape in peft.items()
                                                 if len(shape) == 2} | magnitude, {}


def _kinds() -> Iterator[Made]:
    """Other kinds of adapters, under kohya's names."""
    for family in ("sd15", "sdxl"):
        layers = {kohya(family, path if family == "sd15" else original)(row): row for row in sample(family)}
        linear = {name: row.shape for name, row in layers.items() if row.kind == "Linear"}
        norms = {f"lora_unet_{joined(original(row) if family == 'sdxl' else row.path)}": row.shape
                 for row in rows(family) if "Norm" in row.kind and not row.is_text}
        loha = {f"{name}{end}": (shape[0] if end.endswith("_a") else RANK, RANK if end.endswith("_a") else shape[1])
                for name, shape in linear.items() for end in (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")}
        lokr = {f"{name}{end}": (2, 2) if end == ".lokr_w1" else (shape[0] // 2, shape[1] // 2)
                for name, shape in linear.items() for end in (".lokr_w1", ".lokr_w2")}
        alphas = {f"{name}.alpha": () for name in linear}
        yield f"{family}, LoHa", family, loha | alphas, {}
        yield f"{family}, LoKr", family, lokr | alphas, {}
        yield f"{family}, full differences", family, {f"{name}.diff": shape for name, shape in linear.items()}, {}
        both = {f"{name}{end}": shape for name, shape in norms.items() for end in (".w_norm", ".b_norm")}
        yield f"{family}, LoHa and norms", family, loha | alphas | both, {}
        yield f"{family}, rotations", family, {f"{name}.oft_blocks": (shape[0] // 4, 4, 4)
                                               for name, shape in linear.items()}, {}
        yield from _rotations(family)
        yield f"{family}, IA3", family, {f"{name}{end}": (shape[0],) if end == ".weight" else ()
                                         for name, shape in linear.items() for end in (".weight", ".on_input")}, {}


def _rotations(family: str) -> Iterator[Made]:
    """kohya's OFT, of attention alone, of all linear layers, with convolutions, and damaged."""
    count, body = 40, path if family == "sd15" else original
    layers = {f"oft_unet_{joined(body(row))}": row for row in sample(family)
              if any(part in f".{row.path}" for part in (".attentions.", ".resnets.", "samplers."))}
    files = {"attention": {name: row for name, row in layers.items() if ".attn" in row.path},
             "linear layers": {name: row for name, row in layers.items() if ".attentions." in row.path},
             "all layers": layers}
    made = {}
    for what, found in files.items():
        made[what] = {f"{name}.oft_blocks": (count, *(row.shape[0] // count,) * 2) for name, row in found.items()}
        alphas = {f"{name}.alpha": () for name in found}
        yield f"{family}, kohya's OFT, {what}", family, made[what] | alphas, {"ss_network_module": "networks.oft"}
    ones = dict.fromkeys((f"{name}.alpha" for name in layers), (1,))
    yield f"{family}, kohya's OFT without alpha", family, made["all layers"], {}
    yield f"{family}, kohya's OFT with alpha of one dimension", family, made["all layers"] | ones, {}
    other = {key: (2 * count, *shape[1:]) if "to_q" in key else shape
             for key, shape in made["attention"].items()}
    yield f"{family}, kohya's OFT with two numbers of blocks", family, other | {
        key.replace("oft_blocks", "alpha"): () for key in other}, {}


def _flux() -> Iterator[Made]:
    """XLabs' and Black Forest Labs' files, and text encoders as other trainers write them."""
    ends = (".up.weight", ".down.weight")

    def block(kind: str, count: int, layers: dict[str, int]) -> dict[str, tuple[int, ...]]:
        return {f"{kind}_blocks.{number}.processor.{layer}{end}": (out, RANK) if end == ends[0] else (RANK, 3072)
                for number in range(count) for layer, out in layers.items() for end in ends}

    double = {"qkv_lora1": 9216, "qkv_lora2": 9216, "proj_lora1": 3072, "proj_lora2": 3072}
    yield "flux, XLabs", "flux", block("double", 19, double), {}
    single = {"qkv_lora": 9216}
    yield "flux, XLabs with single blocks", "flux", block("double", 19, double) | block("single", 38, single), {}
    control = pairs("flux", original, PEFT, False)
    control = {key: shape for key, shape in control.items() if "linear1" not in key}
    control |= {f"single_blocks.{number}.norm.{name}_norm.scale": (128,) for number in range(38)
                for name in ("query", "key")}
    control |= {key.replace(PEFT[0], ".lora_B.bias"): shape[:1] for key, shape in control.items() if PEFT[0] in key}
    yield "flux, control without single blocks", "flux", control, {}
    both = kohya("flux", original)
    yield "flux, kohya with both text encoders", "flux", pairs("flux", both, texts=True), {}
    yield "flux, T5 alone as OneTrainer", "flux", pairs(
        "flux", lambda row: f"lora_te2_{joined(row.path)}" if row.network == "text_encoder_2" else "", texts=True), {}
    toolkit = pairs("sdxl", lambda row: TEXTS["sdxl"][row.network] + row.path if row.is_text else
                    f"lora_unet_{joined(row.path)}", PEFT, False, texts=True)
    yield "sdxl, ai-toolkit's text encoders", "sdxl", toolkit, {}


def _others() -> Iterator[Made]:
    for name, (layer, out, inputs) in LATER.items():
        yield f"flux2: {name}", "flux2", {f"{layer}{PEFT[0]}": (out, RANK), f"{layer}{PEFT[1]}": (RANK, inputs)}, {}
    for family, given in {"qwenimage": QWEN, "qwenimage21": QWEN21, "krea2": KREA, "anima": ANIMA}.items():
        for name, (layer, out, inputs) in given.items():
            ends = KOHYA if layer.startswith("lora") else PEFT
            shapes = {f"{layer}{ends[0]}": (out, RANK), f"{layer}{ends[1]}": (RANK, inputs)}
            yield f"{family}: {name}", family, shapes, {}
    for name, (layer, out, inputs) in OTHERS.items():
        ends = KOHYA if layer.startswith("lora") else PEFT
        yield f"other: {name}", "", {f"{layer}{ends[0]}": (out, RANK), f"{layer}{ends[1]}": (RANK, inputs)}, {}
    attention = {f"lora_unet_{joined(row.original.removesuffix('.weight'))}{end}": (out, RANK) if end == KOHYA[0] else
                 (RANK, 3072) for row in rows("flux") for end in KOHYA for out in (3072,)
                 if row.original.endswith("img_attn.proj.weight")}
    yield "chroma by its metadata", "chroma", attention, {"modelspec.architecture": "chroma/lora"}
    yield "flux or chroma", "flux", attention, {}
