"""Preset files in the window: read as the trainer reads them, written so that the trainer reads the same preset."""

import json
import random

import pytest
import torch
from made_up import schema, some_preset
from safetensors.torch import save_file

from modules.preset import files as trainer
from modules.preset import renames
from ui.core import places
from ui.core.preset import files
from ui.core.preset.files import Origin
from ui.core.preset.schema import Schema, at, with_value

SHIPPED = [entry.path for entry in files.listing()]
START = {"family": "sdxl", "adapter": {"method": "lora", "rank": 4}}
OFT = {"family": "sdxl", "adapter": {"method": "oft", "rotation": {"kind": "blocks", "block_size": 8}}}


@pytest.fixture
def written(tmp_path):
    """A function that writes a preset file and returns its path."""

    def write(values, name="mine.json"):
        path = tmp_path / name
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return path

    return write


def as_trainer(path):
    """The values as the trainer resolves them, but for the name that it finds."""
    return {**trainer.resolve(str(path)).preset.model_dump(mode="json"), "name": ""}


def nameless(opened):
    assert opened.problems == ()
    return {**opened.values, "name": ""}


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.short(*(path.stem for path in SHIPPED[::8]))
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_preset_is_read_as_the_trainer_reads_it(path, tmp_path):
    opened = files.read(path, schema())
    assert nameless(opened) == as_trainer(path)
    assert (opened.origin, opened.notes) == (Origin("builtin", path.stem, path), ())
    files.export(opened.values, tmp_path / "again.json", schema())
    assert as_trainer(tmp_path / "again.json") == as_trainer(path)
    assert not list(tmp_path.glob(".*")), "nothing is left over"


BASED = [
    # the base, what is based on it
    (START, {"adapter": {"alpha": 2}, "training": {"steps": 9}}),
    (START, {"adapter": {"method": "lora", "alpha": 2}}),
    (START, {"adapter": {"method": "dora"}}),
    (OFT, {"adapter": {"rotation": {"kind": "planes"}}}),
    (OFT, {"adapter": {"rotation": {"block_size": 4}}}),
    (OFT, {"adapter": {"method": "doft"}}),
    ({"family": "sdxl", "adapter": {"method": "oft", "rotation": {"block_size": 4}}}, {"adapter": {"method": "oft"}}),
    ({**START, "optimizer": {"name": "adafactor"}}, {"optimizer": {"weight_decay": 0.5}}),
    (START, {"optimizer": {"weight_decay": 0.5}}),
    ({**START, "name": "base", "description": "Base.", "samples": {"prompts": ["a", "b"]}}, {"samples": {"steps": 5}}),
    (START, {"samples": {"prompts": []}, "data": {"validation_folder": "x"}, "description": "Own."}),
]


@pytest.mark.parametrize("base, own", BASED)
def test_a_preset_based_on_another_is_the_trainer_s(base, own, written):
    written(base, "base.json")
    path = written({"based_on": "base.json", **own})
    assert nameless(files.read(path, schema())) == as_trainer(path)


def test_based_on_names_built_in_presets_and_own_ones():
    base = SHIPPED[0]
    own = places.OWN_PRESETS / "mine.json"
    files.export(START, own, schema())
    for source, path in ((base.stem, base), ("mine", own)):
        child = places.OWN_PRESETS / "child.json"
        child.write_text(json.dumps({"based_on": source}))
        opened = files.read(child, schema())
        assert {**nameless(opened), "description": ""} == {**nameless(files.read(path, schema())), "description": ""}
        assert opened.origin == Origin("own", "child", child)


@pytest.mark.parametrize("seed", range(12))
def test_a_made_up_preset_survives_every_way_of_keeping_it(seed, tmp_path):
    values = schema().complete(some_preset(random.Random(seed)))[0]
    run = tmp_path / "my_run"
    run.mkdir()
    (run / "preset.json").write_text(json.dumps({**values, "name": "my_run"}))
    text = json.dumps(values)
    save_file({"x": torch.zeros(1)}, tmp_path / "any.safetensors", metadata={files.METADATA_KEY: text})
    files.export(values, tmp_path / "any.json", schema())
    own = files.save(values, "mine", schema())
    ways = [(run, "run", "my_run"), (run / "preset.json", "run", "my_run"), (own, "own", "mine"),
            (tmp_path / "any.safetensors", "export", "any"), (tmp_path / "any.json", "file", "any")]  # fmt: skip
    for path, kind, name in ways:
        opened = files.read(path, schema())
        assert nameless(opened) == as_trainer(path) == {**values, "name": ""}
        assert (opened.origin.kind, opened.origin.name) == (kind, name)
        assert opened.values["name"] == ("" if kind in ("run", "export") else values["name"])


def test_what_is_not_understood_is_told(written):
    opened = files.read(written({**START, "training": {"stesp": 5, "steps": "many"}}), schema())
    assert opened.problems == (
        "training.steps: 'many' is not a whole number",
        "training.stesp: unknown; did you mean steps?",
    )
    assert at(opened.values, "training.steps") == "many"


def test_renamed_options_are_read_and_reported(written):
    root = json.loads(places.SCHEMA.read_text(encoding="utf-8"))
    renaming = Schema({**root, "renames": {"old.lr": "training.learning_rate"}})
    path = written({**START, "old": {"lr": 0.5}})
    opened = files.read(path, renaming)
    assert at(opened.values, "training.learning_rate") == 0.5 and opened.problems == ()
    assert opened.notes == (f"{path}: old.lr was renamed to training.learning_rate",)
    with pytest.raises(ValueError, match="but both are given; remove old.lr"):
        files.read(written({**START, "old": {"lr": 0.5}, "training": {"learning_rate": 1}}), renaming)


def test_old_names_are_the_trainer_s(written):
    for old, new in renames.RENAMES.items():
        path = written(with_value(START, old, "x"))
        opened = files.read(path, schema())
        assert nameless(opened) == as_trainer(path)
        assert opened.notes == tuple(trainer.resolve(str(path)).notes) and new in opened.notes[0]


# -- what cannot be read ----------------------------------------------------------------------------------------------

BROKEN = ['{"family": "sdxl",\n  "adapter" {}}', "", "[1]", '{"family": "sdxl", "family": "sdxl"}',
          '{"training": {"learning_rate": NaN}}', '{"based_on": 5}', '{"based_on": "none.json"}',
          '{"based_on": "mine.json"}']  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_told_in_the_trainer_s_words(text, written):
    path = written(text)
    with pytest.raises(trainer.PresetProblems) as theirs:
        trainer.resolve(str(path))
    with pytest.raises(ValueError) as ours:
        files.read(path, schema())
    assert str(ours.value) == str(theirs.value)


def test_paths_that_lead_nowhere(tmp_path, written):
    (tmp_path / "run").mkdir()
    (tmp_path / "bin.safetensors").write_bytes(b"nonsense, more than eight bytes")
    (tmp_path / "short.safetensors").write_bytes(b"\x01")
    (tmp_path / "latin.json").write_bytes(b'{"name": "\xff"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for name, metadata in {"null": None, "list": [files.METADATA_KEY], "number": {files.METADATA_KEY: 5}}.items():
        header = json.dumps({"__metadata__": metadata}).encode()
        (tmp_path / f"{name}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    wanted = {
        "none.json": "no such file or folder",
        "none": "not a preset; presets are .json files, run folders or .safetensors files",
        "run": "not a run folder, because it has no preset.json",
        "bin.safetensors": "not a safetensors file",
        "short.safetensors": "not a safetensors file",
        "foreign.safetensors": "no preset inside; only files written by Gimbal have one (gimbal.preset)",
        **{f"{name}.safetensors": "no preset inside" for name in ("null", "list", "number")},
        "latin.json": "is not UTF-8 text (byte 11 is 0xff)",
    }
    for name, message in wanted.items():
        with pytest.raises(ValueError) as caught:
            files.read(tmp_path / name, schema())
        assert f"{caught.value}".startswith(f"{tmp_path / name}: {message}")
    written("[" * 100_000, "deep.json")
    with pytest.raises(ValueError, match="deep.json: .* levels deep"):
        files.read(tmp_path / "deep.json", schema())


def test_notepad_s_mark_is_no_problem(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(START), encoding="utf-8-sig")
    assert nameless(files.read(path, schema())) == as_trainer(path)


# -- the list ---------------------------------------------------------------------------------------------------------


def test_the_list_shows_built_in_presets_and_own_ones_also_broken_ones():
    files.save({**schema().complete(START)[0], "description": "Mine."}, "mine", schema())
    (places.OWN_PRESETS / "broken.json").write_text("{")
    (places.OWN_PRESETS / "child.json").write_text(json.dumps({"based_on": "mine", "training": {"steps": 3}}))
    entries = files.listing()
    assert [entry.name for entry in entries if entry.kind == "builtin"] == [path.stem for path in SHIPPED]
    for entry in entries[: len(SHIPPED)]:
        preset = trainer.resolve(str(entry.path)).preset
        assert (entry.family, entry.method) == (preset.family, preset.adapter.method)
        assert (entry.description, entry.problem) == (preset.description, "")
    broken, child, mine = entries[len(SHIPPED) :]
    assert (broken.name, broken.family) == ("broken", "") and "line 1, column 2" in broken.problem
    assert (child.family, child.method, child.description, child.problem) == ("sdxl", "lora", "", "")
    assert (mine.name, mine.kind, mine.description) == ("mine", "own", "Mine.")


# -- keeping own presets ----------------------------------------------------------------------------------------------


def test_an_own_preset_is_only_replaced_on_purpose():
    values = schema().complete(START)[0]
    path = files.save(values, "mine", schema())
    changed = with_value(values, "training.steps", 77)
    with pytest.raises(ValueError, match="You already have a preset called mine"):
        files.save(changed, "mine", schema())
    assert at(files.read(path, schema()).values, "training.steps") == at(values, "training.steps")
    assert files.save(changed, "mine", schema(), overwrite=True) == path
    assert at(files.read(path, schema()).values, "training.steps") == 77


BAD_NAMES = ["", " ", "a/b", "a\\b", "a:b", "a\nb", ".hidden", "dot.", " x", "x ", "CON", "lpt1", "preset", "a.json",
             "ü" * 150, SHIPPED[0].stem, SHIPPED[0].stem.upper()]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_cannot_be(name):
    assert files.name_problem(name).endswith(".")
    with pytest.raises(ValueError):
        files.save(schema().complete(START)[0], name, schema())
    assert not list(places.OWN_PRESETS.glob("*"))


@pytest.mark.parametrize("name", ["mine", "my preset", "über_1", "a.b", "console", SHIPPED[0].stem + "_2"])
def test_names_that_can_be(name):
    assert files.name_problem(name) == ""
    path = files.save(schema().complete(START)[0], name, schema())
    assert trainer.resolve(str(path)).name == name


def test_only_own_presets_are_deleted():
    files.save(schema().complete(START)[0], "mine", schema())
    builtin, *_, mine = files.listing()
    with pytest.raises(ValueError, match="comes with Gimbal"):
        files.delete(builtin)
    assert files.is_there(builtin.path)
    files.delete(mine)
    assert mine not in files.listing()
    with pytest.raises(ValueError, match="cannot be deleted"):
        files.delete(mine)


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        files.export(schema().complete(START)[0], tmp_path / "file" / "x.json", schema())


@pytest.mark.parametrize(
    "name, taken, free",
    [
        ("a", [], "a"),
        ("a", ["a"], "a_2"),
        ("a", ["A", "a_2"], "a_3"),
        ("a_2", ["a", "a_2"], "a_3"),
        ("a_2", ["a"], "a_2"),
        ("a_09", ["a_09"], "a_10"),
    ],
)
def test_a_free_name(name, taken, free):
    assert files.free_name(name, taken) == free


def test_old_presets_mean_what_they_meant(written):
    path = written({**START, "export": {"rank": 16}})
    opened = files.read(path, schema())
    assert (at(opened.values, "export.form"), at(opened.values, "export.rank")) == ("compact", 16)
    assert opened.notes == (f"{path}: export.rank no longer implies export.form compact, so it is set",)
    assert nameless(opened) == as_trainer(path)
