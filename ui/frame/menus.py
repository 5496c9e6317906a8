"""The menus: everything the window can do, with its keys."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from PySide6.QtCore import QObject, QUrl
from PySide6.QtGui import QAction, QActionGroup, QDesktopServices, QKeySequence
from PySide6.QtWidgets import QApplication, QMainWindow, QMenu, QToolButton

from ui.core import places, settings
from ui.core.preset.document import Document
from ui.core.settings import Settings
from ui.frame.navigation import Navigation
from ui.frame.opening import Opening
from ui.widgets import icons, theme

THEMES = {"system": "&System", "light": "&Light", "dark": "&Dark"}
assert tuple(THEMES) == settings.THEMES


@dataclass(frozen=True)
class Orders:
    """What the window itself does when a menu says so."""

    save: Callable[[], object]
    save_as: Callable[[], object]
    find: Callable[[], object]
    first_problem: Callable[[], object]
    train: Callable[[], object]
    check: Callable[[], object]


class Menus(QObject):
    """Builds the menu bar of a window; actions that the window needs later are attributes."""

    def __init__(self, window: QMainWindow, document: Document, settings: Settings, opening: Opening,
                 navigation: Navigation, orders: Orders):  # fmt: skip
        super().__init__(window)  # so that the theme's signal ends with the window
        self.window, self.settings, self.opening = window, settings, opening
        self.navigation, self.orders = navigation, orders
        undo = document.undo
        self.undo, self.redo = undo.createUndoAction(window, "&Undo"), undo.createRedoAction(window, "&Redo")
        self.undo.setShortcut(QKeySequence(QKeySequence.StandardKey.Undo))
        self.redo.setShortcuts([QKeySequence("Ctrl+Shift+Z"), QKeySequence("Ctrl+Y")])
        self.save = self._action("&Save", "Ctrl+S", orders.save)
        for make in (self._file, self._edit, self._view, self._train, self._help):
            make()
        theme.notifier().changed.connect(self.on_theme_changed)
        self.on_theme_changed()

    def buttons(self) -> list[QToolButton]:
        """Undo, redo and save as buttons for the bar."""
        made = []
        for action, name in ((self.undo, "Undo"), (self.redo, "Redo"), (self.save, "Save the preset")):
            action.setToolTip(f"{name} ({action.shortcut().toString()})")
            button = QToolButton()
            button.setDefaultAction(action)
            button.setAccessibleName(name)
            theme.set_role(button, "flat")
            made.append(button)
        return made

    def on_theme_changed(self) -> None:
        """Draw the icons in the new colours."""
        for action, icon in ((self.undo, "undo"), (self.redo, "redo"), (self.save, "save")):
            action.setIcon(icons.icon(icon))

    def _file(self) -> None:
        opening, menu = self.opening, self._menu("&File")
        menu.addAction(self._action("&Open preset…", "Ctrl+O", opening.choose_file))
        menu.addAction(self._action("Open a &run's preset…", "Ctrl+Shift+O", opening.choose_run))
        menu.addSeparator()
        menu.addAction(self.save)
        menu.addAction(self._action("Save &as…", "Ctrl+Shift+S", self.orders.save_as))
        menu.addAction(self._action("&Export preset…", "Ctrl+E", opening.export))
        menu.addSeparator()
        menu.addAction(self._action("&Quit", "Ctrl+Q", self.window.close))

    def _edit(self) -> None:
        menu = self._menu("&Edit")
        menu.addActions([self.undo, self.redo])
        menu.addSeparator()
        menu.addAction(self._action("&Find a setting", "Ctrl+F", self.orders.find))
        menu.addAction(self._action("Show the first &problem", "F4", self.orders.first_problem))

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
        for name, text in THEMES.items():
            action = self._action(text, "", partial(self.on_theme, name))
            action.setCheckable(True)
            action.setChecked(name == self.settings.theme)
            group.addAction(action)
            themes.addAction(action)

    def _train(self) -> None:
        menu = self._menu("&Train")
        menu.addAction(self._action("&Train this preset…", "Ctrl+T", self.orders.train))
        menu.addAction(self._action("&Check now", "Ctrl+R", self.orders.check))
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
        self.settings.theme = name
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
