"""The window's questions: unsaved changes, names, deleting, errors, and what to queue.

Each is a dialog that can be shown, filled in and accepted; the `ask_` functions wait for the answer.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QMessageBox,
    QWidget,
)

from ui.core import places, words
from ui.core.preset import entries, files
from ui.core.preset.document import Document
from ui.core.preset.schema import at
from ui.core.runs.devices import Devices
from ui.core.runs.queue import Queue
from ui.widgets import theme
from ui.widgets.making import down, dressed, plain

NAMED = 6
"""How many settings a question names before it only counts."""
LISTED = 14
"""How many problems a question lists before it only counts."""
FORBIDDEN = '/\\:*?"<>|'
"""Letters that no name of a folder may have, on some system or other."""
LONGEST = 100
"""Letters that a run's name may have."""
WIDTH = 60
"""Of the sentences, in letters."""

SAVE, DISCARD, CANCEL, OK = "save", "discard", "cancel", "ok"


class Question(QMessageBox):
    """A question and its answers, the first one the usual; Escape gives the last one."""

    def __init__(
        self,
        parent: QWidget | None,
        title: str,
        question: str,
        details: str,
        answers: Mapping[str, str],
        usual: str = "",
        role: str = "",
    ):
        """`answers`: text of the button by answer. Enter gives `usual`; `role`: how the first button looks."""
        super().__init__(parent)
        dressed(self, windowTitle=title, text=question, informativeText=details, textFormat=Qt.TextFormat.PlainText)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        first, *_, self.last = [*answers, *answers]
        roles = dict.fromkeys(answers, self.ButtonRole.DestructiveRole)
        roles |= {self.last: self.ButtonRole.RejectRole, first: self.ButtonRole.AcceptRole}
        self.choices = {answer: self.addButton(text, roles[answer]) for answer, text in answers.items()}
        theme.set_role(self.choices[first], role)
        self.setDefaultButton(self.choices[usual or first])
        self.setEscapeButton(self.choices[self.last])

    @property
    def answer(self) -> str:
        """What was answered."""
        return next((one for one, button in self.choices.items() if button is self.clickedButton()), self.last)

    def ask(self) -> str:
        """Wait for the answer."""
        self.exec()
        return self.answer

    def opened(self) -> "Question":
        """Show it without waiting."""
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.open()
        return self


def say_error(parent: QWidget | None, title: str, sentence: str) -> Question:
    """Say what went wrong; returns at once."""
    return Question(parent, title, title, sentence, {OK: "&OK"}, role="primary").opened()


def confirm(
    parent: QWidget | None, title: str, question: str, details: str, accept: str, on_accept: Callable[[], None]
) -> Question:
    """Ask before something that loses something; Cancel is the default. Returns at once."""
    box = Question(parent, title, question, details, {OK: accept, CANCEL: "&Cancel"}, usual=CANCEL, role="danger")
    box.finished.connect(lambda: on_accept() if box.answer == OK else None)
    return box.opened()


def ask_unsaved(parent: QWidget | None, document: Document) -> str:
    """What to do with unsaved changes: SAVE, DISCARD or CANCEL."""
    return unsaved_question(parent, document).ask()


def unsaved_question(parent: QWidget | None, document: Document) -> Question:
    """The question of `ask_unsaved`."""
    name, own = document.origin.name or "the new preset", document.origin.kind == "own"
    changed = enumerated(labels(document, [one.path for one in document.differences()]))
    kept = "" if own else f"\n{name} is not changed; the changes are saved as a new preset."
    answers = {SAVE: "&Save" if own else "&Save as…", DISCARD: "Do&n't save", CANCEL: "&Cancel"}
    question = f"Save the changes to {name}?"
    return Question(parent, "Unsaved changes", question, f"Changed: {changed}.{kept}", answers, role="primary")


def ask_name(parent: QWidget | None, title: str, name: str, accept: str = "&Save") -> str:
    """A name for a preset of one's own, or "" for none; the name of an existing one means to replace it."""
    dialog = NameDialog(parent, title, name, accept, replace=True)
    return dialog.name if dialog.exec() else ""


def own_preset(name: str) -> Path:
    """Where an own preset of this name is, or would be."""
    return places.OWN_PRESETS / f"{name}.json"


class _Named(QDialog):
    """Asks for a name, and says while typing what is wrong with it."""

    def __init__(self, parent: QWidget | None, title: str, name: str, spoken: str, accept: str):
        """`spoken`: what the name is, for screen readers; `accept`: text of the button."""
        super().__init__(parent)
        self.setWindowTitle(title)
        self.edit = dressed(QLineEdit(name), name=spoken)
        self.edit.selectAll()
        self.edit.textChanged.connect(self.on_changed)
        self.feedback = self._sentences()
        # room for two lines, so that the dialog does not jump when a sentence comes
        self.feedback.setMinimumHeight(self.fontMetrics().lineSpacing() * 2)
        kinds = QDialogButtonBox.StandardButton
        self.buttons = QDialogButtonBox(kinds.Ok | kinds.Cancel)
        self.ok = dressed(self.buttons.button(kinds.Ok), "primary", text=accept, default=True)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)

    @property
    def name(self) -> str:
        """The name as it will be used."""
        return self.edit.text().strip()

    def problem(self) -> str:
        """What keeps the answer from being taken; "" for nothing."""
        raise NotImplementedError

    def note(self) -> str:
        """What is worth knowing before it is taken."""
        raise NotImplementedError

    def on_changed(self) -> None:
        """Say what is wrong with the name."""
        problem = self.problem()
        self.feedback.setText(problem or self.note())
        theme.set_role(self.feedback, "problem" if problem else "note")
        self.ok.setEnabled(not problem)

    def _sentences(self, text: str = "") -> QLabel:
        return dressed(plain(text), minimumWidth=self.fontMetrics().averageCharWidth() * WIDTH)


class NameDialog(_Named):
    """A question for the name of a preset of one's own."""

    def __init__(self, parent: QWidget | None, title: str, name: str, accept: str, replace: bool = False):
        """`replace`: whether it may be the name of an existing one."""
        super().__init__(parent, title, name, "Name", accept)
        self._replace = replace
        label = QLabel("&Name")
        label.setBuddy(self.edit)
        down(label, self.edit, self.feedback, self.buttons, of=self)
        self.on_changed()

    def problem(self) -> str:
        return files.name_problem(self.name) or ("" if self._replace else self._existing("choose another name"))

    def note(self) -> str:
        return self._existing("it will be replaced")

    def _existing(self, then: str) -> str:
        there = self.name and own_preset(self.name).exists()
        return f"You have a preset called {self.name}; {then}." if there else ""


class QueueDialog(_Named):
    """Under which name, on which device and when a preset is to be trained."""

    def __init__(
        self,
        document: Document,
        queue: Queue,
        devices: Devices,
        problems: Sequence[str] = (),
        parent: QWidget | None = None,
    ):
        """`problems`: what the check has found."""
        super().__init__(parent, "Add to the queue", _free_run_name(document, queue), "Run name", "&Add to queue")
        self._document, self._queue, self._devices = document, queue, devices
        self._preset_problems = list(dict.fromkeys([*_problems(document), *problems]))
        self.device_box = dressed(QComboBox(), name="Device")
        waiting = sum(job.waiting for job in queue.jobs)
        self.first_box = QCheckBox(f"Run &before the {words.plural(waiting, 'waiting job')}")
        self.first_box.setVisible(waiting > 0)
        form = QFormLayout()
        form.addRow("Run &name", self.edit)
        form.addRow("&Device", self.device_box)
        form.addRow("", self.first_box)
        self.summary = self._sentences(summary(document))
        down(self.summary, form, self.feedback, self.buttons, of=self)
        devices.changed.connect(self.on_devices_changed)
        self.on_devices_changed()
        self.on_changed()

    @property
    def device(self) -> str:
        """Name of the device."""
        return self.device_box.currentData()

    @property
    def first(self) -> bool:
        """Whether it goes before the waiting jobs."""
        return self.first_box.isChecked()

    def problem(self) -> str:
        if self._preset_problems:
            return f"This preset cannot be trained. {enumerated(self._preset_problems, '; ')}"
        return _run_name_problem(self.name) or self._queue.problem_with(self._document.values, self.name)

    def note(self) -> str:
        return self._queue.watching_sentence

    def on_devices_changed(self) -> None:
        """Offer the devices that are known now."""
        before = self.device_box.currentData()
        self.device_box.clear()
        for device, text in self._devices.choices():
            self.device_box.addItem(text, device)
        self.device_box.setCurrentIndex(max(0, self.device_box.findData(before)))

    def on_changed(self) -> None:
        """Only the window that drives the queue adds to it."""
        super().on_changed()
        self.ok.setEnabled(self.ok.isEnabled() and self._queue.drives)


def summary(document: Document) -> str:
    """What a document's training is, in a sentence or two."""
    values = document.values
    epochs, steps = at(values, "training.epochs"), at(values, "training.steps")
    length = words.plural(epochs, "epoch") if epochs else words.plural(steps, "step")
    folders = ", ".join(entries.path(one) for one in entries.of_set(at(values, "data.folders") or (), "training"))
    pictures = f"pictures from {folders}" if folders else "no picture folder chosen"
    base = at(values, "base.path") or "no base model"
    return f"{document.origin.name}: {length} of {at(values, 'adapter.method')} on {base}, {pictures}."


def _run_name_problem(name: str) -> str:
    """Why the trainer would not take a name; "" when it would."""
    wrong = sorted({letter for letter in name if letter in FORBIDDEN or letter < " "})
    if wrong:
        return f"Run name: {' '.join(wrong)} cannot be in a folder's name."
    if name.startswith(".") or name.endswith("."):
        return "Run name: must not begin or end with a full stop."
    if files.RESERVED.fullmatch(name):
        return f"Run name: {name} is reserved by Windows."
    return f"Run name: {len(name)} characters; at most {LONGEST}." if len(name) > LONGEST else ""


def _free_run_name(document: Document, queue: Queue) -> str:
    folder = places.full(document.value("saving.folder"))
    there = {one.name for one in folder.iterdir()} if folder.is_dir() else set()
    return files.free_name(document.value("name") or document.origin.name, there | {job.name for job in queue.jobs})


def labels(document: Document, paths: Sequence[str]) -> list[str]:
    """The settings' names, as people read them."""
    known = document.schema.everything()
    return [document.field(path).label if path in known else path for path in paths]


def enumerated(parts: Sequence[str], separator: str = ", ", most: int = NAMED) -> str:
    """The first few parts, and how many others there are."""
    named = separator.join(parts[:most])
    return f"{named}{separator}and {len(parts) - most} more" if len(parts) > most else named


def _problems(document: Document) -> list[str]:
    problems = document.problems()
    named = zip(labels(document, [*problems]), problems.values(), strict=True)
    return [f"{label}: {text}" for label, texts in named for text in texts.splitlines()]
