"""What a file is, without its base: who wrote it, what it holds, what it was trained on, who loads it."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modules import families, hosts
from modules.adapters.layers import Layer, as_layer
from modules.documents import parse_json
from modules.files import forms, kinds, opening, spellings, strangers, writer
from modules.files.kinds import magnitude
from modules.files.norms import NormLayer
from modules.files.opening import AdapterFile
from modules.files.reading import families_of, listed
from modules.hosts.parts import effect_of_file
from modules.hosts.parts.effect_of_file import counted
from modules.printable import shown

EXAMPLE = 256
"""Rows, and about so many channels, of an example of a sort of layers, where a part shows what the whole does."""

UNKNOWN_SIZE = 16
"""Outputs or inputs of the stand-in where the tensors do not tell."""

KERNELS = ("down", "mid", "diff", "b2", "lokr_w2", "gimbal_difference")
"""Parts that show the size of a convolution's kernel."""

NOTICED = 1e-6
"""A program whose error is below this part of the change reads a layer exactly."""

TRIGGERS = ("ss_trigger_words", "modelspec.trigger_phrase", "gimbal.trigger")
BASES = ("gimbal.base", "ss_sd_model_name", "modelspec.architecture", "ss_base_model_version")
STEPS = ("gimbal.step", "ss_steps", "step")


@dataclass
class Group:
    """Layers that are alike."""

    kind: str
    rank_words: str
    """What its `ranks` are."""
    alpha_words: str
    layers: int = 0
    ranks: Counter[int] = field(default_factory=Counter)
    """Rank or block size, and how many layers have it."""
    alphas: Counter[float] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    """Layers per part of the model."""


@dataclass
class Inspection:
    """All that can be told."""

    path: str
    bytes: int
    writer: str
    families: list[str]
    """Names of the families whose layers the file names."""
    groups: list[Group]
    dtypes: dict[str, int]
    """Bytes per number format."""
    trained_on: dict[str, str]
    hosts: dict[str, list[str]]
    """What each program gets wrong or leaves out; empty where it reads all of it exactly."""
    damaged: list[str]
    """Layers whose tensors do not fit together, as sentences."""
    unknown: list[str]
    """Keys that no known kind has."""

    def json(self) -> str:
        """Everything."""
        return json.dumps({**vars(self), "groups": [vars(group) for group in self.groups]}, indent=2)

    def text(self) -> str:
        """For people."""
        titles = [families.load_class(name).TITLE for name in self.families]
        lines = [f"{self.path}: {self.bytes / 1e6:.1f} MB, "
                 f"{counted(sum(group.layers for group in self.groups))}",
                 f"  written by: {self.writer or 'unknown; nothing in the file tells'}",
                 f"  for: {' or '.join(titles) or 'no known kind of model'}"]
        for group in self.groups:
            parts = ", ".join(f"{count} {part}" for part, count in group.parts.most_common())
            lines.append(f"  {group.kind}: {counted(group.layers)} ({parts})")
            if group.ranks:
                lines.append(f"    {group.rank_words} {_counted(group.ranks)}")
            if group.alphas:
                lines.append(f"    {group.alpha_words} {_counted(group.alphas)}")
        formats = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in self.dtypes.items())
        lines.append(f"  number formats: {formats}")
        lines += [f"  {what}: {value}" for what, value in self.trained_on.items()]
        for host, troubles in self.hosts.items():
            lines.append(f"  {host}: {'reads all of it exactly' if not troubles else ''}".rstrip())
            lines += [f"    {trouble}" for trouble in troubles]
        lines += [f"  damaged: {sentence}" for sentence in self.damaged]
        lines += [f"  unknown keys: {sentence}" for sentence in strangers.sentences(self.unknown)]
        return "\n".join(lines)


def inspect(file: AdapterFile) -> Inspection:
    """All of it. Raises ValueError for a run's own file, which is not for other programs, and if nothing is known."""
    writer.refuse_own(file.path, file.metadata)
    strangers.refuse(file.path, file.tensors)
    layers, unknown = kinds.grouped(file.tensors)
    parts = {name: {part: file.tensors[key] for part, key in keys.items()} for name, keys in layers.items()}
    given = {name: {kinds.split(key)[1]: file.tensors[key] for key in keys.values()}  # pyright: ignore
             for name, keys in layers.items()}
    damaged, sound = [], {}
    for name, found in parts.items():
        try:
            kinds.shape(found)
            sound[name] = found
        except ValueError as error:
            damaged.append(f"{name}: {error}")
    like = families_of(file.tensors)
    dtypes = Counter()
    for tensor in file.tensors.values():
        dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    return Inspection(
        str(file.path), file.path.stat().st_size, shown(writer.writer(file.tensors, file.metadata, file.config)), like,
        _groups(sound), dict(dtypes.most_common()), trained_on(file), _hosts(file, sound, given, like), damaged,
        unknown,
    )


def trained_on(file: AdapterFile) -> dict[str, str]:
    """Base, data, length and triggers, from the metadata, in words."""
    facts, data = file.metadata, _values(file.metadata, "ss_dataset_dirs")
    found = {"method": facts.get("gimbal.method", "")}
    found |= {"base": next((facts[key] for key in BASES if facts.get(key)), _values(facts, "ot_config").get(
        "base_model_name", file.config.get("base_model_name_or_path") or ""))}
    own = _values(facts, "gimbal.dataset")
    pictures = own.get("pictures") or facts.get("ss_num_train_images")
    if data:
        count = sum(folder.get("img_count", 0) for folder in data.values() if isinstance(folder, dict))
        found["data"] = f"{count or pictures} pictures in {listed(list(data))}"
    elif pictures and pictures != "None":
        found["data"] = f"{pictures} pictures"
    steps = next((facts[key] for key in STEPS if facts.get(key)), _values(facts, "training_info").get("step"))
    found["steps"] = str(steps) if steps and steps != "None" else ""
    tags = Counter()
    for folder in _values(facts, "ss_tag_frequency").values():
        tags.update({tag: n for tag, n in folder.items() if isinstance(n, int)} if isinstance(folder, dict) else {})
    found["triggers"] = next((facts[key] for key in TRIGGERS if facts.get(key) not in (None, "", "None")), "")
    found["most frequent tags"] = ", ".join(tag for tag, _ in tags.most_common(8))
    return {what: shown(str(value)) for what, value in found.items() if value and value != "None"}


def stand_in(parts: dict[str, Tensor]) -> Layer:
    """A random layer in float64 that the tensors fit, with the lengths that their magnitudes were trained from."""
    out, fan_in = kinds.sizes(parts, UNKNOWN_SIZE)
    kernels = [t.shape[2:] for name, t in parts.items() if name in KERNELS and t.dim() > 2]
    kernel = max(kernels, key=torch.Size.numel, default=None)  # beside a Tucker core a factor has one position
    count = kinds.channels(parts)
    if count and kernel is not None:
        fan_in = count * kernel.numel()
    elif count and fan_in != count:
        kernel = torch.Size((fan_in // count,))
    if kinds.is_norm(parts):
        base: Any = nn.LayerNorm(out, dtype=torch.float64)
    elif kernel is None:
        base: Any = nn.Linear(fan_in, out, bias=False, dtype=torch.float64)
    else:
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
        base = kind(fan_in // kernel.numel(), out, tuple(kernel), bias=False, dtype=torch.float64)
    layer = NormLayer(base, "stand-in") if kinds.is_norm(parts) else as_layer(base, "stand-in")
    along, given = kinds.lengths(parts)
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(out, fan_in, generator=generator, dtype=torch.float64) / fan_in**0.5
    if given is not None:
        wanted = given.flatten().double().abs() / magnitude.norm(W, along, layer)
        W = W * (wanted[:, None] if along == "output" else wanted.repeat_interleave(layer.kernel))
    base.weight.data = layer.native(W)
    return layer


def _groups(parts: dict[str, dict[str, Tensor]]) -> list[Group]:
    found: dict[str, Group] = {}
    for name, tensors in parts.items():
        what = kinds.words(tensors)
        group = found.setdefault(what, Group(what, *kinds.rank_words(tensors)))
        group.layers += 1
        rank = effect_of_file.ranks(tensors)
        if rank is not None:
            group.ranks[rank] += 1
        if "alpha" in tensors and tensors["alpha"].numel() == 1:
            group.alphas[tensors["alpha"].item()] += 1
        group.parts[spellings.part(name, 4 if kinds.is_conv(tensors) else 2)] += 1
    return sorted(found.values(), key=lambda group: -group.layers)


def _hosts(
    file: AdapterFile, parts: dict[str, dict[str, Tensor]], given: dict[str, dict[str, Tensor]], like: list[str]
) -> dict[str, list[str]]:
    """What each program gets wrong: by names from tables, by arithmetic from one layer of each sort."""
    examples: dict[tuple, str] = {}
    sizes: Counter[tuple] = Counter()
    for name, tensors in parts.items():
        sort = (kinds.words(tensors), kinds.is_conv(tensors), frozenset(given[name]))
        sizes[sort] += 1
        if sort not in examples or _size(tensors) < _size(parts[examples[sort]]):
            examples[sort] = name
    found, about = {}, effect_of_file.about(file)
    cut = {name: kinds.corner(parts[name], EXAMPLE) for name in examples.values()}
    for name in examples.values():
        opening.refuse_not_finite(file.path, {f"{name}{suffix}": tensor for suffix, tensor in given[name].items()})
    seen_of = {name: {suffix: cut[name][kinds.SUFFIXES[suffix]] for suffix in given[name]} for name in cut}
    with torch.no_grad():
        layers = {sort: stand_in(cut[name]) for sort, name in examples.items()}
        for host in hosts.names():
            family = like[0] if len(like) == 1 else ""
            troubles = [f"{counted(len(names))} with {reason}"
                        for reason, names in effect_of_file.name_troubles(host, family, list(parts)).items()]
            seen = effect_of_file.view(file, host, file.metadata.get("gimbal.comfyui_norm", ""))
            if host == "diffusers" and effect_of_file.scale_trouble(file):
                troubles.append(effect_of_file.scale_trouble(file))
            for sort, name in examples.items():
                told = _told(about.of(name), seen, cut[name], seen_of[name], layers[sort])
                if told:
                    conv = ", convolutions" if sort[1] else ""
                    troubles.append(f"{counted(sizes[sort])} ({sort[0]}{conv}): {told}")
            found[host] = troubles
    return found


def _told(
    about: writer.About, seen: effect_of_file.View, parts: dict[str, Tensor], given: dict[str, Tensor], layer: Layer
) -> str:
    """What a program makes of one layer, empty if it is exact."""
    matrix = layer.dense()
    try:
        meant = forms.applied(kinds.terms(parts, layer, matrix, about), layer, matrix)
    except ValueError as error:
        return f"not judged: {str(error).removeprefix(f'{layer.name}: ')}"
    W, meant = layer.native(matrix), layer.native(meant)
    exact = effect_of_file.judge(seen, about.name, parts, given, W, meant)
    if exact.error is None:
        return f"not read: {exact.reason}"
    if exact.error.change > NOTICED:
        return f"wrong by about {exact.error.change:.1%} of the change (on a random weight of this shape)"
    half = effect_of_file.judge(seen, about.name, parts, given, W, meant, dtype=torch.bfloat16)
    return f"exact in float32; {half.reason}" if half.error is None else ""


def _size(parts: dict[str, Tensor]) -> int:
    out, fan_in = kinds.sizes(parts, UNKNOWN_SIZE)
    return out * fan_in


def _values(metadata: dict[str, str], key: str) -> dict[str, Any]:
    """A mapping in the metadata, empty if it is none."""
    try:
        found = parse_json(metadata.get(key, "{}"), key)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _counted(counter: Counter) -> str:
    """ "16", or "16 (40 layers), 8 (2 layers)"."""
    if len(counter) == 1:
        return f"{next(iter(counter)):g}"
    shown = ", ".join(f"{value:g} ({counted(count)})" for value, count in counter.most_common(6))
    return shown + (f" and {len(counter) - 6} more" if len(counter) > 6 else "")
