"""What a file is, without its base: its writer, its content, its training, and the programs that load it."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modules import hosts
from modules.adapters.layers import Layer, as_layer
from modules.documents import parse_json
from modules.files import forms, keys, kinds, models_by_name, opening, spellings, strangers, writer
from modules.files.kinds import magnitude
from modules.files.models_by_name import Whose
from modules.files.norms import NormLayer
from modules.files.opening import AdapterFile
from modules.files.reading import listed
from modules.hosts import key_maps
from modules.hosts.parts import effect_of_file
from modules.hosts.parts.effect_of_file import counted
from modules.printable import shown

EXAMPLE = 256
"""Rows, and about as many channels, of an example layer, where a part of a layer is representative."""

UNKNOWN_SIZE = 16
"""Outputs or inputs of the stand-in if the tensors do not show them."""

KERNELS = ("down", "mid", "diff", "b2", "lokr_w2", "gimbal_difference")
"""Parts that show the size of a convolution's kernel."""

NOTICED = 1e-6
"""A program whose error is below this part of the change reads a layer exactly."""

TRIGGERS = ("ss_trigger_words", "modelspec.trigger_phrase", "gimbal.trigger")
BASES = ("gimbal.base", "ss_sd_model_name", "modelspec.architecture", "ss_base_model_version")
STEPS = ("gimbal.step", "ss_steps", "step")


@dataclass
class Group:
    """Layers of the same kind."""

    kind: str
    rank_words: str
    """The meaning of its `ranks`."""
    alpha_words: str
    layers: int = 0
    ranks: Counter[int] = field(default_factory=Counter)
    """Rank or block size, and how many layers have it."""
    alphas: Counter[float] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    """Layers per part of the model."""


class Sort(NamedTuple):
    """The key of layers of which one is an example, and this one's size."""

    words: str
    is_conv: bool
    size: int
    """Elements of its weight."""


ALL, PART, NOTHING, UNJUDGED = "all", "part", "nothing", "not judged"


@dataclass
class Statement:
    """What one program does with the file."""

    loads: str
    """`ALL`, `PART`, `NOTHING` or `UNJUDGED`: of the file's keys."""
    raises: str = ""
    """The exception with which it stops, where it loads nothing."""
    why: str = ""
    """Why it loads nothing, or why this is unknown."""
    dropped: list[str] = field(default_factory=list)
    """Keys that it does not read."""
    dropped_layers: list[str] = field(default_factory=list)
    """Layers from which it reads nothing."""
    layers: int = 0
    """Layers in the file."""
    troubles: list[str] = field(default_factory=list)
    """What it computes of the rest that is not exactly what was trained, as sentences."""
    arithmetic: bool = False
    """Whether what it computes was compared."""

    def lines(self) -> list[str]:
        """For users; the first line follows the program's name."""
        if self.loads == UNJUDGED:
            return [f"not checked: {self.why}", *(f"if it finds the layers, {trouble}" for trouble in self.troubles)]
        if self.loads == NOTHING:
            return [f"loads nothing and fails with {self.raises}" if self.raises else
                    f"loads nothing, without an error{f': {self.why}' if self.why else ''}"]
        computed = self.troubles if self.arithmetic else ["whether it computes the trained weights was not checked"]
        exact = "" if computed else ", exactly"
        if self.loads == ALL:
            return [f"loads all of it{exact}", *computed]
        found = [f"loads part of it{exact}: {self.layers - len(self.dropped_layers)} of {counted(self.layers)}"]
        if self.dropped_layers:
            found.append(f"drops {counted(len(self.dropped_layers))}: {listed(self.dropped_layers)}")
        rest = [key for key in self.dropped if not any(f"{name}." in key for name in self.dropped_layers)]
        if rest:
            besides = " besides" if self.dropped_layers else ""
            found.append(f"drops {counted(len(rest), 'key')}{besides}: {listed(rest)}")
        return [*found, *computed]


@dataclass
class Inspection:
    """All results."""

    path: str
    bytes: int
    writer: str
    families: list[str]
    """Names of the families whose layers the file names."""
    model: str
    """The model that it was trained for, in words; empty if unknown."""
    groups: list[Group]
    dtypes: dict[str, int]
    """Bytes per dtype."""
    trained_on: dict[str, str]
    hosts: dict[str, Statement]
    """What each program does with it."""
    damaged: list[str]
    """Layers whose tensors do not fit together, as sentences."""
    unknown: list[str]
    """Keys that no known kind has."""

    def json(self, **more: Any) -> str:
        """Everything, and more."""
        return json.dumps({
            **vars(self), **more, "groups": [vars(group) for group in self.groups],
            "hosts": {host: vars(statement) for host, statement in self.hosts.items()},
        }, indent=2)

    def text(self) -> str:
        """For users."""
        lines = [f"{self.path}: {self.bytes / 1e6:.1f} MB, "
                 f"{counted(sum(group.layers for group in self.groups))}",
                 f"  written by: {self.writer or 'unknown'}",
                 f"  for: {self.model or 'unknown model'}"]
        for group in self.groups:
            parts = ", ".join(f"{count} {part}" for part, count in group.parts.most_common())
            lines.append(f"  {group.kind}: {counted(group.layers)} ({parts})")
            if group.ranks:
                lines.append(f"    {group.rank_words} {_counted(group.ranks)}")
            if group.alphas:
                lines.append(f"    {group.alpha_words} {_counted(group.alphas)}")
        formats = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in self.dtypes.items())
        lines.append(f"  dtypes: {formats}")
        lines += [f"  {what}: {value}" for what, value in self.trained_on.items()]
        for host, statement in self.hosts.items():
            first, *others = statement.lines()
            lines += [f"  {host}: {first}", *(f"    {line}" for line in others)]
        lines += [f"  damaged: {sentence}" for sentence in self.damaged]
        lines += [f"  unknown keys: {sentence}" for sentence in strangers.sentences(self.unknown)]
        return "\n".join(lines)


def inspect(file: AdapterFile) -> Inspection:
    """All of it. Raises ValueError for a run's internal file, which is not for other programs, and if nothing is
    known."""
    writer.refuse_own(file.path, file.metadata)
    strangers.refuse(file.path, file.tensors)
    layers, unknown = kinds.grouped(file.tensors)
    parts = {name: {part: file.tensors[key] for part, key in keys.items()} for name, keys in layers.items()}
    damaged, sound = [], {}
    for name, found in parts.items():
        try:
            kinds.shape(found)
            sound[name] = found
        except ValueError as error:
            damaged.append(f"{name}: {error}")
    like = models_by_name.whose(file.tensors, file.metadata)
    dtypes = Counter()
    for tensor in file.tensors.values():
        dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    return Inspection(
        str(file.path), file.path.stat().st_size, shown(writer.writer(file.tensors, file.metadata, file.config)),
        like.families, like.title, _groups(sound), dict(dtypes.most_common()), trained_on(file),
        _hosts(file, sound, layers, like), damaged, unknown,
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
    """A random layer in float64 that the tensors fit, with the norms that their magnitudes were trained from."""
    out, fan_in = kinds.sizes(parts, UNKNOWN_SIZE)
    kernels = [t.shape[2:] for name, t in parts.items() if name in KERNELS and t.dim() > 2]
    kernel = max(kernels, key=torch.Size.numel, default=None)  # with a Tucker core a factor has one position
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
    file: AdapterFile, parts: dict[str, dict[str, Tensor]], layers: dict[str, dict[str, str]], like: Whose
) -> dict[str, Statement]:
    """What each program does: by names and suffixes, and by arithmetic from one layer of each kind."""
    found, stand_ins = {}, {}
    sorts = {name: Sort(kinds.words(one), kinds.is_conv(one), _size(one)) for name, one in parts.items()}
    with torch.no_grad():
        for host in key_maps.names():
            if like.others and not like.families:
                found[host] = Statement(UNJUDGED, why=f"a file for {like.title}, which is not modelled")
                continue
            loadings = [key_maps.load(host).loading(file.tensors, family) for family in like.families]
            loading = loadings[0] if loadings else key_maps.Loading(
                frozenset(file.tensors), unjudged="the model it is for is unknown")
            if any(other != loading for other in loadings):
                why = f"it may be for {like.title}, which this program reads differently"
                found[host] = Statement(UNJUDGED, why=why)
                continue
            found[host] = _statement(file, loading, layers)
            if loading.read and host in hosts.programs() and not loading.other_arithmetic:
                found[host].arithmetic = True
                found[host].troubles = _troubles(file, host, parts, layers, loading, sorts, stand_ins)
                found[host].troubles += _fitted(file, loading)
    return found


def _fitted(file: AdapterFile, loading: key_maps.Loading) -> list[str]:
    """The dtype that the magnitudes of our files are fitted to, if the program reads them."""
    numbers = sorted({str(number) for number in _values(file.metadata, "gimbal.fitted").values()})
    measured = {way: one for way, one in _values(file.metadata, "gimbal.computed").items() if isinstance(one, dict)}
    if not numbers or not any(key.endswith(keys.KOHYA.magnitude) for key in loading.read):
        return []
    errors = [f"{one['error']:.1%} of the change in {way} (rounding alone: {one['rounding']:.1%})"
              for way, one in measured.items()
              if all(isinstance(one.get(what), int | float) for what in ("error", "rounding"))]
    return [f"its magnitudes are optimized for a program that computes in {' and '.join(numbers)} (export.computes_in)"
            + (f"; errors measured at export: {', '.join(errors)}" if errors else "")]


def _statement(file: AdapterFile, loading: key_maps.Loading, layers: dict[str, dict[str, str]]) -> Statement:
    """What the program loads, without its arithmetic."""
    if loading.unjudged:
        return Statement(UNJUDGED, why=loading.unjudged)
    read = {name for name, keys in layers.items() if loading.read & set(keys.values())}
    dropped = [key for key in file.tensors if key not in loading.read]
    left = [name for name in layers if name not in read]
    loads = ALL if not dropped else PART if loading.read else NOTHING
    return Statement(loads, loading.raises, loading.refuses, dropped, left, len(layers))


def _read(
    file: AdapterFile, layers: dict[str, dict[str, str]], loading: key_maps.Loading
) -> dict[str, dict[str, Tensor]]:
    """The tensors by suffix that a program reads, for each layer from which it reads any."""
    found = {name: {kinds.split(key)[1]: file.tensors[key] for key in keys.values()  # pyright: ignore
                    if key in loading.read} for name, keys in layers.items()}
    return {name: tensors for name, tensors in found.items() if tensors}


def _troubles(
    file: AdapterFile, host: str, parts: dict[str, dict[str, Tensor]], layers: dict[str, dict[str, str]],
    loading: key_maps.Loading, sorts: dict[str, Sort], stand_ins: dict[str, Layer],
) -> list[str]:
    """The program's errors for the layers that it reads, computed for the smallest layer of each kind."""
    given = _read(file, layers, loading)
    alike: dict[tuple, list[str]] = {}
    for name in parts.keys() & given.keys():
        alike.setdefault((sorts[name].words, sorts[name].is_conv, frozenset(given[name])), []).append(name)
    found, about = [], effect_of_file.about(file)
    seen = replace(effect_of_file.view(file, host, file.metadata.get("gimbal.comfyui_norm", "")), reads_alphas=True)
    if loading.own_alphas:
        seen = replace(seen, common_alpha=None)
    elif host == "diffusers" and effect_of_file.scale_trouble(file):
        found.append(effect_of_file.scale_trouble(file))
    for names in sorted(alike.values(), key=lambda names: (-len(names), min(names))):
        name = min(names, key=lambda one: (sorts[one].size, one))
        cut = kinds.corner(parts[name], EXAMPLE)
        if name not in stand_ins:
            told_of = {f"{name}{suffix}": tensor for suffix, tensor in given[name].items()}
            opening.refuse_not_finite(file.path, told_of)
            stand_ins[name] = stand_in(cut)
        part_of = {kinds.split(key)[1]: part for part, key in layers[name].items()}  # pyright: ignore
        read = {suffix: cut[part_of[suffix]] for suffix in given[name]}
        told = _told(about.of(name), seen, cut, read, stand_ins[name])
        if told:
            conv = ", convolutions" if sorts[name].is_conv else ""
            found.append(f"{counted(len(names))} ({sorts[name].words}{conv}): {told}")
    return found


def _told(
    about: writer.About, seen: effect_of_file.View, parts: dict[str, Tensor], given: dict[str, Tensor], layer: Layer
) -> str:
    """A program's error for one layer, empty if it is exact."""
    matrix = layer.dense()
    try:
        meant = forms.applied(kinds.terms(parts, layer, matrix, about), layer, matrix)
    except ValueError as error:
        return f"not checked: {str(error).removeprefix(f'{layer.name}: ')}"
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
    """A mapping in the metadata, empty if it is not one."""
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
