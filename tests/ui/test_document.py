"""The edited preset: every change can be undone, nothing is lost, and everybody is told."""

import json
import random
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import schema, some_preset, some_value

from ui.core import places
from ui.core.preset import files
from ui.core.preset.document import Document
from ui.core.preset.files import Opened, Origin
from ui.core.preset.schema import ABSENT, at, holds, with_value

HERE = Origin("file", "here", Path("/here.json"))


def opened(values, origin=HERE):
    return Opened(origin, schema().complete(values)[0])


@pytest.fixture
def edited(qapp):
    """A document with a low-rank adapter."""
    document = Document(schema())
    document.open(opened({"family": "sdxl", "adapter": {"method": "dora", "rank": 8, "norm_gradient": "full"}}))
    return document


def numbers(document):
    """Two options to change, whatever they are called."""
    fields = document.schema.fields(document.values).values()
    return [field.path for field in fields if field.kind == "integer" and field.path.startswith("training.")][:2]


def heard(signal):
    """A list that grows with the signal."""
    found = []
    signal.connect(lambda *arguments: found.append(arguments[0] if arguments else None))
    return found


# -- any sequence of changes ------------------------------------------------------------------------------------------


def some_change(document, rng):
    """Do something to the document."""
    fields = list(document.schema.fields(document.values).values())
    what = rng.random()
    if what < 0.2:
        tag = rng.choice([field for field in fields if field.kind == "tag"])
        document.set(tag.path, rng.choice(tag.choices))
    elif what < 0.35:
        document.reset(rng.choice(fields).path)
    elif what < 0.5:
        changed = [field.path for field in fields if document.is_modified(field.path)]
        document.reset(rng.choice(changed or [fields[0].path]))
    else:
        field = rng.choice([field for field in fields if field.kind != "tag"])
        document.set(field.path, rng.choice(["odd", None]) if rng.random() < 0.1 else some_value(field, rng))


@pytest.mark.parametrize("seed", range(25))
def test_undo_gives_back_every_earlier_state_and_redo_every_later_one(seed, qapp):
    rng = random.Random(seed)
    document = Document(schema())
    document.open(opened(some_preset(rng)))
    states = {0: document.values}
    for _ in range(40):
        before = json.dumps(document.values)
        kept = document.values
        some_change(document, rng)
        assert json.dumps(kept) == before, "nobody changes values in place"
        if document.values is not kept:  # what could be redone is gone
            states = {index: state for index, state in states.items() if index < document.undo.index()}
        states[document.undo.index()] = document.values
        assert list(document.values) == list(kept)
        if rng.random() < 0.15:
            document.undo.undo()
            assert document.values == states[document.undo.index()]
    assert max(states) == document.undo.count() > 10
    for index in [*range(max(states), -1, -1), *range(max(states) + 1), *rng.sample(sorted(states), len(states))]:
        document.undo.setIndex(index)
        assert document.values == states[index]
    document.undo.setIndex(0)
    assert not document.is_modified() and not document.differences()


@pytest.mark.parametrize("seed", range(10))
def test_modified_is_what_differs(seed, qapp):
    rng = random.Random(seed)
    document = Document(schema())
    document.open(opened(some_preset(rng)))
    for _ in range(15):
        some_change(document, rng)
        changed = {one.path for one in document.differences()}
        assert document.is_modified() == bool(changed)
        active = set(document.schema.fields(document.values))
        assert {path for path in active if document.is_modified(path)} == changed & active
        for section in document.schema.sections(document.values):
            inside = {path for path in changed if path.startswith(f"{section.path}.")}
            assert not section.path or document.is_modified(section.path) == bool(inside)
        for one in document.differences():
            assert one.after == (document.value(one.path) if holds(document.values, one.path) else ABSENT)


@pytest.mark.parametrize("seed", range(10))
def test_resetting_what_is_modified_gives_the_baseline(seed, qapp):
    rng = random.Random(seed)
    document = Document(schema())
    document.open(opened(some_preset(rng)))
    for _ in range(20):
        some_change(document, rng)
    for tags_first in (True, False):
        for path, field in list(document.schema.fields(document.values).items()):
            if (field.kind == "tag") == tags_first and path in document.schema.fields(document.values):
                document.reset(path)
    for path in document.schema.fields(document.values):  # inner tags that only came back with their outer ones
        document.reset(path)
    assert document.values == document.baseline


# -- merging ----------------------------------------------------------------------------------------------------------


def test_typing_is_one_step(edited):
    first, second = numbers(edited)
    before = edited.values
    for value in (1, 12, 123):
        edited.set(first, value)
    assert edited.undo.count() == 1
    edited.set(second, 5)
    edited.set(first, 7)
    assert edited.undo.count() == 3, "another option was changed in between"
    edited.seal()
    edited.set(first, 8)
    assert edited.undo.count() == 4
    edited.undo.undo()
    assert edited.value(first) == 7
    edited.set(first, 9)
    assert (edited.undo.count(), edited.value(first)) == (4, 9), "after undo a step of its own"
    edited.undo.setIndex(0)
    assert edited.values == before


def test_a_step_is_not_prolonged_after_undo_and_redo(edited):
    path = numbers(edited)[0]
    edited.set(path, 5)
    edited.undo.undo()
    edited.undo.redo()
    edited.set(path, 6)
    assert edited.undo.count() == 2
    edited.undo.undo()
    assert edited.value(path) == 5


def test_typing_back_to_where_it_began_leaves_no_step(edited):
    first, second = numbers(edited)
    edited.set(second, 3)
    before = edited.value(first)
    edited.set(first, 77)
    edited.set(first, before)
    assert edited.undo.count() == 1 and edited.undo.isClean() is False
    edited.set(first, 78)
    assert edited.undo.count() == 2
    edited.undo.undo()
    assert (edited.value(first), edited.value(second)) == (before, 3)


def test_the_value_it_has_is_no_change(edited):
    path = numbers(edited)[0]
    told = heard(edited.changed)
    edited.set(path, edited.value(path))
    edited.reset(path)
    edited.set("adapter.method", edited.value("adapter.method"))
    assert (edited.undo.count(), told) == (0, [])


def test_saving_ends_a_step(edited):
    path = numbers(edited)[0]
    edited.set(path, 5)
    edited.mark_saved(HERE)
    edited.set(path, 6)
    assert edited.undo.count() == 2 and not edited.undo.isClean()
    edited.undo.undo()
    assert edited.undo.isClean() and not edited.is_modified()


def test_choices_are_steps_of_their_own(edited):
    start = edited.values
    for choice in ("lora", "oft", "dora"):
        edited.set("adapter.method", choice)
    assert edited.undo.count() == 3
    edited.undo.setIndex(0)
    assert edited.values == start


# -- what is told -----------------------------------------------------------------------------------------------------


def test_a_change_is_told_with_its_path_also_when_undone(edited):
    path = numbers(edited)[0]
    told, structure = heard(edited.changed), heard(edited.structure_changed)
    edited.set(path, 5)
    edited.undo.undo()
    edited.undo.redo()
    edited.reset(path)
    assert (told, structure) == ([path] * 4, [])


def test_another_variant_is_told_before_its_value_and_what_it_dropped_after(edited):
    told = []
    edited.structure_changed.connect(lambda path: told.append(("structure", path, edited.value("adapter.method"))))
    edited.changed.connect(lambda path: told.append(("changed", path, edited.value("adapter.method"))))
    edited.noted.connect(lambda sentence: told.append(("noted", sentence)))
    edited.set("adapter.method", "lora")
    assert told == [
        ("structure", "adapter", "lora"),
        ("changed", "adapter.method", "lora"),
        ("noted", "adapter.norm_gradient = 'full' dropped: method lora has no such option"),
    ]
    told.clear()
    edited.undo.undo()
    assert told == [("structure", "adapter", "dora"), ("changed", "adapter.method", "dora")]
    assert edited.value("adapter.norm_gradient") == "full"


def test_an_inner_choice_changes_its_page(edited):
    edited.set("adapter.method", "oft")
    structure = heard(edited.structure_changed)
    edited.set("adapter.rotation.kind", "planes")
    assert structure == ["adapter"] and "adapter.rotation.planes" in edited.schema.fields(edited.values)


@pytest.mark.parametrize(
    "label, text", [("Batch size", "batch size"), ("LR scale", "LR scale"), ("ComfyUI norm", "ComfyUI norm")]
)
def test_steps_have_names(label, text, edited, monkeypatch):
    path = numbers(edited)[0]
    field = replace(edited.field(path), label=label)
    monkeypatch.setattr(edited.schema, "fields", lambda values: {path: field})
    edited.set(path, 5)
    assert edited.undo.undoText() == f"Change {text}"
    edited.reset(path)
    assert edited.undo.undoText() == f"Reset {text}"


# -- reset ------------------------------------------------------------------------------------------------------------


def test_resetting_the_method_brings_back_its_values(edited):
    start = edited.values
    edited.set("adapter.method", "oft")
    edited.set("adapter.rotation.kind", "planes")
    edited.reset("adapter.method")
    assert edited.values == start and not edited.is_modified()
    edited.undo.undo()
    assert edited.value("adapter.rotation.kind") == "planes"


def test_resetting_the_method_keeps_what_was_changed_meanwhile(edited):
    edited.set("adapter.method", "lora")
    edited.set("adapter.rank", 99)
    edited.reset("adapter.method")
    assert edited.value("adapter.rank") == 99 and edited.value("adapter.norm_gradient") == "full"


def test_an_inner_section_comes_back_whole(qapp):
    document = Document(schema())
    rotation = {"kind": "planes", "planes": 7}
    document.open(opened({"family": "sdxl", "adapter": {"method": "oft", "rotation": rotation}}))
    document.set("adapter.method", "lora")
    document.reset("adapter.method")
    assert document.value("adapter.rotation") == rotation and not document.is_modified()


def test_what_the_baseline_does_not_have_goes_back_to_the_default(edited):
    edited.set("adapter.method", "oft")
    edited.set("adapter.rotation.kind", "planes")
    edited.set("adapter.rotation.planes", 9)
    edited.reset("adapter.rotation.planes")
    field = edited.field("adapter.rotation.planes")
    assert edited.value(field.path) == field.default != 9
    edited.reset("adapter.rotation.kind")
    assert edited.value("adapter.rotation.kind") == edited.field("adapter.rotation.kind").default == "blocks"
    steps = edited.undo.count()
    edited.reset("adapter.rotation.kind")
    edited.reset("adapter.rotation.block_size")
    assert edited.undo.count() == steps, "nothing left to reset"


def test_a_new_preset_can_be_filled_in_and_emptied_again(qapp):
    document = Document(schema())
    start = document.values
    assert sorted(document.problems()) == ["adapter.method", "family"]
    document.set("family", document.field("family").choices[0])
    document.set("adapter.method", "wora")
    assert document.problems() == {} and document.value("adapter.rank") == document.field("adapter.rank").default
    document.reset("adapter.method")
    document.reset("family")
    assert document.values == start and not document.is_modified()


# -- wrong values -----------------------------------------------------------------------------------------------------


def test_wrong_values_are_kept_and_told(edited):
    path = numbers(edited)[0]
    edited.set(path, -3)
    assert edited.value(path) == -3
    assert edited.problems() == {path: edited.field(path).problem(-3)} and "too small" in edited.problems()[path]
    edited.undo.undo()
    assert edited.problems() == {}


def test_an_option_that_there_is_not(edited):
    with pytest.raises(KeyError):
        edited.set("adapter.axxis", 5)
    assert edited.field("adapter.rotation.planes").kind == "integer", "of another variant"
    with pytest.raises(KeyError):
        edited.field("nowhere")


# -- opening, saving, surviving ---------------------------------------------------------------------------------------


def test_opening_replaces_everything(edited):
    edited.set(numbers(edited)[0], 5)
    told, origin = heard(edited.changed), heard(edited.origin_changed)
    other = opened({"family": "sdxl", "adapter": {"method": "oft"}}, Origin("new", "other", None))
    edited.open(other)
    assert (edited.values, edited.baseline, edited.origin) == (other.values, other.values, other.origin)
    assert (told, len(origin), edited.undo.count()) == ([""], 1, 0)


def test_a_saved_preset_is_not_modified(edited):
    path = numbers(edited)[0]
    edited.set(path, 5)
    told = heard(edited.origin_changed)
    edited.mark_saved(Origin("own", "mine", Path("/mine.json")))
    assert not edited.is_modified() and edited.origin.name == "mine" and len(told) == 1
    edited.undo.undo()
    assert edited.is_modified(path), "undo works beyond saving"


@pytest.mark.parametrize("origin", [HERE, Origin("new", "", None)])
def test_unsaved_changes_survive_a_crash(origin, edited):
    edited.origin = origin
    edited.set("adapter.method", "lora")
    edited.set(numbers(edited)[0], "odd")
    unsaved = json.loads(json.dumps(edited.to_unsaved()))
    later = Document(schema())
    noted = heard(later.noted)
    later.restore(unsaved)
    assert (later.values, later.baseline, later.origin) == (edited.values, edited.baseline, edited.origin)
    assert later.differences() == edited.differences() and later.is_modified()
    assert len(noted) == 1 and "odd" in noted[0]


@pytest.mark.parametrize("unsaved", [{}, {"origin": {}}, {"origin": None, "values": {}, "baseline": {}},
                                     {"origin": {"kind": "new", "name": "", "path": None}, "values": 5,
                                      "baseline": {}}])  # fmt: skip
def test_damaged_unsaved_changes_are_refused(unsaved, edited):
    before = edited.values
    with pytest.raises(ValueError, match="cannot be restored"):
        edited.restore(unsaved)
    assert edited.values is before


def test_differences_from_anything(edited):
    path = numbers(edited)[0]
    other = with_value(edited.values, path, 1234)
    (one,) = edited.differences(other)
    assert (one.path, one.before, one.after) == (path, 1234, edited.value(path))


@pytest.mark.parametrize("entry", files.listing(), ids=lambda entry: entry.name)
def test_a_shipped_preset_is_opened_unmodified_and_right(entry, qapp):
    document = Document(schema())
    document.open(files.read(entry.path, schema()))
    assert not document.is_modified() and document.problems() == {}
    saved = files.save(document.values, "mine", schema())
    assert at(files.read(saved, schema()).values, "adapter") == document.value("adapter")
    assert saved.parent == places.OWN_PRESETS


def test_a_document_ends_with_its_last_user(qapp):
    """Its undo steps do not keep it: garbage collection broke that cycle inside of Qt, which crashed."""
    document = Document(schema())
    document.set("training.steps", 7)
    kept = weakref.ref(document)
    del document
    assert kept() is None
