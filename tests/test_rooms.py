"""Rooms: which file may import which, and names that differ. The rest of the house rules is in test_house_rules.py.

Those of adapter files: what files mean < what programs make of them < how we write them < what scripts offer.
Those of the window: what it knows < what all pages show things with < the form < the pages < the window around them.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.test_house_rules import ROOT, files, imports, name

ROOMS = ("modules/files", "modules/hosts", "modules/export", "modules/tools")
"""From the lowest to the highest."""

WINDOW = ("ui/core", "ui/widgets", "ui/form", "ui/pages", "ui/frame")
"""From the lowest to the highest; what lies in ui/ itself is above all of them."""

PAGES = ("presets", "pictures", "layers", "changes", "runs")

TRAINING, HIGHEST_FOR_TRAINING = "modules/training/", ROOMS.index("modules/export")
"""Training writes files. All else in modules/ that is in no room, as families and adapters, is below all rooms."""


def room(file: str) -> int:
    """The number of a file's room, from 0; -1 for a file in none of them."""
    return next((number for number, folder in enumerate(ROOMS) if file.startswith(f"{folder}/")), -1)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Our own files that a file imports, anywhere in it, with the line."""
    for dotted, line in imports(path):
        whole = ROOT / dotted.replace(".", "/")
        found = (file for place in (whole, whole.parent) for file in (place.with_suffix(".py"), place / "__init__.py"))
        file = next((file for file in found if file.is_file()), None)  # of something in a module: the module
        if file is not None:
            yield name(file), line


def upward(file: str, others: Iterable[tuple[str, int]]) -> list[str]:
    """Those of the `others` that `file` imports, with the line, and that are above what it may import."""
    highest = HIGHEST_FOR_TRAINING if file.startswith(TRAINING) else room(file)
    return [f"{file}:{line} imports {other}" for other, line in others if room(other) > highest]


def test_no_room_imports_a_higher_one():
    found = [words for path in files("modules") for words in upward(name(path), imported(path))]
    assert not found, found


@pytest.mark.parametrize(
    "file, other, is_upward",
    [
        ("modules/files/keys.py", "modules/hosts/__init__.py", True),
        ("modules/hosts/parts/arithmetic.py", "modules/export/fuse.py", True),
        ("modules/export/export.py", "modules/tools/merge/stream.py", True),
        ("modules/families/flux.py", "modules/files/keys.py", True),
        ("modules/training/outputs.py", "modules/tools/apply.py", True),
        ("modules/training/outputs.py", "modules/export/export.py", False),
        ("modules/tools/merge/command.py", "modules/files/kinds/sound.py", False),
        ("modules/hosts/comfyui.py", "modules/hosts/parts/arithmetic.py", False),
        ("modules/export/export.py", "modules/quant.py", False),
    ],
)
def test_imports_of_higher_rooms_are_seen(file, other, is_upward):
    assert bool(upward(file, [(other, 1)])) == is_upward


def test_imports_are_found_in_every_way_of_writing_them(tmp_path):
    path = tmp_path / "any.py"
    path.write_text("from modules import hosts\n\n\ndef any():\n    import modules.files.keys\n"
                    "    from modules.export.export import export\n    from modules.hosts import How, comfyui\n")
    found = [("modules/hosts/__init__.py", 1), ("modules/files/keys.py", 5), ("modules/export/export.py", 6),
             ("modules/hosts/__init__.py", 7), ("modules/hosts/comfyui.py", 7)]
    assert sorted(imported(path)) == sorted(found)


def window_room(file: str) -> int:
    """The number of a file's room in the window, from 0; what starts it all is above the others, what is no window's
    below."""
    if not file.startswith("ui/"):
        return -1
    return next((number for number, folder in enumerate(WINDOW) if file.startswith(f"{folder}/")), len(WINDOW))


def page_of(file: str) -> str:
    """The page whose folder a file is in; "" for a file of none."""
    return file.split("/")[2] if file.startswith("ui/pages/") and file.count("/") > 2 else ""


def out_of_the_window(file: str, others: Iterable[tuple[str, int]]) -> list[str]:
    """Those of the `others` that `file` imports, with the line, from a higher room of the window or another page."""
    found = []
    for other, line in others:
        pages = page_of(file), page_of(other)
        if window_room(other) > window_room(file) or (all(pages) and pages[0] != pages[1]):
            found.append(f"{file}:{line} imports {other}")
    return found


def test_no_room_of_the_window_imports_a_higher_one_and_no_page_another():
    found = [words for path in files("ui") for words in out_of_the_window(name(path), imported(path))]
    assert not found, found


@pytest.mark.parametrize(
    "file, other, is_wrong",
    [
        ("ui/core/reading.py", "ui/widgets/theme.py", True),
        ("ui/form/row.py", "ui/pages/presets/tree.py", True),
        ("ui/pages/runs/live.py", "ui/pages/presets/tree.py", True),
        ("ui/pages/runs/live.py", "ui/frame/window.py", True),
        ("ui/frame/window.py", "ui/app.py", True),
        ("ui/pages/runs/live.py", "ui/pages/runs/log.py", False),
        ("ui/pages/presets/details.py", "ui/form/paths.py", False),
        ("ui/app.py", "ui/frame/window.py", False),
    ],
)
def test_imports_that_lead_out_of_a_room_of_the_window_are_seen(file, other, is_wrong):
    assert bool(out_of_the_window(file, [(other, 1)])) == is_wrong


def test_the_room_without_widgets_has_none():
    """Neither by itself nor through what it imports; QtGui has undo, texts and pictures."""
    found = [f"{name(path)}:{line}" for path in files(WINDOW[0]) for dotted, line in imports(path)
             if dotted.startswith(("PySide6.QtWidgets", "PySide6.QtSvg", "pyqtgraph"))]
    assert not found, found


def test_every_page_has_a_folder():
    assert {path.name for path in (ROOT / "ui/pages").iterdir() if path.is_dir() and path.name[0] != "_"} == {*PAGES}
    for page in PAGES:
        assert (ROOT / f"ui/pages/{page}/{page}_page.py").is_file()


@pytest.mark.parametrize("rooms", [ROOMS, ("modules/training",), ("ui",)], ids=["files", "training", "window"])
def test_no_circle_of_imports(rooms):
    left = {name(path): {file for file, _ in imported(path)} for path in files(*rooms)}
    while free := {file for file, others in left.items() if not others & left.keys()}:
        left = {file: others for file, others in left.items() if file not in free}
    assert not left, f"in a circle, or above one: {sorted(left)}"


def stem(word: str) -> str:
    """A word without its ending."""
    return re.sub(r"(ing|er|ed|e?s|e)$", "", word)


@pytest.mark.parametrize("rooms", [ROOMS, ("modules/training",), ("ui",)], ids=["files", "training", "window"])
def test_no_two_names_of_files_are_forms_of_one_word(rooms):
    seen: dict[str, str] = {}
    for path in files(*rooms):
        if path.stem != "__init__":
            other = seen.setdefault(stem(path.stem), name(path))
            assert other == name(path), f"{other} and {name(path)} are forms of one word; say what each one is"


def test_a_name_in_a_room_of_the_window_says_its_part():
    """It does not begin with the name of its folder or of its neighbour, but for the page itself."""
    for path in files(*WINDOW):
        around = {stem(other.stem) for other in path.parent.glob("*.py") if other != path} | {stem(path.parent.name)}
        beginning = stem(path.stem.partition("_")[0])
        assert beginning not in around or path.stem.endswith("_page") or path.stem == "__init__", name(path)


@pytest.mark.parametrize("words", ["merge merging merges", "host hosts hosting", "verify verifying", "name naming"])
def test_forms_of_one_word_are_seen(words):
    assert len({stem(word) for word in words.split()}) == 1


@pytest.mark.parametrize("folder", [*ROOMS, "ui"])
def test_every_room_has_a_sign_at_its_door(folder):
    """Its `__init__` names every file and folder that is in the room."""
    for door in sorted((ROOT / folder).rglob("__init__.py")):
        words = set(re.findall(r"\w+", door.read_text(encoding="utf-8")))
        there = door.parent.iterdir()
        inside = {path.stem for path in there if path.suffix == ".py" or (path / "__init__.py").is_file()}
        assert inside - words == {"__init__"}, f"{name(door)} does not name all of {sorted(inside - words)}"
