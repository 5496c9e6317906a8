"""Merging adapters into a base on disk: a folder in diffusers layout or a single checkpoint, tensor by tensor.

Changed weights come from a `Source`, independent of adapters' formats. Each adapter's change of the original weight is
multiplied by a strength: `W + s1 (W1 - W) + s2 (W2 - W) + ...`, in float32, rounded once. For plain low-rank files
every host does this. With other kinds hosts differ: one that applies the second adapter to the first one's result
multiplies their magnitudes and rotations.
"""

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.documents import as_object, read_object
from modules.families.parts.index import index_of
from modules.families.parts.names import Place
from modules.files.rows import BLOCK
from modules.tensorfile import CHECKSUM, DTYPES, Entry, Header, is_finite
from modules.tools.merge import stream
from modules.tools.merge.checkpoint import Checkpoint, Target

HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash", CHECKSUM)
"""Metadata that describe the tensors' bytes; no longer valid for a merged file."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".onnx", ".h5", ".gguf")
"""Ends of the names of files with weights."""
SHOWN = 3


@dataclass(frozen=True)
class Source:
    """The changes of one or several adapters."""

    targets: frozenset[Target]
    changed: Callable[..., Tensor]
    """`(layer, kind, W) -> W'` for a target and the base's tensor in the layer's own shape, float32 (float64 where the
    base is); W' in the same shape."""
    by_rows: frozenset[Target] = frozenset()
    """Targets whose rows can be changed independently: `changed` accepts the first row's index as another argument, and
    any rows from there on."""


@dataclass
class Merged:
    """What was written."""

    path: Path
    layers: set[str] = field(default_factory=set)
    """Full names of those whose weight or bias has changed."""
    size: int = 0
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report in printable lines."""
        lines = [f"{self.path}: {self.size / 1e6:.1f} MB, {len(self.layers)} layers changed"]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


@dataclass(frozen=True)
class Options:
    """How to write."""

    dtype: torch.dtype | None = None
    """Of all floating-point tensors of the denoiser and the text encoders; None: each keeps its own."""
    skip_absent: bool = False
    """Whether to ignore layers that the base has no tensors for, instead of raising."""
    facts: dict[str, str] = field(default_factory=dict)
    """More metadata."""


@dataclass(frozen=True)
class Rewrite:
    """A file of the base that is rewritten."""

    source: Header
    path: Path
    """Below the result."""
    places: dict[str, dict[Target, Place]]
    """The changes by tensor."""
    entries: dict[str, Entry]
    """The tensors of the new file."""


def summed(sources: Sequence[tuple[Source, float]]) -> Source:
    """The sum of all changes of the original weight, each times its strength."""

    def changed(layer: str, kind: str, W: Tensor, *row: int) -> Tensor:
        result = W
        for source, strength in sources:
            if (layer, kind) in source.targets:
                result = result + strength * (source.changed(layer, kind, W, *row) - W)
        return result

    whole = frozenset().union(*(source.targets - source.by_rows for source, _ in sources))
    targets = frozenset().union(*(source.targets for source, _ in sources))
    return Source(targets, changed, targets - whole)


def merge_into(base: Checkpoint, out: Path, source: Source, options: Options) -> Merged:
    """Write `base` with the changes of `source` to `out`, a folder or a file like the base.

    `out` is complete or absent. Tensors that nothing changes are copied byte by byte, and there is never more than one
    tensor of the base in memory. Raises ValueError for changes of layers that the base has no tensors for, for values
    beyond a tensor's range, where `out` exists, and where the disk has no room.
    """
    if out.exists():
        raise ValueError(f"--out: {out} exists already; give another name, or delete it first")
    if not out.parent.is_dir():
        raise ValueError(f"--out: {out.parent} is not a folder; create it first")
    if base.is_folder and out.resolve().is_relative_to(base.path.resolve()):
        raise ValueError(f"--out: {out} is inside the base {base.path}, which must not change; give another place")
    report = Merged(out)
    places, absent = _placed(base, source.targets)
    if absent:
        sentence = _absent_sentence(base.path, absent)
        if not options.skip_absent or not places:
            raise ValueError(f"{sentence}; give a base that has them, or leave them out with --skip-absent")
        report.notes.append(f"{sentence}, and they were left out")
    rewrites = [_rewrite(base, header, places.get(header.path, {}), options) for header in base.headers.values()]
    rewrites = [rewrite for rewrite in rewrites if rewrite.places or rewrite.entries != rewrite.source.tensors]
    copies = _copies(base, rewrites) if base.is_folder else {}
    report.size = sum(e.size for r in rewrites for e in r.entries.values()) + sum(p.stat().st_size for p in copies)
    _refuse_full_disk(out, report.size)
    unfinished = out.with_name(f"{out.name}.partial")
    _remove(unfinished)
    try:
        for old, new in copies.items():
            _copy_file(old, unfinished / new, rewrites, options)
        for rewrite in rewrites:
            report.layers |= _write(base.model, rewrite, unfinished / rewrite.path, source, options)
        unfinished.replace(out)
    finally:
        _remove(unfinished)
    return report


def _placed(
    base: Checkpoint, targets: Collection[Target]
) -> tuple[dict[Path, dict[str, dict[Target, Place]]], list[Target]]:
    """For each file of the base, its tensors with targets, and their places; and the targets that are absent."""
    found: dict[Path, dict[str, dict[Target, Place]]] = {}
    absent = []
    for target in sorted(targets):
        here = base.find(target)
        if here is None:
            absent.append(target)
        else:
            file, place = here
            found.setdefault(file, {}).setdefault(place.name, {})[target] = place
    return found, absent


def _absent_sentence(base: Path, absent: list[Target]) -> str:
    layers = sorted({layer for layer, _ in absent})
    networks = sorted({layer.partition(".")[0] for layer in layers})
    more = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
    return f"{base} has no tensors for {len(layers)} of the adapted layers, in {', '.join(networks)} (" + ", ".join(
        layers[:SHOWN]) + f"{more})"


# -- files ------------------------------------------------------------------------------------------------------------


def _rewrite(
    base: Checkpoint, header: Header, places: dict[str, dict[Target, Place]], options: Options
) -> Rewrite:
    """The parts of a file that must be rewritten."""
    odd = [name for name in places if header.tensors[name].dtype not in DTYPES]
    if odd:
        raise ValueError(f"{header.path}: {odd[0]} is stored as {header.tensors[odd[0]].dtype}, into which an adapter "
                         "cannot be merged; give the base in bf16, fp16, fp32 or plain fp8")
    entries = header.tensors
    if options.dtype is not None:
        model = base.model
        starts = ("",) if base.is_folder else tuple(model.names_of(name).checkpoint for name in model.networks)
        alone = not any(name.startswith(starts) for name in entries)
        entries = {
            name: entry.cast(options.dtype)
            if entry.dtype in DTYPES and (alone or name.startswith(starts)) else entry
            for name, entry in entries.items()
        }
    return Rewrite(header, header.path.relative_to(base.path), places, entries)


def _copies(base: Checkpoint, rewrites: list[Rewrite]) -> dict[Path, Path]:
    """Files of a folder that are copied, and their paths below the result: what the index names, without rewritten
    weights and without variants of them."""
    folder = base.path
    index = [part for part in read_object(index_of(folder)) if Path(part).name == part != ".."]
    anew = {rewrite.path.parts[0] for rewrite in rewrites}
    shards = base.headers.keys() - {rewrite.source.path for rewrite in rewrites}
    found = [path for path in folder.iterdir() if path.is_file() and path.suffix not in WEIGHTS]
    for part in index:
        inside = (folder / part).rglob("*") if (folder / part).is_dir() else ()
        found += [path for path in inside if path.is_file()
                  and (part not in anew or path.suffix not in WEIGHTS or path in shards)]
    return {path: path.relative_to(folder) for path in found if not _is_index_of_variant(path.name)}


def _is_index_of_variant(name: str) -> bool:
    """Such as `model.safetensors.index.fp16.json` and `pytorch_model.bin.index.json`."""
    return ".index." in name and not name.endswith(".safetensors.index.json")


def _copy_file(old: Path, new: Path, rewrites: list[Rewrite], options: Options) -> None:
    """Copy a file; in configurations the dtype of the weights is updated."""
    new.parent.mkdir(parents=True, exist_ok=True)
    name, part, anew = old.name, Path(old.parent.name), {rewrite.path.parent for rewrite in rewrites}
    if options.dtype is None or part not in anew or not name.endswith((".index.json", "config.json")):
        shutil.copyfile(old, new)
        return
    content = read_object(old)
    if name.endswith(".index.json"):
        size = sum(e.size for r in rewrites if r.path.parent == part for e in r.entries.values())
        content["metadata"] = {**as_object(content.get("metadata", {}), f"{old}: metadata"), "total_size": size}
    for key in ("dtype", "torch_dtype"):
        if key in content:
            content[key] = str(options.dtype).removeprefix("torch.")
    new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write(model: Any, rewrite: Rewrite, path: Path, source: Source, options: Options) -> set[str]:
    """Write one file; full names of the layers that changed."""
    old, layers = rewrite.source, set()

    def tensor(name: str) -> Tensor | None:
        targets, entry = rewrite.places.get(name), rewrite.entries[name]
        if targets is None and entry == old.tensors[name]:
            return None
        stored = old.tensor(name)
        new = rounded(stored, DTYPES[entry.dtype], name)
        new = new.clone() if new.data_ptr() == stored.data_ptr() else new
        for (layer, kind), place in (targets or {}).items():
            W = place.get(stored)
            _check_shape(model, layer, kind, W)
            with torch.no_grad():
                if _change(source, (layer, kind), place, W, new, name):
                    layers.add(layer)
        return new

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {key: value for key, value in old.metadata.items() if key not in HASHES}
    stream.write_copy(old, path, metadata | options.facts, rewrite.entries, tensor)
    return layers


def _change(source: Source, target: Target, place: Place, W: Tensor, new: Tensor, name: str) -> bool:
    """Put a target's changed weight into the file's tensor `new`; returns whether it differs from `W`. In blocks of
    rows if possible."""
    def wide(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.float()

    if target not in source.by_rows or place.exchanged or place.transposed:
        before = wide(W)
        after = source.changed(*target, before)
        place.put(new, rounded(after, new.dtype, name))
        return not torch.equal(before, after)
    is_other, part, step = False, place.get(new), max(1, BLOCK // W[0].numel())
    for start in range(0, len(W), step):
        before = wide(W[start : start + step])
        after = source.changed(*target, before, start)
        part[start : start + step] = rounded(after, new.dtype, name)
        is_other = is_other or not torch.equal(before, after)
    return is_other


def _check_shape(model: Any, layer: str, kind: str, W: Tensor) -> None:
    """ValueError for a tensor of the base whose shape differs from its configuration."""
    network, _, path = layer.partition(".")
    expected: Any = dict(model.networks[network].get_submodule(path).named_parameters(recurse=False))[kind]
    if W.shape != expected.shape:
        raise ValueError(f"{layer}: the base's {kind} has the shape {tuple(W.shape)}, but {tuple(expected.shape)} in "
                         "its configuration; give --config with the configuration folder of this checkpoint")


def rounded(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """`tensor` in `dtype`. Raises ValueError, naming it, if a value is non-finite there."""
    result = tensor.to(dtype)
    if not is_finite(result):
        reason = "has values beyond the range of" if is_finite(tensor) else "has non-finite values in"
        raise ValueError(f"{name} {reason} {str(dtype).removeprefix('torch.')}; give a smaller strength, or --dtype "
                         "float32")
    return result


def _refuse_full_disk(out: Path, size: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if size > free:
        raise ValueError(f"--out: {out.parent} has {free / 1e9:.1f} GB free, but {size / 1e9:.1f} GB would be written; "
                         "make room, or choose another disk")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
