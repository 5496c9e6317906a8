"""The command line: exit codes, and messages that say everything at once and what to do."""

import json
import shutil
import sys
import time

import pytest

from modules.training.command import main
from tests.training.runs import OPTIONS, Place, launch

TRACE = "Traceback"


@pytest.fixture
def refused(place: Place, capsys):
    """Run the command with bad input; what it said. Nothing may have been started or written."""

    def run(*words: str, **sections) -> str:
        before = {path.name for path in place.runs.iterdir()} | {"bad.json"}
        command = list(words) if words[:1] == ("--preset",) else place.command("bad", *words, **sections)
        began = time.monotonic()
        assert main(command) == 2
        assert time.monotonic() - began < 60  # a busy machine; 10 s is the aim
        said = capsys.readouterr()
        assert said.out == "" and TRACE not in said.err
        assert said.err.count("Cannot start:") == 1
        assert {path.name for path in place.runs.iterdir()} <= before
        return said.err.partition("Cannot start:\n")[2]

    return run


def lines(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("  - ")]


def test_a_preset_without_model_and_data_lists_both_and_how_to_give_them(refused):
    said = refused("--preset", "wora_sdxl")
    assert len(lines(said)) == 2
    assert "base.path: stabilityai/stable-diffusion-xl-base-1.0" in said and "the hub cannot be reached" in said
    assert "--base" in said and "diffusers folder" in said and ".safetensors checkpoint" in said
    assert "data.folders " in said and "give the folder with the pictures (--data FOLDER)" in said


def test_unknown_models_presets_and_files(refused, place: Place):
    assert "nobody/nothing is neither a local folder or file" in refused("--base", "nobody/nothing")
    assert "did you mean wora_sdxl" in refused("--preset", "wora_sdlx")
    assert "no model_index.json" in refused("--base", str(place.stage / "pictures"))
    broken = place.runs / "broken.json"
    broken.write_text('{"family": "sdxl",}')
    assert "line 1, column 19" in refused("--preset", str(broken))
    shutil.copytree(place.stage / "base", place.runs / "half", ignore=shutil.ignore_patterns("unet"))
    said = refused("--base", str(place.runs / "half"))
    assert "cannot be read" in said and "give a complete copy with --base" in said


def test_all_wrong_options_are_listed_at_once(refused):
    adapter = {"method": "wora", "rnak": 4}
    training = {"steps": "many", "learning_rate": -1, "batch_size": 0, "precision": "float33"}
    said = refused(adapter=adapter, training=training)
    assert len(lines(said)) == 5
    assert "adapter.rnak: unknown; did you mean rank?" in said
    assert "training.steps: 'many' is not a whole number" in said
    assert "training.learning_rate: -1 is too small; more than 0" in said
    assert "training.batch_size: 0 is too small; at least 1" in said
    assert "training.precision: 'float33' is not one of" in said and "did you mean float32?" in said


def test_wrong_words_on_the_command_line(refused, capsys):
    said = refused("--adapter.rnak", "3", "loose")
    assert "--adapter.rnak: unknown; did you mean --adapter.rank?" in said and "unexpected 'loose'" in said
    assert "--preset: required" in refused("--preset")
    assert "training.steps: 0 is too small" in refused("--training.steps", "0")
    assert main(["--preset", "wora_demo", "--json"]) == 2
    assert "works only with --check" in json.loads(capsys.readouterr().out)["problems"][0]


def test_layers_that_do_not_exist(refused):
    said = refused("--targets.include", '["unet.*.attn3.*", "unte.conv_in"]')
    assert len(lines(said)) == 2
    assert "targets.include: 'unet.*.attn3.*' matches no layer; layer names look like unet." in said
    assert "did you mean attention?" in refused("--targets.layers", "atention")


def test_folders_without_pictures(refused, place: Place):
    empty, text = place.runs / "empty", place.runs / "text"
    empty.mkdir()
    assert "has no pictures" in refused("--data", str(empty))
    assert "no such folder" in refused("--data", str(empty / "nowhere"))
    text.mkdir()
    (text / "a.png").write_text("hello")
    (text / "a.txt").write_text("a letter")
    assert "a.png: its content is not a PNG" in refused("--data", str(text))
    said = refused("--data", str(empty), "--data.validation_folder", str(text), "--base", str(empty))
    assert len(lines(said)) == 3 and "data.folders" in said and "a.png" in said and "base.path" in said


def test_options_that_do_not_go_together(refused, place: Place):
    training = {**OPTIONS["training"], "schedule": "cosine", "precision": "float16"}
    said = refused(optimizer={"name": "schedulefree_adamw"}, training=training)
    assert "set training.schedule to constant" in said and "works on a GPU only" in said
    assert "method oft has none: choose another" in refused(optimizer={"name": "lora_rite"}, adapter={"method": "oft"})
    assert "use export.host comfyui" in refused("--export.host", "diffusers")
    file = place.runs / "file"
    file.write_text("")
    said = refused("--saving.folder", str(file / "runs"), "--data.cache_folder", str(file))
    assert f"saving.folder {file / 'runs'}: {file} is a file" in said and "--data.cache_folder" in said


def test_a_run_folder_that_cannot_be_made(place: Place, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modules.training.run.open_run", full)
    assert place.train("full") == 2
    said = capsys.readouterr().err
    assert "bytes are free" in said and "give another folder with --saving.folder" in said


def test_list_and_help(capsys):
    assert main(["--list"]) == 0
    assert any(line.startswith("  wora_demo ") for line in capsys.readouterr().out.splitlines())
    assert main(["--list", "sdxl"]) == 0 and "dora_sdxl" in capsys.readouterr().out
    assert main(["--list", "sdx"]) == 2 and "did you mean sdxl?" in capsys.readouterr().err
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for word in ("--preset", "--check", "--adapter.rank", "--training.learning_rate", "default 0.0001"):
        assert word in said


def test_check_says_what_would_happen(place: Place, capsys):
    began = time.monotonic()
    assert place.train("bad", "--check") == 0
    assert time.monotonic() - began < 60
    said = capsys.readouterr()
    assert "8 layers, " in said.out and "trainable parameters" in said.out
    assert "5 pictures, 2 for validation" in said.out and "16 x 16" in said.out and "filled up" in said.out
    assert "4 steps, 3 per epoch" in said.out and "exported file: about" in said.out
    assert said.err == "" and {path.name for path in place.runs.iterdir()} == {"bad.json"}


@pytest.mark.full
def test_the_script_prints_one_json_and_nothing_else(place: Place):
    process = launch([sys.executable, "scripts/train.py", *place.command("json", "--check", "--json")])
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0 and err == "", err
    facts = json.loads(out)
    assert facts["problems"] == [] and facts["steps"] == 4 and facts["pictures"] == 5
    assert facts["parameters"] == sum(row["parameters"] for row in facts["layers"])
    assert not (place.runs / "json").exists()


def test_the_script_refuses_with_json_too(place: Place, capsys):
    assert place.train("bad", "--check", "--json", "--base", "nobody/nothing") == 2
    assert "nobody/nothing" in json.loads(capsys.readouterr().out)["problems"][0]


@pytest.mark.full
def test_a_training_says_only_its_own_words(place: Place):
    process = launch([sys.executable, "scripts/train.py", *place.command("quiet", "--training.steps", "2")])
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    said = out.splitlines()
    assert said[-1] == f"Done: {place.runs / 'quiet' / 'quiet.safetensors'}"
    assert all(line.startswith((str(place.runs), "  ", "Done:")) for line in said), out
    assert {line.split(":")[0] for line in err.replace("\r", "\n").splitlines() if line} == {"quiet"}, err
    assert "2/2" in err and "loss=" in err and "lr=" in err and "<" in err  # time left
