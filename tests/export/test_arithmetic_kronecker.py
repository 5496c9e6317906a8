"""Kronecker products (LoKr) of convolutions in ComfyUI and A1111, entry by entry in float64."""

import pytest
import torch

from modules.hosts import How, a1111, comfyui, lycoris
from tests.export.test_arithmetic_comfyui import alpha, normal

HERE = How("original")


def entries(w1, w2, shape, scale=1.0):
    """`w1[a, b] w2[c, d, ...]` at output `a n + c` and channel `b m + d`, entry by entry."""
    found = torch.zeros(shape, dtype=torch.float64)
    n, m = w2.shape[:2]
    for a in range(w1.shape[0]):
        for b in range(w1.shape[1]):
            for c in range(n):
                for d in range(m):
                    found[a * n + c, b * m + d] = scale * w1[a, b] * w2[c, d]
    return found


@pytest.mark.parametrize("size", [(3, 3), (1, 1)])
def test_tucker_core_of_a_kronecker_product(size):
    weight, w1 = normal(6, 4, *size), normal(2, 2)
    core, left, right = normal(2, 3, *size, seed=30), normal(2, 3, seed=31), normal(3, 2, seed=32)
    w2 = torch.stack([left.mT @ core[:, :, x, y] @ right for x in range(size[0]) for y in range(size[1])], -1)
    tensors = {".lokr_w1": w1, ".lokr_t2": core, ".lokr_w2_a": left, ".lokr_w2_b": right} | alpha(6.0)
    wanted = weight + 0.5 * entries(w1, w2.view(3, 2, *size), weight.shape, 2.0)
    assert torch.allclose(a1111.effect(weight, tensors, 0.5, HERE), wanted, atol=1e-10)


def test_whole_kronecker_factors_go_together_for_kernels_of_two_dimensions_only():
    w1, flat = normal(2, 2), normal(6, 4, 3, 3)
    w2 = normal(3, 2, 3, 3, seed=33)
    found = comfyui.effect(flat, {".lokr_w1": w1, ".lokr_w2": w2}, 1.0, HERE)
    assert torch.allclose(found, flat + entries(w1, w2, flat.shape), atol=1e-10)
    thin, w2 = normal(6, 4, 3), normal(3, 2, 3, seed=34)
    # In one dimension it multiplies w1's rows with w2's channels, w1's columns with its kernel, and takes the numbers
    # one after the other.
    mixed = torch.zeros(3, 4, 6, dtype=torch.float64)
    for a in range(2):
        for b in range(2):
            mixed[:, 2 * a : 2 * a + 2, 3 * b : 3 * b + 3] = w1[a, b] * w2
    found = comfyui.effect(thin, {".lokr_w1": w1, ".lokr_w2": w2}, 1.0, HERE)
    assert torch.allclose(found, thin + mixed.reshape(thin.shape), atol=1e-10)
    assert not torch.allclose(found, thin + entries(w1, w2, thin.shape))
    right = lycoris.effect(thin, {".lokr_w1": w1, ".lokr_w2": w2} | alpha(1.0), 1.0, HERE)
    assert torch.allclose(right, thin + entries(w1, w2, thin.shape), atol=1e-10)
