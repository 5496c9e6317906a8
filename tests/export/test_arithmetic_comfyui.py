"""ComfyUI's arithmetic and its special rules (export.md section 2), against dense formulas in float64."""

import pytest
import torch
from torch import Tensor

from modules.hosts import How, Unread, comfyui, diffusers, kohya

HERE, LATER = How("original"), How("adapted")
STRENGTHS = (0.0, 0.5, 1.0, -0.7)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W, SQUARE, CONV = normal(6, 8), normal(6, 6, seed=1), normal(6, 4, 3, 3, seed=2)
UP, DOWN = normal(6, 2, seed=3), normal(2, 8, seed=4)
PAIR = {".lora_up.weight": UP, ".lora_down.weight": DOWN}
HADA = {".hada_w1_a": normal(6, 3, seed=5), ".hada_w1_b": normal(3, 8, seed=6),
        ".hada_w2_a": normal(6, 3, seed=7), ".hada_w2_b": normal(3, 8, seed=8)}
PRODUCT = (HADA[".hada_w1_a"] @ HADA[".hada_w1_b"]) * (HADA[".hada_w2_a"] @ HADA[".hada_w2_b"])
A1, A2, B1, B2 = normal(8, 3, seed=9), normal(3, 8, seed=10), normal(6, 3, seed=11), normal(3, 8, seed=12)
GENERAL = {".a1.weight": A1, ".a2.weight": A2, ".b1.weight": B1, ".b2.weight": B2}
BLOCKS = 0.3 * normal(3, 2, 2, seed=13)
COLUMNS, ROWS = normal(1, 8, seed=14), normal(6, 1, seed=15)


def alpha(value: float) -> dict[str, Tensor]:
    return {".alpha": torch.tensor(value, dtype=torch.float64)}


def cayley(block: Tensor, factor: float = 1.0) -> Tensor:
    Q = factor * (block - block.mT)
    eye = torch.eye(len(Q), dtype=Q.dtype)
    return (eye + Q) @ torch.linalg.inv(eye - Q)


def rows(matrix: Tensor) -> Tensor:
    return matrix.square().sum(1, keepdim=True).sqrt()


def columns(matrix: Tensor) -> Tensor:
    return matrix.square().sum(0, keepdim=True).sqrt()


ADDED = {
    "pair": (PAIR, UP @ DOWN),
    "pair with alpha": (PAIR | alpha(3.0), 1.5 * UP @ DOWN),
    "pair, alpha of one dimension": (PAIR | {".alpha": torch.tensor([3.0])}, 1.5 * UP @ DOWN),
    "peft's names": ({".lora_B.weight": UP, ".lora_A.weight": DOWN}, UP @ DOWN),
    "hadamard": (HADA, PRODUCT),
    "hadamard with alpha": (HADA | alpha(2.0), 2 / 3 * PRODUCT),
    "kronecker, both whole: alpha ignored": (
        {".lokr_w1": normal(2, 4), ".lokr_w2": normal(3, 2)} | alpha(5.0), torch.kron(normal(2, 4), normal(3, 2))),
    "kronecker, first factored": (
        {".lokr_w1_a": normal(2, 3), ".lokr_w1_b": normal(3, 4), ".lokr_w2": normal(3, 2)} | alpha(6.0),
        2 * torch.kron(normal(2, 3) @ normal(3, 4), normal(3, 2))),
    "kronecker, both factored: over the rank of the second": (
        {".lokr_w1_a": normal(2, 3), ".lokr_w1_b": normal(3, 4), ".lokr_w2_a": normal(3, 2), ".lokr_w2_b": normal(2, 2)}
        | alpha(6.0), 3 * torch.kron(normal(2, 3) @ normal(3, 4), normal(3, 2) @ normal(2, 2))),
    "general": (GENERAL, W @ A1 @ A2 + B1 @ B2),
    "general with alpha": (GENERAL | alpha(6.0), 2 * (W @ A1 @ A2 + B1 @ B2)),
    "general, older layout": (
        {".a1.weight": A2, ".a2.weight": A1, ".b1.weight": B2, ".b2.weight": B1}, W @ A1 @ A2 + B1 @ B2),
    "difference": ({".diff": normal(6, 8)}, normal(6, 8)),
    "norm": ({".w_norm": normal(6, 8)}, normal(6, 8)),
}


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("case", ADDED)
def test_what_is_added_is_added_times_the_strength(case, strength):
    tensors, change = ADDED[case]
    found = comfyui.effect(W, tensors, strength, HERE)
    assert torch.allclose(found, W + strength * change, atol=1e-12)


def test_general_of_square_layers_is_the_older_layout_where_the_ranks_allow_both():
    a1, a2, b1, b2 = (normal(6, 6, seed=seed) for seed in range(4))
    tensors = {".a1.weight": a1, ".a2.weight": a2, ".b1.weight": b1, ".b2.weight": b2}
    assert torch.allclose(comfyui.effect(SQUARE, tensors, 1.0, HERE), SQUARE + SQUARE @ a2 @ a1 + b2 @ b1)
    # One column and one row of b fit the older layout only, whose product of them is a single number.
    single = tensors | {".b1.weight": normal(6, 1), ".b2.weight": normal(1, 6)}
    added = (normal(1, 6) @ normal(6, 1)).item()
    assert torch.allclose(comfyui.effect(SQUARE, single, 1.0, HERE), SQUARE + SQUARE @ a2 @ a1 + added)


def test_convolutions():
    up, down, core = normal(6, 2, 1, 1), normal(2, 4, 3, 3), normal(2, 3, 3, 3)
    product = (up.flatten(1) @ down.flatten(1)).view_as(CONV)
    found = comfyui.effect(CONV, {".lora_up.weight": up, ".lora_down.weight": down}, 0.5, HERE)
    assert torch.allclose(found, CONV + 0.5 * product)
    thin = normal(3, 4, 1, 1)
    tucker = {".lora_up.weight": up, ".lora_mid.weight": core, ".lora_down.weight": thin} | alpha(1.0)
    each = torch.stack([up[:, :, 0, 0] @ core[:, :, x, y] @ thin[:, :, 0, 0] for x in range(3) for y in range(3)], -1)
    assert torch.allclose(comfyui.effect(CONV, tucker, 1.0, HERE), CONV + each.view_as(CONV) / 3)
    a1, a2 = normal(4, 4, 1, 1), normal(4, 4, 1, 1, seed=1)
    general = {".a1.weight": a1, ".a2.weight": a2, ".b1.weight": torch.zeros(6, 1, 1, 1),
               ".b2.weight": torch.zeros(1, 4, 3, 3)}
    turned = torch.einsum("oixy,ij->ojxy", CONV, a1[..., 0, 0] @ a2[..., 0, 0])
    assert torch.allclose(comfyui.effect(CONV, general, 1.0, HERE), CONV + turned)


def test_general_of_a_square_convolution_is_lost_unless_its_kernel_is_flat():
    """ComfyUI compares the shapes before it flattens them: run with its own code, 0.28.0 and 0.12.1."""
    square, a1, a2 = normal(4, 4, 3, 3), normal(4, 4, 1, 1), normal(4, 4, 1, 1, seed=1)
    general = {".a1.weight": a1, ".a2.weight": a2, ".b1.weight": normal(4, 1, 1, 1), ".b2.weight": normal(1, 4, 3, 3)}
    with pytest.raises(Unread, match="do not match"):
        comfyui.effect(square, general, 1.0, HERE)
    flat = general | {".b2.weight": general[".b2.weight"].flatten(1)}
    turned = torch.einsum("oixy,ij->ojxy", square, a1[..., 0, 0] @ a2[..., 0, 0])
    added = torch.einsum("or,rixy->oixy", general[".b1.weight"][..., 0, 0], general[".b2.weight"])
    assert torch.allclose(comfyui.effect(square, flat, 1.0, HERE), square + turned + added)


def test_a_whole_weight_ignores_the_strength():
    for strength in STRENGTHS:
        assert torch.equal(comfyui.effect(W, {".set_weight": 2 * W}, strength, HERE), 2 * W)


def test_the_last_kind_wins():
    """Order: lora, loha, lokr, glora, oft or boft, norm, difference, whole weight; the last that is there."""
    order = [PAIR, HADA, {".lokr_w1": normal(2, 4), ".lokr_w2": normal(3, 2)}, GENERAL, {".oft_blocks": BLOCKS},
             {".w_norm": normal(6, 8)}, {".diff": normal(6, 8, seed=1)}, {".set_weight": normal(6, 8, seed=2)}]
    for number in range(len(order)):
        everything = {suffix: tensor for kind in order[:number + 1] for suffix, tensor in kind.items()}
        alone = comfyui.effect(W, order[number], 1.0, HERE)
        assert torch.equal(comfyui.effect(W, everything, 1.0, HERE), alone)


# -- rotations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("clip", [None, 0.0, 0.1, 100.0])
def test_plain_rotation_squares_the_strength_and_ignores_rescale(strength, clip):
    total = (BLOCKS - BLOCKS.mT).norm().item()
    factor = clip / total if clip and clip < total else 1.0
    R = torch.block_diag(*(cayley(block, factor) for block in BLOCKS))
    tensors = {".oft_blocks": BLOCKS, ".rescale": ROWS} | ({} if clip is None else alpha(clip))
    found = comfyui.effect(W, tensors, strength, HERE)
    assert torch.allclose(found, W + strength**2 * (R.mT @ W - W), atol=1e-7)


def order_of(rows: int, block: int, factor: int) -> list[int]:
    """Which row stands where before a butterfly's factor: the halves of each span one by one between each other."""
    half = 2**factor * block // 2
    return [span + half * side + step for span in range(0, rows, 2 * half) for step in range(half) for side in (0, 1)]


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("shape, factors", [((8, 5), 1), ((8, 5), 2), ((16, 3, 3, 3), 3)])
def test_butterfly_blends_each_factor_and_then_all(strength, shape, factors):
    weight, scale = normal(*shape), normal(shape[0], *[1] * (len(shape) - 1), seed=7)
    blocks = 0.3 * normal(factors, shape[0] // 4, 4, 4, seed=6)
    eye = torch.eye(4, dtype=torch.float64)
    turned = weight.flatten(1)
    for number, factor in enumerate(blocks):
        P = torch.eye(shape[0], dtype=torch.float64)[order_of(shape[0], 4, number)]
        blend = torch.block_diag(*(strength * cayley(block) + (1 - strength) * eye for block in factor))
        turned = P.mT @ blend @ P @ turned
    wanted = weight + strength * (scale * turned.view(shape) - weight)
    tensors = {".oft_blocks": blocks, ".rescale": scale} | alpha(0.0)
    assert torch.allclose(comfyui.effect(weight, tensors, strength, HERE), wanted, atol=1e-7)


def test_no_factors_and_rescale_scale_the_rows():
    tensors = {".oft_blocks": torch.zeros(0, 3, 2, 2), ".rescale": ROWS} | alpha(0.0)
    assert torch.allclose(comfyui.effect(W, tensors, 1.0, HERE), W * ROWS)


SKIPPED = {
    "butterfly without alpha": ({".oft_blocks": torch.zeros(1, 3, 2, 2)}, "without alpha"),
    "odd butterfly blocks": ({".oft_blocks": torch.zeros(1, 2, 3, 3)} | alpha(0.0), "only even"),
    "blocks of other rows": ({".oft_blocks": torch.zeros(3, 4, 4)}, "do not fill"),
    "rescale of one dimension": (
        {".oft_blocks": torch.zeros(1, 3, 2, 2), ".rescale": torch.ones(6)} | alpha(0.0), "rescale of the shape"),
    "magnitude of one dimension": (PAIR | {".dora_scale": torch.ones(6)}, "does not fit"),
    "magnitude that is one number": (PAIR | {".dora_scale": torch.tensor(1.0)}, "a single value"),
    "Tucker core": (
        {".lokr_w1": normal(2, 2), ".lokr_t2": normal(2, 2, 3, 3), ".lokr_w2_a": normal(2, 3),
         ".lokr_w2_b": normal(2, 2)},
        "leaves the layer unchanged"),
    "Tucker core of one dimension": (
        {".lokr_w1": normal(2, 2), ".lokr_t2": normal(2, 2, 3), ".lokr_w2_a": normal(2, 3), ".lokr_w2_b": normal(2, 2)},
        "aborts sampling"),
    "difference of another shape": ({".diff": normal(8, 6)}, "shape"),
    "whole weight of another shape": ({".set_weight": normal(8, 6)}, "shape"),
    "half a pair": ({".lora_up.weight": UP}, "lora_down.weight missing"),
    "pair of another shape": ({".lora_up.weight": normal(7, 2), ".lora_down.weight": DOWN}, "shape"),
    "peft's magnitude alone": ({".lora_magnitude_vector.weight": torch.ones(6)}, "reads no update"),
    "nothing": ({}, "reads no update from nothing"),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_what_it_skips_is_said(case):
    tensors, words = SKIPPED[case]
    with pytest.raises(Unread, match=words):
        comfyui.effect(W, tensors, 1.0, HERE)


# -- magnitudes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("kind", [PAIR, HADA, GENERAL, {".lokr_w1": normal(2, 4), ".lokr_w2": normal(3, 2)}])
def test_magnitudes_are_linear_in_the_strength(kind, strength):
    V = comfyui.effect(W, kind, 1.0, HERE)
    for scale, how, wanted in (
        (COLUMNS, HERE, V * COLUMNS / columns(V)), (COLUMNS, LATER, V * COLUMNS / columns(V)),
        (ROWS, HERE, V * ROWS / rows(W)), (ROWS, LATER, V * ROWS / rows(V)),
    ):
        found = comfyui.effect(W, kind | {".dora_scale": scale}, strength, how)
        assert torch.allclose(found, W + strength * (wanted - W), atol=1e-10)


def test_magnitude_of_a_rotation_takes_alpha_for_the_scale():
    """Without alpha, or with 0, nothing of the rotation is left; with 1 and small blocks it is right."""
    small = 0.1 * BLOCKS
    R = torch.block_diag(*(cayley(block) for block in small))
    for given, V in (({}, W), (alpha(0.0), W), (alpha(1.0), R.mT @ W)):
        found = comfyui.effect(W, {".oft_blocks": small, ".dora_scale": ROWS} | given, 1.0, HERE)
        assert torch.allclose(found, V * ROWS / rows(W), atol=1e-7)


def test_one_output_takes_an_input_magnitude_for_an_output_magnitude():
    single, up = W[:1], UP[:1]
    V = single + up @ DOWN
    tensors = {".lora_up.weight": up, ".lora_down.weight": DOWN, ".dora_scale": COLUMNS}
    found = comfyui.effect(single, tensors, 1.0, HERE)
    assert torch.allclose(found, V * COLUMNS / rows(single))
    assert not torch.allclose(found, V * COLUMNS / columns(V))


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("how", [HERE, LATER], ids=["here", "later"])
def test_magnitude_of_one_dimension_goes_along_the_inputs(how, strength):
    """Per output, on a square layer: each column j by m[j], each row by its own length. Per input it is right."""
    up, down = normal(6, 2, seed=20), normal(2, 6, seed=21)
    pair, m = {".lora_up.weight": up, ".lora_down.weight": down}, normal(6, seed=22).abs()
    V = SQUARE + up @ down
    length = rows(SQUARE if how == HERE else V)
    wanted = torch.stack([V[:, j] * m[j] / length[:, 0] for j in range(6)], 1)
    found = comfyui.effect(SQUARE, pair | {".dora_scale": m}, strength, how)
    assert torch.allclose(found, SQUARE + strength * (wanted - SQUARE), atol=1e-10)
    V, m = W + UP @ DOWN, normal(8, seed=23).abs()
    found = comfyui.effect(W, PAIR | {".dora_scale": m}, strength, how)
    assert torch.allclose(found, W + strength * (V * m / columns(V) - W), atol=1e-10)


@pytest.mark.parametrize("how", [HERE, LATER], ids=["here", "later"])
def test_magnitude_of_one_dimension_with_one_output(how):
    """As many numbers as inputs are the inputs'; a single one is the output's."""
    single, pair = W[:1], {".lora_up.weight": UP[:1], ".lora_down.weight": DOWN}
    V, m = single + UP[:1] @ DOWN, normal(8, seed=24).abs()
    found = comfyui.effect(single, pair | {".dora_scale": m}, 1.0, how)
    assert torch.allclose(found, V * m / V.abs(), atol=1e-10)
    length = rows(single if how == HERE else V)
    found = comfyui.effect(single, pair | {".dora_scale": m[:1]}, 1.0, how)
    assert torch.allclose(found, V * m[0] / length, atol=1e-10)


def test_magnitude_of_one_dimension_on_convolutions_goes_along_the_kernel():
    kernel = normal(3, 3, 3, 3, seed=25)
    pair, m = {".lora_up.weight": normal(3, 2, 1, 1), ".lora_down.weight": normal(2, 3, 3, 3)}, normal(3, seed=26).abs()
    V = kernel + (normal(3, 2) @ normal(2, 3, 3, 3).flatten(1)).view_as(kernel)
    wanted = torch.stack([V[o] * m / kernel[o].square().sum().sqrt() for o in range(3)])
    assert torch.allclose(comfyui.effect(kernel, pair | {".dora_scale": m}, 1.0, HERE), wanted, atol=1e-10)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_rescale_of_one_dimension_goes_along_the_inputs(strength):
    square, scale, block = normal(4, 4, seed=27), normal(4, seed=28), 0.3 * normal(4, 4, seed=29)
    order = order_of(4, 4, 0)
    P, eye = torch.eye(4, dtype=torch.float64)[order], torch.eye(4, dtype=torch.float64)
    turned = P.mT @ (strength * cayley(block) + (1 - strength) * eye) @ P @ square
    wanted = square + strength * (turned @ torch.diag(scale) - square)
    tensors = {".oft_blocks": block.view(1, 1, 4, 4), ".rescale": scale} | alpha(0.0)
    assert torch.allclose(comfyui.effect(square, tensors, strength, HERE), wanted, atol=1e-7)


def test_differences_ignore_magnitudes():
    tensors = {".diff": normal(6, 8), ".dora_scale": ROWS}
    assert torch.allclose(comfyui.effect(W, tensors, 1.0, HERE), W + normal(6, 8))


def test_bias():
    b = normal(6)
    assert torch.equal(comfyui.bias_change(PAIR | {".diff_b": b}, 0.5), 0.5 * b)  # pyright: ignore
    assert comfyui.bias_change(PAIR | {".b_norm": b}, 0.5) is None
    assert torch.equal(comfyui.bias_change({".w_norm": b, ".b_norm": b}, 0.5), 0.5 * b)  # pyright: ignore
    assert torch.equal(comfyui.effect(W, {".diff_b": b}, 1.0, HERE), W)
    assert kohya.bias_change(PAIR | {".diff_b": b}, 1.0) is None and diffusers.bias_change(PAIR, 1.0) is None


# -- 16 bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_path_computes_everything_in_it(dtype):
    low, how = W.float().to(dtype), How(dtype=dtype)
    single = W.float()
    tensors = {suffix: tensor.float() for suffix, tensor in (PAIR | alpha(3.0)).items()}
    wanted = low + (1.5 * (UP.float().to(dtype) @ DOWN.float().to(dtype)))
    found = comfyui.effect(single, tensors, 1.0, how)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted.float())
    # The number added to the norm is the dtype's own, so that even an idle magnitude shrinks the weight.
    idle = {suffix: 0 * tensor for suffix, tensor in tensors.items()} | {".dora_scale": columns(single)}
    shrunk = comfyui.effect(single, idle, 1.0, how) / low.float()
    eps = torch.finfo(dtype).eps
    assert torch.allclose(shrunk.mean(), (1 - eps / columns(single)).mean(), atol=0.3 * eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_path_scales_rows_without_factors(dtype):
    """There is no rotation to fail on."""
    tensors = {".oft_blocks": torch.zeros(0, 3, 2, 2), ".rescale": ROWS.float()} | alpha(0.0)
    wanted = W.float().to(dtype) * ROWS.float().to(dtype)
    found = comfyui.effect(W.float(), tensors, 1.0, How(dtype=dtype))
    assert (found - wanted.float()).abs().max() <= torch.finfo(dtype).eps * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_path_skips_rotations(dtype):
    for blocks in (BLOCKS, BLOCKS.unsqueeze(0)):
        with pytest.raises(Unread, match="16 bits"):
            comfyui.effect(W, {".oft_blocks": blocks} | alpha(0.0), 1.0, How(dtype=dtype))


# -- A1111 and peft ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", STRENGTHS)
def test_peft_scales_the_pair_and_not_the_magnitude(strength):
    pair = {".lora_B.weight": UP, ".lora_A.weight": DOWN}
    V = W + strength * UP @ DOWN
    assert torch.allclose(diffusers.effect(W, pair, strength, HERE), V)
    many = How(magnitudes=True)
    assert torch.allclose(diffusers.effect(W, pair, strength, many), V * rows(W) / rows(V))
    given = pair | {".lora_magnitude_vector.weight": ROWS.flatten()}
    assert torch.allclose(diffusers.effect(W, given, strength, many), V * ROWS / rows(V))
    for wrong in (pair | alpha(1.0), HADA, PAIR, {**given, ".lora_magnitude_vector.weight": torch.ones(8)}):
        with pytest.raises(Unread):
            diffusers.effect(W, wrong, strength, many)
