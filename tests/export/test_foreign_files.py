"""The scripts on foreign files: damaged ones are refused in a sentence, others described, converted and verified."""

import json
import runpy
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modules import hosts
from modules.families import load_class
from modules.files import opening, spellings
from modules.preset.schema import Base
from tests import tiny_sd15
from tests.export import foreign
from tests.export.foreign import linear
from tests.export.setup import randomise

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"


def run(monkeypatch, capsys, script, *arguments) -> tuple[int, str, str]:
    """Exit code, what was printed, what was complained."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(f"scripts/{script}", run_name="__main__")
    return int(done.value.code or 0), *capsys.readouterr()


def save(path: Path, cases, metadata=None) -> Path:
    save_file(foreign.named(cases), path, metadata)
    return path


# -- damaged files ----------------------------------------------------------------------------------------------------


def header(values) -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text


def damaged(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files by sort, and words of the sentence about them."""
    found = {}

    def add(name: str, content: bytes, words: str, ending: str = ".safetensors"):
        (folder / f"{name}{ending}").write_bytes(content)
        found[name] = folder / f"{name}{ending}", words

    sound = save(folder / "sound.safetensors", {"lora_unet_a": foreign.lora_of_kohya(linear())}).read_bytes()
    add("truncated", sound[:-40], "is damaged")
    add("short header", sound[:20], "its header should have")
    add("huge header", struct.pack("<Q", 200_000_000) + b"{}", "does not begin with a header length")
    add("long header", struct.pack("<Q", 90_000_000) + b"{}", "its header should have 90000000 bytes")
    add("text", b"this is a text, no adapter", "is not a safetensors file")
    add("not json", struct.pack("<Q", 8) + b"{ nope }" + b"1234", "is damaged")
    add("wrong shape", header({"a.diff": {"dtype": "F32", "shape": [3, 3], "data_offsets": [0, 8]}}) + b"12345678",
        "is damaged")
    add("wrong offsets", header({"a.diff": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}) + b"12345678",
        "is damaged")
    add("nothing in it", header({"__metadata__": {}}), "holds no tensors")
    add("empty", b"", "is empty")
    torch.save({"a": torch.ones(3)}, folder / "real.pt")
    add("pickle", (folder / "real.pt").read_bytes(), "is a pickle file named like")
    add("old pickle", b"\x80\x02}q\x00." + b"1234", "is a pickle file named like")
    add("named pickle", (folder / "real.pt").read_bytes(), "is a pickle, which can run any code", ".ckpt")
    add("unknown", b"", "no known format has keys like position_ids")
    save_file({"position_ids": torch.ones(3)}, folder / "unknown.safetensors")
    add("not finite", b"", "lora_unet_a.diff has non-finite values")
    save_file({"lora_unet_a.diff": torch.tensor([[1.0, float("nan")]])}, folder / "not finite.safetensors")
    found["missing"] = folder / "nothing here.safetensors", "no such file"
    found["folder"] = folder, "is a folder; give a .safetensors file"
    return found


@pytest.mark.parametrize("script", ["inspect_adapter.py", "resize.py", "convert.py", "verify.py"])
def test_damaged_files_are_one_sentence(tmp_path, monkeypatch, capsys, script):
    extra = {"resize.py": ["--rank", "2"], "inspect_adapter.py": []}.get(script, ["--base", "x", "--host", "comfyui"])
    monkeypatch.setattr(torch, "load", lambda *_: pytest.fail("a file was unpickled"))
    for sort, (path, words) in damaged(tmp_path).items():
        if sort == "unknown" and script != "inspect_adapter.py":
            continue
        code, out, complaint = run(monkeypatch, capsys, script, path, *extra)
        assert code == 2 and words in complaint and not out, (sort, complaint)
        assert len(complaint.strip().splitlines()) == 1 and "Traceback" not in complaint


def test_fp8_and_peft_folders_are_read(tmp_path):
    save_file({"a.diff": torch.ones(2, 2).to(torch.float8_e4m3fn)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    file = opening.read(tmp_path / "adapter_model.safetensors")
    assert file.config["r"] == 4 and file.size == 4
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="adapter_config.json: is not JSON"):
        opening.read(tmp_path / "adapter_model.safetensors")


# -- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_tells_what_it_is(tmp_path, monkeypatch, capsys):
    q = "lora_unet_" + f"{BLOCK}.attn1.to_q".replace(".", "_")
    path = save(tmp_path / "a.safetensors", {
        q: foreign.lora_of_kohya(linear(), 4, 2.0),
        q[:-1] + "k": foreign.lora_of_kohya(linear(), 4, 1.0),
        "lora_unet_conv_in": foreign.dora_of_onetrainer(foreign.conv(), "input"),
        q.replace("attn1_to_q", "ff_net_2"): foreign.dora_of_onetrainer(linear(), "output"),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": foreign.of_onetrainer(linear(), 4, True, "log"),
        "lora_te_text_model_encoder_layers_0_mlp_fc2": foreign.of_lycoris("boft", linear(16), {"lora_dim": 4}),
    }, {
        "ot_branch": "master", "ss_sd_model_name": "painter.safetensors", "ss_steps": "1200",
        "ss_trigger_words": "zxc",
        "ss_tag_frequency": '{"cats": {"cat": 9, "dog": 1}}', "ss_dataset_dirs": '{"cats": {"img_count": 12}}',
    })
    code, text, _ = run(monkeypatch, capsys, "inspect_adapter.py", path)
    for words in (
        "written by: OneTrainer", "for: a Stable Diffusion 1 or 2 model", "LoRA: 2 layers (2 attention)", "rank 4",
        "alpha 1 (1 layer), 2 (1 layer)", "LoRA with input magnitude (DoRA): 1 layer (1 conv)",
        "OFT with output magnitude (DOFT): 1 layer (1 text encoders)", "block size 4", "base: painter.safetensors",
        "steps: 1200", "triggers: zxc", "12 pictures in cats", "most frequent tags: cat, dog",
        "dtypes: float32",
        "ComfyUI cannot apply stored rotations where it computes in 16 bits",
    ):
        assert words in text, words
    code, text, _ = run(monkeypatch, capsys, "inspect_adapter.py", path, "--json")
    found = json.loads(text)
    assert code == 0 and found["families"] == ["sd15"] and found["groups"][0]["layers"] == 2
    comfyui = "\n".join(found["hosts"]["comfyui"]["troubles"])
    assert "LoRA with output magnitude (DoRA)): wrong by" in comfyui and "(LoRA)" not in comfyui
    assert "input magnitude" not in comfyui


def test_inspect_finds_damaged_layers_and_unknown_keys(tmp_path, monkeypatch, capsys):
    case = foreign.lora_of_kohya(linear())
    case.tensors[".lora_up.weight"] = torch.ones(12, 7)
    case.tensors[".strange"] = torch.ones(1)
    path = save(tmp_path / "a.safetensors", {"lora_unet_a": case, "lora_unet_b": foreign.lora_of_kohya(linear())})
    code, text, _ = run(monkeypatch, capsys, "inspect_adapter.py", path)
    assert code == 0 and "damaged: lora_unet_a: its factors have the ranks 7 and 3" in text
    assert "unknown keys: lora_unet_a.strange" in text


@pytest.mark.parametrize("metadata, config, name, words", [
    ({"ss_network_module": "lycoris.kohya"}, None, "lora_unet_a", "LyCORIS in sd-scripts"),
    ({"ss_network_module": "networks.lora"}, None, "lora_unet_a", "sd-scripts or a program based on it"),
    ({"software": '{"name": "ai-toolkit"}'}, None, "transformer.a", "ai-toolkit"),
    ({"gimbal.method": "lora"}, None, "lora_unet_a", "Gimbal"),
    ({}, None, "base_model.model.a", "peft"),
    ({"lora_adapter_metadata": '{"unet.r": 3}'}, None, "unet.a", "diffusers with peft"),
    ({}, None, "lycoris_a", "LyCORIS without sd-scripts"),
    ({}, None, "lora_unet_a", "unknown"),
])
def test_writers(tmp_path, monkeypatch, capsys, metadata, config, name, words):
    path = save(tmp_path / "a.safetensors", {name: foreign.lora_of_kohya(linear(), alpha=None)}, metadata or None)
    assert f"written by: {words}" in run(monkeypatch, capsys, "inspect_adapter.py", path)[1]


# -- convert and verify -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_sd15.make_folder(tmp_path_factory.mktemp("sd15"))


LAYERS = {"q": f"{BLOCK}.attn1.to_q", "k": f"{BLOCK}.attn1.to_k", "ff": f"{BLOCK}.ff.net.2", "conv": "conv_in"}


def foreign_file(base, path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of four kinds by OneTrainer, and the adapted weights by layer."""
    model = load_class("sd15").load(Base(path=str(base)), torch.device("cpu"), torch.float32)
    makers = {
        "q": foreign.lora_of_kohya,
        "k": lambda layer: foreign.of_onetrainer(layer, 4, True, "log"),
        "ff": lambda layer: foreign.dora_of_onetrainer(layer, "output"),
        "conv": lambda layer: foreign.dora_of_onetrainer(layer, "input"),
    }
    cases = {key: makers[key](model.networks["unet"].get_submodule(name)) for key, name in LAYERS.items()}
    named = {"lora_unet_" + LAYERS[key].replace(".", "_"): case for key, case in cases.items()}
    save(path, named, {"ot_branch": "master", "ss_steps": "7", "modelspec.architecture": "another word"})
    return path, {LAYERS[key]: case.weight for key, case in cases.items()}


def test_convert_for_comfyui_and_back(base, tmp_path, monkeypatch, capsys):
    path, _ = foreign_file(base, tmp_path / "a.safetensors")
    code, text, complaint = run(monkeypatch, capsys, "verify.py", path, "--base", base, "--host", "comfyui")
    assert code == 1 and "attn1_to_k" in text.splitlines()[1], complaint
    assert "2 of 4 layers differ" in text
    code, text, complaint = run(
        monkeypatch, capsys, "convert.py", path, "--base", base, "--host", "comfyui", "--dtype", "fp32"
    )
    assert code == 0, complaint
    out = tmp_path / "a_comfyui.safetensors"
    with safe_open(out, "pt") as file:
        told = file.metadata()
    assert told["modelspec.architecture"] == "stable-diffusion-v1/lora" and "sshs_model_hash" in told
    assert told["ss_steps"] == "7" and json.loads(told["gimbal.converted"])["writer"] == "OneTrainer"
    code, text, complaint = run(monkeypatch, capsys, "verify.py", out, "--base", base, "--host", "comfyui")
    assert code == 0 and "comfyui computes what the file means: all of 4 layers" in text, text + complaint
    again = tmp_path / "b.safetensors"
    code, text, complaint = run(
        monkeypatch, capsys, "convert.py", out, "--base", base, "--host", "kohya", "--dtype", "fp32", "--out", again
    )
    assert code == 0, complaint
    assert run(monkeypatch, capsys, "verify.py", again, "--base", base, "--host", "kohya")[0] == 0


def test_export_of_a_file_converts_it(base, tmp_path, monkeypatch, capsys):
    path, _ = foreign_file(base, tmp_path / "a.safetensors")
    for script, out in (("convert.py", "b"), ("export.py", "c")):
        code, text, complaint = run(
            monkeypatch, capsys, script, path, "--base", base, "--host", "comfyui", "--dtype", "fp32", "--out",
            tmp_path / f"{out}.safetensors",
        )
        assert code == 0 and "largest error of an exact layer" in text, complaint
    first, second = (load_file(tmp_path / f"{out}.safetensors") for out in "bc")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    code, _, complaint = run(monkeypatch, capsys, "export.py", path)
    assert code == 2 and "give --base, the model it was trained on and --host, the program" in complaint
    assert len(complaint.strip().splitlines()) == 1
    code, _, complaint = run(monkeypatch, capsys, "export.py", path, "--base", base, "--host", "nothing")
    assert code == 2 and "host" in complaint and "Traceback" not in complaint


def test_early_scaling_is_another_file(base, tmp_path, monkeypatch, capsys):
    """The word changes what the file means, and every script takes it."""
    path, _ = foreign_file(base, tmp_path / "a.safetensors")
    texts = []
    for words in ([], ["--early-scaling"]):
        code, text, complaint = run(
            monkeypatch, capsys, "verify.py", path, "--base", base, "--host", "comfyui_node", *words)
        assert code in (0, 1), complaint
        texts.append(text)
        assert run(monkeypatch, capsys, "inspect_adapter.py", path, *words)[0] == 0
    assert texts[0] != texts[1]


def test_convert_as_one_lora_with_its_curve(base, tmp_path, monkeypatch, capsys):
    path, wanted = foreign_file(base, tmp_path / "a.safetensors")
    code, text, complaint = run(
        monkeypatch, capsys, "convert.py", path, "--base", base, "--host", "diffusers", "--form", "svd", "--rank", "2",
        "--dtype", "fp32",
    )
    assert code == 0, complaint
    lines = text.splitlines()
    curve = [line.split("\t") for line in lines[lines.index("rank\ttotal error") + 1 :]]
    errors = [float(error.rstrip("%")) for _, error in curve]
    assert [int(rank) for rank, _ in curve][:4] == [1, 2, 4, 8] and errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01
    tensors, total, missed = load_file(tmp_path / "a_diffusers.safetensors"), 0.0, 0.0
    model = load_class("sd15").load(Base(path=str(base)), torch.device("cpu"), torch.float32)
    for name, weight in wanted.items():
        W = model.networks["unet"].get_submodule(name).weight
        up, down = tensors[f"unet.{name}.lora_B.weight"], tensors[f"unet.{name}.lora_A.weight"]
        got = (up.flatten(1) @ down.flatten(1)).reshape(W.shape)
        total += (weight - W).norm().item() ** 2
        missed += (weight - W - got).norm().item() ** 2
    assert errors[1] == pytest.approx(100 * (missed / total) ** 0.5, abs=0.02)


@pytest.mark.parametrize("arguments, words", [
    (["--host", "nothing"], "host"),
    (["--host", "comfyui", "--rank", "4"], "rank 4 has no effect with form auto"),
    (["--host", "comfyui", "--dtype", "int8"], "dtype"),
    (["--host", "comfyui", "--family", "sd9"], "--family sd9"),
    (["--host", "comfyui", "--base", "nowhere.safetensors"], "base.path: nowhere.safetensors does not exist"),
])
def test_bad_arguments_are_sentences(base, tmp_path, monkeypatch, capsys, arguments, words):
    path = save(tmp_path / "a.safetensors", {"lora_unet_conv_in": foreign.lora_of_kohya(foreign.conv(8, 4))})
    code, _, complaint = run(monkeypatch, capsys, "convert.py", path, "--base", base, *arguments)
    assert code == 2 and words in complaint and "Traceback" not in complaint


def test_strength_is_a_blend(base, tmp_path, monkeypatch, capsys):
    path, _ = foreign_file(base, tmp_path / "a.safetensors")
    given = ("verify.py", path, "--base", base, "--host")
    code, text, _ = run(monkeypatch, capsys, *given, "comfyui", "--strength", "0.5")
    assert code == 0 and "nothing is checked" in text
    code, _, complaint = run(monkeypatch, capsys, *given, "diffusers", "--comfyui", "x")
    assert code == 2 and "--host is diffusers" in complaint


@pytest.mark.full
def test_a_runs_own_meaning(base, tmp_path, monkeypatch, capsys):
    """A file in its run's folder is compared with what was trained; the run's own file is for export.py."""
    from modules.files import run_file
    from modules.files.facts import Facts
    from modules.preset.schema import Preset
    from modules.training.setup import load_and_attach

    values = {"name": "test", "family": "sd15", "adapter": {"method": "lora", "rank": 2}, "base": {"path": str(base)}}
    preset = Preset.model_validate(values)
    _, layers = load_and_attach(preset, torch.device("cpu"))
    for number, adapted in enumerate(layers.values()):
        randomise(adapted, number)
    run_file.save(tmp_path / "adapter.safetensors", layers, Facts())
    (tmp_path / "preset.json").write_text(preset.model_dump_json(), encoding="utf-8")
    code, text, complaint = run(monkeypatch, capsys, "export.py", tmp_path, "--host", "diffusers")
    assert code == 0, complaint
    path = tmp_path / "test_diffusers.safetensors"
    code, text, complaint = run(monkeypatch, capsys, "verify.py", path, "--base", base, "--host", "diffusers")
    assert code == 0 and "within 0.002" in text, text[-400:] + complaint
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        told = file.metadata()
    wrong = next(key for key in tensors if key.endswith("lora_B.weight"))
    save_file(tensors | {wrong: tensors[wrong] * 2}, path, told)
    code, text, _ = run(monkeypatch, capsys, "verify.py", path, "--base", base, "--host", "diffusers")
    assert code == 1 and wrong.removesuffix(".lora_B.weight") in text.splitlines()[1]
    code, _, complaint = run(monkeypatch, capsys, "inspect_adapter.py", tmp_path / "adapter.safetensors")
    assert code == 2 and "is a run's internal adapter file" in complaint


def test_the_users_own_comfyui_is_asked(base, tmp_path, monkeypatch, capsys):
    """What it returns is compared; what it leaves out is not read."""
    from modules.hosts.parts import installed_comfyui

    path, wanted = foreign_file(base, tmp_path / "a.safetensors")
    by_name = {"lora_unet_" + name.replace(".", "_"): weight for name, weight in wanted.items()}

    def effects(folder, file, weights, strength, dtype, python):
        assert weights.keys() == by_name.keys() and folder == Path("there") and file == path
        return {name: weight for name, weight in by_name.items() if "attn1_to_k" not in name}

    monkeypatch.setattr(installed_comfyui, "effects", effects)
    given = ("verify.py", path, "--base", base, "--host", "comfyui", "--comfyui", "there")
    code, text, complaint = run(monkeypatch, capsys, *given)
    assert code == 1 and "1 of 4 layers differ" in text and "did not change the weight" in text, complaint


@pytest.mark.parametrize("name, spelling, part", [
    ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", spellings.KOHYA_PATH, "attention"),
    ("lora_unet_input_blocks_4_1_transformer_blocks_0_ff_net_2", spellings.KOHYA_ORIGINAL, "mlp"),
    ("lora_unet_double_blocks_0_img_attn_qkv", spellings.KOHYA_ORIGINAL, "attention"),
    ("lora_te1_text_model_encoder_layers_0_mlp_fc1", spellings.KOHYA_TEXT, "text encoders"),
    ("transformer.single_transformer_blocks.3.proj_mlp", spellings.PEFT, "mlp"),
    ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", spellings.PEFT_TEXT, "text encoders"),
    ("diffusion_model.input_blocks.1.0.in_layers.2", spellings.GENERIC, "conv"),
    ("lycoris_conv_in", spellings.LYCORIS, "conv"),
    ("oft_unet_mid_block_attentions_0_proj_in", spellings.KOHYA_OFT, "mlp"),
    ("conv_in", spellings.BARE, "conv"),
])
def test_names_tell_their_spelling_and_part(name, spelling, part):
    assert spellings.spelling(name) == spelling
    assert spellings.part(name, 2) == part


@pytest.mark.parametrize("host, spelling, family, is_read", [
    ("comfyui", spellings.PEFT, "sdxl", False), ("comfyui", spellings.PEFT, "flux", True),
    ("comfyui", spellings.KOHYA_PATH, "sd15", True), ("comfyui", spellings.KOHYA_PATH, "sd3", False),
    ("comfyui", spellings.LEGACY, "flux", True), ("comfyui", spellings.LEGACY, "sd15", False),
    ("diffusers", spellings.PEFT, "sd3", True), ("diffusers", spellings.KOHYA_ORIGINAL, "sdxl", True),
    ("diffusers", spellings.KOHYA_ORIGINAL, "sd15", False), ("diffusers", spellings.GENERIC, "flux", False),
    ("kohya", spellings.KOHYA_ORIGINAL, "flux", True), ("kohya", spellings.GENERIC, "sdxl", False),
    ("lycoris", spellings.LYCORIS, "sd15", True), ("lycoris", spellings.KOHYA_PATH, "sd15", False),
])
def test_who_reads_which_names(host, spelling, family, is_read):
    """The tables of export.md 1.2 to 1.4."""
    assert (hosts.load(host).trouble(spelling, family, ["a.text_model.b"]) == "") == is_read
