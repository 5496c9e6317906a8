"""What DoRA claims: magnitudes are apart from directions, and the closed-form norm keeps its digits."""

import copy

import pytest
import torch
from torch import nn

from modules import adapters
from modules.adapters.base import Adapted, attach
from tests.adapters import dense
from tests.adapters.cases import CASES, adapt, by_oracle, close, fast, gradients, inputs, network, probe, trained

KINDS = [case for case in CASES if case.name in ("linear", "conv2d", "embedding")]
both_axes = pytest.mark.parametrize("axis", ["input", "output"])
on_each_kind = pytest.mark.parametrize("case", KINDS, ids=[case.name for case in KINDS])
with_a_norm = pytest.mark.parametrize("method", ["dora", "wora"])


@both_axes
@on_each_kind
def test_norms_are_the_magnitudes(case, axis):
    adapted = adapt("dora", {"rank": 4, "axis": axis}, case, torch.float64)
    W = dense.matrix(adapted.base, adapted.base.weight)
    kernel = adapted.layer.kernel
    expected = dense.norm(W, kernel, axis) * dense.along(adapted.adapter.magnitude.exp(), kernel, axis)
    close(dense.norm(adapted.adapter.weight(W), kernel, axis), expected, 1e-12)


@both_axes
@on_each_kind
def test_one_adam_step_changes_every_magnitude_by_lr(case, axis):
    adapted, x = adapt("dora", {"rank": 4, "axis": axis}, case, torch.float64, start=True), inputs(case, torch.float64)
    kernel, W = adapted.layer.kernel, dense.matrix(adapted.base, adapted.base.weight)
    before = dense.norm(adapted.adapter.weight(W), kernel, axis)
    optimizer = torch.optim.Adam([adapted.adapter.magnitude], lr=1e-3)
    x = torch.arange(16).view(1, 16) if case.kind == "embedding" else x
    probe(adapted(x)).backward()
    optimizer.step()
    change = (dense.norm(adapted.adapter.weight(W), kernel, axis) / before - 1).abs()
    assert ((change / 1e-3 - 1).abs() < 0.01).all()


@both_axes
def test_detaching_the_norm_changes_the_direction_gradients_only(axis):
    case = KINDS[0]
    x, found = inputs(case, torch.float64), {}
    for mode in ("detached", "full"):
        adapted = adapt("dora", {"rank": 4, "axis": axis, "norm_gradient": mode}, case, torch.float64)
        found[mode] = gradients(probe(fast(adapted, x)), trained(adapted.adapter), x)
    close(found["full"]["magnitude"], found["detached"]["magnitude"], 1e-12)
    close(found["full"]["x"], found["detached"]["x"], 1e-12)
    assert (found["full"]["up"] - found["detached"]["up"]).norm() > 1e-2 * found["full"]["up"].norm()


def nearly_cancelled(method: str, case, axis: str, ratio: float) -> Adapted:
    """An adapter whose `V` is `ratio` times as long as `W` in row 0 (axis "output") or channel 0 ("input")."""
    net = network(case)
    W = dense.matrix(net[0], net[0].weight)
    kernel = W.shape[1] // (16 if case.kind != "conv" else 8)
    rank = kernel + 2
    config = adapters.methods()[method].Config(method=method, rank=rank, axis=axis)
    adapter = attach(net, "0", config, seed=0).adapter
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        adapter.up.zero_()
        adapter.down.copy_(0.1 * torch.randn(adapter.down.shape, generator=generator))
        if axis == "output":
            adapter.down[0] = W[0]
            adapter.up[0, 0] = ratio - 1
            adapter.up[0, -1] = ratio  # what is left points elsewhere than W
        else:
            adapter.up[:, :kernel] = W[:, :kernel]
            adapter.down[:kernel, :kernel] = (ratio - 1) * torch.eye(kernel)
            adapter.up[:, -1] = 0.1 * torch.randn(len(W), generator=generator)
            adapter.down[-1, :kernel] = ratio
        adapter.magnitude.normal_(0, 0.1, generator=generator)
    return net[0]


@with_a_norm
@both_axes
@on_each_kind
@pytest.mark.parametrize("ratio", [1e-3, 0.03, 0.09, 0.11, 0.3], ids=str)
def test_near_cancellation_keeps_four_digits(method, axis, case, ratio):
    adapted, x = nearly_cancelled(method, case, axis, ratio), inputs(case)
    expected, _ = by_oracle(method, {"rank": adapted.adapter.up.shape[1], "axis": axis}, adapted, x)
    close(fast(adapted, x), expected, 1e-4)
    found = gradients(probe(fast(adapted, x)), trained(adapted.adapter), x)
    assert all(gradient.isfinite().all() for gradient in found.values())


@with_a_norm
@both_axes
@on_each_kind
def test_total_cancellation_stays_finite(method, axis, case):
    adapted, x = nearly_cancelled(method, case, axis, 0.0), inputs(case)
    with torch.no_grad():
        adapted.adapter.up[:, -2:] = 0
    y = fast(adapted, x)
    found = gradients(probe(y), trained(adapted.adapter), x)
    assert y.isfinite().all() and all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("method, axis", [("dora", "input"), ("dora", "output"), ("wora", "input"), ("wora", "output"),
                                          ("doft", "output")])  # fmt: skip
def test_gains_are_not_rounded_to_half_precision(method, axis):
    """A gain of 1.006 rounded to bfloat16 would be 1.0078, a third too much; its excess is kept to 1 part in 256.

    What stays is bfloat16's own rounding of the result, of activations or of the scaled weight: a change below 1 part
    in 512 of a value is lost there, as it is in a merged bfloat16 weight.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64)).to(torch.bfloat16)
    base = copy.deepcopy(net[0])
    options = {} if method == "doft" else {"axis": axis}
    adapted = attach(net, "0", adapters.methods()[method].Config(method=method, **options), seed=0)
    torch.nn.init.constant_(adapted.adapter.magnitude, 6e-3 / adapted.adapter.unit.item())
    x = torch.randn(2000, 64).to(torch.bfloat16)
    without_bias = x.double() @ base.weight.double().t()
    with torch.no_grad():
        change = adapted(x).double() - base(x).double()
    gain = (change * without_bias).sum() / without_bias.square().sum()
    assert abs(gain / 6e-3 - 1) < 0.15, f"the output has changed by {gain:.2e} of itself"
