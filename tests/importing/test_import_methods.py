"""Methods that Gimbal has, from each trainer: rank, alpha, factor, block size and what they mean there."""

import copy
import math
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from modules import adapters, families
from modules.adapters import layers
from modules.importing import import_file
from modules.preset.schema import Base, Preset
from modules.training.layer_options import own_settings
from modules.training.setup import layer_names, match_layers
from tests import tiny_flux, tiny_sd15, tiny_sdxl
from tests.importing.test_import_aitoolkit import job
from tests.importing.test_import_kohya import FLUX, GUI, toml
from tests.importing.test_import_onetrainer import SDXL

WHOLE = 8192
"""The rank that says: a full matrix in every layer."""


# -- products ---------------------------------------------------------------------------------------------------------


def onetrainer(**changes):
    return {**SDXL, "lora_rank": 48, "lora_alpha": 24, **changes}


def window(kind, **changes):
    return {**GUI, "LoRA_type": kind, "network_dim": 32, "network_alpha": 16, "conv_dim": 8, "conv_alpha": 4, **changes}


TABLE = {
    "OneTrainer loha": (onetrainer(peft_type="LOHA"), {"method": "loha", "rank": 48, "alpha": 24}),
    "OneTrainer lokr": (
        onetrainer(peft_type="LOKR", lokr_dim=12, lokr_decompose_factor=6),
        {"method": "lokr", "rank": 12, "alpha": 24, "factor": 6},
    ),
    "OneTrainer lokr whole": (
        onetrainer(peft_type="LOKR", lokr_full_matrix=True),
        {"method": "lokr", "rank": WHOLE, "alpha": None, "factor": None},
    ),
    "kohya_ss loha": (window("LyCORIS/LoHa"), {"method": "loha", "rank": 32, "alpha": 16}),
    "kohya_ss lokr": (window("LyCORIS/LoKr"), {"method": "lokr", "rank": 32, "alpha": 16, "factor": None}),
    "kohya_ss lokr whole": (
        window("LyCORIS/LoKr", network_dim=100_000, conv_dim=100_000, factor=6, decompose_both=True),
        {"method": "lokr", "rank": WHOLE, "alpha": None, "factor": 6},
    ),
    "kohya_ss native": (window("Kohya LoKr", factor=4), {"method": "lokr", "rank": 32, "alpha": 16, "factor": 4}),
    "kohya_ss boft": (window("LyCORIS/BOFT"), {"method": "boft", "block_size": 32}),
}


@pytest.mark.parametrize("name", TABLE)
def test_methods_and_their_numbers(imported, accounted, name):
    values, wanted = TABLE[name]
    result = imported(values)
    adapter = result.preset.adapter
    assert {key: getattr(adapter, key) for key in wanted} == wanted
    assert adapter.step_size == "raw", "the learning rate means what it meant there"
    accounted(result.found, values)


@pytest.mark.parametrize("args, wanted", [
    ('"algo=loha"', {"method": "loha", "rank": 8, "alpha": None}),
    ('"algo=lokr", "factor=4", "decompose_both=True"', {"method": "lokr", "rank": 8, "factor": 4}),
    ('"algo=lokr", "full_matrix=True"', {"method": "lokr", "rank": WHOLE, "factor": None}),
    ('"algo=boft"', {"method": "boft", "block_size": 8}),
])
def test_lycoris_in_toml(imported, args, wanted):
    adapter = imported(toml("lycoris.kohya", args), "toml").preset.adapter
    assert {key: getattr(adapter, key) for key in wanted} == wanted and adapter.step_size == "raw"


@pytest.mark.parametrize("network, rank, factor", [
    ({}, WHOLE, None),
    ({"lokr_factor": 8}, WHOLE, 8),
    ({"lokr_full_rank": False, "lokr_factor": 4}, 16, 4),
])
def test_lokr_of_ai_toolkit(imported, network, rank, factor):
    adapter = imported(job(network={"type": "lokr", **network})).preset.adapter
    assert (adapter.method, adapter.rank, adapter.factor, adapter.alpha) == ("lokr", rank, factor, None)


def test_convolutions_of_products_have_their_own_rank(imported, of):
    result = imported(window("LyCORIS/LoHa"))
    assert {rule.rank for rule in result.preset.targets.rules} == {8}
    assert of(result.found, "conv_dim").part == "mapped"
    assert "without effect" in of(imported(window("Standard")).found, "conv_dim").sentence
    whole = imported(window("LyCORIS/LoKr", network_dim=100_000, conv_dim=100_000))
    assert not whole.preset.targets.rules


def test_a_small_factor_that_is_whole_there_too(imported, of):
    same = imported(toml("lycoris.kohya", '"algo=lokr", "factor=6", "decompose_both=True"'), "toml")
    assert of(same.found, "network_args.decompose_both").part == "mapped"
    other = imported(toml("lycoris.kohya", '"algo=lokr", "factor=-1", "decompose_both=True"'), "toml")
    assert of(other.found, "network_args.decompose_both").part == "changed"


def test_wished_methods_keep_rank_and_alpha(imported):
    adapter = imported(onetrainer(peft_type="LOHA"), method="dora").preset.adapter
    assert (adapter.method, adapter.rank, adapter.alpha) == ("dora", 48, 24)
    assert imported(onetrainer(), method="loha").preset.adapter.rank == 48


# -- rotations --------------------------------------------------------------------------------------------------------


def lycoris_step(weight, size, rate):
    """The weight after one step of Adam's first (signs) of LyCORIS' blocks `Q = B - B^T`, `R = (I + Q) (I - Q)^-1`, on
    the output, against a random gradient."""
    blocks = weight.shape[0] // size
    B = torch.zeros(blocks, size, size, dtype=weight.dtype, requires_grad=True)
    target = torch.randn_like(weight)

    def adapted():
        Q, eye = B - B.mT, torch.eye(size, dtype=weight.dtype)
        R = (eye + Q) @ torch.linalg.inv(eye - Q)
        return torch.einsum("knm,kni->kmi", R, weight.view(blocks, size, -1)).reshape(weight.shape)

    ((adapted() * target).sum()).backward()
    with torch.no_grad():
        B -= rate * B.grad.sign()
        return (adapted() - weight).norm() / weight.norm()


@pytest.mark.parametrize("size", [8, 16])
def test_a_step_of_lycoris_rotation_is_as_large_here(imported, size):
    """LyCORIS' arithmetic written anew: our rate, the relative change of a calibrated step, is its own."""
    torch.manual_seed(0)
    found = lycoris_step(torch.randn(64, 64, dtype=torch.float64), size, 1e-5)
    text = toml("lycoris.kohya", '"algo=diag-oft"').replace("network_dim = 8", f"network_dim = {size}")
    rate = imported(text.replace("learning_rate = 1e-4", "learning_rate = 1e-5"), "toml").preset.training.learning_rate
    assert math.isclose(rate, float(found), rel_tol=0.1), "the gradient is no random one, so up to a few percent"


OFT = {**SDXL, "peft_type": "OFT_2", "layer_filter": "", "layer_filter_preset": "full"}


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("decomposed", [True, False])
def test_rotations_of_onetrainer_are_its_own(imported, of, scaled, decomposed):
    """What tests/hosts/test_onetrainer_rotations.py continues with: its divisors, axes, map and steps."""
    result = imported({**OFT, "dora_oft": decomposed, "oft_scaled": scaled, "oft_block_share": True})
    adapter, rate = result.preset.adapter, result.preset.training.learning_rate
    assert adapter.method == ("doft" if decomposed else "oft")
    assert adapter.step_size == ("calibrated" if scaled else "raw")
    wanted = {"block_size": 32, "divisor": "nearest", "conv": "kernel", "share": True, "map": "neumann_5"}
    assert adapter.rotation.model_dump() == {"kind": "blocks", **wanted}
    shared = scaled and decomposed  # a rotation and magnitudes, each at the whole rate there
    assert math.isclose(rate, SDXL["learning_rate"] * (math.sqrt(2) if shared else 1), rel_tol=1e-3)
    assert of(result.found, "peft_type").part == "mapped" and of(result.found, "oft_block_size").part == "mapped"
    if shared:
        assert "root of 2" in of(result.found, "dora_oft").sentence


def test_magnitudes_of_a_lora_are_none_of_a_rotation(imported, of):
    """OneTrainer reads `lora_decompose` with LORA alone, and `dora_oft` with OFT_2 alone."""
    result = imported({**OFT, "lora_decompose": True})
    assert result.preset.adapter.method == "oft" and of(result.found, "lora_decompose").part == "dropped"
    result = imported({**SDXL, "dora_oft": True})
    assert result.preset.adapter.method == "lora" and of(result.found, "dora_oft").part == "dropped"


def test_kernels_of_no_convolution_are_not_said(imported):
    preset = imported({**SDXL, "peft_type": "OFT_2"}).preset
    assert preset.targets.layers == "attention-mlp" and preset.adapter.rotation.conv == "channels"


def test_shared_steps_are_those_of_two(imported):
    """DOFT's first step of signs moves rotation and magnitudes each by the learning rate, once it is multiplied."""
    preset = imported({**SDXL, "peft_type": "OFT_2", "dora_oft": True, "oft_scaled": True}).preset
    layer = layers.as_layer(torch.nn.Linear(64, 64, bias=False), "x")
    adapter = adapters.methods()["doft"].Adapter(preset.adapter, layer)
    weight = layer.dense()
    with torch.no_grad():
        adapter.magnitude += preset.training.learning_rate
    moved = (adapter.weight(weight).detach() - weight).norm() / weight.norm()
    assert math.isclose(float(moved), SDXL["learning_rate"], rel_tol=1e-3)


# -- files to begin with ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values, ending, key", [
    ({**SDXL, "lora_model_name": "/old/one.safetensors"}, "json", "lora_model_name"),
    ({**GUI, "lora_network_weights": "/old/one.safetensors"}, "json", "lora_network_weights"),
    (toml().replace("seed = 42", 'network_weights = "/old/one.safetensors"'), "toml", "network_weights"),
    (job(network={"pretrained_lora_path": "/old/one.safetensors"}), "yaml", "network.pretrained_lora_path"),
])
def test_a_file_to_begin_with(imported, of, values, ending, key):
    result = imported(values, ending)
    assert result.preset.adapter.start_from == "/old/one.safetensors" and of(result.found, key).part == "mapped"


# -- words of the window ----------------------------------------------------------------------------------------------


def test_additional_parameters_are_read(imported, accounted, of):
    words = '--network_train_unet_only --max_grad_norm=0 --optimizer_args "weight_decay=0.3" "betas=0.8,0.9"'
    values = {**GUI, "text_encoder_lr": 5e-5, "max_grad_norm": 1, "additional_parameters": words}
    result = imported(values)
    preset = result.preset
    assert not preset.targets.text_encoders and preset.training.max_grad_norm == 0
    assert (preset.optimizer.weight_decay, preset.optimizer.beta1, preset.optimizer.beta2) == (0.3, 0.8, 0.9)
    for key in ("max_grad_norm", "optimizer_args.weight_decay"):
        assert "replaces it" in of(result.found, key).sentence
    assert of(result.found, "additional_parameters --network_train_unet_only").part == "mapped"
    assert imported({**GUI, "text_encoder_lr": 5e-5}).preset.targets.text_encoders


def test_additional_parameters_that_are_none(imported):
    with pytest.raises(ValueError, match="'network_train_unet_only' is no argument.*additional_parameters"):
        imported({**GUI, "additional_parameters": "network_train_unet_only"})


# -- only these blocks ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A skeleton of the family with two kinds of blocks."""
    folder = tmp_path_factory.mktemp("flux")
    return families.read("flux", Base(path=str(tiny_flux.make_folder(folder / "flux"))))[0]


def chosen(model, path):
    """Names of the layers that the preset of a file adapts."""
    names, problems = match_layers(model, Preset.model_validate(import_file(path).values).targets)
    assert not problems
    return set(names)


@pytest.mark.parametrize("args, kept", [
    ("train_single_block_indices=1", ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.1"]),
    ("train_blocks=single", ["single_transformer_blocks.0", "single_transformer_blocks.1"]),
    ("train_double_block_indices=none train_single_block_indices=0-0", ["single_transformer_blocks.0"]),
    ("train_double_block_indices=1 train_single_block_indices=none", ["transformer_blocks.1"]),
])  # fmt: skip
def test_blocks_of_flux(flux, tmp_path, args, kept):
    path = tmp_path / "command.txt"
    path.write_text(FLUX.format(more=f"--network_train_unet_only --network_args {args}"))
    wanted = {name for name in layer_names(flux) if any(f"transformer.{one}." in name for one in kept)}
    assert chosen(flux, path) == wanted and wanted


def test_blocks_that_are_not_there(imported):
    with pytest.raises(ValueError, match="train_single_block_indices: '38' is not a list of blocks"):
        imported(FLUX.format(more="--network_args train_single_block_indices=38"), "txt")


@pytest.mark.parametrize("more, wanted", [
    ("", "transformer.transformer_blocks.*.attn.*"), ("--network_args enable_all_linear=False", "all"),
])  # fmt: skip
def test_layers_of_kohyas_rotations(flux, tmp_path, imported, more, wanted):
    """Any value of its switch turns it on; text encoders have no rotations."""
    text = FLUX.format(more=more).replace("networks.lora_flux", "networks.oft_flux")
    targets = imported(text, "txt").preset.targets
    assert targets.layers == wanted and not targets.text_encoders
    path = tmp_path / "command.txt"
    path.write_text(text)
    names = chosen(flux, path)
    inside = [name for name in layer_names(flux) if ".transformer_blocks" in name and ".attn." in name]
    assert set(inside) <= names and (not wanted.startswith("transformer") or set(inside) == names)


@pytest.mark.parametrize("word", ["single_transformer_blocks.1.proj_out", "transformer.transformer_blocks.0.", "attn",
                                  "proj_out"])  # fmt: skip
def test_layers_that_contain_a_word(flux, tmp_path, word):
    import yaml

    values = copy.deepcopy(job(network={"network_kwargs": {"only_if_contains": [word]}}))
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    wanted = {name for name in layer_names(flux)
              if word in name and "transformer_blocks" in name and name.startswith("transformer.")}
    assert chosen(flux, path) == wanted and wanted


def test_a_filter_of_onetrainer(flux, tmp_path):
    import json

    path = tmp_path / "settings.json"
    frozen = {"text_encoder": {"train": False}, "text_encoder_2": {"train": False}}
    values = {"training_method": "LORA", "model_type": "FLUX_DEV_1", **frozen, "layer_filter_preset": "custom"}
    path.write_text(json.dumps({**values, "layer_filter": "transformer_blocks.0.attn, single_transformer_blocks.1"}))
    wanted = {name for name in layer_names(flux) if name.startswith("transformer.")
              and ("transformer_blocks.0.attn" in name or "single_transformer_blocks.1" in name)}
    assert chosen(flux, path) == wanted and wanted


# -- blocks of a UNet -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unets(tmp_path_factory):
    """Skeletons of two families with other blocks."""
    folder = tmp_path_factory.mktemp("unets")
    tinies = {"sd15": tiny_sd15, "sdxl": tiny_sdxl}
    return {name: families.read(name, Base(path=str(tiny.make_folder(folder / name))))[0]
            for name, tiny in tinies.items()}


def block_of(name, family):
    """The number of a layer's block, by the naming of the original networks (sd-scripts' get_block_index)."""
    way, i, part, j = re.match(r"unet\.(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)", name).groups()
    ways, middles = (12, 1) if family == "sd15" else (9, 3)
    if way is None:
        return ways + (0 if middles == 1 else {"resnets0": 0, "attentions0": 1, "resnets1": 2}[f"{part}{j}"])
    n = 3 * int(i) + (2 if "samplers" in part else int(j))
    return 1 + n if way == "down" else ways + middles + n


@pytest.mark.parametrize("family, script", [("sd15", "train_network.py"), ("sdxl", "sdxl_train_network.py")])
@pytest.mark.parametrize("conv", ["", "conv_dim=4"])
def test_weights_of_blocks(unets, tmp_path, family, script, conv):
    """Those with 0 are not trained, and the others have their rates, for each layer of the network."""
    model, rng = unets[family], Random(3)
    ways, middles = (12, 1) if family == "sd15" else (9, 3)
    weights = [rng.choice([0.0, 0.5, 1.0]) for _ in range(2 * ways + middles)]
    parts = {"down": weights[:ways], "mid": weights[ways : ways + middles], "up": weights[ways + middles :]}
    words = [f"{name}_lr_weight={','.join(map(str, part))}" for name, part in parts.items()]
    plain = tmp_path / "plain.txt"
    plain.write_text(f"{script} --network_module networks.lora --network_dim 4 --network_train_unet_only "
                     f"--learning_rate 1e-4 {f'--network_args {conv}' if conv else ''}")
    path = tmp_path / "command.txt"
    path.write_text(f"{plain.read_text().partition(' --network_args')[0]} --network_args {conv} {' '.join(words)}")
    every = chosen_of(model, plain)
    targets = Preset.model_validate(import_file(path).values).targets
    problems = match_layers(model, targets)[1]
    there = {block_of(name, family) for name in every}
    wanted = {name: weights[block_of(name, family)] for name in every}
    found = own_settings(model, targets, match_layers(model, targets)[0])
    assert {name: one.lr_scale for name, one in found.items()} == {k: v for k, v in wanted.items() if v}
    missing = [one for one in problems if "matches no layer" in one]
    assert len(there) < 2 * ways + middles or not missing


def chosen_of(model, path):
    """Names of the layers that the preset of a file adapts."""
    return match_layers(model, Preset.model_validate(import_file(path).values).targets)[0]


def test_ranks_of_blocks(imported, of):
    dims = ",".join(["4"] * 12 + ["0"] + ["8"] * 12)
    text = ("train_network.py --network_module networks.lora --network_dim 8 --learning_rate 1e-4 --network_args "
            f"block_dims={dims}")  # fmt: skip
    result = imported(text, "txt")
    assert "unet.mid_block.attentions.0.*" in result.preset.targets.exclude
    assert {(rule.match.split(".")[1], rule.rank) for rule in result.preset.targets.rules} == {("down_blocks", 4)}
    with pytest.raises(ValueError, match="block_dims: '4,4' is not a list of 25 ranks"):
        imported(text.replace(dims, "4,4"), "txt")


def test_named_curves_and_prodigy(imported, of):
    text = ("train_network.py --network_module networks.lora --network_dim 8 --learning_rate 1e-4 --network_args "
            "down_lr_weight=linear+0.25")  # fmt: skip
    rules = imported(text, "txt").preset.targets.rules
    assert rules[0].match == "unet.down_blocks.0.attentions.0.*" and rules[0].lr_scale == pytest.approx(0.25 + 1 / 11)
    assert not imported(f"{text} --optimizer_type Prodigy", "txt").preset.targets.rules


# -- the terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_script_prints_nothing_that_steers_the_terminal(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "import_preset.py"
    path = tmp_path / "evil.toml"
    path.write_text('network_module = "\\u001b[2J\\u009b31m"\npretrained_model_name_or_path = "xl"\n')
    done = subprocess.run([sys.executable, str(script), str(path)], capture_output=True, text=True)
    assert done.returncode == 2 and not {"\x1b", "\x9b"} & set(done.stdout + done.stderr)
