"""What BOFT claims: LyCORIS' butterflies, exactly orthogonal, on the output, and steps of one size."""

import math

import pytest
import torch
from lycoris.functional.general import power2factorization
from lycoris.modules.boft import ButterflyOFTModule
from torch import Tensor, nn

from modules.adapters import linalg
from modules.adapters.base import Adapted, Terms
from modules.adapters.boft import block_size
from modules.adapters.layers import as_layer
from modules.files import forms
from tests.adapters.cases import close
from tests.adapters.steps import adam_steps, first_step, isotropic
from tests.adapters.structured import adapted_layer, assert_computes_like, lycoris

BASES = {
    "linear": (lambda: nn.Linear(24, 32), (3, 5, 24)),
    "without bias": (lambda: nn.Linear(24, 40, bias=False), (3, 24)),
    "conv": (lambda: nn.Conv2d(6, 16, 3, stride=2, padding=1), (2, 6, 7, 7)),
}


def square(adapted: Adapted) -> Tensor:
    """LyCORIS' blocks `(m, blocks, b, b)` of the same rotation: our triangles, and zeros."""
    skew = (adapted.adapter.factor * adapted.adapter.skew).detach()
    return torch.triu(linalg.skew_blocks(skew.flatten(0, 1), adapted.adapter.size)).unflatten(0, skew.shape[:2])


@pytest.mark.parametrize("size", [4, 10, 64])
@pytest.mark.parametrize("name", BASES)
def test_is_the_forward_pass_of_lycoris(name, size):
    """Its own squares too: of each number there, ours gets the gradient, times the factor."""
    make, shape = BASES[name]
    base = make()
    if name == "without bias" and size == 4:
        pytest.skip("40 outputs make no power of two of blocks of 4")
    adapted = adapted_layer("boft", {"block_size": size, "step_size": "raw"}, base, scale=0.1)
    theirs = lycoris(ButterflyOFTModule, base, {"oft_blocks": square(adapted)}, lora_dim=size)
    assert_computes_like(adapted, theirs, {}, shape)
    x = torch.randn(shape)
    direction = torch.randn(adapted(x).shape)
    (adapted(x) * direction).sum().backward()
    (theirs(x) * direction).sum().backward()
    rows, columns = torch.triu_indices(adapted.adapter.size, adapted.adapter.size, 1)
    close(adapted.adapter.skew.grad, 2 * theirs.oft_blocks.grad[..., rows, columns], 1e-5)


def test_a_raw_step_of_adam_is_that_of_lycoris():
    base = nn.Linear(24, 32)
    adapted = adapted_layer("boft", {"block_size": 8, "step_size": "raw"}, base, scale=0.0)
    theirs = lycoris(ButterflyOFTModule, base, {}, lora_dim=8)
    x, direction = torch.randn(5, 24), torch.randn(5, 32)
    for module, parameter in ((adapted, adapted.adapter.skew), (theirs, theirs.oft_blocks)):
        optimizer = torch.optim.Adam([parameter], lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            (module(x) * direction).sum().backward()
            optimizer.step()
    close(adapted(x), theirs(x), 1e-5)


@pytest.mark.parametrize("largest", [2, 4, 8, 10, 16, 20, 32, 64, 1024])
def test_blocks_are_those_of_lycoris(largest):
    for out in (*range(1, 70), 320, 640, 768, 1280, 3072, 5120, 10240):
        layer, expected = as_layer(nn.Linear(1, out, device="meta"), "the_layer"), power2factorization(out, largest)
        if expected[1] == 0:
            with pytest.raises(ValueError, match="the_layer.*exclude it"):
                block_size(layer, largest)
        else:
            assert block_size(layer, largest) == expected[0], out


def test_all_outputs_are_mixed_and_stay_orthogonal():
    adapted = isotropic("boft", 64, 64, block_size=4, step_size="raw")
    with torch.no_grad():
        adapted.adapter.skew.normal_(std=1.0)
        R = adapted.adapter.weight(torch.eye(64))
    assert adapted.adapter.skew.shape == (5, 16, 6)
    assert (R.mT @ R - torch.eye(64)).abs().max() < 1e-5 and (R.abs() > 1e-6).all()


def test_only_the_result_is_kept_for_the_backward_pass():
    adapted = adapted_layer("boft", {"block_size": 4}, nn.Linear(32, 32))
    x, found = torch.randn(7, 32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t.shape) or t, lambda t: t):
        adapted(x)
    assert sum(shape[-1:] == (32,) and shape[0] == 7 for shape in found) == 1


def shared(adapted: Adapted) -> float:
    """The root mean square, over pairs of outputs that are turned at all, of in how many stages they are."""
    stages, blocks, _ = adapted.adapter.skew.shape
    size = adapted.adapter.size
    together = torch.zeros(blocks * size, blocks * size)
    for stage in range(stages):
        for block in linalg.butterfly_blocks(torch.arange(blocks * size).unsqueeze(0), stage, size)[0]:
            together[block.unsqueeze(1), block.unsqueeze(0)] += 1
    together.fill_diagonal_(0)
    return math.sqrt(together.square().sum() / together.sum())


@pytest.mark.parametrize("size, out", [(10, 320), (80, 320), (320, 320), (10, 1280), (160, 1280)])
def test_one_step_changes_the_weight_by_lr(size, out):
    """Of signs as gradients give them; random ones do not add up in pairs of outputs that stages share."""
    adapted = isotropic("boft", 320, out, block_size=size)
    assert first_step(adapted) * shared(adapted) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("size", [10, 40])
def test_steps_of_adam_keep_their_size(size):
    steps = adam_steps(isotropic("boft", 160, 160, block_size=size))
    assert steps[0] == pytest.approx(1, rel=0.1)
    assert abs(math.log(steps[-1] / steps[0])) < math.log(1.25), (steps[0], steps[-1])


@pytest.mark.parametrize("size", [4, 32])
def test_goes_on_from_its_own_terms_and_from_a_whole_rotation(size):
    given, adapted = (adapted_layer("boft", {"block_size": size}, nn.Linear(6, 32)) for _ in range(2))
    W = adapted.layer.dense()
    terms = given.adapter.export_terms(W)
    adapted.adapter.start_from(terms, adapted.layer)
    close(adapted.adapter.weight(W), forms.applied(terms, adapted.layer, W), 1e-5)
    if size == 32:  # one stage of one block: read as a plain rotation of the output
        whole = Terms(rotation=given.adapter.weight(torch.eye(32)).detach().unsqueeze(0), side="output")
        adapted.adapter.start_from(whole, adapted.layer)
        close(adapted.adapter.weight(W), given.adapter.weight(W), 1e-4)
    with pytest.raises(ValueError, match="stages x blocks x size of 3 x 4 x 2 .*set adapter.block_size 2"):
        adapted.adapter.start_from(Terms(rotation=torch.eye(2).expand(3, 4, 2, 2), side="output"), adapted.layer)
    with pytest.raises(ValueError, match="rotates the layer's input"):
        adapted.adapter.start_from(Terms(rotation=torch.eye(2).expand(3, 2, 2)), adapted.layer)
