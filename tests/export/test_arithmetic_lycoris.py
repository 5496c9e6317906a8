"""What the exporter says LyCORIS computes, against LyCORIS itself."""

import pytest
import torch
from torch import Tensor, nn

from modules.hosts import How, Unread, lycoris

LINEAR, CONV = (24, 16), (12, 8, 3, 3)
STRENGTHS = (0.0, 0.5, 1.0, 1.3)


def normal(*shape: int, scale: float = 0.3) -> Tensor:
    return scale * torch.randn(*shape)


def layer_of(shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(len(shape))
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0])
    return nn.Conv2d(shape[1], shape[0], shape[2:])


def pair(shape, rank=3, alpha=2.0) -> dict[str, Tensor]:
    ones = [1] * (len(shape) - 2)
    return {".lora_up.weight": normal(shape[0], rank, *ones), ".lora_down.weight": normal(rank, *shape[1:]),
            ".alpha": torch.tensor(alpha)}


def hadamard(shape, alpha=3.0) -> dict[str, Tensor]:
    columns = torch.Size(shape[1:]).numel()
    return {".hada_w1_a": normal(shape[0], 3), ".hada_w1_b": normal(3, columns), ".hada_w2_a": normal(shape[0], 3),
            ".hada_w2_b": normal(3, columns), ".alpha": torch.tensor(alpha)}


def tucker_hadamard(shape) -> dict[str, Tensor]:
    sides = {f".hada_w{n}_{s}": normal(3, shape[0 if s == "a" else 1]) for n in (1, 2) for s in "ab"}
    return {**sides, ".hada_t1": normal(3, 3, *shape[2:]), ".hada_t2": normal(3, 3, *shape[2:]),
            ".alpha": torch.tensor(1.5)}


def general(shape, alpha=2.0) -> dict[str, Tensor]:
    ones = [1] * (len(shape) - 2)
    return {".a1.weight": normal(shape[1], 3, *ones), ".a2.weight": normal(3, shape[1], *ones),
            ".b1.weight": normal(shape[0], 3, *ones), ".b2.weight": normal(3, *shape[1:]),
            ".alpha": torch.tensor(alpha)}


def magnitude(shape) -> dict[str, Tensor]:
    return {".dora_scale": torch.rand(shape[0], *[1] * (len(shape) - 1)) + 0.5}


def rescale(shape) -> dict[str, Tensor]:
    return {".rescale": torch.rand(shape[0], *[1] * (len(shape) - 1)) + 0.5}


def blocks(*shape: int, alpha: float = 0.0) -> dict[str, Tensor]:
    return {".oft_blocks": normal(*shape), ".alpha": torch.tensor(alpha)}


CASES = {
    "one butterfly factor, which is repeated for all": ((16, 6), lambda s: blocks(1, 4, 4, 4) | rescale(s)),
    "pair": (LINEAR, lambda s: pair(s)),
    "pair, alpha 0": (LINEAR, lambda s: pair(s, alpha=0.0)),
    "pair, convolution": (CONV, lambda s: pair(s)),
    "Tucker pair": (CONV, lambda s: {
        ".lora_up.weight": normal(s[0], 3, 1, 1), ".lora_mid.weight": normal(3, 3, 3, 3),
        ".lora_down.weight": normal(3, s[1], 1, 1), ".alpha": torch.tensor(2.0)}),
    "magnitude": (LINEAR, lambda s: pair(s) | magnitude(s)),
    "magnitude, convolution": (CONV, lambda s: pair(s) | magnitude(s)),
    "hadamard": (LINEAR, lambda s: hadamard(s)),
    "hadamard, alpha not the rank": (LINEAR, lambda s: hadamard(s, 1.5)),
    "hadamard, convolution": (CONV, lambda s: hadamard(s)),
    "hadamard with cores": (CONV, tucker_hadamard),
    "hadamard with magnitude": (LINEAR, lambda s: hadamard(s) | magnitude(s)),
    "kronecker, both whole": (LINEAR, lambda s: {
        ".lokr_w1": normal(4, 4), ".lokr_w2": normal(6, 4), ".alpha": torch.tensor(0.3)}),
    "kronecker, second a pair": (LINEAR, lambda s: {
        ".lokr_w1": normal(4, 4), ".lokr_w2_a": normal(6, 2), ".lokr_w2_b": normal(2, 4), ".alpha": torch.tensor(0.7)}),
    "kronecker with magnitude": (LINEAR, lambda s: {
        ".lokr_w1": normal(4, 4), ".lokr_w2": normal(6, 4), ".alpha": torch.tensor(1.0)} | magnitude(s)),
    "kronecker, convolution": (CONV, lambda s: {
        ".lokr_w1": normal(3, 2), ".lokr_w2": normal(4, 4, 3, 3), ".alpha": torch.tensor(1.0)}),
    "general": (LINEAR, general),
    "general, convolution": (CONV, general),
    "general, magnitude ignored": (LINEAR, lambda s: general(s) | magnitude(s)),
    "general, b broadcast": (LINEAR, lambda s: {
        **general(s), ".b1.weight": torch.zeros(s[0], 1), ".b2.weight": torch.zeros(1, s[1])}),
    "rotation": (LINEAR, lambda s: blocks(6, 4, 4)),
    "rotation, clipped": (LINEAR, lambda s: blocks(6, 4, 4, alpha=0.05)),
    "rotation and rescale": (CONV, lambda s: blocks(4, 3, 3) | rescale(s)),
    "butterfly": ((16, 6), lambda s: blocks(3, 4, 4, 4)),
    "butterfly, clipped, rescale": ((16, 6), lambda s: blocks(3, 4, 4, 4, alpha=0.05) | rescale(s)),
    "difference": (CONV, lambda s: {".diff": normal(*s), ".diff_b": normal(s[0])}),
    "difference before rotation": (LINEAR, lambda s: {".diff": normal(*s)} | blocks(6, 4, 4)),
    "pair before all": (LINEAR, lambda s: pair(s) | {".diff": normal(*s)} | hadamard(s, 2.0)),
}


def merged(layer: nn.Module, tensors: dict[str, Tensor], strength: float) -> tuple[Tensor, Tensor]:
    """Weight and bias after LyCORIS has loaded and merged the tensors."""
    from lycoris import LycorisNetwork, create_lycoris_from_weights

    root = nn.ModuleDict({"layer": layer})
    named = {f"{LycorisNetwork.LORA_PREFIX}_layer{suffix}": tensor for suffix, tensor in tensors.items()}
    with torch.no_grad():
        network, _ = create_lycoris_from_weights(1.0, "", root, named)
        assert len(network.loras) == 1
        network.merge_to(strength)
    return layer.weight.detach(), layer.bias.detach()  # pyright: ignore


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("case", CASES)
def test_effect_is_what_lycoris_merges(case, strength):
    shape, make = CASES[case]
    layer = layer_of(shape)
    W, b = layer.weight.detach().clone(), layer.bias.detach().clone()  # pyright: ignore
    tensors = make(shape)
    found = lycoris.effect(W.double(), tensors, strength, How())
    change = lycoris.bias_change(tensors, strength)
    weight, bias = merged(layer, tensors, strength)
    assert (weight - found).abs().max() <= 3e-6 * weight.abs().max()
    assert torch.allclose(bias, b if change is None else b + change, atol=1e-6)


REFUSED = {
    "no alpha": (LINEAR, lambda s: {k: t for k, t in pair(s).items() if k != ".alpha"}),
    "rotation without alpha": (LINEAR, lambda s: {".oft_blocks": normal(6, 4, 4)}),
    "magnitude of inputs": (LINEAR, lambda s: pair(s) | {".dora_scale": torch.rand(1, s[1])}),
    "few large blocks": (LINEAR, lambda s: blocks(3, 8, 8)),
    "difference of another shape": (LINEAR, lambda s: {".diff": normal(s[0], s[1] + 1)}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unread_is_what_lycoris_fails_on_or_gets_wrong(case):
    shape, make = REFUSED[case]
    layer, tensors = layer_of(shape), make(shape)
    W = layer.weight.detach().clone()  # pyright: ignore
    with pytest.raises(Unread):
        lycoris.effect(W, tensors, 1.0, How())
    with pytest.raises((TypeError, RuntimeError)):
        merged(layer, tensors, 1.0)
