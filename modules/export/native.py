"""The run's own adapter file: parameters as they were trained. Any export can be made from it."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from modules.adapters.base import Adapted
from modules.export.metadata import Facts


def save(path: Path, layers: dict[str, Adapted], facts: Facts) -> None:
    """Write all adapters' state, `<full layer name>.<tensor>`, with the run's facts in the metadata; atomically."""
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, adapted in layers.items()
        for key, value in adapted.adapter.state_dict().items()
    }
    partial = path.with_name(f"{path.stem}.partial.safetensors")
    save_file(tensors, partial, {"facts": facts.json()})
    partial.replace(path)


def load(path: Path, layers: dict[str, Adapted]) -> Facts:
    """Set all adapters from a file of `save`; the facts of its run.

    Raises ValueError if a tensor is missing, extra or misshapen: the file belongs to another preset.
    """
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        written = (file.metadata() or {}).get("facts")
    targets = {
        f"{name}.{key}": value
        for name, adapted in layers.items()
        for key, value in adapted.adapter.state_dict().items()
    }
    wrong = sorted(targets.keys() ^ tensors.keys())
    wrong += [key for key in targets.keys() & tensors.keys() if targets[key].shape != tensors[key].shape]
    if wrong:
        raise ValueError(f"{path}: the adapter belongs to other layers or options than this preset's: "
                         f"{', '.join(wrong[:5])} ({len(wrong)} tensors)")
    with torch.no_grad():
        for key, value in targets.items():
            value.copy_(tensors[key])
    return Facts.from_json(written) if written else Facts()
