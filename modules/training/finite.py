"""Whether parameters and an optimizer's state are finite: non-finite values are never saved."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modules.preset.schema import Training
from modules.training.optimizers import unwrapped


def check_finite(adapter: Mapping[str, Tensor], optimizer: Optimizer, step: int, training: Training) -> None:
    """Raise FloatingPointError, naming tensors, if parameters or the optimizer's state are not finite after `step`."""
    found = non_finite(adapter, unwrapped(optimizer).state_dict())
    if found:
        float16 = ", or training.precision bfloat16 or float32" if training.precision == "float16" else ""
        raise FloatingPointError(
            f"Non-finite values after step {step}: {found}. They are not saved, and the last saved state is kept. Try "
            f"training.learning_rate {training.learning_rate / 10:g} instead of {training.learning_rate:g}{float16}, "
            "under another --name, or check the pictures of the last steps."
        )


def non_finite(adapter: Mapping[str, Tensor], optimizer_state: dict) -> str:
    """Names of the tensors with non-finite values, and of other numbers that are NaN; empty: none."""
    named = [*adapter.items(), *_leaves(optimizer_state, "optimizer")]
    wrong = [name for name, value in named if isinstance(value, float) and math.isnan(value)]
    looks: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, value in named:
        if isinstance(value, Tensor) and value.is_floating_point():
            looks.setdefault(value.device, []).append((name, value.isfinite().all()))
    for found in looks.values():  # together: each would wait for the device
        finite = torch.stack([good for _, good in found]).tolist()
        wrong += [name for (name, _), good in zip(found, finite, strict=True) if not good]
    return ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from _leaves(item, f"{name}.{place}")
    else:
        yield name, value
