"""What rotations claim beyond Cayley's transform of the input: other maps from numbers to rotations, and the output."""

import math

import pytest
import torch
from torch import Tensor, nn

from modules import adapters
from modules.adapters import blocks, linalg
from modules.adapters.base import Adapted, Terms, attach
from modules.files import forms
from tests.adapters.cases import CASES, adapt, close, inputs, randomise, through_weight
from tests.adapters.test_rotation import LR, noise, relative_step
from tests.export import every, setup

DOUBLE = torch.float64
EXACT = ("cayley", "exponential", "newton_schulz")
KINDS = {
    **{name: {"kind": "blocks", "block_size": 4, "map": name} for name in blocks.MAPS},
    "planes": {"kind": "planes", "planes": 2},
}
each_map = pytest.mark.parametrize("name", blocks.MAPS)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_side = pytest.mark.parametrize("side", ["input", "output"])


def skews(size: int, norm: float, count: int = 3) -> Tensor:
    """Random `(count, size, size)` of this spectral norm."""
    upper = torch.randn(count, size, size, generator=torch.Generator().manual_seed(size), dtype=DOUBLE).triu(1)
    skew = upper - upper.mT
    return skew * (norm / torch.linalg.matrix_norm(skew, 2))[:, None, None]


def turned(name: str, skew: Tensor) -> Tensor:
    return blocks.MAPS[name].excess(skew) + torch.eye(skew.shape[-1], dtype=skew.dtype)


def rotated_layer(method: str, channels: int, out: int, **options) -> Adapted:
    """An adapted linear layer with isotropic weights."""
    net = nn.Sequential(nn.Linear(channels, out))
    nn.init.normal_(net[0].weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return attach(net, "0", adapters.methods()[method].Config(method=method, **options), seed=0)


# -- the maps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [0.1, 0.5, 0.9, 1.5, 3.0])
@pytest.mark.parametrize("name", EXACT)
def test_exact_maps_are_orthogonal(name, norm):
    for size in (2, 16, 64, 256):
        R = turned(name, skews(size, norm).float()).double()
        assert (R @ R.mT - torch.eye(size)).abs().max() <= 2e-6
        R = turned(name, skews(size, norm))
        assert (R @ R.mT - torch.eye(size)).abs().max() <= 1e-13


@pytest.mark.parametrize("norm", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("terms", [4, 6])
def test_cut_series_stretch_as_is_said(terms, norm):
    values = torch.linalg.svdvals(turned(f"neumann_{terms}", skews(16, norm)))
    assert values.amax() == pytest.approx(math.sqrt(1 + norm ** (2 * terms - 2)), rel=1e-9)
    assert values.amin() >= 1 - 1e-12, "nothing is lost"


@pytest.mark.parametrize("terms, stretched, degrees", [
    (4, 0.001, 41), (6, 0.001, 54), (4, 0.1, 100), (6, 0.02, 60), (5, -0.02, 41), (5, -0.999999, 90),
])
def test_what_the_help_says_of_cut_series(terms, stretched, degrees):
    theta = (-stretched) ** 0.25 if terms == 5 else ((1 + stretched) ** 2 - 1) ** (1 / (2 * terms - 2))
    plane = torch.tensor([[[0, -theta], [theta, 0]]], dtype=DOUBLE)
    R = turned(f"neumann_{terms}", plane)[0]
    assert math.degrees(math.atan2(R[1, 0], R[0, 0])) == pytest.approx(degrees, abs=1)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (DOUBLE, 1e-13)])
def test_newton_schulz_is_cayley(dtype, tolerance):
    for size, norm in [(2, 0.01), (16, 0.5), (64, 3.0), (256, 10.0)]:  # 10 is a turn by 169 degrees
        skew = skews(size, norm).to(dtype)
        close(linalg.newton_schulz_excess(skew), linalg.cayley_excess(skew.double()), tolerance, f"{size}, {norm}")


def test_the_exponential_turns_by_half_a_turn_and_more():
    for norm, tolerance in [(0.1, 1e-13), (1.0, 1e-13), (math.pi, 1e-8), (2 * math.pi, 1e-4)]:
        skew = skews(16, norm)
        assert (turned("exponential", skew) - torch.linalg.matrix_exp(skew)).abs().max() <= tolerance
    half = turned("exponential", torch.tensor([[[0, -math.pi], [math.pi, 0]]]))
    assert (half + torch.eye(2)).abs().max() < 1e-6


@each_map
def test_small_rotations_keep_their_digits(name):
    skew = skews(32, 1e-4)
    excess = blocks.MAPS[name].excess(skew.float())
    close(excess, blocks.MAPS[name].excess(skew), 1e-6)
    close(excess, blocks.MAPS[name].slope * skew, 1e-3)


@each_map
def test_gradients_of_maps(name):
    vectors = (0.4 * torch.randn(2, 10, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)).requires_grad_()
    assert torch.autograd.gradcheck(lambda one: blocks.MAPS[name].excess(linalg.skew_blocks(one, 5)), vectors)


@each_map
def test_blocks_of_more_than_one_norm_are_each_alone(name):
    skew = torch.cat([skews(8, norm, 1) for norm in (0.0, 0.01, 0.6)])
    together = blocks.MAPS[name].excess(skew)
    close(together, torch.cat([blocks.MAPS[name].excess(one[None]) for one in skew]), 1e-12)


# -- steps ------------------------------------------------------------------------------------------------------------


@each_map
@pytest.mark.parametrize("size, channels, out", [(16, 320, 1280), (256, 1280, 256)])
@each_side
def test_one_step_changes_the_weight_by_lr(name, size, channels, out, side):
    blocks = {"kind": "blocks", "block_size": size, "map": name}
    adapted = rotated_layer("doft", channels, out, rotation=blocks, side=side)
    step, _ = relative_step(adapted, {parameter: noise(parameter) for parameter in adapted.adapter.parameters()})
    assert abs(step - 1) < 0.05, f"one step is {step:.3f} lr"


@each_kind
@each_side
def test_the_hundredth_step_is_like_the_first(kind, side):
    adapted = rotated_layer("oft", 64, 96, rotation={**KINDS[kind], **({} if kind == "planes" else {"block_size": 16})},
                            side=side)
    W, optimizer = adapted.base.weight.detach(), torch.optim.Adam(adapted.adapter.parameters(), lr=LR)
    steps = []
    for _ in range(100):
        optimizer.zero_grad()
        weight = adapted.adapter.weight(W)
        (weight * noise(W)).sum().backward()
        optimizer.step()
        with torch.no_grad():
            steps.append(((adapted.adapter.weight(W) - weight).norm() / W.norm() / LR).item())
    assert steps[-1] == pytest.approx(steps[0], rel=0.25)


@pytest.mark.parametrize("name, slope", [("cayley", 2), ("newton_schulz", 2), ("exponential", 1), ("neumann_4", 2)])
def test_the_factor_and_the_curve_know_the_slope(name, slope):
    found = {}
    for map in ("cayley", name):
        adapted = rotated_layer("oft", 64, 8, rotation={"kind": "blocks", "block_size": 16, "map": map})
        with torch.no_grad():
            adapted.adapter.rotation.skew += LR * noise(adapted.adapter.rotation.skew).sign()
        found[map] = adapted.adapter
    assert found[name].rotation.factor.item() == pytest.approx(1 / (slope * math.sqrt(15)))
    assert found[name].curves()["rotation"] == pytest.approx(found["cayley"].curves()["rotation"])


# -- the output side --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if c.kind != "embedding"], ids=lambda c: c.name)
@pytest.mark.parametrize("kind", ["cayley", "planes"])
def test_outputs_are_rotated_and_the_bias_is_not(case, kind):
    adapted, x = adapt("oft", {"rotation": KINDS[kind], "side": "output"}, case), inputs(case)
    spread = (-1, *[1] * (len(case.shape) - 2)) if case.kind == "conv" else (-1,)
    bias = 0 if adapted.base.bias is None else adapted.base.bias.view(spread)
    plain, found = (y - bias for y in (adapted.layer(x), adapted(x)))
    axis = 1 if case.kind == "conv" else -1
    close(found.norm(dim=axis), plain.norm(dim=axis), 1e-6)
    assert (found - plain).norm() > 0.1 * plain.norm(), "nothing to test"


@each_kind
def test_magnitudes_are_relative_to_the_rotated_rows(kind):
    adapted = adapt("doft", {"rotation": KINDS[kind], "side": "output"}, CASES[0], DOUBLE)
    randomise(adapted.adapter, scale=1.0)
    W = adapted.base.weight
    with torch.no_grad():
        R = adapted.adapter.rotation.rotate(torch.eye(len(W), dtype=DOUBLE))
        ratio = adapted.adapter.log_ratio().exp()
        close(adapted.adapter.weight(W), ratio[:, None] * (R @ W), 1e-12)
        terms = adapted.adapter.export_terms(W)
        close(terms.magnitude, ratio * (R @ W).norm(dim=1), 1e-12)
        close(forms.applied(terms, adapted.layer, W), adapted.adapter.weight(W), 1e-12)
    assert terms.side == ("input" if kind == "planes" else "output")


def test_planes_of_a_convolutions_output_are_a_lora_of_twice_the_rank():
    net = nn.Sequential(nn.Conv2d(32, 48, 3)).double()
    adapted = attach(net, "0", adapters.methods()["oft"].Config(rotation=KINDS["planes"], side="output"), seed=0)
    randomise(adapted.adapter)
    with torch.no_grad():
        terms = adapted.adapter.export_terms(adapted.layer.dense())
    assert terms.up.shape == (48, 4) and terms.down.shape == (4, 32 * 9)


def test_diag_oft_of_lycoris_is_the_same():
    """With rescale it is our DOFT; it applies R^T."""
    from lycoris.modules.diag_oft import DiagOFTModule

    adapted = adapt("doft", {"rotation": {**KINDS["cayley"], "block_size": 2}, "side": "output"}, CASES[0])
    theirs = DiagOFTModule("layer", adapted.base, 1.0, 2, 0, rescaled=True)
    with torch.no_grad():
        ours = adapted.adapter.rotation
        theirs.oft_blocks.copy_(-torch.triu(linalg.skew_blocks(ours.factor * ours.skew, 2)))
        theirs.rescale.copy_(adapted.adapter.log_ratio().exp()[:, None])
        merged, _ = theirs.get_merged_weight(multiplier=1.0)
        close(adapted.adapted_weight(), merged, 1e-6)
    x, y = inputs(CASES[0]), adapted(inputs(CASES[0]))
    close(y, nn.functional.linear(x, merged, adapted.base.bias), 1e-6)
    close(y, through_weight(adapted, x), 1e-6)


@pytest.mark.parametrize("method", ["oft", "doft"])
def test_a_single_output_cannot_be_rotated(method):
    net = nn.ModuleDict({"odd_layer": nn.Linear(8, 1)})
    with pytest.raises(ValueError, match="odd_layer: a layer with 1 output"):
        attach(net, "odd_layer", adapters.methods()[method].Config(side="output"), seed=0)


# -- files ------------------------------------------------------------------------------------------------------------


@each_map
@each_side
@pytest.mark.parametrize("method", ["oft", "doft"])
def test_a_run_goes_on_from_its_own_rotation(method, side, name):
    options = {"rotation": KINDS[name], "side": side}
    source, fresh = (adapt(method, options, CASES[0], DOUBLE, start) for start in (False, True))
    W = source.base.weight.detach()
    with torch.no_grad():
        fresh.adapter.start_from(source.adapter.export_terms(W), fresh.layer)
        exact = not name.startswith("neumann") or name == blocks.SERIES
        close(fresh.adapter.weight(W), source.adapter.weight(W), 1e-10 if exact else 1e-6)


@pytest.mark.parametrize("options, terms, words", [
    ({"side": "output"}, Terms(rotation=torch.eye(4).expand(4, 4, 4)), "layer.s input, .*; set adapter.side input"),
    ({"rotation": {"block_size": 4, "map": "neumann_4", "kind": "blocks"}},
     Terms(rotation=turned("exponential", skews(4, 2.8, 4))), "larger angles than rotation.map neumann_4 can"),
])
def test_what_cannot_be_gone_on_from_is_a_sentence(options, terms, words):
    adapted = adapt("oft", options, CASES[0], start=True)
    with pytest.raises(ValueError, match=words):
        adapted.adapter.start_from(terms, adapted.layer)


NODE, STORED = "rotation with output magnitude for the node", "stored rotation with output magnitude"


@pytest.mark.parametrize("host, options, expected", [
    ("kohya", {"side": "output"}, {"full difference"}),  # Forge reads no stored rotations
    ("lycoris", {"side": "output"}, {STORED, "full difference"}),  # LyCORIS wants as many blocks as a block has rows
    ("comfyui", {"side": "output"}, {"full difference"}),
    ("comfyui_node", {"side": "output", "rotation": KINDS["neumann_4"]}, {NODE}),
    ("comfyui_node", {"rotation": KINDS["neumann_6"]}, {NODE}),
    ("comfyui_node", {"rotation": KINDS["exponential"]}, {NODE}),
    ("lycoris", {"side": "output", "rotation": KINDS["newton_schulz"]}, {STORED, "full difference"}),
])
def test_files_hold_what_was_trained(host, options, expected):
    model, options = setup.Model(), {"rotation": KINDS["cayley"], **options}
    layers = setup.trained(model, "doft", options, ["unet.wide", "unet.square", "unet.conv"])
    found = every.attempt(model, layers, setup.preset("doft", options, host=host, dtype="float32"))
    assert set(found.forms) == expected and found.error <= 1e-5 and not found.approximate, found
