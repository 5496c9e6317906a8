"""docs/strength.md: fresh, and each of its formulas is what the programs were measured to do (export.md section 2)."""

import pytest
import torch
from torch import nn

from modules.hosts import How, diffusers
from scripts import strength_table

LINEAR, SQUARED, IGNORED, PEFT, LYCORIS, ROWS, TWICE, STAGES, STAGES_TWICE = strength_table.RULES

EXPECTED = {
    ("comfyui", "LoRA"): LINEAR, ("comfyui", "LoRA with input magnitude"): LINEAR,
    ("comfyui", "LoRA with output magnitude"): LINEAR, ("comfyui", "GLoRA with output magnitude"): LINEAR,
    ("comfyui", "stored rotation"): SQUARED, ("comfyui", "stored butterfly with factors"): TWICE,
    ("comfyui", "full difference"): LINEAR, ("comfyui", "whole weight"): IGNORED,
    ("diffusers", "LoRA"): LINEAR, ("diffusers", "LoRA with output magnitude"): PEFT,
    ("diffusers", "LoRA with input magnitude"): None, ("diffusers", "full difference"): None,
    ("kohya", "stored rotation"): None, ("kohya", "LoRA with output magnitude"): None,
    ("a1111", "stored rotation"): LINEAR, ("a1111", "stored butterfly with factors"): LINEAR,
    ("forge", "stored rotation"): None, ("forge", "LoRA with output magnitude"): LINEAR,
    ("kohya", "LoRA with input magnitude"): LINEAR, ("kohya", "GLoRA"): None, ("sd_scripts", "GLoRA"): None,
    ("lycoris", "LoRA with output magnitude"): LYCORIS, ("lycoris", "stored rotation with factors"): ROWS,
    ("lycoris", "LoRA with input magnitude"): None, ("lycoris", "stored butterfly with factors"): None,
    ("comfyui", "stored butterfly of several stages"): STAGES_TWICE,
    ("lycoris", "stored butterfly of several stages"): STAGES, ("kohya", "stored butterfly of several stages"): None,
}


def test_the_page_is_fresh():
    text = strength_table.PAGE.read_text(encoding="utf-8")
    assert text == strength_table.page(), "run python scripts/strength_table.py"


@pytest.mark.parametrize("host, form", EXPECTED)
def test_formulas(host, form):
    found = strength_table.rule(host, form)
    assert (found and found[0]) == EXPECTED[host, form]


@pytest.mark.parametrize("host", strength_table.COLUMNS)
def test_every_form_has_a_formula_and_is_whole_at_strength_1(host):
    """`rule` raises where no formula of the page fits at all of its strengths."""
    for form in strength_table.samples():
        found = strength_table.rule(host, form)
        assert found is None or 0.1 < found[1] <= 1.0


def test_a_program_with_another_formula_is_noticed(monkeypatch):
    monkeypatch.setattr(diffusers, "effect", lambda W, tensors, strength, how: W + strength**3)
    with pytest.raises(ValueError, match="not in the list"):
        strength_table.rule("diffusers", "LoRA")


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 6), lambda: nn.Conv2d(4, 6, 3)], ids=["linear", "convolution"])
def test_peft_itself(make, magnitude, strength):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = make()
    W = base.weight.detach().clone()
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["0"], use_dora=magnitude)
    model = get_peft_model(nn.Sequential(base), config).base_model.model  # pyright: ignore
    layer = model[0]
    pair = layer.lora_A["default"], layer.lora_B["default"]
    with torch.no_grad():
        for part in pair:
            part.weight.normal_()
        tensors = {".lora_A.weight": pair[0].weight.clone(), ".lora_B.weight": pair[1].weight.clone()}
        if magnitude:
            vector = layer.lora_magnitude_vector["default"].weight
            vector.copy_(torch.rand_like(vector) + 0.5)
            tensors[".lora_magnitude_vector.weight"] = vector.clone()
        layer.scale_layer(strength)
        layer.merge()
    found = diffusers.effect(W, tensors, strength, How(magnitudes=magnitude))
    assert (layer.base_layer.weight - found).abs().max() <= 2e-6 * found.abs().max()
