"""The menus: everything the window can do, with its keys."""

from collections.abc import Callable
from functools import partial

from PySide6.QtCore import QUrl
from PySide6.QtGui import QAction, QActionGroup, QDesktopServices, QKeySequence
from PySide6.QtWidgets import QApplication, QMainWindow, QMenu, QToolButton

from ui.core import places
from ui.core.settings import THEMES, Settings
from ui.frame.navigation import Navigation
from ui.frame.opening import Opening
from ui.widgets import theme
from ui.widgets.making import dressed, with_icon


class Menus:
    """Builds the menu bar of a window; the actions that the window carries out or fills itself are attributes."""

    def __init__(self, window: QMainWindow, settings: Settings, opening: Opening, navigation: Navigation):
        self.window, self.settings, self.opening, self.navigation = window, settings, opening, navigation
        undo = opening.document.undo
        self.undo = with_icon(undo.createUndoAction(window, "&Undo"), "undo")
        self.redo = with_icon(undo.createRedoAction(window, "&Redo"), "redo")
        self.undo.setShortcut(QKeySequence(QKeySequence.StandardKey.Undo))
        self.redo.setShortcuts([QKeySequence("Ctrl+Shift+Z"), QKeySequence("Ctrl+Y")])
        self.save = with_icon(self._action("&Save", "Ctrl+S"), "save")
        self.save_as = self._action("Save &as…", "Ctrl+Shift+S")
        self.find = self._action("&Find a setting", "Ctrl+F")
        self.first_problem = self._action("Show the first &problem", "F4")
        self.train, self.check = self._action("&Train this preset…", "Ctrl+T"), self._action("&Check now", "Ctrl+R")
        self._file()
        self._menu("&Edit", self.undo, self.redo, None, self.find, self.first_problem)
        self._view()
        train = self._menu("&Train", self.train, self.check, None)
        self.run_menu, self.job_menu = train.addMenu("Selected &run"), train.addMenu("Selected &job")
        reference = self._action("&Settings reference", "F1", partial(_show, "docs/preset-reference.md"))
        self._menu("&Help", reference, self._action("&Read me", "", partial(_show, "README.md")))

    def buttons(self) -> list[QToolButton]:
        """Undo, redo and save as buttons for the bar."""
        made = []
        for action, name in ((self.undo, "Undo"), (self.redo, "Redo"), (self.save, "Save the preset")):
            action.setToolTip(f"{name} ({action.shortcut().toString()})")
            made.append(dressed(QToolButton(), "flat", name))
            made[-1].setDefaultAction(action)
        return made

    def _file(self) -> None:
        preset = self._action("&Open preset…", "Ctrl+O", self.opening.choose_file)
        run = self._action("Open a &run's preset…", "Ctrl+Shift+O", self.opening.choose_run)
        export = self._action("&Export preset…", "Ctrl+E", self.opening.export)
        end = self._action("&Quit", "Ctrl+Q", self.window.close)
        self._menu("&File", preset, run, None, self.save, self.save_as, export, None, end)

    def _view(self) -> None:
        menu, navigation = self._menu("&View"), self.navigation
        number = 0
        for place in navigation.places:
            if place.key is None:
                menu.addSeparator()
                continue
            apart = place.key.startswith("page ")  # not a section of the preset
            number += apart
            keys = f"Ctrl+{number}" if apart else ""
            menu.addAction(self._action(place.title, keys, partial(navigation.show_page, place.key)))
        menu.addSeparator()
        menu.addAction(self._action("&Next page", "Ctrl+PgDown", partial(navigation.step, 1)))
        menu.addAction(self._action("P&revious page", "Ctrl+PgUp", partial(navigation.step, -1)))
        menu.addSeparator()
        themes, group = menu.addMenu("&Theme"), QActionGroup(self.window)
        for name in THEMES:
            action = self._action(f"&{name.capitalize()}", "", partial(self.on_theme, name))
            action.setCheckable(True)
            action.setChecked(name == self.settings.theme)
            group.addAction(action)
            themes.addAction(action)

    def on_theme(self, name: str) -> None:
        """Show and remember a theme."""
        self.settings.keep("theme", name)
        app = QApplication.instance()
        assert isinstance(app, QApplication)
        theme.apply(app, name)

    def _menu(self, title: str, *actions: QAction | None) -> QMenu:
        """A menu of the bar; None is a line between actions."""
        menu = self.window.menuBar().addMenu(title)
        for action in actions:
            menu.addAction(action) if action else menu.addSeparator()
        return menu

    def _action(self, text: str, keys: str, slot: Callable[[], object] | None = None) -> QAction:
        action = QAction(text, self.window)
        if keys:
            action.setShortcut(QKeySequence(keys))
        if slot is not None:
            action.triggered.connect(lambda: slot())
        return action


def _show(file: str) -> None:
    QDesktopServices.openUrl(QUrl.fromLocalFile(str(places.ROOT / file)))
