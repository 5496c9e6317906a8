"""Every method, on every kind of layer, for every host: the file does what was trained."""

import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from modules import adapters, hosts, quant
from modules.adapters.base import Terms, adapted_layers, attach, detach
from modules.export import choosing, read_back
from modules.export.export import expected_size, export
from modules.files import distance, forms, keys, run_file
from modules.files.facts import Facts
from modules.tools.apply import apply_file
from modules.training import setup
from tests.export.setup import Model, label, preset, randomise, trained, variants, write

LINEAR_AND_CONV = ["unet.wide", "unet.square", "unet.conv", "unet.point"]
LORA = ("lora", {"rank": 3, "alpha": 2.0})
PLANES = ("oft", {"rotation": {"kind": "planes", "planes": 2}})
BLOCKS = ("oft", {"rotation": {"kind": "blocks", "block_size": 4}})
BLOCKS_MAGNITUDE = ("doft", {"rotation": {"kind": "blocks", "block_size": 4}})
OUTPUT = ("dora", {"rank": 3, "axis": "output"})
INPUT = ("dora", {"rank": 3, "axis": "input"})


def is_refused_by_diffusers(method: str, options: dict) -> bool:
    rotation = options.get("rotation", {}).get("kind")
    return rotation == "blocks" or method == "boft"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("norm", ["original", "adapted"])
@pytest.mark.parametrize("variant", variants(), ids=label)
def test_comfyui(tmp_path, variant, norm, dtype):
    model, layers, report, _ = write(tmp_path, variant, dtype=dtype, comfyui_norm=norm)
    assert set(report.errors) == set(layers)
    assert max(error.weight for error in report.errors.values()) <= distance.TOLERANCE[dtype]
    assert_merges_to_trained(layers, report.path, "comfyui", distance.TOLERANCE[dtype])


@pytest.mark.once
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("variant", variants(), ids=label)
def test_kohya(tmp_path, variant, dtype):
    _, layers, report, _ = write(tmp_path, variant, LINEAR_AND_CONV + ["unet.single"], host="kohya", dtype=dtype)
    assert max(error.weight for error in report.errors.values()) <= distance.TOLERANCE[dtype]
    assert_merges_to_trained(layers, report.path, "kohya", distance.TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("variant", variants(), ids=label)
def test_diffusers(tmp_path, variant, dtype):
    axis = variant[1].get("axis") or ("input" if "axis" in type(preset(*variant).adapter).model_fields else "")
    if axis == "input" or is_refused_by_diffusers(*variant):
        with pytest.raises(ValueError, match="export.host comfyui.*export.form compact.*export.rank N"):
            write(tmp_path, variant, LINEAR_AND_CONV, host="diffusers", dtype=dtype)
        assert not list(tmp_path.iterdir())
        return
    _, layers, report, tensors = write(
        tmp_path, variant, LINEAR_AND_CONV + ["unet.single"], host="diffusers", dtype=dtype
    )
    assert not any("alpha" in key for key in tensors)
    assert max(error.weight for error in report.errors.values()) <= distance.TOLERANCE[dtype]
    assert_merges_to_trained(layers, report.path, "diffusers", distance.TOLERANCE[dtype])


def assert_merges_to_trained(layers, path, host, tolerance):
    """The file merged into a fresh base gives the trained weights."""
    fresh = Model()
    assert set(apply_file(fresh, path, host)) == set(layers)
    for name, adapted in layers.items():
        merged = fresh.networks["unet"].get_submodule(name.removeprefix("unet.")).weight
        wanted = adapted.adapted_weight()
        assert (merged - wanted).abs().max() <= tolerance * wanted.abs().max()


# -- forms ------------------------------------------------------------------------------------------------------------


def test_planes_are_compact(tmp_path):
    _, _, report, tensors = write(tmp_path, PLANES, ["unet.wide"])
    assert tensors["lora_unet_wide.lora_down.weight"].shape == (4, 24)
    assert set(report.forms.values()) == {"LoRA"}
    _, _, report, tensors = write(tmp_path, ("doft", PLANES[1]), ["unet.wide"])
    assert tensors["lora_unet_wide.dora_scale"].shape == (16, 1)
    assert not any(key.endswith(".diff") for key in tensors)


def test_blocks_are_full_differences_with_their_size(tmp_path):
    layers = ["unet.wide", "unet.square", "unet.point"]
    _, _, report, tensors = write(tmp_path, BLOCKS, layers)
    assert all(key.endswith(".diff") for key in tensors)
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert f"3 layers have no compact exact form and are stored as full differences, {size / 1e6:.1f} MB" in (
        report.text()
    )


def test_blocks_refused_by_diffusers_name_layers_and_ways_out(tmp_path):
    with pytest.raises(ValueError) as refused:
        write(tmp_path, BLOCKS, LINEAR_AND_CONV, host="diffusers")
    ways_out = ("export.host comfyui", "export.form compact", "export.rank N")
    for words in ("rotation in blocks", "unet.wide", "and 1 more", *ways_out):
        assert words in str(refused.value)


@pytest.mark.parametrize("host", ["kohya", "diffusers"])
def test_embeddings_refused(tmp_path, host):
    with pytest.raises(ValueError, match="embedding layers.*unet.table"):
        write(tmp_path, LORA, host=host)


def test_embedding_is_compact_for_comfyui(tmp_path):
    model, layers, report, tensors = write(tmp_path, INPUT, ["unet.table"])
    assert tensors["lora_unet_table.lora_down.weight"].shape == (3, 8)
    assert tensors["lora_unet_table.lora_up.weight"].shape == (20, 3)
    assert report.forms == {"unet.table": "LoRA with output magnitude"}


@pytest.mark.parametrize("axis, linear, conv", [("input", (1, 24), (1, 8, 1, 1)), ("output", (16, 1), (12, 1, 1, 1))])
def test_magnitudes_are_float32_and_never_1d(tmp_path, axis, linear, conv):
    _, _, _, tensors = write(tmp_path, ("dora", {"rank": 2, "axis": axis}), ["unet.wide", "unet.conv"])
    for key, shape in (("lora_unet_wide", linear), ("lora_unet_conv", conv)):
        assert tensors[f"{key}.dora_scale"].shape == shape
        assert tensors[f"{key}.dora_scale"].dtype == torch.float32
        assert tensors[f"{key}.lora_up.weight"].dtype == torch.float16


def test_single_output_with_input_magnitude_is_not_misread(tmp_path):
    _, _, report, tensors = write(tmp_path, INPUT, ["unet.single"])
    assert list(tensors) == ["lora_unet_single.diff"]


@pytest.mark.parametrize("host", ["comfyui", "kohya"])
def test_one_alpha_with_mixed_ranks(tmp_path, host):
    _, _, _, tensors = write(tmp_path, PLANES, LINEAR_AND_CONV[:2] + ["unet.point"], host=host)
    model = Model()
    layers = trained(model, "lora", {"rank": 5, "alpha": 7.0}, ["unet.wide"])
    layers |= trained(model, "lora", {"rank": 2, "alpha": 0.5}, ["unet.square"])
    report = export(model, layers, preset(*LORA, host=host), Facts(), tmp_path / "mixed.safetensors")
    with safe_open(report.path, "pt") as file:
        alphas = {key: file.get_tensor(key) for key in file.keys() if key.endswith(".alpha")}  # noqa: SIM118
    assert len(alphas) == 2
    assert {alpha.item() for alpha in alphas.values()} == {keys.ALPHA}
    assert {alpha.dtype for alpha in alphas.values()} == {torch.float32}


def test_magnitude_without_update(tmp_path):
    for host in ("comfyui", "kohya", "diffusers"):
        model = Model()
        layers = trained(model, *OUTPUT, LINEAR_AND_CONV)
        for adapted in layers.values():
            torch.nn.init.zeros_(adapted.adapter.up)
        export(model, layers, preset(*OUTPUT, host=host, dtype="float32"), Facts(), tmp_path / f"{host}.safetensors")


def test_terms_with_magnitude_only():
    model = Model()
    layer = next(iter(trained(model, *LORA, ["unet.conv"]).values())).layer
    W, magnitude = layer.dense(), torch.rand(12) - 0.5
    view = forms.seen(layer, W, Terms(magnitude=magnitude, axis="output"))
    program, how = hosts.load("comfyui"), hosts.How()
    plan = choosing.plan(view, preset(*LORA).export, how)
    tensors, words = plan.carry_out(view, program.NAMES, "conv")
    filed = program.effect(layer.native(W), tensors, 1.0, how)
    wanted = layer.native(W * (magnitude / W.norm(dim=1))[:, None])
    assert torch.allclose(filed, wanted, atol=1e-6)
    assert words == "LoRA with output magnitude"
    nothing = forms.seen(layer, W, Terms())
    assert choosing.plan(nothing, preset(*LORA).export, how).carry_out(nothing, program.NAMES, "conv")[1] == "LoRA"


@pytest.mark.parametrize("host", ["comfyui", "kohya"])
@pytest.mark.parametrize("axis", ["input", "output"])
def test_negative_magnitudes(tmp_path, host, axis):
    model = Model()
    variant = ("wora", {"rank": 3, "axis": axis, "channel_beta": True})
    layers = trained(model, *variant, LINEAR_AND_CONV)
    with torch.no_grad():
        for adapted in layers.values():
            adapted.adapter.beta[::2] *= -1
    path = tmp_path / "test.safetensors"
    export(model, layers, preset(*variant, host=host, dtype="float32"), Facts(), path)
    assert_merges_to_trained(layers, path, host, 1e-5)
    with safe_open(path, "pt") as file:
        if (host, axis) == ("kohya", "output"):  # A1111 has no output magnitudes
            assert "lora_unet_wide.diff" in file.keys()  # noqa: SIM118 - not a dict
        else:
            assert (file.get_tensor("lora_unet_wide.dora_scale") < 0).any()


def test_untrained_adapter_changes_nothing(tmp_path):
    for variant in variants():
        model = Model()
        layers = trained(model, *variant, LINEAR_AND_CONV)
        for adapted in layers.values():
            fresh = type(adapted.adapter)(adapted.adapter.config, adapted.layer)
            adapted.adapter.load_state_dict(fresh.state_dict())
        report = export(model, layers, preset(*variant), Facts(), tmp_path / "test.safetensors")
        assert "full difference" not in report.forms.values()
        assert max(error.weight for error in report.errors.values()) < 1e-6


OTHERS = ({"dtype": "float32"}, {"form": "compact", "rank": 2}, {"form": "svd", "rank": 2}, {"form": "full"})
"""Ways to write a file besides the default."""
SIZED = [(variant, options) for n, variant in enumerate(variants()) for options in ({}, OTHERS[n % len(OTHERS)])]


@pytest.mark.parametrize("variant, way", SIZED, ids=[f"{label(v)}-{w}" for v, w in SIZED])
def test_expected_size_is_the_written_one(tmp_path, variant, way):
    _, _, report, tensors = write(tmp_path, variant, **way)
    meta = Model()
    meta.networks["unet"].to("meta")
    config = adapters.methods()[variant[0]].Config(method=variant[0], **variant[1])
    for name in report.forms:
        attach(meta.networks["unet"], name.removeprefix("unet."), config, 0)
    size, counts = expected_size(meta, dict(adapted_layers(meta.networks["unet"])), preset(*variant, **way).export)
    assert size == sum(tensor.nbytes for tensor in tensors.values())
    assert counts == Counter(report.forms.values())


# -- approximation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["comfyui", "kohya", "diffusers"])
@pytest.mark.parametrize("variant", [BLOCKS, BLOCKS_MAGNITUDE, INPUT], ids=label)
def test_printed_error_is_the_measured_one(tmp_path, host, variant):
    _, layers, report, _ = write(tmp_path, variant, LINEAR_AND_CONV, host=host, form="compact", rank=5, dtype="float32")
    if variant == INPUT and host != "diffusers":
        assert not report.approximate
        assert "export.rank has no effect" in report.text()
        return
    assert set(report.approximate) == set(layers)
    fresh, base = Model(), Model()
    apply_file(fresh, report.path, host)
    for name, adapted in layers.items():
        merged = fresh.networks["unet"].get_submodule(name[5:]).weight
        before, wanted = base.networks["unet"].get_submodule(name[5:]).weight, adapted.adapted_weight()
        measured = ((merged - wanted).norm() / (wanted - before).norm()).item()
        assert 0.01 < measured < 1
        assert f"{name}: {measured:.1%}" in report.text()


def test_magnitude_stays_exact_beside_an_approximated_rotation(tmp_path):
    for norm in ("original", "adapted"):
        _, layers, report, _ = write(
            tmp_path, BLOCKS_MAGNITUDE, ["unet.wide"], form="compact", rank=3, dtype="float32", comfyui_norm=norm
        )
        fresh = Model()
        apply_file(fresh, report.path, "comfyui")
        rows = layers["unet.wide"].adapted_weight().norm(dim=1)
        assert torch.allclose(fresh.networks["unet"].wide.weight.norm(dim=1), rows, rtol=1e-5)


def test_truncated_is_the_svd():
    for shape in ((12, 30), (30, 12)):
        matrix = torch.randn(shape, dtype=torch.float64)
        up, down = forms.truncated(matrix, 4)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        assert torch.allclose(up @ down, left[:, :4] * values[:4] @ right[:4])
        up, down = forms.truncated(matrix, 99)
        assert torch.allclose(up @ down, matrix)


# -- hosts' arithmetic ------------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("variant", variants(), ids=label)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_comfyui_strength_is_linear(tmp_path, variant, strength):
    _, layers, report, _ = write(tmp_path, variant, dtype="float32")
    fresh, base = Model(), Model()
    apply_file(fresh, report.path, "comfyui", strength)
    for name, adapted in layers.items():
        W = base.networks["unet"].get_submodule(name[5:]).weight
        wanted = W + strength * (adapted.adapted_weight() - W)
        merged = fresh.networks["unet"].get_submodule(name[5:]).weight
        assert (merged - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        assert strength > 0 or torch.equal(merged, W)


@pytest.mark.parametrize("variant", variants(), ids=label)
def test_comfyui_reads_every_layer_in_16_bits_too(tmp_path, variant):
    """It computes less exactly there (export.md 2.2), but of form auto it skips nothing. A change that is smaller than
    the weight's own rounding there is lost in that."""
    model, layers, report, _ = write(tmp_path, variant, dtype="float32")
    program = hosts.load("comfyui")
    found = read_back.read(report.path, {name: model.export_key(name, "comfyui") for name in layers}, program.NAMES)
    for dtype, limit in ((torch.float16, 0.02), (torch.bfloat16, 0.15)):
        for name, adapted in layers.items():
            W = adapted.layer.native(adapted.layer.dense())
            effect = program.effect(W, found[name], 1.0, hosts.How(dtype=dtype))
            error = distance.compare(adapted.adapted_weight(), effect, W)
            assert error.change < limit or error.weight < 5 * torch.finfo(dtype).eps, (name, report.forms[name])


def test_the_wrong_norm_is_noticed(tmp_path):
    model, layers, report, _ = write(tmp_path, OUTPUT, ["unet.wide"], comfyui_norm="adapted", dtype="float32")
    fresh = read_back.read(report.path, {"unet.wide": "lora_unet_wide"}, keys.KOHYA)["unet.wide"]
    W, wanted = layers["unet.wide"].layer.dense(), layers["unet.wide"].adapted_weight()
    effect = hosts.load("comfyui").effect
    assert distance.compare(wanted, effect(W, fresh, 1.0, hosts.How("adapted")), W).weight < 1e-5
    assert distance.compare(wanted, effect(W, fresh, 1.0, hosts.How("original")), W).weight > 1e-2


# -- the run's own file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", variants(), ids=label)
def test_native_round_trip(tmp_path, variant):
    model = Model()
    layers = trained(model, *variant)
    wanted = {name: adapted.adapted_weight() for name, adapted in layers.items()}
    facts = Facts(step=7, prompts=("a cat",), tags={"d": {"cat": 2}})
    run_file.save(tmp_path / "adapter.safetensors", layers, facts)
    for adapted in layers.values():
        randomise(adapted, 99)
    assert run_file.load(tmp_path / "adapter.safetensors", layers) == facts
    assert all(torch.equal(adapted.adapted_weight(), wanted[name]) for name, adapted in layers.items())
    with pytest.raises(ValueError, match="other layers or options"):
        run_file.load(tmp_path / "adapter.safetensors", dict(list(layers.items())[1:]))


def test_report_text_and_errors_in_the_file(tmp_path):
    _, layers, report, _ = write(tmp_path, INPUT)
    text = report.text()
    assert "LoRA with input magnitude: 4 layers" in text
    assert "largest error of an exact layer" in text
    with safe_open(report.path, "pt") as file:
        stored = json.loads(file.metadata()["gimbal.errors"])
    assert {name: pytest.approx(error.weight, rel=1e-2) for name, error in report.errors.items()} == stored
    rows = report.table().splitlines()
    assert len(rows) == 1 + len(layers) and rows[1].startswith("unet.wide\tLoRA with input magnitude\t")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_base_is_said(tmp_path, kind):
    model = Model()
    quant.pack_linears(model.networks["unet"], kind)
    model, layers, report, _ = write(tmp_path, OUTPUT, ["unet.wide"], model, dtype="float32")
    assert "the base was quantized" in report.text()
    with pytest.raises(ValueError, match="base.quantization none"):
        detach(model.networks["unet"])
        apply_file(model, report.path, "comfyui")


@pytest.mark.once
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", variants(), ids=label)
def test_base_in_other_precisions(tmp_path, variant, dtype):
    model = Model()
    model.networks["unet"].to(dtype)
    _, _, report, _ = write(tmp_path, variant, model=model, dtype="float32")
    assert max(error.weight for error in report.errors.values()) <= 1e-5


def test_script_exports_a_finished_run(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "test"
    folder.mkdir()
    model = Model()
    layers = trained(model, *LORA, LINEAR_AND_CONV)
    run_file.save(folder / "adapter.safetensors", layers, Facts(step=5))
    (folder / "preset.json").write_text(preset(*LORA).model_dump_json())
    for adapted in layers.values():
        randomise(adapted, 99)
    monkeypatch.setattr(setup, "load_and_attach", lambda preset, device: (model, layers))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "export.py"), run_name="__main__")
        return end.value.code

    assert run("test", "--host", "diffusers", "--dtype", "fp32") == 0
    assert "LoRA: 4 layers" in capsys.readouterr().out
    assert_merges_to_trained(layers, folder / "test_diffusers.safetensors", "diffusers", 1e-5)
    assert run("test/adapter.safetensors", "--host", "lycoris", "--dtype", "float32", "--out", "other.safetensors") == 0
    assert_merges_to_trained(layers, tmp_path / "other.safetensors", "lycoris", 1e-5)
    own = preset(*LORA, host="comfyui_node", node_fallback=2, form="compact", rank=4)
    (folder / "preset.json").write_text(own.model_dump_json())
    assert run("test", "--host", "kohya", "--form", "auto") == 0, "options for another host and form are unset"
    (folder / "preset.json").write_text(preset(*LORA).model_dump_json())
    capsys.readouterr()
    for words, said in {
        ("test", "--host", "webui"): "export.host",
        ("test", "--rank", "4"): "set form to compact or svd",
        ("other.safetensors",): "give --base, the model it was trained on",
        ("nothing",): "no such file or folder",
        (".",): "has no adapter.safetensors and no preset.json",
    }.items():
        assert run(*words) == 2
        assert said in capsys.readouterr().err
