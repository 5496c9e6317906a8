"""A1111, Forge and sd-scripts, for which kohya's files are, against dense formulas in float64.

What they compute was run with their own code: A1111 1.10.1 and 1.9.4, Forge of June 2025, sd-scripts of February 2026.
"""

import pytest
import torch
from torch import Tensor

from modules import hosts
from modules.hosts import How, Unread, a1111, comfyui, forge, kohya, sd_scripts
from tests.export.test_arithmetic_comfyui import (
    A1,
    A2,
    B1,
    B2,
    BLOCKS,
    COLUMNS,
    CONV,
    DOWN,
    GENERAL,
    HADA,
    HERE,
    PAIR,
    PRODUCT,
    ROWS,
    SQUARE,
    STRENGTHS,
    UP,
    W,
    alpha,
    cayley,
    columns,
    normal,
    rows,
)

OLDER = How(generation="1.9")
V = W + UP @ DOWN
RANK = alpha(2.0)
"""That of `PAIR`."""


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a1111(strength):
    R = torch.block_diag(*(cayley(block) for block in BLOCKS))
    cases = [
        (PAIR | alpha(3.0), W + 1.5 * UP @ DOWN),
        ({".oft_blocks": BLOCKS, ".rescale": ROWS}, ROWS * (R.mT @ W)),
        ({".oft_blocks": BLOCKS} | alpha(0.0), R.mT @ W),
        ({".oft_blocks": BLOCKS.unsqueeze(0), ".rescale": ROWS}, ROWS * (R @ W)),  # blocks of two keep their order
        (PAIR | {".dora_scale": COLUMNS}, V * COLUMNS / columns(V)),
        (PAIR | {".dora_scale": ROWS}, V * ROWS / columns(V)),  # with the norm of the inputs
        (PAIR | {".dora_scale": COLUMNS.flatten()}, V * COLUMNS / columns(V)),
        ({".a1.weight": A2, ".a2.weight": A1, ".b1.weight": B2, ".b2.weight": B1} | alpha(5.0),  # alpha does nothing
         W + W @ A1 @ A2 + B1 @ B2),
        (HADA | alpha(2.0), W + 2 / 3 * PRODUCT),
        ({".diff": normal(6, 8)}, W + normal(6, 8)),
        ({".w_norm": normal(6, 8), ".b_norm": normal(6)}, W + normal(6, 8)),
        (PAIR | {".diff": normal(6, 8)}, V),  # of several kinds the first
    ]
    for tensors, wanted in cases:
        found = a1111.effect(W, tensors, strength, HERE)
        assert torch.allclose(found, W + strength * (wanted - W), atol=1e-10)


def test_a1111_bounds_a_rotation_by_alpha_times_the_outputs():
    Q = BLOCKS - BLOCKS.mT
    factor = (0.01 * len(W) / Q.norm()).item()
    R = torch.block_diag(*(cayley(block, factor) for block in BLOCKS))
    assert torch.allclose(a1111.effect(W, {".oft_blocks": BLOCKS} | alpha(0.01), 1.0, HERE), R.mT @ W, atol=1e-7)


@pytest.mark.parametrize("tensors", [
    GENERAL | alpha(3.0), GENERAL, {".set_weight": W}, {}, {".oft_blocks": torch.zeros(2, 3, 2, 2)},
    PAIR | {".dora_scale": torch.ones(7)}, {".w_norm": W},
])
def test_a1111_skips(tensors):
    with pytest.raises(Unread):
        a1111.effect(W, tensors, 1.0, HERE)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_generations_of_a1111_agree_where_alpha_is_the_rank(strength):
    """1.9 multiplies by alpha / rank when the magnitude is applied already."""
    scaled = PAIR | {".dora_scale": COLUMNS}
    for tensors in (PAIR | alpha(1.0), scaled | RANK, scaled):
        new, old = (a1111.effect(W, tensors, strength, how) for how in (HERE, OLDER))
        assert torch.allclose(new, old)
    halved = a1111.effect(W, scaled | alpha(1.0), strength, OLDER)
    assert torch.allclose(halved, W + 0.5 * strength * (V * COLUMNS / columns(V) - W))
    assert list(a1111.others(HERE).values()) == [OLDER] and not a1111.others(OLDER)


def forge_like_comfyui() -> list[tuple[Tensor, dict[str, Tensor]]]:
    general = {".a1.weight": normal(6, 6), ".a2.weight": normal(6, 6), ".b1.weight": normal(6, 1),
               ".b2.weight": normal(1, 6)}
    return [
        (W, PAIR | alpha(3.0)), (W, PAIR | {".dora_scale": COLUMNS}), (W, PAIR | {".dora_scale": ROWS}), (W, HADA),
        (W, GENERAL), (SQUARE, general), (W, {".diff": normal(6, 8)}), (W, {".set_weight": W}),
        (CONV, {".lora_up.weight": normal(6, 2, 1, 1), ".lora_down.weight": normal(2, 4, 3, 3)}),
    ]


@pytest.mark.parametrize("number", range(len(forge_like_comfyui())))
def test_forge_is_comfyui_without_rotations_and_in_float32(number):
    weight, tensors = forge_like_comfyui()[number]
    rounded = How("adapted", dtype=torch.bfloat16)
    for strength in STRENGTHS:
        wanted = comfyui.effect(weight, tensors, strength, HERE)
        assert torch.equal(forge.effect(weight, tensors, strength, rounded), wanted)
    assert torch.equal(forge.effect(weight, {**tensors, ".oft_blocks": BLOCKS}, 1.0, HERE),
                       comfyui.effect(weight, tensors, 1.0, HERE))
    with pytest.raises(Unread, match="^Forge reads no update from stored rotations"):
        forge.effect(W, {".oft_blocks": BLOCKS} | alpha(0.0), 1.0, HERE)


def test_sd_scripts_reads_pairs_and_nothing_else():
    for extra in ({}, {".dora_scale": COLUMNS}, {".dora_scale": ROWS}, {".diff_b": normal(6)}):
        assert torch.allclose(sd_scripts.effect(W, PAIR | alpha(3.0) | extra, 0.5, HERE), W + 0.75 * UP @ DOWN)
    assert torch.allclose(sd_scripts.effect(W, PAIR, 1.0, HERE), V)
    for tensors in ({".diff": W}, HADA, GENERAL, {".oft_blocks": BLOCKS}, {}):
        with pytest.raises(Unread, match="low-rank pairs only"):
            sd_scripts.effect(W, tensors, 1.0, HERE)


def test_kohya_is_what_a1111_and_forge_compute_alike():
    inputs = PAIR | {".dora_scale": COLUMNS}
    for tensors in (PAIR | alpha(3.0), inputs | RANK, HADA, {".diff": W}):
        assert torch.equal(kohya.effect(W, tensors, 0.5, HERE), forge.effect(W, tensors, 0.5, HERE))
    outputs = PAIR | {".dora_scale": ROWS}
    for tensors, words in (
        (inputs | alpha(1.0), "Forge and A1111 1.9 compute different weights"),
        (outputs | RANK, "Forge and A1111 compute different weights"),
        (GENERAL | alpha(3.0), "A1111|do not match"), ({".oft_blocks": BLOCKS}, "Forge reads no update"),
    ):
        with pytest.raises(Unread, match=words):
            kohya.effect(W, tensors, 1.0, HERE)
    flux = How(family="flux")  # which A1111 does not have
    assert torch.allclose(kohya.effect(W, outputs, 1.0, flux), V * ROWS / rows(W))


def test_several_programs_are_no_program():
    assert "kohya" in hosts.names() and "kohya" not in hosts.programs()
    assert {"a1111", "forge", "sd_scripts"} <= set(hosts.programs()) - set(hosts.names())
    assert set(hosts.names()) - {"kohya"} <= set(hosts.programs())
    group = hosts.several("kohya")
    assert group is not None and [program.WORDS for program in group.apart()] == ["sd-scripts"]
    assert hosts.several("comfyui") is None


@pytest.mark.parametrize("family, names, lost", [
    ("sd15", ["lora_unet_conv_in", "lora_unet_conv_out", "lora_unet_time_embedding_linear_1",
              "lora_unet_down_blocks_0_resnets_0_conv1", "lora_te_text_model_encoder_layers_0_mlp_fc1"],
     {"sd-scripts": [0, 1, 2]}),
    ("sdxl", ["lora_unet_input_blocks_0_0", "lora_unet_out_2", "lora_unet_time_embed_0", "lora_unet_label_emb_0_0",
              "lora_te2_text_projection", "lora_unet_input_blocks_1_0_in_layers_2"],
     {"sd-scripts": [0, 1, 2, 3, 4], "A1111": [4]}),
    ("sdxl", [f"lora_te2_text_model_encoder_layers_{n}_self_attn_{part}_proj"
              for n, parts in enumerate((("q", "k", "v", "out"), ("q", "v"))) for part in parts], {"A1111": [4, 5]}),
    ("flux", ["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_img_in", "lora_unet_final_layer_linear"],
     {"A1111": [0, 1, 2], "sd-scripts": [2]}),
])
def test_names_that_a_program_finds_no_layer_for(family, names, lost):
    """Run: `all` layers of tiny models of each family, in the programs' own code."""
    found = {program: layers for program, _, layers in kohya.unfound(family, {name: name for name in names})}
    assert found == {program: [names[number] for number in numbers] for program, numbers in lost.items()}
