"""What OFT and DOFT claim: exact rotations, one size of step for every block size, and compact exact files."""

import math

import pytest
import torch
from torch import Tensor, nn

from modules import adapters
from modules.adapters.base import Adapted, attach
from modules.adapters.blocks import fitting
from modules.adapters.low_rank import spread
from tests.adapters import dense
from tests.adapters.cases import CASES, adapt, close, inputs, randomise, through_weight

LR = 1e-3
BLOCKS = [16, 32, 64, 128, 256]
PLANES = [2, 4, 8, 16, 32]


def blocks(size: int) -> dict:
    return {"kind": "blocks", "block_size": size}


def planes(count: int) -> dict:
    return {"kind": "planes", "planes": count}


def rotated_layer(method: str, rotation: dict, channels: int, out: int, dtype=torch.float32) -> Adapted:
    """An adapted linear layer with isotropic weights."""
    net = nn.Sequential(nn.Linear(channels, out)).to(dtype)
    nn.init.normal_(net[0].weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return attach(net, "0", adapters.methods()[method].Config(method=method, rotation=rotation), seed=0)


def widen(adapted: Adapted, rotation: dict, spectral_norm: float) -> None:
    """Scale the rotation's parameters so that `||Q||` has this spectral norm."""
    randomise(adapted.adapter, seed=2, scale=1.0)
    parameters = adapted.adapter.state_dict()
    Q = dense.skew({k: v.double() for k, v in parameters.items()}, adapted.layer.channels, rotation)
    moved = parameters["rotation.skew" if rotation["kind"] == "blocks" else "rotation.v"]
    moved *= spectral_norm / torch.linalg.matrix_norm(Q, 2)
    Q = dense.skew({k: v.double() for k, v in parameters.items()}, adapted.layer.channels, rotation)
    assert abs(torch.linalg.matrix_norm(Q, 2) - spectral_norm) < 1e-4


ROTATIONS = [blocks(16), blocks(64), planes(1), planes(4), planes(16)]
each_rotation = pytest.mark.parametrize("rotation", ROTATIONS, ids=lambda r: "-".join(map(str, r.values())))


@each_rotation
@pytest.mark.parametrize("spectral_norm", [0.1, 0.5, 1.0, 2.0, 3.0])
def test_rotations_are_orthogonal(rotation, spectral_norm):
    channels = 64
    adapted = rotated_layer("oft", rotation, channels, channels)
    widen(adapted, rotation, spectral_norm)
    eye = torch.eye(channels)
    with torch.no_grad():
        R = adapted.adapter.weight(eye).t()
        R_fast = adapted.adapter(eye, adapted.layer, adapted.adapter.derive(adapted.layer)) - adapted.base.bias
        R_fast = R_fast @ torch.linalg.pinv(adapted.base.weight.double()).float().t()
    assert (R.double().t() @ R.double() - eye).abs().max() <= 1e-6
    close(R_fast, R, 1e-3)
    close(R, dense.rotation(adapted.adapter.state_dict(), channels, rotation), 1e-5)


def noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1)).to(like.dtype)


def relative_step(adapted: Adapted, gradients: dict[Tensor, Tensor]) -> tuple[float, Tensor]:
    """The relative change of the weight, and of each row, by one Adam step with these gradients; in units of lr."""
    W = adapted.base.weight.detach()
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    with torch.no_grad():
        before = adapted.adapter.weight(W)
        torch.optim.Adam(list(gradients), lr=LR, eps=1e-30).step()
        change = adapted.adapter.weight(W) - before
    return (change.norm() / W.norm() / LR).item(), change.norm(dim=1) / W.norm(dim=1) / LR


@pytest.mark.parametrize("method", ["oft", "doft"])
@pytest.mark.parametrize("size", BLOCKS)
def test_one_step_of_blocks_and_magnitude_changes_the_weight_by_lr(method, size):
    adapted = rotated_layer(method, blocks(size), 512, 512)
    step, _ = relative_step(adapted, {parameter: noise(parameter) for parameter in adapted.adapter.parameters()})
    assert abs(step - 1) < 0.05, f"one step is {step:.3f} lr"


@pytest.mark.parametrize("method", ["oft", "doft"])
@pytest.mark.parametrize("count", PLANES)
def test_one_step_of_planes_changes_the_weight_by_lr(method, count):
    adapted = rotated_layer(method, planes(count), 512, 512)
    W, turned = adapted.base.weight, [adapted.adapter.rotation.u, adapted.adapter.rotation.v]
    found = torch.autograd.grad((adapted.adapter.weight(W) * noise(W)).sum(), turned)  # that of u is zero: v is
    step, _ = relative_step(adapted, dict(zip(turned, found, strict=True)))
    wanted = 1.0 if method == "oft" else math.sqrt(0.5)  # the magnitude, which stays, has the other half
    assert abs(step / wanted - 1) < 0.2, f"one step is {step:.3f} lr"


def test_one_step_of_the_magnitude_changes_every_row_alike():
    adapted = rotated_layer("doft", blocks(16), 64, 32, torch.float64)
    magnitude = adapted.adapter.magnitude
    _, steps = relative_step(adapted, {magnitude: noise(magnitude)})
    assert ((steps * math.sqrt(2) - 1).abs() < 0.01).all()


@pytest.mark.parametrize(
    "rotation, factor",
    [
        (blocks(16), 0.5 / math.sqrt(15)),
        (blocks(32), 0.5 / math.sqrt(31)),
        (planes(8), 0.125 / math.sqrt(1 + 1.5 / (2 * math.pi))),
    ],
)
def test_the_factor_is_saved(rotation, factor):
    adapted = rotated_layer("oft", rotation, 64, 64)
    assert adapted.adapter.state_dict()["rotation.factor"].item() == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("rotation", [blocks(16), planes(8)], ids=lambda r: r["kind"])
def test_raw_parameters_are_in_the_published_units(rotation):
    net = nn.Sequential(nn.Linear(64, 8))
    adapted = attach(net, "0", adapters.methods()["doft"].Config(rotation=rotation, step_size="raw"), seed=0)
    state = adapted.adapter.state_dict()
    assert state["rotation.factor"] == 1 and state["unit"] == 1


@pytest.mark.parametrize("channels, size, real", [(64, 32, 32), (48, 32, 24), (12, 5, 4), (10, 1024, 10)])
def test_blocks_divide_the_channels(channels, size, real):
    adapted = rotated_layer("oft", blocks(size), channels, 8)
    assert adapted.adapter.rotation.skew.shape == (channels // real, real * (real - 1) // 2)


@pytest.mark.parametrize("features, size, real", [(40, 32, 40), (48, 32, 24), (72, 5, 4), (320, 32, 32), (10, 99, 10),
                                                  (67, 32, 1), (67, 50, 67)])
def test_the_nearest_divisor_is_onetrainers(features, size, real):
    """Of two equally near ones the smaller, and 1 where that is nearest."""
    assert fitting(features, size, "nearest") == real


def test_a_nearest_divisor_of_1_rotates_nothing():
    with pytest.raises(ValueError, match="its 67 inputs the divisor nearest to block_size 32 is 1.*divisor below"):
        rotated_layer("oft", {**blocks(32), "divisor": "nearest"}, 67, 8)


def test_shared_blocks_are_one_and_step_as_far():
    adapted = rotated_layer("oft", {**blocks(16), "share": True}, 256, 64)
    skew = adapted.adapter.rotation.skew
    step, _ = relative_step(adapted, {skew: noise(skew)})
    assert skew.shape == (1, 120) and abs(step - 1) < 0.05
    W, small = adapted.base.weight.detach(), rotated_layer("oft", blocks(16), 16, 64)
    with torch.no_grad():
        small.adapter.rotation.skew.copy_(skew)
        rows = W.unflatten(1, (16, 16)).transpose(0, 1).flatten(0, 1)
        close(adapted.adapter.weight(W), small.adapter.weight(rows).unflatten(0, (16, 64)).transpose(0, 1).flatten(1),
              1e-6)
    assert adapted.adapter.curves()["rotation"] == pytest.approx(small.adapter.curves()["rotation"])


def test_planes_start_orthonormal_and_unturned():
    rotation = rotated_layer("oft", planes(4), 64, 8).adapter.rotation
    assert (rotation.u.t() @ rotation.u / (64 * spread(8) ** 2) - torch.eye(4)).abs().max() < 1e-6
    assert not rotation.v.any()


@pytest.mark.parametrize("method", ["oft", "doft"])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_planes_are_a_lora_of_twice_the_rank(method, count):
    adapted = rotated_layer(method, planes(count), 64, 48, torch.float64)
    randomise(adapted.adapter, scale=1.0)
    W = adapted.base.weight.detach()
    with torch.no_grad():
        terms, expected = adapted.adapter.export_terms(W), adapted.adapter.weight(W)
        assert terms.rotation is None and terms.difference is None
        assert terms.up.shape == (48, 2 * count) and terms.down.shape == (2 * count, 64)
        V = W + terms.up @ terms.down
        if method == "doft":
            host = V * (terms.magnitude / W.norm(dim=1)).unsqueeze(1)  # ComfyUI divides by the base's norm
            close(host, expected, 1e-12)
            V = V * (terms.magnitude / V.norm(dim=1)).unsqueeze(1)
        assert (V - expected).abs().max() <= 1e-12 * expected.abs().max()
        assert (expected - W).norm() > 0.1 * W.norm(), "nothing to test"


@pytest.mark.parametrize("case", [c for c in CASES if c.kind != "embedding"], ids=lambda c: c.name)
@pytest.mark.parametrize("rotation", [blocks(4), planes(2)], ids=lambda r: r["kind"])
def test_row_norms_are_the_magnitudes(case, rotation):
    adapted = adapt("doft", {"rotation": rotation}, case)
    randomise(adapted.adapter, scale=1.0)
    W = adapted.layer.dense()
    with torch.no_grad():
        changed = adapted.adapter.weight(W)
        expected = (math.sqrt(0.5) * adapted.adapter.magnitude).exp() * W.norm(dim=1)
    assert (changed.norm(dim=1) / expected - 1).abs().max() <= 1e-6


@pytest.mark.parametrize("rotation", [blocks(4), planes(2)], ids=lambda r: r["kind"])
def test_convolutions_turn_every_kernel_position_alike(rotation):
    case = next(c for c in CASES if c.name == "conv2d")
    adapted, x = adapt("oft", {"rotation": rotation}, case, torch.float64), inputs(case, torch.float64)
    R = dense.rotation(adapted.adapter.state_dict(), 8, rotation)
    turned = torch.einsum("oihw,ji->ojhw", adapted.base.weight, R)
    close(adapted.adapted_weight(), turned, 1e-10)
    x_turned = torch.einsum("nihw,ij->njhw", x, R)
    close(adapted(x), adapted.base(x_turned), 1e-10)
    close(adapted(x), through_weight(adapted, x), 1e-10)


@pytest.mark.parametrize("method", ["oft", "doft"])
def test_a_single_channel_cannot_be_rotated(method):
    net = nn.ModuleDict({"odd_layer": nn.Conv2d(1, 4, 3)})
    with pytest.raises(ValueError, match="odd_layer"):
        attach(net, "odd_layer", adapters.methods()[method].Config(rotation=blocks(4)), seed=0)
