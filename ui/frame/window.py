"""The main window: pages around one document, a queue and the runs."""

from collections import Counter
from pathlib import Path

from PySide6.QtCore import QTimer
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import (
    QApplication,
    QFrame,
    QMainWindow,
    QPushButton,
    QStackedWidget,
    QWidget,
)

from ui.core import places, unsaved, words
from ui.core.check import Check
from ui.core.look import Look
from ui.core.preset.document import Document
from ui.core.runs.devices import Devices
from ui.core.runs.library import Library
from ui.core.runs.queue import Queue, run_folder
from ui.core.settings import Settings
from ui.form.form_page import FormPage
from ui.form.noise_chart import NoiseChart
from ui.frame.banner import Banners
from ui.frame.menus import Menus
from ui.frame.navigation import Mark, Navigation, Place
from ui.frame.opening import Opening
from ui.frame.search import SearchBox
from ui.frame.status_line import StatusLine
from ui.pages.changes.changes_page import ChangesPage
from ui.pages.layers.layers_page import LayersPage
from ui.pages.pictures.pictures_page import PicturesPage
from ui.pages.presets.presets_page import PresetsPage
from ui.pages.runs.runs_page import RunsPage
from ui.widgets import dialogs, icons, theme
from ui.widgets.making import across, down, dressed

PRESETS, PICTURES, LAYERS, CHANGES, RUNS = "page presets", "page pictures", "page layers", "page changes", "page runs"

ICONS = {"": "edit", "base": "box", "targets": "target", "adapter": "layers", "optimizer": "gauge", "data": "folder"}
ICONS |= {"training": "play", "objective": "chart", "validation": "ok", "samples": "picture", "saving": "save"}
ICONS |= {"export": "export"}
"""Of sections; others have the sliders."""

MARGINS = (18, 14, 14, 10)
"""Around the pages that are no form and not split from side to side."""

NAME = 40
"""Letters of the preset's name in the bar; a longer one would make the window wider."""

NOISE = "objective"
"""The section with the options of noise levels."""

LAYER_SETS = ("targets.layers", "targets.rules")
"""Where the name of a set of layers may stand."""


class Window(QMainWindow):
    """Owns everything that is shown; pages come to life when they are first looked at."""

    def __init__(self, document: Document, settings: Settings):
        super().__init__()
        self.document, self.settings = document, settings
        self.opening = Opening(document, settings, self)
        self.unsaved = unsaved.of_document(document, settings.config_folder / "unsaved", self)
        self.check = Check(settings.config_folder, self)
        self.look = Look(self)
        self.devices = Devices(self)
        self.queue = Queue(places.RUNS / ".queue", self.devices, self)
        self.library = Library([Path(folder) for folder in settings.runs_folders], self.queue, self)
        self.pages: dict[str, QWidget] = {}
        self.stack, self.banners = QStackedWidget(), Banners()
        self.note = self.watching = ""
        sections = [Place(one.path, one.title, ICONS.get(one.path, "sliders")) for one in self._sections()]
        looks = [Place(PICTURES, "Pictures", "picture"), Place(LAYERS, "Layers", "layers")]
        looks += [Place(CHANGES, "Changes", "changes")]
        self.navigation = Navigation(
            [Place(None, "Preset"), Place(PRESETS, "Presets", "list"), *sections, Place(None, "Inspect"), *looks]
            + [Place(None, "Train"), Place(RUNS, "Runs", "chart")]
        )
        self.search, self.status = SearchBox(document), StatusLine(self.check, self.library)
        self.name, self.train = QPushButton(), QPushButton("Train…")
        self.menus = Menus(self, settings, self.opening, self.navigation)
        self._lay_out()
        self._connect()
        self.on_origin_changed()
        self.resize(1100, 740)
        self.restoreGeometry(settings.state("window"))
        for key in (PRESETS, settings.text("page", PRESETS)):  # a page that an older version had is not shown
            self.navigation.show_page(key)
        self.navigation.setFocus()

    # -- pages --------------------------------------------------------------------------------------------------------

    def page(self, key: str) -> QWidget:
        """The page of this name, made when it is first asked for."""
        if key not in self.pages:
            page = self._made(key)
            layout = page.layout()
            if layout is not None and key != RUNS:
                layout.setContentsMargins(*MARGINS)
            self.pages[key] = page
            self.stack.addWidget(page)
        return self.pages[key]

    def show_page(self, key: str) -> None:
        """Bring a page to the front."""
        self.navigation.show_page(key)

    def show_setting(self, path: str) -> None:
        """Bring a setting to the front."""
        section = path if path in {one.path for one in self._sections()} else _section(path)
        self.show_page(section)
        form = self.page(section)
        assert isinstance(form, FormPage)
        form.reveal(path)

    @property
    def runs(self) -> RunsPage:
        """The page of the runs."""
        page = self.page(RUNS)
        assert isinstance(page, RunsPage)
        return page

    # -- what happens -------------------------------------------------------------------------------------------------

    def on_page_chosen(self, key: str) -> None:
        """Show the page that was chosen at the left."""
        self.stack.setCurrentWidget(self.page(key))
        self.settings.keep("page", key)

    def on_changed(self, path: str) -> None:
        """A value is another: the trainer has to look again."""
        if path == "" or self.document.field(path).kind == "tag":  # what was noted is about what was before
            self.banners.dismiss(self.note)
        self.check.look_at(self.document.values)
        self.on_origin_changed()

    def on_noted(self, note: str) -> None:
        """Say what a change, or opening a preset, did beyond what was asked for."""
        self.banners.dismiss(self.note)
        self.note = note
        self.banners.say(note)

    def on_origin_changed(self) -> None:
        """Another preset is open, or this one was saved."""
        self.say_problems()
        self._show_name()

    def on_checked(self) -> None:
        """The trainer has looked."""
        self.say_problems()
        for form in self._forms():
            self._offer_layer_sets(form)

    def on_train(self) -> None:
        """Ask how, and put the preset into the queue."""
        self.take_typed()
        problems = [*self._named(self.deep_problems()), *self._named(self.unread())]
        dialog = dialogs.QueueDialog(self.document, self.queue, self.devices, problems, self)
        if not dialog.exec():
            return
        self.settings.remember_runs_folder(str(run_folder(self.document.values, dialog.name).parent))
        self.library.runs_folders = [Path(folder) for folder in self.settings.runs_folders]
        try:
            job = self.queue.add(self.document.values, dialog.name, dialog.device, next=dialog.first)
        except (OSError, ValueError) as error:
            dialogs.say_error(self, "The job could not be added to the queue", str(error))
            return
        self.show_page(RUNS)
        self.runs.show_run(Path(job.folder))

    def on_save(self, again: bool = False) -> None:
        """Save, `again` under another name; what stands in a field but is no value is not in the file, and is said."""
        self.take_typed()
        if self.opening.save_as() if again else self.opening.save():
            for sentence in self._named(self.unread()):
                self.banners.say(f"Saved without an invalid field: {sentence}")

    def on_first_problem(self) -> None:
        """Show the first setting that something is wrong with."""
        known = [*self.document.problems(), *self.unread()]
        deep = self.deep_problems()
        paths = [*known, *(path for path in deep if path)]
        if paths:
            self.show_setting(paths[0])
        elif "" in deep:
            dialogs.say_error(self, "This preset cannot be trained", "\n".join(deep[""]))

    def say_problems(self) -> None:
        """Tell every place that shows problems about those that there are."""
        own, deep = self.document.problems(), self.deep_problems()
        for form in self._forms():
            form.set_problems(deep)
        paths = Counter([*own, *(path for path in deep if path not in own for _ in deep[path])])
        paths.update(path for path in self.unread() if path not in own)
        changed = Counter(_section(difference.path) for difference in self.document.differences())
        problems: Counter[str] = Counter()
        for path, number in paths.items():
            problems[_section(path)] += number
        marks = {one.path: Mark(changed[one.path], problems[one.path]) for one in self._sections()}
        marks[CHANGES] = Mark(text=str(sum(changed.values())) if changed else "")
        self.navigation.set_marks(marks)
        self.status.set_problems(sum(paths.values()))

    def take_typed(self) -> None:
        """Take over what stands in a line of a list that is still open for typing, as if it had been left."""
        typing = QApplication.focusWidget()
        if typing is not None and self.isAncestorOf(typing):
            typing.clearFocus()
            if typing.isVisible():
                typing.setFocus()

    def unread(self) -> dict[str, list[str]]:
        """Fields that hold a text that is no value, by setting."""
        return {path: [sentence] for form in self._forms() for path, sentence in form.unread().items()}

    def deep_problems(self) -> dict[str, list[str]]:
        """What the trainer's check has found, by setting; what is about none under ""."""
        findings = self.check.findings
        known = [*self.document.schema.fields(self.document.values), *(one.path for one in self._sections())]
        return findings.by_path([path for path in known if path]) if findings else {}

    def on_started(self) -> None:
        """What can wait until the window is seen."""
        self.check.look_at(self.document.values)
        self.devices.refresh()
        self.menus.run_menu.addActions(self.runs.run_actions)
        self.menus.job_menu.addActions(self.runs.queue_actions)
        self.watching = self.queue.watching_sentence
        self.banners.say(self.watching)
        self.queue.changed.connect(self.on_queue_changed)

    def on_queue_changed(self) -> None:
        """The other window may be closed, so that this one runs the queue now."""
        if self.queue.drives:
            self.banners.dismiss(self.watching)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Ask about what is not saved. Trainings go on."""
        self.take_typed()
        pictures = self.pages.get(PICTURES)
        if not self.opening.may_replace() or (isinstance(pictures, PicturesPage) and not pictures.may_leave()):
            event.ignore()
            return
        self.settings.keep("window", self.saveGeometry())
        self.unsaved.discard()
        if isinstance(pictures, PicturesPage):
            pictures.end()
        if RUNS in self.pages:
            self.runs.live.close_run()
        for part in (self.check, self.look, self.library, self.queue):
            part.close()
        event.accept()

    # -- making it ----------------------------------------------------------------------------------------------------

    def _made(self, key: str) -> QWidget:
        if key == PRESETS:
            page = PresetsPage(self.document, self.settings)
            page.open_requested.connect(self.opening.open)
            page.renamed.connect(self.opening.on_renamed)
        elif key == PICTURES:
            page = PicturesPage(self.document, self.settings, self.look)
        elif key in (LAYERS, CHANGES):
            layers = key == LAYERS
            page = LayersPage(self.document, self.check) if layers else ChangesPage(self.document, self.library)
            page.show_field.connect(self.show_setting)
        elif key == RUNS:
            page = RunsPage(self.queue, self.library, self.settings)
            page.open_preset.connect(self.opening.open)
        else:
            page = FormPage(self.document, key, self.settings)
            page.unread_changed.connect(self.say_problems)
            page.set_problems(self.deep_problems())
            self._offer_layer_sets(page)
            if key == NOISE:
                page.add_above(NoiseChart(self.document, self.look))
        return page

    def _offer_layer_sets(self, form: FormPage) -> None:
        sets = list(self.check.findings.layer_sets) if self.check.findings else []
        for path in LAYER_SETS if sets else ():
            form.set_choices(path, sets)

    def _connect(self) -> None:
        self.navigation.chosen.connect(self.on_page_chosen)
        self.search.chosen.connect(self.show_setting)
        self.status.problems_wanted.connect(self.on_first_problem)
        self.status.layers_wanted.connect(lambda: self.show_page(LAYERS))
        self.status.run_wanted.connect(lambda: self.show_page(RUNS))
        self.document.changed.connect(self.on_changed)
        self.document.origin_changed.connect(self.on_origin_changed)
        self.check.finished.connect(self.on_checked)
        for signal in (self.document.noted, self.opening.said):
            signal.connect(self.on_noted)
        for signal in (self.unsaved.failed, self.queue.problem, self.library.problem):
            signal.connect(self.banners.say)
        menus = self.menus
        menus.save.triggered.connect(lambda: self.on_save())
        menus.save_as.triggered.connect(lambda: self.on_save(again=True))
        menus.find.triggered.connect(lambda: self.search.setFocus())
        menus.first_problem.triggered.connect(self.on_first_problem)
        menus.check.triggered.connect(lambda: self.check.look_at(self.document.values, at_once=True))
        for signal in (menus.train.triggered, self.train.clicked):
            signal.connect(self.on_train)
        self.name.clicked.connect(lambda: self.show_page(PRESETS))
        theme.notifier().changed.connect(self._show_name)
        QTimer.singleShot(0, self, lambda: QTimer.singleShot(200, self, self.on_started))

    def _lay_out(self) -> None:
        body = QWidget()
        foot, bar = QFrame(body), QFrame(body)  # in this order, so that the tab key comes to the foot after the page
        down(self.status, of=dressed(foot, "foot"), margins=(0, 0, 0, 0))
        name = dressed(self.name, "flat", "Preset")
        train = dressed(self.train, "primary", tip="Add this preset to the queue (Ctrl+T)")
        self.search.setMaximumWidth(self.fontMetrics().averageCharWidth() * 44)
        parts = (name, *self.menus.buttons(), None, (self.search, 2), 6, train)
        across(*parts, of=dressed(bar, "bar"), margins=(12, 7, 12, 7))
        right = down(self.banners, (self.stack, 1))
        middle = across(self.navigation, (right, 1))
        column = down(bar, (middle, 1), foot, of=body, margins=(0, 0, 0, 0))
        for layout in (right, middle, column):
            layout.setSpacing(0)
        self.setCentralWidget(body)

    def _show_name(self) -> None:
        changed = self.document.is_modified()
        name = self.document.origin.name or "new preset"
        self.setWindowTitle(f"{name}[*] – Gimbal")
        self.setWindowModified(changed)
        self.name.setText(words.shortened(name, NAME) + (" – changed" if changed else ""))
        self.name.setToolTip(f"The open preset, {name}; click to show all presets")
        self.name.setIcon(icons.icon("edit", theme.colors().modified) if changed else icons.icon("list"))

    def _sections(self):
        return self.document.schema.sections(self.document.values)

    def _forms(self) -> list[FormPage]:
        return [page for page in self.pages.values() if isinstance(page, FormPage)]

    def _named(self, problems: dict[str, list[str]]) -> list[str]:
        named = {path: f"{dialogs.labels(self.document, [path])[0]}: " if path else "" for path in problems}
        return [named[path] + sentence for path, sentences in problems.items() for sentence in sentences]


def _section(path: str) -> str:
    return path.partition(".")[0] if "." in path else ""
