"""The generated files are those that the code gives."""

import json

import pytest

from modules import adapters, families
from modules.preset import options, reference
from modules.preset.schema import Preset, Training


def test_the_generated_files_are_fresh():
    assert reference.stale() == [], "run python -m modules.preset.reference"


def test_stale_and_missing_files_are_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["reference", "--check"])
    assert reference.main() == 1
    assert "docs/preset-reference.md is stale" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["reference"])
    assert reference.main() == 0
    monkeypatch.setattr("sys.argv", ["reference", "--check"])
    assert reference.main() == 0
    (tmp_path / "configs" / "preset.schema.json").write_text("{}")
    assert reference.main() == 1


@pytest.fixture(scope="module")
def schema():
    return json.loads(reference.schema_text())


def test_the_schema_knows_families_methods_and_the_order_of_options(schema):
    assert schema["properties"]["family"]["enum"] == families.names()
    assert set(schema["properties"]["adapter"]["discriminator"]["mapping"]) == set(adapters.methods())
    assert list(schema["properties"]) == list(Preset.model_fields)
    assert list(schema["$defs"]["Training"]["properties"]) == list(Training.model_fields)


def test_the_schema_gives_the_form_what_it_shows(schema):
    warmup = schema["$defs"]["Training"]["properties"]["warmup"]
    wanted = {"type": "integer", "minimum": 0, "default": 50, "unit": "steps", "group": "Basic"}
    assert warmup.items() >= wanted.items() and warmup["why"] and warmup["description"]


def test_titles_are_words(schema):
    titles = [
        field["title"]
        for section in schema["$defs"].values()
        for field in section["properties"].values()
        if "title" in field
    ]
    assert {"Learning rate", "Min SNR gamma", "ComfyUI norm", "Final LR", "Text encoder LR scale"} <= set(titles)
    capitals = {word for title in titles for word in title.split()[1:] if word != word.lower()}
    assert capitals == {"SNR", "LR", "MSE", "L1", "Huber"}
    assert all(title[0].isupper() and "_" not in title for title in titles)


def test_places_have_a_kind(schema):
    sections = {name: schema["$defs"][name]["properties"] for name in ("Base", "Data", "Folder", "Saving")}
    kinds = {(name, key): field.get("kind") for name in sections for key, field in sections[name].items()}
    kinds = {place: kind for place, kind in kinds.items() if kind}
    assert kinds == {
        ("Base", "path"): "model", ("Base", "config"): "folder", ("Base", "texts"): "files", ("Base", "vae"): "file",
        ("Base", "training_adapter"): "file", ("Data", "folders"): "folders",
        ("Folder", "path"): "folder", ("Folder", "references"): "folders",
        ("Data", "cache_folder"): "folder", ("Saving", "folder"): "folder",
    }  # fmt: skip
    assert schema["renames"] == {"data.folder": "data.folders"}
    assert schema["entries"] == {"data.validation_folder": ["data.folders", {"role": "validation"}]}


def keys_of(field) -> list[str]:
    """What the entries of a list have, if they are objects."""
    entries = options.entry(field.annotation)
    return list(entries.model_fields) if entries else []


def test_the_manual_has_a_row_for_every_option_of_every_variant():
    rows = [line for line in reference.reference_text().splitlines() if line.startswith("| `")]
    assert all(row.replace("\\|", "").count("|") == 6 for row in rows)
    named = {row.split("`")[1] for row in rows}
    inner = {f"{name}[].{key}" for name, field in options.options(Preset).items() for key in keys_of(field)}
    assert named == (set(options.options(Preset)) - set(options.tag_choices(Preset))) | inner and inner
    text = reference.reference_text()
    for values in options.tag_choices(Preset).values():
        assert all(f'### `"{value}"`' in text for value in values)
    warmup = next(row for row in rows if row.startswith("| `training.warmup`"))
    assert warmup == (
        "| `training.warmup` | whole number, in steps, at least 0 | `50` | gives the optimizer's moments time to form "
        "| Warm-up: number of steps over which the learning rate rises linearly from zero. Only with "
        "training.warmup_share off. |"
    )
