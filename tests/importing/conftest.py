"""What tests of importing share: importing from values, and the properties that every import has."""

import json
from types import SimpleNamespace

import pytest
import yaml

from modules.importing import import_file, report
from modules.importing.base import Wishes, is_flow
from modules.importing.ledger import flat
from modules.objectives import Diffusion, Flow
from modules.preset import files
from modules.training import layer_options, noise, schedules


def leaves(values):
    """Every key of nested settings that holds a value, by its dotted name; some sections are one to the trainer."""
    return flat(values, dict.fromkeys(("secrets", "cloud", "optimizer_defaults", "embedding"), {}))


@pytest.fixture
def imported(tmp_path):
    """A function: settings (a mapping, or text of a named kind) to a checked import, whose preset resolves."""

    def do(values, ending="json", method="", family="", name="settings"):
        path = tmp_path / f"{name}.{ending}"
        text = values if isinstance(values, str) else json.dumps(values) if ending == "json" else yaml.safe_dump(values)
        path.write_text(text, encoding="utf-8")
        found = import_file(path, Wishes(method, family))
        target = tmp_path / f"{name}_preset_{len(list(tmp_path.iterdir()))}.json"
        report.write(found, target)
        resolved = files.resolve(str(target))
        assert not resolved.notes
        check(found, resolved.preset)
        return SimpleNamespace(found=found, preset=resolved.preset, text=report.text(found), file=target)

    return do


def check(found, preset):
    """What holds for every import: it can be trained, its lists do not overlap, and the JSON form has all."""
    rates = layer_options.possible_rates(preset.targets)
    assert not preset.optimizer.problems(preset.training.learning_rate, "cuda", rates)
    assert not schedules.problems(preset.training, preset.optimizer)
    assert not layer_options.rule_problems(preset)
    process = Flow() if is_flow(preset.family) else Diffusion(None, "epsilon")
    predictions = () if preset.objective.prediction == "auto" else process.predictions
    if not (preset.objective.zero_terminal_snr and not predictions):
        assert not noise.problems(preset.objective, process)
    keys = [entry.key for part in (found.mapped, found.changed, found.dropped) for entry in part]
    assert len(keys) == len(set(keys)), sorted(key for key in keys if keys.count(key) > 1)
    assert all(entry.sentence for entry in (*found.changed, *found.dropped))
    assert all(entry.ours or entry.sentence for entry in found.mapped)
    values = found.values
    for entry in (*found.mapped, *found.changed):
        for option in entry.ours:
            assert option == "name" or option.split(".")[0] in values, option
    json.dumps(report.facts(found))


@pytest.fixture
def accounted():
    """A function: every key of the settings that differs from the trainer's default is in one list, or counted."""

    def do(found, values, prefix=""):
        listed = {entry.key for part in (found.mapped, found.changed, found.dropped) for entry in part}
        given = [key.removeprefix(prefix) for key in leaves(values)]
        silent = [key for key in given if key not in listed]
        assert len(silent) == found.defaults, (silent, found.defaults)
        return silent

    return do


def entry(found, key):
    """The entry of a key, with its part."""
    (one,) = [one for part in (found.mapped, found.changed, found.dropped) for one in part if one.key == key]
    return one


def settings(preset):
    """The folders of a preset, by path, with what each has for itself."""
    entries = [{"path": one} if isinstance(one, str) else one.model_dump() for one in preset.data.folders]
    return {entry.pop("path"): entry for entry in entries}


@pytest.fixture
def of():
    """`entry`."""
    return entry
