"""Values of any nesting with tensors in them, as JSON and named tensors, and back."""

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

DTYPES = {f"{one}": one for one in vars(torch).values() if isinstance(one, torch.dtype)}
"""All number formats by name, as in "torch.float32"."""


def flatten(value: Any, name: str, tensors: dict[str, Tensor], seen: dict[tuple, str]) -> Any:
    """`value` as JSON, with its tensors moved into `tensors` under names that begin with `name`.

    Anything but numbers, texts, booleans and None (dictionaries, lists, tuples, queues, dtypes, tensors) becomes a list
    `[kind, ...]`. A tensor that occurs several times (`seen`, by memory, shape and stride) is stored once.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else ["float", repr(value)]
    if isinstance(value, torch.dtype):
        return ["dtype", f"{value}"]
    if isinstance(value, dict):
        keys = [key if type(key) in (str, int) else flatten(key, f"{name}.key", tensors, seen) for key in value]
        items = [flatten(item, f"{name}.{key}", tensors, seen) for key, item in value.items()]
        return ["dict", [list(pair) for pair in zip(keys, items, strict=True)]]
    if type(value) in (list, tuple, deque):
        items = [flatten(item, f"{name}.{place}", tensors, seen) for place, item in enumerate(value)]
        return [type(value).__name__, items, *([value.maxlen] if isinstance(value, deque) else [])]
    assert isinstance(value, Tensor), f"{name} is a {type(value).__name__}"
    memory = (value.data_ptr() if value.numel() else id(value), value.dtype, value.shape, value.stride())
    if memory not in seen:
        seen[memory] = name.removeprefix(".")
        tensors[seen[memory]] = plain(value)
    # Only dense tensors keep their stride; `empty_like` tells them apart.
    dense = torch.empty_like(value).stride() == value.stride()
    return ["tensor", seen[memory], list(value.stride()) if dense and not value.is_contiguous() else None]


def unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten`. A tensor that was stored once for several places is one tensor again."""
    if not isinstance(value, list):
        return value
    kind, content = value[:2]
    if kind == "float":
        return float(content)
    if kind == "dtype":
        return DTYPES[content]
    if kind == "dict":
        return {unflatten(key, tensors): unflatten(item, tensors) for key, item in content}
    if kind == "deque":
        return deque((unflatten(item, tensors) for item in content), value[2])
    if kind == "list":
        return [unflatten(item, tensors) for item in content]
    if kind == "tuple":
        return tuple(unflatten(item, tensors) for item in content)
    assert kind == "tensor", kind
    tensor, stride = tensors[content], value[2]
    if stride is not None and tensor.stride() != tuple(stride):
        tensors[content] = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
    return tensors[content]


def plain(tensor: Tensor) -> Tensor:
    """A copy that safetensors accepts: on the CPU, contiguous, sharing no memory."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
