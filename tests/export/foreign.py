"""Adapter files of other trainers, small, with the weights that their own code computes from them.

peft and LyCORIS are installed, so their modules are made, filled with random numbers, saved their way, and asked for
their result. OneTrainer's and kohya's keys are written here, and their dense weights computed from the published
formulas, element by element where that is shorter, in float64 and without any of our functions.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Case:
    """One layer's tensors by suffix, the base layer and the adapted weight."""

    base: nn.Module
    tensors: dict[str, Tensor]
    weight: Tensor
    name: str = "layer"
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def linear(out: int = 12, channels: int = 16, seed: int = 0) -> nn.Linear:
    """A layer in float32."""
    torch.manual_seed(seed)
    return nn.Linear(channels, out).requires_grad_(False)


def conv(out: int = 12, channels: int = 8, kernel: int = 3, seed: int = 0) -> nn.Conv2d:
    """A convolution in float32."""
    torch.manual_seed(seed)
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2).requires_grad_(False)


def fill(parameters: Any, scale: float = 0.3, seed: int = 1) -> None:
    """Move parameters to random places."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def named(cases: dict[str, Case]) -> dict[str, Tensor]:
    """The tensors of a file with these layers, by key."""
    return {name + suffix: t.clone().contiguous() for name, case in cases.items() for suffix, t in case.tensors.items()}


# -- peft --------------------------------------------------------------------------------------------------------------


def of_peft(config: Any, base: nn.Module, scale: float = 0.3) -> Case:
    """What peft saves for one layer, and what its merged layer has."""
    from peft import get_peft_model
    from peft.utils import get_peft_model_state_dict

    before = {key: value.clone() for key, value in base.state_dict().items()}
    model = get_peft_model(nn.ModuleDict({"layer": base}), config)  # pyright: ignore
    fill([p for p in model.parameters() if p.requires_grad], scale)
    saved = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    merged = model.merge_and_unload().get_submodule("layer")
    copy = type(base)(*_arguments(base), bias=base.bias is not None)
    copy.load_state_dict(before)
    start = "base_model.model.layer"
    tensors = {key.removeprefix(start): value for key, value in saved.items() if key.startswith(start)}
    return Case(copy, tensors, merged.weight.detach(), config=config.to_dict())


def _arguments(base: Any) -> tuple:
    if isinstance(base, nn.Linear):
        return base.in_features, base.out_features
    return base.in_channels, base.out_channels, base.kernel_size, base.stride, base.padding


# -- LyCORIS -----------------------------------------------------------------------------------------------------------


def of_lycoris(algorithm: str, base: Any, options: dict, scale: float = 0.3) -> Case:
    """What a LyCORIS module saves, and the weight of its forward pass (found by the layer's response)."""
    from lycoris.wrapper import network_module_dict

    module = network_module_dict[algorithm]("layer", base, **options)
    if algorithm == "full":  # it trains the weight itself and saves the difference
        module.apply_to()
    fill(module.parameters(), scale)
    tensors = {f".{key}": value.detach().clone() for key, value in module.state_dict().items()}
    tensors = {key: value for key, value in tensors.items() if key != ".scalar"}
    if algorithm == "full":
        weight = module.weight.detach().clone()
        module.restore()
        base.requires_grad_(False)
        return Case(base, tensors, weight)
    with torch.no_grad():
        weight = base.weight + response(base, module) - response(base, base)
    return Case(base, tensors, weight)


def response(base: Any, function: Any) -> Tensor:
    """The weight of a linear map of `base`'s kind, from its answers to unit inputs."""
    if isinstance(base, nn.Linear):
        eye = torch.eye(base.in_features)
        return (function(eye) - function(torch.zeros_like(eye))).mT
    size = base.kernel_size[0]
    pictures = torch.zeros(base.in_channels * size * size, base.in_channels, size, size)
    pictures.view(len(pictures), -1).fill_diagonal_(1)
    middle = size // 2
    answers = function(pictures) - function(torch.zeros_like(pictures))
    return answers[:, :, middle, middle].mT.reshape(base.weight.shape)


# -- OneTrainer and the DOFT forks -------------------------------------------------------------------------------------


def skew(vector: Tensor, size: int) -> Tensor:
    """`(size, size)` from its upper triangle, row by row."""
    Q = torch.zeros(size, size, dtype=torch.float64)
    position = 0
    for i in range(size):
        for j in range(i + 1, size):
            Q[i, j], Q[j, i] = vector[position], -vector[position]
            position += 1
    return Q


def of_onetrainer(base: Any, size: int, scaled: bool, magnitude: str = "", share: bool = False) -> Case:
    """OFT of OneTrainer (`oft_R.weight`), with `magnitude` "log", "multiplier" or "norm" as DOFT."""
    generator = torch.Generator().manual_seed(2)
    W = base.weight.detach().double().flatten(1)
    blocks = W.shape[1] // size
    stored = 0.15 * torch.randn(1 if share else blocks, size * (size - 1) // 2, generator=generator)
    tensors = {".oft_R.weight": stored}
    if scaled:
        stored = stored / (2 * math.sqrt(size - 1))
        tensors[".oft_R.scaled_oft"] = torch.tensor(True)
    V, eye = W.clone(), torch.eye(size, dtype=torch.float64)
    for block in range(blocks):
        Q = skew(stored[0 if share else block].double(), size)
        R = eye + 2 * Q + 2 * Q @ Q + 2 * Q @ Q @ Q + Q @ Q @ Q @ Q
        turn = R if isinstance(base, nn.Conv2d) else R.mT
        V[:, block * size : (block + 1) * size] = W[:, block * size : (block + 1) * size] @ turn
    gains = 1 + 0.2 * torch.randn(len(W), generator=generator)
    norms = W.norm(dim=1).float()
    if magnitude == "log":
        tensors[".dora_log_multiplier"] = gains.log()
    elif magnitude == "multiplier":
        tensors[".dora_multiplier"] = gains
    elif magnitude == "norm":
        tensors[".dora_scale"], tensors[".initial_norm"] = (gains * norms)[:, None], norms[:, None]
    if magnitude:
        V = gains.double()[:, None] * V
    return Case(base, tensors, V.reshape(base.weight.shape).float(), metadata={"ot_branch": "master"})


def dora_of_onetrainer(base: Any, axis: str) -> Case:
    """DoRA of OneTrainer, along either axis."""
    generator = torch.Generator().manual_seed(3)
    W = base.weight.detach().double()
    down = torch.randn(3, *W.shape[1:], generator=generator)
    up = 0.1 * torch.randn(len(W), 3, *[1] * (W.dim() - 2), generator=generator)
    V = W + (2.0 / 3) * (up.double().flatten(1) @ down.double().flatten(1)).reshape(W.shape)
    dimensions = [d for d in range(W.dim()) if d != (0 if axis == "output" else 1)]
    scale = torch.linalg.vector_norm(W, dim=dimensions, keepdim=True).float() * 1.1
    V = scale.double() * V / torch.linalg.vector_norm(V, dim=dimensions, keepdim=True)
    tensors = {".lora_up.weight": up, ".lora_down.weight": down, ".alpha": torch.tensor(2.0), ".dora_scale": scale}
    return Case(base, tensors, V.float(), metadata={"ot_branch": "master"})


# -- kohya -------------------------------------------------------------------------------------------------------------


def lora_of_kohya(base: Any, rank: int = 3, alpha: float | None = 1.5, seed: int = 4) -> Case:
    """A LoRA of sd-scripts."""
    generator = torch.Generator().manual_seed(seed)
    W = base.weight.detach()
    down = torch.randn(rank, *W.shape[1:], generator=generator)
    up = 0.1 * torch.randn(len(W), rank, *[1] * (W.dim() - 2), generator=generator)
    change = torch.einsum("or,rf->of", up.double().flatten(1), down.double().flatten(1)) * (alpha or rank) / rank
    tensors = {".lora_up.weight": up, ".lora_down.weight": down}
    if alpha is not None:
        tensors[".alpha"] = torch.tensor(alpha)
    return Case(base, tensors, (W.double() + change.reshape(W.shape)).float())


def oft_of_kohya(base: Any, blocks: int, alpha: float) -> Case:
    """OFT of sd-scripts: output blocks, |Q| held below alpha * outputs."""
    generator = torch.Generator().manual_seed(5)
    W = base.weight.detach().double()
    size = len(W) // blocks
    stored = 0.3 * torch.randn(blocks, size, size, generator=generator)
    Q = stored.double() - stored.double().mT
    bound, length = alpha * len(W), Q.norm()
    Q = Q * (min(length.item(), bound) + 1e-8) / (length + 1e-8)
    eye = torch.eye(size, dtype=torch.float64)
    parts = []
    for block in range(blocks):
        R = (eye + Q[block]) @ torch.linalg.inv(eye - Q[block])
        rows = W[block * size : (block + 1) * size]
        parts.append((R.mT @ rows.flatten(1)).reshape(rows.shape))
    tensors = {".oft_blocks": stored, ".alpha": torch.tensor(alpha)}
    return Case(base, tensors, torch.cat(parts).float(), name="oft_unet_layer")

