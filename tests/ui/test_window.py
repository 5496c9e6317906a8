"""The window as a whole: pages, saving, restoring, and what it imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PySide6.QtWidgets import QApplication, QLineEdit

from ui.core import places
from ui.core.check import Findings
from ui.core.preset import files
from ui.core.settings import Settings
from ui.form.form_page import FormPage
from ui.frame.window import PRESETS, RUNS
from ui.widgets import dialogs, theme


def test_it_opens_the_preset_it_is_asked_for(open_window):
    window = open_window("doft_demo")
    assert window.document.origin.name == "doft_demo" and not window.isWindowModified()
    assert "doft_demo" in window.windowTitle() and window.name.text() == "doft_demo"


def test_it_opens_a_preset_of_ones_own_by_its_name_also_over_one_that_comes_with_gimbal(open_window):
    places.OWN_PRESETS.mkdir(parents=True)
    for name, steps in (("mine", 5), ("doft_demo", 6)):
        text = json.dumps({"based_on": "doft_demo", "training": {"steps": steps}})
        (places.OWN_PRESETS / f"{name}.json").write_text(text)
        window = open_window(name)
        assert (window.document.origin.kind, window.document.value("training.steps")) == ("own", steps)
        (places.OWN_PRESETS / f"{name}.json").unlink()


@pytest.mark.parametrize("kept, shown", [(None, PRESETS), ("", ""), ("adapter", "adapter"), ("gone", PRESETS)])
def test_it_begins_with_the_page_that_was_shown_last(open_window, kept, shown):
    if kept is not None:
        Settings().keep("page", kept)
    window = open_window()
    assert window.stack.currentWidget() is window.pages[shown]


def test_without_being_asked_it_opens_one_that_can_be_trained_here(open_window):
    window = open_window("")
    assert places.full(window.document.value("base.path")).exists()


def test_it_opens_next_time_what_was_open_last(open_window):
    open_window("doft_demo").close()
    assert open_window("").document.origin.name == "doft_demo"


def test_a_missing_preset_is_said_and_another_one_opened(open_window, monkeypatch):
    said = []
    monkeypatch.setattr(dialogs, "say_error", lambda parent, title, sentence: said.append(sentence))
    window = open_window("no_such_preset")
    assert said and "no_such_preset" in said[0]
    assert window.document.origin.name


def test_every_page_opens_from_the_list(open_window):
    window = open_window()
    for place in window.navigation.places:
        if place.key is not None:
            window.show_page(place.key)
            assert window.stack.currentWidget() is window.page(place.key), place


@pytest.mark.full
def test_the_theme_can_be_chosen_and_is_remembered(open_window):
    window = open_window()
    for name, dark in (("dark", True), ("light", False)):
        window.menus.on_theme(name)
        assert theme.is_dark() == dark and Settings().theme == name
        app = QApplication.instance()
        assert app.palette().window().color() == theme.colors().window


def test_a_setting_is_found_and_shown(open_window):
    window = open_window()
    window.search.chosen.emit("training.learning_rate")
    form = window.stack.currentWidget()
    assert isinstance(form, FormPage) and form.section_path == "training"
    window.search.chosen.emit("name")
    assert window.stack.currentWidget().section_path == ""


def test_changes_are_marked_counted_and_undone(open_window):
    window = open_window()
    window.document.set("adapter.rank", 31)
    assert window.isWindowModified() and "changed" in window.name.text()
    row = next(at for at, place in enumerate(window.navigation.places) if place.key == "adapter")
    assert "1 setting changed" in window.navigation.item(row).toolTip()
    window.menus.undo.trigger()
    assert not window.isWindowModified() and window.document.value("adapter.rank") == 8
    assert not window.navigation.item(row).toolTip()


def test_problems_are_counted_and_led_to(open_window):
    window = open_window()
    window.show_page(RUNS)
    window.document.set("training.steps", 0)
    assert "1 problem" in window.status.left.text()
    window.status.left.click()
    assert window.stack.currentWidget() is window.pages["training"]
    window.document.set("training.steps", 1)
    assert "problem" not in window.status.left.text()


def test_a_built_in_preset_is_saved_as_an_own_one(open_window, monkeypatch):
    window = open_window()
    window.document.set("adapter.rank", 31)
    monkeypatch.setattr(dialogs, "ask_name", lambda parent, title, name: "mine")
    window.menus.save.trigger()
    assert json.loads((places.OWN_PRESETS / "mine.json").read_text())["adapter"]["rank"] == 31
    assert window.document.origin.kind == "own" and not window.isWindowModified()
    window.document.set("adapter.rank", 32)
    window.menus.save.trigger()
    assert files.read(places.OWN_PRESETS / "mine.json", window.document.schema).values["adapter"]["rank"] == 32


@pytest.mark.parametrize(
    "answer, kept, opened", [("save", True, True), ("discard", False, True), ("cancel", False, False)]
)
def test_unsaved_changes_are_asked_about_before_another_preset_opens(open_window, monkeypatch, answer, kept, opened):
    window = open_window()
    window.document.set("adapter.rank", 31)
    monkeypatch.setattr(dialogs, "ask_unsaved", lambda parent, document: answer)
    monkeypatch.setattr(dialogs, "ask_name", lambda parent, title, name: "kept")
    window.page(PRESETS).open_requested.emit(places.PRESETS / "lora_demo.json")
    assert (places.OWN_PRESETS / "kept.json").exists() == kept
    assert (window.document.origin.name == "lora_demo") == opened
    assert opened or window.document.value("adapter.rank") == 31


def test_closing_asks_too(open_window, monkeypatch):
    window = open_window()
    window.document.set("adapter.rank", 31)
    monkeypatch.setattr(dialogs, "ask_unsaved", lambda parent, document: "cancel")
    assert not window.close() and window.isVisible()
    monkeypatch.setattr(dialogs, "ask_unsaved", lambda parent, document: "discard")
    assert window.close()


def test_a_file_with_unknown_settings_is_opened_only_if_the_user_wants(open_window, monkeypatch, tmp_path):
    file = tmp_path / "odd.json"
    file.write_text(json.dumps({"family": "sdxl", "adapter": {"method": "lora", "rnak": 3}}))
    window = open_window()
    texts = []

    def ask(box, answer):
        texts.append(box.informativeText())
        return answer

    monkeypatch.setattr(dialogs.Question, "ask", lambda box: ask(box, dialogs.CANCEL))
    assert not window.opening.open(file) and window.document.origin.name == "wora_demo"
    monkeypatch.setattr(dialogs.Question, "ask", lambda box: ask(box, dialogs.OK))
    assert window.opening.open(file) and window.document.origin.name == "odd"
    assert "rnak" in texts[0] and "rank" in texts[0]


CRASHING = """
import os, sys
from PySide6.QtCore import QStandardPaths
from PySide6.QtWidgets import QApplication
from PySide6.QtTest import QTest
home = sys.argv[1]
QStandardPaths.writableLocation = staticmethod(lambda location: f"{home}/location-{location.value}")
app = QApplication([])
from pathlib import Path
from ui.core import places
places.RUNS, places.OWN_PRESETS = Path(home) / "runs", Path(home) / "own"
from ui.core.check import Check
Check.on_quiet = lambda self: None
from ui.app import make_window
from ui.core.check import Findings
from ui.core.settings import Settings
window = make_window(Settings(), "wora_demo")
window.show()
window.document.set("adapter.rank", 31)
window.document.set("training.learning_rate", 0.5)
QTest.qWait(1500)
os.kill(os.getpid(), 9)
"""


def test_a_window_that_crashed_gives_its_edits_to_the_next(open_window, own_memory):
    subprocess.run([sys.executable, "-c", CRASHING, str(own_memory)], cwd=places.ROOT, timeout=60, check=False)
    window = open_window("")
    assert window.document.value("adapter.rank") == 31 and window.document.value("training.learning_rate") == 0.5
    assert window.isWindowModified() and window.document.origin.name == "wora_demo"
    assert any("restored" in sentence for sentence in window.banners.sentences())
    window.document.mark_saved(window.document.origin)
    window.close()
    assert not any("restored" in sentence for sentence in open_window("").banners.sentences())


def test_a_second_window_only_watches_and_says_so(open_window, qtbot):
    first, second = open_window(), open_window()
    qtbot.waitUntil(lambda: bool(second.banners.sentences()), timeout=3000)
    assert first.queue.drives and not second.queue.drives
    assert second.queue.watching_sentence in second.banners.sentences()
    first.close()
    qtbot.waitUntil(lambda: second.queue.drives and not second.banners.sentences(), timeout=5000)


IMPORTS = """
import os, sys
from ui import app

def painted(window, event):
    print("|".join({name.partition(".")[0] for name in sys.modules}), flush=True)
    os._exit(0)

app.Window.paintEvent = painted
app.main(["wora_demo"])
"""


def test_the_window_shows_without_torch_and_the_plots(own_memory):
    environment = {**os.environ, "XDG_CONFIG_HOME": str(own_memory), "XDG_CACHE_HOME": str(own_memory)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=places.ROOT, timeout=60, capture_output=True, env=environment, check=False
    )
    loaded = set(done.stdout.decode().strip().split("|"))
    assert "PySide6" in loaded and "ui" in loaded, done.stderr
    heavy = {"torch", "diffusers", "transformers", "safetensors", "accelerate", "modules", "pyqtgraph", "numpy", "PIL"}
    assert not loaded & heavy


def test_the_shipped_places_exist():
    for place in (places.SCHEMA, places.PRESETS, places.TRAIN, places.LOOK):
        assert Path(place).exists(), place


@pytest.mark.parametrize("leave", ["save", "close"])
def test_what_is_typed_in_a_list_is_not_lost(open_window, qtbot, monkeypatch, leave):
    window = open_window()
    qtbot.waitUntil(lambda: window.activateWindow() or QApplication.activeWindow() is window)
    window.show_page("samples")
    window.page("samples").rows["samples.prompts"].input.on_add()  # pyright: ignore[reportAttributeAccessIssue]
    qtbot.waitUntil(lambda: isinstance(QApplication.focusWidget(), QLineEdit))
    qtbot.keyClicks(QApplication.focusWidget(), "a red fox")
    if leave == "save":
        monkeypatch.setattr(dialogs, "ask_name", lambda parent, title, name: "mine")
        window.on_save()
        saved = files.read(places.OWN_PRESETS / "mine.json", window.document.schema)
        assert saved.values["samples"]["prompts"][-1] == "a red fox"
    else:
        asked = []
        monkeypatch.setattr(dialogs, "ask_unsaved", lambda parent, document: asked.append(1) or "cancel")
        assert not window.close() and asked


def test_a_field_that_holds_no_value_is_named_where_it_matters(open_window, qtbot, monkeypatch):
    window = open_window()
    window.show_setting("training.steps")
    window.page("training").rows["training.steps"].input.edit.clear()  # pyright: ignore[reportAttributeAccessIssue]
    qtbot.keyClicks(window.page("training").rows["training.steps"].input.edit, "x")  # pyright: ignore
    monkeypatch.setattr(dialogs, "ask_name", lambda parent, title, name: "mine")
    window.on_save()
    assert any("Steps: 'x' is not a number" in sentence for sentence in window.banners.sentences())
    said = []
    monkeypatch.setattr(dialogs.QueueDialog, "exec", lambda self: said.append(self.feedback.text()))
    window.on_train()
    assert "Steps: 'x' is not a number" in said[0]


def test_a_problem_of_a_whole_section_is_led_to(open_window):
    window = open_window()
    window.show_page(RUNS)
    window.check.findings = Findings(problems=("adapter: does not fit this model",))
    window.check.finished.emit(window.check.findings)
    window.status.left.click()
    form = window.stack.currentWidget()
    assert isinstance(form, FormPage) and form.section_path == "adapter" and form.problem.isVisible()


def test_own_presets_that_cannot_be_read_do_not_keep_the_window_from_starting(open_window, qtbot):
    places.OWN_PRESETS.mkdir(parents=True)
    for name, values in (("one", {"based_on": "two"}), ("two", {"based_on": "wora_demo"}), ("three", {"base": 3})):
        (places.OWN_PRESETS / f"{name}.json").write_text(json.dumps(values))
    (places.OWN_PRESETS / "four.json").write_text("{")
    assert open_window("").document.origin.name


ODD = {
    "family": 3,
    "adapter": {"method": "lora", "rank": "many"},
    "base": {"path": 5},
    "data": {"folders": [1]},
    "saving": {"folder": 5},
    "description": ["a"],
}


def test_values_of_a_wrong_kind_are_not_taken_along(open_window, monkeypatch, tmp_path):
    (tmp_path / "odd.json").write_text(json.dumps(ODD))
    monkeypatch.setattr(dialogs.Question, "exec", lambda self: self.choices[dialogs.OK].click())
    window = open_window()
    assert window.opening.open(tmp_path / "odd.json")
    assert set(window.document.problems()) == {"family"}, "it has no default"
    assert window.document.value("adapter.method") == "lora" and window.document.value("saving.folder") == "runs"
    for place in window.navigation.places:
        if place.key is not None:
            window.show_page(place.key)
            assert window.stack.currentWidget() is window.page(place.key), place
    dialogs.QueueDialog(window.document, window.queue, window.devices, [], window)


def test_what_a_switch_dropped_is_said_until_it_is_undone_or_another_preset_opens(open_window):
    window = open_window()
    changed = {"rank": 9, "alpha": 3, "axis": "output", "channel_beta": True, "learn_weights": False}
    for name, value in changed.items():
        window.document.set(f"adapter.{name}", value)
    window.document.set("adapter.method", "oft")
    said = "\n".join(window.banners.sentences())
    assert all(f"adapter.{name} = " in said for name in changed)
    window.document.undo.undo()
    assert not window.banners.sentences()
    window.document.undo.redo()
    window.document.set("adapter.method", "doft")
    window.opening.take(places.PRESETS / "lora_demo.json")
    assert not window.banners.sentences()


def test_long_texts_do_not_widen_the_window(open_window, qtbot):
    long = "long_" * 40
    places.OWN_PRESETS.mkdir(parents=True)
    (places.OWN_PRESETS / f"{long}.json").write_text(json.dumps({"based_on": "wora_demo", "description": long}))
    window = open_window(str(places.OWN_PRESETS / f"{long}.json"))
    window.resize(1100, 740)
    window.show_page(PRESETS)
    qtbot.waitUntil(lambda: window.page(PRESETS).name.text() == long)  # pyright: ignore[reportAttributeAccessIssue]
    window.banners.say(long)
    window.check.findings = Findings(failed=long)
    window.status.refresh()
    QApplication.processEvents()
    assert window.width() <= 1100 and window.minimumSizeHint().width() <= 1100


def test_the_tab_key_goes_from_the_pages_to_the_page_and_then_to_the_foot(open_window, qtbot):
    window = open_window()
    window.show_page("adapter")
    stops = [window.navigation]
    while stops[-1].nextInFocusChain() is not window.navigation and len(stops) < 5000:
        stops.append(stops[-1].nextInFocusChain())
    rows = window.page("adapter").rows  # pyright: ignore[reportAttributeAccessIssue]
    parts = [window.navigation, rows["adapter.method"].input.box, rows["adapter.rank"].input.edit, window.status.left]
    order = [stops.index(part) for part in [*parts, window.name, window.train]]
    assert order == sorted(order)
