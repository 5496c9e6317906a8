"""`scripts/import_preset.py`, files that are no settings, and layers on real networks."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from modules import adapters, families
from modules.importing import base, import_file, methods, trainers
from modules.preset import files
from modules.training.setup import match_layers
from tests import (
    tiny_anima,
    tiny_chroma,
    tiny_flux,
    tiny_flux2,
    tiny_krea2,
    tiny_qwenimage,
    tiny_sd3,
    tiny_sdxl,
    tiny_zimage,
)
from tests.families.rows import FAMILIES

ROOT = Path(__file__).parents[2]

ONETRAINER = {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE", "learning_rate": 1e-4}
"""Nearly nothing: all else is the trainer's default."""


def command():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("import_preset", ROOT / "scripts" / "import_preset.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function: a file's text and further arguments to exit code, output and errors; own presets go to `tmp_path`."""
    monkeypatch.setattr(files, "FOLDER", tmp_path / "presets")

    def do(text, *arguments, name="given.json"):
        path = tmp_path / name
        path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
        code = command().main([str(path), *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return do


def test_a_preset_is_written_and_found_by_name(run, tmp_path):
    code, out, _ = run(json.dumps(ONETRAINER), "--name", "mine")
    assert code == 0 and (tmp_path / "presets/own/mine.json").is_file()
    assert files.resolve("mine").preset.family == "sdxl"
    for words in ("mapped", "changed meaning", "dropped", "--preset mine --check"):
        assert words in out
    again, _, err = run(json.dumps(ONETRAINER), "--name", "mine")
    assert again == 2 and "exists already" in err


def test_a_file_of_ones_own_and_json(run, tmp_path):
    target = tmp_path / "there" / "x.json"
    code, out, _ = run(json.dumps(ONETRAINER), "--out", str(target), "--json")
    facts = json.loads(out)
    assert code == 0 and facts["preset"] == json.loads(target.read_text()) and facts["written"] == str(target)
    assert {"mapped", "changed", "dropped", "defaults"} <= facts.keys()


@pytest.mark.parametrize(
    "text, name, words",
    [
        ("{", "a.json", "is not JSON"),
        ("a = ", "a.toml", "is not TOML"),
        ("a: [", "a.yaml", "is not YAML"),
        ("[1, 2]", "a.json", "no settings in it, but a list"),
        ("just words", "a.txt", "neither JSON nor a command"),
        ("", "a.json", "is empty"),
        ("{}", "a.json", "no settings in it"),
        (b"\xff\xfe\x00\x01", "a.toml", "is not UTF-8 text"),
        ('{"colour": "blue"}', "a.json", "no settings of a trainer that is known here"),
        ('{"training_method": "LORA", "model_type": "WAN_2_2"}', "a.json", "none of Gimbal's families"),
        ('{"training_method": "LORA", "model_type": ["x"]}', "a.json", "model_type: .* is not a text"),
        ('{"training_method": "LORA", "concepts": [{"path": "a", "balancing": "many"}]}', "a.json", "is not a number"),
    ],
)
def test_bad_files_are_one_sentence(run, text, name, words, tmp_path):
    import re

    code, out, err = run(text, name=name)
    assert code == 2 and not out and re.search(words, err) and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "presets").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--method", "lokr2"], "--method: lokr2 is unknown"),
        (["--family", "wan"], "--family: wan is unknown"),
        (["--name", "a/b"], "is not a file name"),
        (["--out", "x.txt"], "does not end in .json"),
    ],
)
def test_bad_arguments(run, arguments, words):
    code, _, err = run(json.dumps(ONETRAINER), *arguments)
    assert code == 2 and words in err


@pytest.mark.full
def test_the_script_itself(tmp_path):
    words = [sys.executable, str(ROOT / "scripts/import_preset.py"), str(tmp_path / "nothing.json")]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2 and done.stderr.strip().endswith("no such file or folder")
    assert "Traceback" not in done.stderr


# -- tables -----------------------------------------------------------------------------------------------------------


def test_every_trainer_has_a_table():
    assert {"onetrainer", "kohya", "kohya_gui", "aitoolkit"} <= trainers().keys()
    for name in trainers():
        keys, reasons = base.table(name)
        assert keys and all(reason.strip() for reason in reasons.values())


def test_nearest_methods_are_methods():
    known = set(adapters.methods())
    assert {name for near in methods.NEAREST.values() for name in near} <= known
    assert {*methods.LOW_RANK, *methods.PRODUCTS, *methods.ROTATIONS, methods.BUTTERFLY} <= known


# -- layers on networks of the real classes ---------------------------------------------------------------------------

NETWORKS = {"sdxl": tiny_sdxl, "flux": tiny_flux, "chroma": tiny_chroma, "flux2": tiny_flux2, "sd3": tiny_sd3,
            "zimage": tiny_zimage, "qwenimage": tiny_qwenimage, "krea2": tiny_krea2, "anima": tiny_anima}
KINDS = {"sdxl": "STABLE_DIFFUSION_XL_10_BASE", "flux": "FLUX_DEV_1", "chroma": "CHROMA_1",
         "sd3": "STABLE_DIFFUSION_35", "zimage": "Z_IMAGE", "flux2": "FLUX_2", "qwenimage": "QWEN",
         "krea2": "KREA_2", "anima": "ANIMA"}
REGULAR = {
    "attn-only": "^(?=.*attention)(?!.*refiner).*",
    "attn-mlp": "^(?=.*attention)(?!.*refiner).*,^(?=.*feed_forward)(?!.*refiner).*",
    "blocks": "layers",
    "full": "",
}
"""OneTrainer's `LAYER_PRESETS` of its newer models, of which the first two are regular expressions."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Skeletons of the families, by name."""
    from modules.preset.schema import Base

    folder = tmp_path_factory.mktemp("models")
    return {
        name: families.read(name, Base(path=str(tiny.make_folder(folder / name))))[0] for name, tiny in NETWORKS.items()
    }


@pytest.mark.parametrize(
    "family, preset",
    [
        ("sdxl", "attn-mlp"),
        ("sdxl", "attn-only"),
        ("sdxl", "full"),
        ("flux", "attn-mlp"),
        ("flux", "attn-only"),
        ("flux", "blocks"),
        ("chroma", "attn-mlp"),
        ("chroma", "blocks"),
        ("chroma", "full"),
        ("flux2", "blocks"),
        ("flux2", "full"),
        ("qwenimage", "attn-mlp"),
        ("qwenimage", "blocks"),
        ("qwenimage", "full"),
        ("krea2", "attn-mlp"),
        ("krea2", "blocks"),
        ("anima", "attn-mlp"),
        ("anima", "attn-only"),
        ("anima", "blocks"),
        ("anima", "full"),
        ("sd3", "attn-only"),
        ("sd3", "blocks"),
    ],
)
def test_layer_presets_mean_the_same_layers(models, tmp_path, family, preset):
    """Against what OneTrainer does: every linear and convolution layer whose name has one of the parts."""
    parts = {"attn-only": ["attn"], "attn-mlp": ["attentions"], "blocks": ["transformer_block"], "full": [""]}[preset]
    parts = ["attn", "ff.net", "proj_mlp"] if preset == "attn-mlp" and family in ("flux", "chroma") else parts
    parts = ["attn", "ff"] if preset == "attn-mlp" and family == "krea2" else parts
    parts = [*(["attn1", "attn2"] if preset.startswith("attn") else parts), *(["ff"] if preset == "attn-mlp" else [])
             ] if family == "anima" else parts
    parts = ["attn", "img_mlp", "txt_mlp"] if preset == "attn-mlp" and family == "qwenimage" else parts
    frozen = {"train": False}
    values = {
        **ONETRAINER,
        "model_type": KINDS[family],
        "layer_filter_preset": preset,
        "text_encoder": frozen,
        "text_encoder_2": frozen,
        "text_encoder_3": frozen,
    }
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(values))
    targets = imported_targets(path)
    chosen, problems = match_layers(models[family], targets)
    assert not problems
    network = models[family].DENOISER
    import torch

    theirs = {
        f"{network}.{name}"
        for name, module in models[family].networks[network].named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and any(part in name for part in parts)
    }
    left_out = {name for name in theirs - set(chosen) if not allowed_to_be_left_out(name)}
    assert not left_out and not set(chosen) - theirs


@pytest.mark.parametrize("preset", REGULAR)
@pytest.mark.parametrize("by_name", [True, False])
def test_layer_presets_of_regular_expressions_mean_the_same_layers(models, tmp_path, preset, by_name):
    """By the preset's name alone, and by the pattern that its window writes beside it."""
    import torch

    model, pattern = models["zimage"], REGULAR[preset]
    given = {} if by_name else {"layer_filter": pattern, "layer_filter_regex": pattern.startswith("^")}
    values = {**ONETRAINER, "model_type": KINDS["zimage"], "layer_filter_preset": preset, **given,
              "text_encoder": {"train": False}}
    for name in ("layer_filter", "layer_filter_regex") if by_name else ():
        values.pop(name, None)
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(values))
    chosen, problems = match_layers(model, imported_targets(path))
    assert not problems
    theirs = {f"transformer.{name}" for name, module in model.networks["transformer"].named_modules()
              if isinstance(module, torch.nn.Linear) and any(re.search(part, name) for part in pattern.split(","))}
    assert set(chosen) == theirs


def imported_targets(path):
    """The `targets` of the preset of a file."""
    from modules.preset.schema import Preset

    return Preset.model_validate(import_file(path).values).targets


def allowed_to_be_left_out(name):
    """Layers that no set of ours has, because other programs store their halves exchanged or nobody reads them."""
    return name.endswith(("norm1_context.linear", "add_q_proj", "norm_out.linear")) or any(
        fnmatch(name, pattern) for pattern in FAMILIES["qwenimage"].never)


@pytest.mark.parametrize("family", ["sdxl", "flux", "chroma", "sd3"])
@pytest.mark.parametrize("texts", [True, False])
def test_layers_of_commands_match(models, tmp_path, family, texts):
    """kohya's choice as patterns that all match something."""
    script, module = {
        "sdxl": ("sdxl_train_network.py", "lycoris.kohya"),
        "flux": ("flux_train_network.py", "networks.lora_flux"),
        "chroma": ("flux_train_network.py --model_type chroma", "networks.lora_flux"),
        "sd3": ("sd3_train_network.py", "networks.lora_sd3"),
    }[family]
    more = "" if texts else "--network_train_unet_only"
    path = tmp_path / "command.txt"
    path.write_text(f"{script} --network_module {module} --network_dim 4 --learning_rate 1e-4 {more}")
    chosen, problems = match_layers(models[family], imported_targets(path))
    assert chosen and not problems
