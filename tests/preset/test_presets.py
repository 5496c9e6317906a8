"""The shipped presets and launch files."""

import json
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from modules import families
from modules.preset import files, options, renames
from modules.preset.schema import Preset
from tests.preset.shipped import NAMES, resolved

ROOT = Path(files.__file__).parents[2]
PRESETS = {one.name: one for one in files.every()}
LAUNCH_FILES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_preset_is_right_and_suits_its_family(name):
    found, one = resolved(name), PRESETS[name]
    preset = found.preset
    assert (found.name, found.notes) == (name, [])
    assert (preset.adapter.method, preset.family) == (one.method, one.family)
    assert preset.description.endswith(".") and "\n" not in preset.description
    assert not preset.optimizer.problems(preset.training.learning_rate, "cpu")
    if one.purpose == "demo":
        assert preset.base.path.startswith("demo/") and (ROOT / preset.base.path).is_dir()
        assert (preset.data.folders[0], preset.data.resolution) == ("demo/dataset", 64)
        assert not preset.training.gradient_checkpointing
        return
    assert preset.base.path == families.load_class(one.family).HUB_ID
    assert preset.data.folders == () and preset.training.gradient_checkpointing
    assert f"at {preset.data.resolution} px" in one.group
    assert (f"{preset.base.quantization} base" in one.group) == (preset.base.quantization != "none")


def test_the_demo_draws_subjects_inside_and_outside_of_its_pictures():
    captions = {path.read_text().strip() for path in (ROOT / "demo" / "dataset").glob("*.txt")}
    prompts = set(files.resolve("wora_demo").preset.samples.prompts)
    assert prompts & captions and prompts - captions


# -- any preset -------------------------------------------------------------------------------------------------------


def some_text(name: str, field, rng: random.Random, chosen: dict) -> str:
    """A value of an option that is inside its bounds, as text. `chosen`: the preset's tags."""
    choices = options.choices(Preset, name, chosen)
    if choices:
        return rng.choice(choices)
    kinds = options.members(field.annotation)
    if words := [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]:
        return rng.choice(words)
    is_mixed = name in ("data.folders", "samples.prompts")
    if get_origin(kinds[0]) is tuple and get_origin(get_args(kinds[0])[0]) is Annotated and not is_mixed:
        one = FieldInfo.from_annotation(get_args(kinds[0])[0])
        return json.dumps([json.loads(some_text("", one, rng, {})) for _ in range(rng.randrange(3))])
    if entries := options.entry(field.annotation):
        one = {key: files.parse(some_text("", inner, rng, {}), inner.annotation)
               for key, inner in entries.model_fields.items() if inner.is_required() or rng.random() < 0.7}  # fmt: skip
        return json.dumps([one] * rng.randrange(3))
    bounds = {key: value for bound in field.metadata for key, value in asdict(bound).items()}
    low = bounds.get("ge", bounds.get("gt", -5))
    high = bounds.get("le", bounds.get("lt", low + 1000))
    if int in kinds:
        found = rng.randint(int(low) + ("gt" in bounds), int(high) - ("lt" in bounds))
        return str(found - found % (bounds.get("multiple_of") or 1))
    if float in kinds:
        return repr(low + (high - low) * rng.uniform(0.01, 0.99))
    if bool in kinds:
        return rng.choice(["true", "false"])
    return rng.choice(["a, b", "ü \"'\\", "5", "null", "[x", " "])


NODE = {"export.host": "comfyui_node", "export.form": "compact"}
NEEDS = {
    "adapter.alpha": {"adapter.step_size": "raw"},
    "export.rank": {"export.form": "compact"},
    "export.node_fallback": NODE,
    "export.node_spelling": NODE,
}
"""Options that are refused without another one."""


def without_refused(source: str, chosen: dict, values: dict, rng: random.Random) -> dict:
    """`values` without some of those that are right by themselves and refused together."""
    while True:
        try:
            files.resolve(source, [*chosen.items(), *values.items()])
            return values
        except files.PresetProblems as error:
            problems = error.problems
        sections = {problem.partition(":")[0] for problem in problems}
        assert not sections & set(options.options(Preset)), problems
        left_out = rng.choice([name for name in values if name.rpartition(".")[0] in sections])
        values = {name: value for name, value in values.items() if name != left_out}


@pytest.mark.short("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
@pytest.mark.parametrize("seed", range(60))
def test_any_preset_written_is_the_preset_read(seed, tmp_path):
    rng = random.Random(seed)
    tags = {name: rng.choice(values) for name, values in options.tag_choices(Preset).items()}
    chosen = {}
    for name, value in tags.items():
        chosen |= {name: value} if name in options.options(Preset, nested(chosen)) else {}
    known = options.options(Preset, nested(chosen))
    free = sorted(set(known) - set(tags) - {"family", "name"})
    values = {name: some_text(name, known[name], rng, nested(chosen)) for name in rng.sample(free, 25)}
    for name in sorted(values.keys() & NEEDS.keys()):
        values |= NEEDS[name]
    source = rng.choice(NAMES)
    overrides = [*chosen.items(), *without_refused(source, chosen, values, rng).items()]
    rng.shuffle(overrides)
    preset = files.resolve(source, overrides).preset
    files.write(preset, tmp_path / "preset.json")
    again = files.resolve(str(tmp_path / "preset.json"))
    assert (again.preset, again.notes, files.differences(preset, again.preset)) == (preset, [], [])


@pytest.mark.parametrize("seed", range(20))
def test_every_wrong_name_gets_an_answer(seed):
    rng = random.Random(seed)
    known = sorted(options.options(Preset, {"adapter": {"method": "lora"}}))
    overrides = []
    for name in rng.sample(known, 5):
        section, _, last = name.rpartition(".")
        at = rng.randrange(len(last) + 1)
        overrides.append((options.join(section, f"{last[:at]}q{last[at:]}"), "1"))
    with pytest.raises(files.PresetProblems) as caught:
        files.resolve("lora_demo", overrides)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [name for name, _ in overrides]
    assert all(problem.endswith("?") for problem in caught.value.problems)


def nested(flat: dict) -> dict:
    """Dotted names as nested mappings."""
    found: dict = {}
    for name, value in flat.items():
        renames.place(found, name, value)
    return found


# -- launch files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.stem)
def test_accelerate_reads_the_launch_files(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    kind = {"one_gpu": "NO", "fsdp2": "FSDP"}.get(path.stem, "MULTI_GPU")
    assert (config.distributed_type, config.num_processes) == (kind, 1 if kind == "NO" else 2)
    assert config.mixed_precision == "no", "the number format belongs to the preset"
    assert "--config_file configs/" + path.name in path.read_text()


@pytest.mark.full
def test_two_cpu_processes_are_really_two(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "seen = [os.environ[name] for name in ('WORLD_SIZE', 'ACCELERATE_USE_CPU')]\n"
        "open(f'{sys.argv[1]}/{os.environ[\"RANK\"]}.json', 'w').write(json.dumps(seen))\n"
    )
    config = ROOT / "configs" / "two_cpu_processes.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), script, str(tmp_path)]
    environment = {"PATH": "", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [["2", "1"], ["2", "1"]]
