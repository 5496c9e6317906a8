"""Presets that are put together from parts: their names, what wins, what is listed, what a wrong part says."""

import json
import subprocess

import pytest

from modules import adapters, families
from modules.preset import files, listing, options
from modules.preset.files import FOLDER, PresetProblems, resolve
from modules.preset.schema import Preset
from tests.preset import shipped

PRESETS = {one.name: one for one in files.every()}
VARIANTS = {"doft": ["output", "planes"]}
"""Variants of methods that people type."""
DEMOS = ["flux"]
"""Families whose demo presets name them."""


def problem_of(source):
    with pytest.raises(PresetProblems) as caught:
        resolve(source)
    (problem,) = caught.value.problems
    return problem


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of presets instead of the shipped one, and a function that writes into it."""
    monkeypatch.setattr(files, "FOLDER", tmp_path)

    def write(name, values):
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return path

    write("methods/lora", {"description": "A method.", "settings": {"adapter": {"rank": 4}}, "variants": {
        "wide": {"settings": {"adapter": {"rank": 64}}, "purposes": {"demo": {"description": "Wide, in the demo."}}}},
        "purposes": {"demo": {"settings": {"adapter": {"rank": 2}, "training": {"steps": 7}}}}})  # fmt: skip
    write("families/sdxl", {"description": "A family.", "settings": {"training": {"batch_size": 3}}, "purposes": {
        "demo": {"description": "Its demo.", "short": True}}, "recommended": ["lora_wide"]})  # fmt: skip
    write("families/flux", {"description": "Another.", "settings": {"objective": {"min_snr_gamma": None}},
                            "purposes": {"demo": {}}})  # fmt: skip
    write("purposes/demo", {"settings": {"training": {"steps": 9, "batch_size": 5}}})
    return write


# -- the shipped ones -------------------------------------------------------------------------------------------------


def test_every_method_goes_with_every_family_and_purpose():
    methods = [*adapters.methods(), *(f"{method}_{variant}" for method in VARIANTS for variant in VARIANTS[method])]
    places = [*families.names(), "demo", *(f"{family}_demo" for family in DEMOS)]
    assert {f"{method}_{place}" for method in methods for place in places} <= PRESETS.keys()
    assert {one.method for one in PRESETS.values()} == set(adapters.methods())
    assert {one.family for one in PRESETS.values()} == set(families.names())


@pytest.mark.short(*shipped.FEW)
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_by_its_name_with_or_without_the_family_and_by_the_path_of_its_file(name):
    full, plain = PRESETS[name].full_name, shipped.resolved(name)
    assert plain.name == name
    for source in {full, str(FOLDER / f"{name}.json"), f"{FOLDER}/own/../{name}.json"} - {name}:
        resolved = resolve(source)
        assert resolved.name == (full if source == full else name)
        assert resolved.preset.model_copy(update={"name": name}) == plain.preset


def test_no_two_presets_have_one_name():
    names = [name for one in PRESETS.values() for name in {one.name, one.full_name}]
    assert len(PRESETS) == len(files.every()) and len(names) == len(set(names))


def test_parts_say_nothing_that_no_preset_needs():
    """A part is one of a preset, each of its settings is an option, and a pair says why it is there."""
    assert {path.stem for path in FOLDER.glob("pairs/*.json")} <= PRESETS.keys()
    assert {path.stem for path in FOLDER.glob("purposes/*.json")} <= {one.purpose for one in PRESETS.values()}
    needed = [json.loads(path.read_text()).get("families", {}) for path in FOLDER.glob("methods/*.json")]
    assert {family for one in needed for family in one} <= {one.family for one in PRESETS.values()}
    for part in [*(json.loads(path.read_text()) for path in FOLDER.glob("pairs/*.json")),
                 *(part for one in needed for part in one.values())]:
        assert part["why"].endswith(".")
    for one in PRESETS.values():
        for layer in one.layers:
            assert options.flatten(layer).keys() <= options.options(Preset).keys(), one.name


def test_what_is_recommended_exists():
    for path in FOLDER.glob("families/*.json"):
        part = json.loads(path.read_text())
        for purpose, one in {"": part, **part.get("purposes", {})}.items():
            chosen = sorted((one for one in PRESETS.values() if (one.family, one.purpose) == (path.stem, purpose)
                             and one.place is not None), key=lambda one: one.place)
            assert [f"{one.method}_{one.variant}".rstrip("_") for one in chosen] == one["recommended"]


def test_there_are_few_files():
    """At most 40 with three families more, which are a file each."""
    listed = subprocess.run(["git", "ls-files", "."], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) + 3 <= 40


# -- how parts lie on each other --------------------------------------------------------------------------------------


def test_what_a_purpose_changes_lies_on_what_always_holds_and_the_special_on_the_general(folder):
    def facts(name):
        preset = resolve(name).preset
        return preset.adapter.rank, preset.training.steps, preset.training.batch_size, preset.description

    steps = Preset.model_fields["training"].default.steps
    assert facts("lora_sdxl") == (4, steps, 3, "A method. A family.")
    assert facts("lora_wide_sdxl") == (64, steps, 3, "A method. A family.")
    assert facts("lora_demo") == facts("lora_sdxl_demo") == (2, 7, 5, "A method. Its demo.")
    assert facts("lora_flux_demo") == (2, 7, 5, "A method. Another.")
    assert facts("lora_wide_demo") == (2, 7, 5, "Wide, in the demo. Its demo.")
    folder("pairs/lora_demo", {"why": "So.", "description": "Alone.", "settings": {"training": {"steps": 11}}})
    assert facts("lora_demo") == facts("lora_sdxl_demo") == (2, 11, 5, "Alone.")
    assert facts("lora_flux_demo") == (2, 7, 5, "A method. Another.")


def test_another_kind_of_a_section_replaces_it(folder):
    folder("methods/oft", {"settings": {"adapter": {"rotation": {"kind": "blocks", "block_size": 8}}},
                           "variants": {"planes": {"settings": {"adapter": {"rotation": {"kind": "planes"}}}}}})
    assert resolve("oft_planes_sdxl").preset.adapter.rotation.model_dump() == {"kind": "planes", "planes": 4}


# -- files come first -------------------------------------------------------------------------------------------------


def test_a_file_wins_over_parts_and_can_build_on_what_it_hides(folder, tmp_path):
    own = folder("own/lora_sdxl", {"based_on": "lora_sdxl", "description": "Mine.", "training": {"steps": 5}})
    preset = resolve("lora_sdxl").preset
    assert (preset.description, preset.training.steps, preset.training.batch_size) == ("Mine.", 5, 3)
    assert files.find("lora_sdxl") == own
    hidden = tmp_path / "lora_sdxl.json"
    assert resolve(str(hidden)).preset.description == "A method. A family."
    assert f"  {hidden} " in listing.text("sdxl") and "lora_sdxl" in listing.text("own")
    folder("lora_sdxl", {"family": "sdxl", "adapter": {"method": "dora"}})
    assert resolve("lora_sdxl").preset.adapter.method == resolve(str(hidden)).preset.adapter.method == "dora"


def test_a_preset_is_based_on_parts_by_name_and_by_path(folder):
    for source in ("lora_demo", "lora_sdxl_demo", "../lora_demo.json"):
        mine = folder("own/mine", {"based_on": source, "training": {"batch_size": 1}})
        preset = resolve(str(mine)).preset
        assert (preset.adapter.rank, preset.training.steps, preset.training.batch_size) == (2, 7, 1)
        assert (preset.name, preset.description) == ("mine", "")


# -- what is wrong ----------------------------------------------------------------------------------------------------


MISTYPED = [("lora_sdlx", "lora_sdxl"), ("lora_sdxl_dmeo", "lora_sdxl"), ("lra_demo", "lora_demo"),
            ("doft_plane_sdxl", "doft_planes_sdxl"), ("sdxl_lora", ""), ("qqqqq", "")]  # fmt: skip


@pytest.mark.parametrize("name, near", MISTYPED)
def test_a_mistyped_name_gets_one_sentence_with_the_nearest(name, near):
    problem = problem_of(name)
    assert problem.startswith(f"{name!r}: no such preset") and "\n" not in problem
    assert near in problem and (bool(near) <= ("did you mean" in problem))


WRONG_PARTS = [
    ("{", "is not JSON"),
    ([], "a preset is an object in braces"),
    ({"setings": {}}, "setings: unknown; a part of presets has description, settings, purposes, variants"),
    ({"settings": []}, "settings: [] is of the wrong kind; it has to be a dict"),
    ({"purposes": {"demo": []}}, "purposes.demo: a part of presets is an object in braces"),
    ({"purposes": {"demo": {"short": "yes"}}}, "purposes.demo: short: 'yes' is of the wrong kind"),
    ({"settings": {"training": {"stesp": 4}}}, "training.stesp: unknown; did you mean steps?"),
]


@pytest.mark.parametrize("values, sentence", WRONG_PARTS)
def test_a_wrong_part_is_one_sentence(folder, values, sentence):
    folder("families/sdxl", values)
    assert sentence in problem_of("lora_sdxl")


# -- the list ---------------------------------------------------------------------------------------------------------


def on_one_screen(text):
    lines = text.splitlines()
    return len(lines) <= listing.LINES == 40 and max(map(len, lines)) <= listing.WIDTH == 120


def test_the_list_has_the_recommended_presets_of_every_family_on_one_screen():
    text = listing.text()
    assert on_one_screen(text)
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    groups: dict[tuple[str, str], list[str]] = {}
    for name, one in PRESETS.items():
        if one.place is not None:
            groups.setdefault((one.family, one.purpose), []).append(name)
    shown = [len([name for name in names if name in rows]) for names in groups.values()]
    assert min(shown) >= 2 and rows == [name for n, names in zip(shown, groups.values(), strict=True)
                                        for name in names[:n]]
    assert all(f"{one.group}\n" in text for one in PRESETS.values())
    assert all(PRESETS[name].about in text for name in rows)


def test_the_list_stays_on_one_screen_with_many_families_and_own_presets(folder):
    for number in range(9):
        demo = {"demo": {"description": "Its demo.", "recommended": ["lora"]}} if number < 4 else {}
        folder(f"families/f{number}", {"description": f"Family {number}.", "recommended": ["lora", "lora_wide"],
                                       "purposes": demo})  # fmt: skip
    assert on_one_screen(listing.text())
    for number in range(30):
        folder(f"own/mine{number:02}", {"based_on": "lora_sdxl", "description": "long " * 90})
    text = listing.text()
    assert on_one_screen(text)
    assert all(f"  {name}" in text for name in ("lora_f0", "lora_f8", "lora_f0_demo", "mine00"))
    assert "mine08" not in text and " more: --list own" in text
    assert listing.text("own").count("\n") == 30


def test_all_others_are_one_step_away():
    def rows(word):
        return [line.split()[0] for line in listing.text(word).splitlines() if line.startswith("  ")]

    assert set(PRESETS) <= set(rows("all"))
    for word, chosen in [("sdxl", lambda one: one.family == "sdxl"), ("demo", lambda one: one.purpose == "demo"),
                         ("doft", lambda one: one.method == "doft"),
                         ("doft_planes", lambda one: (one.method, one.variant) == ("doft", "planes"))]:
        assert rows(word) == [name for name, one in PRESETS.items() if chosen(one)]


MISTYPED_WORDS = [("sdx", "did you mean sdxl?"), ("demos", "did you mean demo?"), ("qqq", "available: all, own,")]


@pytest.mark.parametrize("word, near", MISTYPED_WORDS)
def test_a_word_that_lists_nothing(word, near):
    with pytest.raises(PresetProblems, match=f"--list {word}: no such family, method or purpose; ") as caught:
        listing.text(word)
    assert near in str(caught.value)


def test_a_broken_own_preset_is_listed_with_what_is_wrong(folder):
    folder("own/broken", "{")
    assert "broken  cannot be read: is not JSON" in listing.text()
    assert listing.text("own").splitlines()[0] == "Your own, in training_presets/own:"


def test_a_broken_method_does_not_touch_the_others(folder):
    folder("methods/dora", "{")
    assert resolve("lora_sdxl").name == "lora_sdxl"
    assert "methods/dora.json: is not JSON" in problem_of("dora_sdxl")
