"""The menus: everything the window can do, with its keys."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from PySide6.QtCore import QUrl
from PySide6.QtGui import QAction, QActionGroup, QDesktopServices, QKeySequence
from PySide6.QtWidgets import QApplication, QMenu, QToolButton

from ui.core import places, settings
from ui.widgets import theme
from ui.widgets.making import dressed, with_icon

if TYPE_CHECKING:
    from ui.frame.window import Window


class Menus:
    """Builds the menu bar of the window; actions that the window needs later are attributes."""

    def __init__(self, window: "Window"):
        self.window = window
        undo = window.document.undo
        self.undo = with_icon(undo.createUndoAction(window, "&Undo"), "undo")
        self.redo = with_icon(undo.createRedoAction(window, "&Redo"), "redo")
        self.undo.setShortcut(QKeySequence(QKeySequence.StandardKey.Undo))
        self.redo.setShortcuts([QKeySequence("Ctrl+Shift+Z"), QKeySequence("Ctrl+Y")])
        self.save = with_icon(self._action("&Save", "Ctrl+S", window.on_save), "save")
        for make in (self._file, self._edit, self._view, self._train, self._help):
            make()

    def buttons(self) -> list[QToolButton]:
        """Undo, redo and save as buttons for the bar."""
        made = []
        for action, name in ((self.undo, "Undo"), (self.redo, "Redo"), (self.save, "Save the preset")):
            action.setToolTip(f"{name} ({action.shortcut().toString()})")
            made.append(dressed(QToolButton(), "flat", name))
            made[-1].setDefaultAction(action)
        return made

    def _file(self) -> None:
        opening, menu = self.window.opening, self._menu("&File")
        menu.addAction(self._action("&Open preset…", "Ctrl+O", opening.choose_file))
        menu.addAction(self._action("Open a &run's preset…", "Ctrl+Shift+O", opening.choose_run))
        menu.addSeparator()
        menu.addAction(self.save)
        menu.addAction(self._action("Save &as…", "Ctrl+Shift+S", partial(self.window.on_save, again=True)))
        menu.addAction(self._action("&Export preset…", "Ctrl+E", opening.export))
        menu.addSeparator()
        menu.addAction(self._action("&Quit", "Ctrl+Q", self.window.close))

    def _edit(self) -> None:
        menu = self._menu("&Edit")
        menu.addActions([self.undo, self.redo])
        menu.addSeparator()
        menu.addAction(self._action("&Find a setting", "Ctrl+F", self.window.search.setFocus))
        menu.addAction(self._action("Show the first &problem", "F4", self.window.on_first_problem))

    def _view(self) -> None:
        menu, navigation = self._menu("&View"), self.window.navigation
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
        for name in settings.THEMES:
            action = self._action(f"&{name.capitalize()}", "", partial(self.on_theme, name))
            action.setCheckable(True)
            action.setChecked(name == self.window.settings.theme)
            group.addAction(action)
            themes.addAction(action)

    def _train(self) -> None:
        menu, window = self._menu("&Train"), self.window
        menu.addAction(self._action("&Train this preset…", "Ctrl+T", self.window.on_train))
        check = lambda: window.check.look_at(window.document.values, at_once=True)  # noqa: E731
        menu.addAction(self._action("&Check now", "Ctrl+R", check))
        menu.addSeparator()
        self.run_menu = menu.addMenu("Selected &run")
        self.job_menu = menu.addMenu("Selected &job")

    def take_run_actions(self, run: tuple[QAction, ...], job: tuple[QAction, ...]) -> None:
        """Show what the page of the runs can do, once it is there."""
        self.run_menu.addActions(list(run))
        self.job_menu.addActions(list(job))

    def _help(self) -> None:
        menu = self._menu("&Help")
        for text, keys, name in (
            ("&Settings reference", "F1", "docs/preset-reference.md"),
            ("&Read me", "", "README.md"),
        ):
            url = QUrl.fromLocalFile(str(places.ROOT / name))
            menu.addAction(self._action(text, keys, partial(QDesktopServices.openUrl, url)))

    def on_theme(self, name: str) -> None:
        """Show and remember a theme."""
        self.window.settings.theme = name
        app = QApplication.instance()
        assert isinstance(app, QApplication)
        theme.apply(app, name)

    def _menu(self, title: str) -> QMenu:
        return self.window.menuBar().addMenu(title)

    def _action(self, text: str, keys: str, slot: Callable[[], object]) -> QAction:
        action = QAction(text, self.window)
        if keys:
            action.setShortcut(QKeySequence(keys))
        action.triggered.connect(lambda: slot())
        return action
