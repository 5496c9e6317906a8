"""Gimbal for ComfyUI: loads Gimbal's compact files exactly. It adds no node: every LoRA loader reads them.

One class in `comfy.weight_adapter.adapters` does it. A layer `x` of a file has `x.gimbal_format`, float32
`[version, number of parts]`, and some of these parts, which change its weight `W` in this order:

    skew_in, skew_out            (blocks, b(b-1)/2)   upper triangle of Q, row by row, R = (I + Q)(I - Q)^-1
    turn_in, turn_out            (blocks, b, b)       R - I, where R has no such Q
                                                      in: W blockdiag(R)^T on channels; out: blockdiag(R) W on rows
    up, down                     (out, r), (r, fan_in)    W + up down
    difference                   W's shape            W + difference
    magnitude_in, magnitude_out  (channels), (out)    W magnitude / norm(W), the norm of this W
    ratio                        (out)                rows times ratio

The channels of a convolution are rotated in the same way at each kernel position; in format 2 the columns of the flat
weight are, channels and kernel positions. Everything is computed in float32 and rounded once, at any strength s: `W + s
(W' - W)`. A plain LoRA, `.diff` and `.diff_b` are loaded by ComfyUI itself.
"""

import logging
from typing import Any

import comfy.weight_adapter as host  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor
from torch.nn import functional as F

NODE_CLASS_MAPPINGS: dict[str, Any] = {}

VERSION = 2
DIMENSIONS = {
    "skew_in": 2, "skew_out": 2, "turn_in": 3, "turn_out": 3, "up": 2, "down": 2, "difference": None,
    "magnitude_in": 1, "magnitude_out": 1, "ratio": 1,
}
"""Parts of a layer, in the order of the `weights` tuple, with their number of dimensions (None: as the weight)."""

SHOWN = 5
"""The number of layers that one line of the log names."""


class Keys(set):
    """The keys an adapter has read. ComfyUI passes this set to copies of the adapter, and with it the file."""

    def __init__(self, keys: set[str], layer: str, file: "File"):
        super().__init__(keys)
        self.layer, self.file = layer, file


class File:
    """One loading of one file: its layers, those that exist in the model, and the logged lines."""

    def __init__(self, lora: dict[str, Tensor]):
        self.layers = {key.removesuffix(".gimbal_format") for key in lora if key.endswith(".gimbal_format")}
        self.placed: set[str] = set()
        self.said: set[str] = set()
        self.complete = False

    def say(self, text: str) -> None:
        """Log a line, once for each file: weights may be patched anew at every step."""
        if text not in self.said:
            self.said.add(text)
            logging.warning("Gimbal: %s", text)

    def say_unplaced(self) -> None:
        """Which layers of the file the model does not have; valid only after loading."""
        if self.complete:
            return
        self.complete = True
        missing = sorted(self.layers - self.placed)
        if missing:
            more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            self.say(f"{len(missing)} of {len(self.layers)} layers do not exist in this model: "
                     f"{', '.join(missing[:SHOWN])}{more}")


class GimbalAdapter(host.WeightAdapterBase):
    """The parts of one layer. All tensors are in `weights`, from which ComfyUI makes copies elsewhere."""

    name = "gimbal"
    latest: tuple[set[str] | None, File] | None = None
    """ComfyUI's set of loaded keys, and the file being loaded."""

    def __init__(self, loaded_keys: set[str], weights: tuple):
        self.loaded_keys = loaded_keys
        self.weights = weights
        # Kept separately because ComfyUI's bypass mode rounds `weights` to the model's dtype.
        self.parts = dict(zip(DIMENSIONS, weights, strict=True))

    @classmethod
    def load(
        cls, x: str, lora: dict[str, Tensor], alpha: Any, dora_scale: Any, loaded_keys: set[str] | None = None
    ) -> "GimbalAdapter | None":
        """The layer `x` of the file `lora`, or None if the file does not have it, or if it cannot be read."""
        if f"{x}.gimbal_format" not in lora:
            return None
        file = cls.file(lora, loaded_keys)
        file.placed.add(x)
        try:
            parts = {part: lora[f"{x}.gimbal_{part}"] for part in DIMENSIONS if f"{x}.gimbal_{part}" in lora}
            check(parts, lora[f"{x}.gimbal_format"])
        except Exception as error:
            file.say(f"{x} is left unchanged: {error}")
            return None
        keys = {f"{x}.gimbal_{part}" for part in (*parts, "format")}
        return cls(Keys(keys, x, file), tuple(parts.get(part) for part in DIMENSIONS))

    @classmethod
    def file(cls, lora: dict[str, Tensor], loaded_keys: set[str] | None) -> File:
        """The record of this loading, identified by ComfyUI's set of loaded keys."""
        if cls.latest is None or loaded_keys is None or cls.latest[0] is not loaded_keys:
            cls.latest = loaded_keys, File(lora)
        return cls.latest[1]

    def calculate_weight(
        self, weight: Tensor, key: Any, strength: float, strength_model: float, offset: Any, function: Any,
        intermediate_dtype: torch.dtype = torch.float32, original_weight: Any = None,
    ) -> Tensor:
        """`weight` changed in place: for a fused matrix ComfyUI passes a view of this layer's rows."""
        try:
            self.say_unplaced()
            result = turned_over(weight, function, lambda W: W + strength * (adapted(W, self.parts) - W))
            result = result.to(weight.dtype)
            if not torch.isfinite(result).all():
                raise ValueError("the result has non-finite values")
            weight.copy_(result)
        except Exception as error:
            self.say(f"{key} is left unchanged: {error}")
        return weight

    def bypass_forward(self, org_forward: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """ComfyUI's loaders in bypass mode do not change the weight: the layer's output plus the change's output."""
        y = org_forward(x, *args, **kwargs)
        try:
            self.say_unplaced()
            layer = org_forward.__self__
            if layer.weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
                raise ValueError(f"in bypass mode a weight in {layer.weight.dtype} cannot be adapted; use a LoRA "
                                 "loader without bypass")
            W = layer.weight.detach().to(x.device, torch.float32)
            change = (self.multiplier * (adapted(W, self.parts) - W)).to(x.dtype)
            return y + through(layer, x, change)
        except Exception as error:
            self.say(f"{self.where()} is left unchanged: {error}")
            return y

    def say(self, text: str) -> None:
        """Log a line, once for each file."""
        self.loaded_keys.file.say(text) if isinstance(self.loaded_keys, Keys) else logging.warning("Gimbal: %s", text)

    def say_unplaced(self) -> None:
        """Log which layers of the file the model does not have."""
        if isinstance(self.loaded_keys, Keys):
            self.loaded_keys.file.say_unplaced()

    def where(self) -> str:
        """The layer's name in the file."""
        return self.loaded_keys.layer if isinstance(self.loaded_keys, Keys) else "a layer"


def check(parts: dict[str, Tensor], written: Tensor) -> None:
    """ValueError unless these are all parts that were written and their shapes match."""
    version, count = (int(value) for value in written.flatten().tolist())
    if version > VERSION:
        raise ValueError(f"it is written in format {version}, but this node reads format {VERSION}; update the node")
    if count != len(parts):
        raise ValueError(f"{count} parts were written, but {len(parts)} found")
    for part, tensor in parts.items():
        if DIMENSIONS[part] not in (None, tensor.dim()):
            raise ValueError(f"{part} has the shape {tuple(tensor.shape)}")
        if part.startswith("skew") and size_of(tensor) * (size_of(tensor) - 1) != 2 * tensor.shape[1]:
            raise ValueError(f"{part} has {tensor.shape[1]} values per block, which do not fill a triangle")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{part} has non-finite values")
    if ("up" in parts) != ("down" in parts):
        raise ValueError("only one of up and down is present")


def turned_over(weight: Tensor, function: Any, change: Any) -> Tensor:
    """`change` of the weight in the order of the file, float32. `function` brings a layer's halves into the model's
    order.

    It is its own inverse. ComfyUI applies it to additive updates only, which is not enough for those that depend on
    the weight.
    """
    W = weight.to(torch.float32)
    turned = function(W)
    if turned is W or torch.equal(turned, W):
        return change(W)
    if torch.equal(function(turned), W):
        return function(change(turned))
    return W + function(change(W) - W)


def adapted(weight: Tensor, parts: dict[str, Tensor | None]) -> Tensor:
    """The weight with a layer's parts, float32, in the weight's shape; RuntimeError if they do not fit."""
    given = {part: tensor.to(weight.device, torch.float32) for part, tensor in parts.items() if tensor is not None}
    W = weight.flatten(1)
    turn = excess(given, "in")
    if turn is not None:
        blocks = W.reshape(len(W), *turn.shape[:2], -1)
        if blocks.shape[-1] not in (1, W.shape[1] // weight.shape[1]):
            raise ValueError(f"the rotation has {turn[..., 0].numel()} channels, but the weight has {weight.shape[1]}")
        W = W + torch.einsum("okcs,kbc->okbs", blocks, turn).flatten(1)
    turn = excess(given, "out")
    if turn is not None:
        W = W + torch.bmm(turn, W.unflatten(0, turn.shape[:2])).flatten(0, 1)
    if "up" in given:
        W = W + given["up"] @ given["down"]
    if "difference" in given:
        W = W + given["difference"].reshape(W.shape)
    if "magnitude_in" in given:
        channels = W.unflatten(1, (weight.shape[1], -1))
        factor = ratio(fitting(given["magnitude_in"], weight.shape[1]), channels.norm(dim=(0, 2)))
        W = (channels * factor.unsqueeze(1)).flatten(1)
    if "magnitude_out" in given:
        W = W * ratio(fitting(given["magnitude_out"], len(W)), W.norm(dim=1)).unsqueeze(1)
    if "ratio" in given:
        W = W * fitting(given["ratio"], len(W)).unsqueeze(1)
    return W.reshape(weight.shape)


def excess(parts: dict[str, Tensor], side: str) -> Tensor | None:
    """`R - I (blocks, b, b)` of one side, or None: given, or `2 (I - Q)^-1 Q` from the packed upper triangles of Q."""
    packed = parts.get(f"skew_{side}")
    if packed is None:
        return parts.get(f"turn_{side}")
    size = size_of(packed)
    rows, columns = torch.triu_indices(size, size, 1, device=packed.device)
    upper = packed.new_zeros(len(packed), size, size)
    upper[:, rows, columns] = packed
    skew = upper - upper.mT
    return torch.linalg.solve(torch.eye(size, dtype=skew.dtype, device=skew.device) - skew, 2 * skew)


def size_of(packed: Tensor) -> int:
    """The b of `(blocks, b(b-1)/2)`."""
    return round((1 + (1 + 8 * packed.shape[1]) ** 0.5) / 2)


def fitting(vector: Tensor, length: int) -> Tensor:
    """The vector; ValueError if it has another length: a single value would be broadcast silently."""
    if len(vector) != length:
        raise ValueError(f"{len(vector)} magnitudes for a weight that needs {length}")
    return vector


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """`above / below`, 0 where `below` is 0: a zero weight stays zero."""
    return torch.where(below == 0, 0.0, above / below)


def through(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """`x` through a layer that has another weight and no bias."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    convolution = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.dim()]
    return convolution(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


# Last, so that it has priority over a LoRA under the same name, which is for users without this node.
host.adapters[:] = [adapter for adapter in host.adapters if adapter.name != GimbalAdapter.name] + [GimbalAdapter]
