"""The window's questions: what they say, and what their answers are."""

import json

import pytest
from PySide6.QtCore import Qt, QTimer
from PySide6.QtWidgets import QApplication, QDialogButtonBox, QPushButton

from modules.training.run import check_name
from ui.core.preset import files
from ui.core.runs.devices import Device, Devices
from ui.core.runs.queue import Queue
from ui.widgets import dialogs


@pytest.fixture
def show(qtbot):
    def show(dialog):
        qtbot.addWidget(dialog)
        dialog.show()
        return dialog

    return show


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path / "queue", Devices())
    queue.paused = True
    yield queue
    queue.close()


def ok(dialog) -> QPushButton:
    return dialog.buttons.button(QDialogButtonBox.StandardButton.Ok)


@pytest.mark.parametrize("answer", ["save", "discard", "cancel"])
def test_unsaved_changes_have_three_answers(document, answer):
    document.set("adapter.rank", 4)
    QTimer.singleShot(0, lambda: QApplication.activeModalWidget().choices[answer].click())
    assert dialogs.ask_unsaved(None, document) == answer


@pytest.mark.parametrize("key, answer", [(Qt.Key.Key_Return, "save"), (Qt.Key.Key_Escape, "cancel")])
def test_enter_saves_and_escape_cancels(document, qtbot, key, answer):
    document.set("adapter.rank", 4)
    QTimer.singleShot(50, lambda: qtbot.keyClick(QApplication.activeModalWidget(), key))
    assert dialogs.ask_unsaved(None, document) == answer


def test_unsaved_changes_are_named(document, show):
    document.set("adapter.rank", 4)
    box = show(dialogs.unsaved_question(None, document))
    assert "wora_demo" in box.text() and "Rank" in box.informativeText()
    assert "is not changed" in box.informativeText() and box.choices["save"].text() == "&Save as…"
    path = files.save(document.values, "mine", document.schema)
    document.mark_saved(files.read(path, document.schema).origin)
    document.set("adapter.rank", 5)
    box = show(dialogs.unsaved_question(None, document))
    assert "is not changed" not in box.informativeText() and box.choices["save"].text() == "&Save"


def test_many_changes_are_counted(document, show):
    document.set("adapter.method", "doft")
    box = show(dialogs.unsaved_question(None, document))
    assert f"and {len(document.differences()) - dialogs.NAMED} more" in box.informativeText()


@pytest.mark.parametrize("answer", ["ok", "cancel"])
def test_confirm_does_it_only_when_told(qtbot, answer):
    done = []
    box = dialogs.confirm(None, "Delete", "Delete it?", "For good.", "&Delete", lambda: done.append(1))
    assert box.defaultButton() is box.choices["cancel"]
    box.choices[answer].click()
    assert done == [1] * (answer == "ok")


def test_escape_confirms_nothing(qtbot):
    done = []
    box = dialogs.confirm(None, "Delete", "Delete it?", "For good.", "&Delete", lambda: done.append(1))
    qtbot.keyClick(box, Qt.Key.Key_Escape)
    assert done == [] and not box.isVisible()


def test_an_error_is_a_sentence_and_does_not_wait(qtbot):
    box = dialogs.say_error(None, "Import preset", "x.json: line 1: nonsense")
    assert box.isVisible() and box.informativeText() == "x.json: line 1: nonsense"
    qtbot.keyClick(box, Qt.Key.Key_Return)
    assert not box.isVisible()


def test_a_name_is_judged_while_it_is_typed(show, document):
    dialog = show(dialogs.NameDialog(None, "Save as", "mine", "&Save", replace=True))
    assert ok(dialog).isEnabled() and dialog.feedback.text() == "" and dialog.edit.hasSelectedText()
    for name in ("", "a/b", "wora_demo"):
        dialog.edit.setText(name)
        assert not ok(dialog).isEnabled() and dialog.feedback.text() == files.name_problem(name)
        assert dialog.feedback.property("role") == "problem"
    files.save(document.values, "there", document.schema)
    dialog.edit.setText(" there ")
    assert ok(dialog).isEnabled() and "replaced" in dialog.feedback.text() and dialog.name == "there"
    assert dialog.feedback.property("role") == "note"


def test_a_taken_name_is_refused_where_nothing_may_be_replaced(show, document):
    files.save(document.values, "there", document.schema)
    dialog = show(dialogs.NameDialog(None, "Rename", "there", "Re&name"))
    assert not ok(dialog).isEnabled() and "there" in dialog.feedback.text()


def test_ask_name_gives_the_name_or_nothing(qtbot):
    QTimer.singleShot(0, lambda: QApplication.activeModalWidget().accept())
    assert dialogs.ask_name(None, "Save as", "mine") == "mine"
    QTimer.singleShot(0, lambda: QApplication.activeModalWidget().reject())
    assert dialogs.ask_name(None, "Save as", "mine") == ""


def test_queueing_proposes_a_free_name_and_says_what_is_trained(show, document, queue, tmp_path):
    document.set("saving.folder", str(tmp_path / "runs"))
    dialog = show(dialogs.QueueDialog(document, queue, queue.devices))
    assert dialog.name == "wora_demo" and not dialog.first_box.isVisible() and ok(dialog).isEnabled()
    assert "240 steps" in dialog.summary.text() and "wora" in dialog.summary.text()
    queue.add(document.values, dialog.name, dialog.device, next=dialog.first)
    (tmp_path / "runs/wora_demo_2").mkdir(parents=True)
    again = show(dialogs.QueueDialog(document, queue, queue.devices))
    assert again.name == "wora_demo_3" and again.first_box.isVisible()
    again.edit.setText("wora_demo")
    assert not ok(again).isEnabled() and again.feedback.text() == queue.problem_with(document.values, "wora_demo")
    again.edit.setText("a/b")
    assert not ok(again).isEnabled() and "/" in again.feedback.text()
    again.edit.setText("first")
    again.first_box.click()
    queue.add(document.values, again.name, again.device, next=again.first)
    assert [job.name for job in queue.jobs] == ["first", "wora_demo"]
    assert json.loads(queue.jobs[0].preset.read_text())["name"] == "first"


def test_a_preset_that_would_be_refused_is_not_queued(show, document, queue):
    document.set("training.batch_size", 0)
    dialog = show(dialogs.QueueDialog(document, queue, queue.devices))
    assert not ok(dialog).isEnabled() and document.problems()["training.batch_size"] in dialog.feedback.text()
    document.undo.undo()
    dialog = show(dialogs.QueueDialog(document, queue, queue.devices, ["data.folders: there are no pictures"]))
    assert not ok(dialog).isEnabled() and "no pictures" in dialog.feedback.text()


def test_devices_that_are_found_later_are_offered(show, document, queue):
    dialog = show(dialogs.QueueDialog(document, queue, queue.devices))
    assert dialog.device == "any"
    queue.devices.on_found((Device("0", "one"), Device("1", "other")))
    offered = [dialog.device_box.itemData(index) for index in range(dialog.device_box.count())]
    assert offered == [value for value, _ in queue.devices.choices()] and dialog.device == "any"
    dialog.device_box.setCurrentIndex(offered.index("1"))
    assert dialog.device == "1"


def test_everything_has_a_name_for_screen_readers(document, show, queue):
    dialog = show(dialogs.QueueDialog(document, queue, queue.devices))
    assert dialog.edit.accessibleName() and dialog.device_box.accessibleName()
    assert show(dialogs.NameDialog(None, "Save as", "mine", "&Save")).edit.accessibleName()


def test_a_problem_that_form_and_trainer_know_is_said_once(show, document, queue):
    document.set("training.batch_size", 0)
    problem = f"Batch size: {document.problems()['training.batch_size']}"
    dialog = show(dialogs.QueueDialog(document, queue, queue.devices, [problem]))
    assert dialog.feedback.text().count("too small") == 1


@pytest.mark.parametrize(
    "name", ["mine", "ünï 日本", "a.b", "-x", "a/b", "..", ".queue", "mine.", "con", "CON.txt", "x" * 100, "x" * 101]
)
def test_a_run_has_a_name_that_the_trainer_takes(show, document, queue, name):
    dialog = show(dialogs.QueueDialog(document, queue, queue.devices))
    dialog.edit.setText(name)
    try:
        check_name(name)
    except ValueError:
        assert not ok(dialog).isEnabled() and dialog.feedback.text()
    else:
        assert ok(dialog).isEnabled() and not dialog.feedback.text()
