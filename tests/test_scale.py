"""Nothing that goes through all layers takes longer per layer the more there are.

Function calls are counted, not seconds, so a busy machine changes nothing. `benchmarks/scale.py` measures seconds.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from modules import hosts
from modules.adapters.base import Terms, adapter_state, load_adapter_state
from modules.adapters.layers import as_layer
from modules.export import read_back
from modules.export.export import export, write
from modules.export.report import Report
from modules.families import load_class
from modules.files import distance, opening
from modules.files.change import Change
from modules.files.facts import Facts
from modules.files.writer import About
from modules.preset.files import resolve
from modules.preset.schema import Base, Export, Preset, Targets
from modules.tools import inspect_file, resize
from modules.training import check, layer_options, setup
from modules.training.matching import HINTS
from tests.export.setup import Model, preset, trained
from tests.full_size import make_folder
from training_presets.sentences import nearest

FEW, MANY = 40, 400


class Long(Model):
    """A network of equal layers."""

    def __init__(self, count: int):
        self.networks = {"unet": nn.Sequential(*(nn.Linear(4, 4) for _ in range(count))).requires_grad_(False)}

    def named_targets(self) -> dict[str, list[str]]:
        return {"all": ["unet.*"]}


def calls(do: Callable[[], Any]) -> int:
    """How many functions are called, Python's and C's; each item of a generator counts as one."""
    count = 0

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        do()
    finally:
        sys.setprofile(None)
    return count


def growth(prepared: Callable[[int], Callable[[], Any]]) -> float:
    """Calls per layer with many layers, as a multiple of those with few. `prepared(layers)` gives what is to be done;
    it is done once before, for what is kept from the first time."""
    found = []
    for layers in (FEW, MANY):
        do = prepared(layers)
        do()
        found.append(calls(do) / layers)
    return found[1] / found[0]


# -- presets ----------------------------------------------------------------------------------------------------------


def targets(count: int, beginning: str, end: str) -> Targets:
    """Patterns and rules for each layer. A pattern is a layer's name, its beginning or its end."""
    patterns = [f"{beginning}{number}{end}" for number in range(count)]
    rules = [{"match": pattern, "rank": 1 + number % 3} for number, pattern in enumerate(patterns)]
    values = {"layers": "all", "include": patterns, "exclude": patterns[1:], "rules": rules}
    return Preset.model_validate({**preset("lora", {}).model_dump(mode="json"), "targets": values}).targets


@pytest.mark.parametrize("beginning, end", [("unet.", ""), ("unet.", "*"), ("*.", ""), ("unet?", "")])
def test_a_pattern_and_a_rule_for_each_layer(beginning, end):
    def prepared(count: int) -> Callable[[], Any]:
        model, chosen = Long(count), targets(count, beginning, end)
        names = setup.layer_names(model)

        def do() -> None:
            setup.match_layers(model, chosen)
            setup.unmatched_rules(model, chosen, names)
            assert len(layer_options.own_settings(model, chosen, names)) == count

        return do

    assert growth(prepared) < (4 if beginning == "unet?" else 1.5)  # `unet?` says no more than that it is the UNet


def test_patterns_of_another_model():
    """One for each layer, and none has a layer. What layer names look like is said of the first few."""

    def prepared(count: int) -> Callable[[], Any]:
        model, chosen = Long(count), targets(count, "transformer.", "")

        def do() -> None:
            _, problems = setup.match_layers(model, chosen)
            problems += setup.unmatched_rules(model, chosen, [])
            assert sum("layer names look like unet." in problem for problem in problems) == 2 * HINTS
            assert all("matches no layer" in problem for problem in problems) and len(problems) == 3 * count - 1

        return do

    assert growth(prepared) < 1.5


@pytest.mark.full
def test_checking_a_model_of_real_size_takes_seconds(tmp_path):
    """With patterns and rules for each of SDXL's layers, and as many for layers of another model: they took minutes."""
    place = make_folder("sdxl", tmp_path)
    model = load_class("sdxl").skeleton(Base(path=str(place)))
    values = resolve("wora_sdxl", [("base.path", str(place))]).preset.model_dump(mode="json")
    names = setup.match_layers(model, Targets(layers=values["targets"]["layers"]))[0]
    strangers = [f"transformer.{name}" for name in names]
    values["targets"] |= {"include": [*names, *strangers], "exclude": [f"*{name}" for name in strangers]}
    values["targets"] |= {"rules": [{"match": name, "rank": 4} for name in [*names, *strangers]]}
    start = time.process_time()
    found = check.examine(Preset.model_validate(values), "cpu")
    check.text(check.report(Preset.model_validate(values), found))
    assert len(found.adapted) == len(names) == 722 and len(found.problems) > 3 * len(names)
    assert time.process_time() - start < 20


def test_no_name_is_suggested_for_a_text_as_long_as_a_page():
    known = ["targets.include", "targets.exclude"]
    assert nearest("targets.inclde", known) == ["targets.include"]
    assert calls(lambda: nearest("targets." + "include" * 1000, known)) < 10


# -- adapters and their files -----------------------------------------------------------------------------------------


def lora(count: int) -> tuple[Long, dict]:
    model = Long(count)
    return model, trained(model, "lora", {"rank": 2})


def exported(count: int, folder: Path) -> tuple[Long, Report]:
    model, adapted = lora(count)
    return model, export(model, adapted, preset("lora", {"rank": 2}), Facts(), folder / f"{count}.safetensors")


def test_attaching():
    assert growth(lambda count: lambda: setup.attach_all(Long(count), preset("lora", {"rank": 2}))) < 1.5


def test_the_state_of_adapters():
    def prepared(count: int) -> Callable[[], Any]:
        _, adapted = lora(count)
        return lambda: load_adapter_state(adapted, adapter_state(adapted))

    assert growth(prepared) < 1.5


@pytest.mark.full
def test_exporting(tmp_path):
    assert growth(lambda count: lambda: exported(count, tmp_path)) < 1.5


class Read(dict):
    """A dictionary whose reading is a call."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key)


@pytest.mark.parametrize("form", ["LoRA", "LoRA, approximate"])
def test_the_report_of_an_export(form):
    """It was cubic: 25 s for the layers of SDXL."""

    def prepared(count: int) -> Callable[[], Any]:
        names = [f"unet.{number}" for number in range(count)]
        errors = {name: distance.LayerError(1e-6 * place, 1e-3 * place) for place, name in enumerate(names)}
        found = Report(Path("x"), 1, Read((name, form) for name in names), dict.fromkeys(names, 10), errors)
        return lambda: (found.text(), found.table(), found.outcome())

    assert growth(prepared) < 1.5


@pytest.mark.full
def test_inspecting_and_resizing(tmp_path):
    def prepared(count: int) -> Callable[[], Any]:
        file = opening.read(exported(count, tmp_path)[1].path)
        return lambda: (inspect_file.inspect(file).text(), resize.resized(file, resize.to_rank(1)))

    assert growth(prepared) < 1.5


@pytest.mark.full
def test_writing_tensors_as_they_were(tmp_path):
    """What converting does with layers that the other program reads as they are."""

    def prepared(count: int) -> Callable[[], Any]:
        model, report = exported(count, tmp_path)
        changes = {}
        for name, found in read_back.read(report.path, spelled(model), hosts.load("comfyui").NAMES).items():
            base: Any = model.networks["unet"].get_submodule(name.removeprefix("unet.")).base
            changes[name] = Change(as_layer(base, name), terms(found), given=found)
        path = tmp_path / "again.safetensors"
        return lambda: write(path, model, changes, Export(dtype="float16"), lambda written: {})

    assert growth(prepared) < 1.2


def spelled(model: Long) -> dict[str, str]:
    """Names in the file, by full names of the model's adapted layers."""
    return {f"unet.{n}": model.export_key(f"unet.{n}", "comfyui") for n in range(len(model.networks["unet"]))}


def terms(found: dict[str, Tensor]) -> Terms:
    up, down, alpha = (found[suffix].float() for suffix in (".lora_up.weight", ".lora_down.weight", ".alpha"))
    return Terms(up=up * (alpha / len(down)), down=down)


def test_exceptions_that_peft_has_written_for_each_layer():
    def prepared(count: int) -> Callable[[], Any]:
        names = [f"unet.blocks.{number}.to_q" for number in range(count)]
        ranks = {name.removeprefix("unet."): 1 + number for number, name in enumerate(names)}
        about = About(config={"r": 4, "lora_alpha": 1, "rank_pattern": ranks})

        def do() -> None:
            assert [about.of(name).rank() for name in names] == list(ranks.values())

        return do

    assert growth(prepared) < 1.5
