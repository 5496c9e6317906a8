"""The window without a mouse, and for those who do not see it."""

from PySide6.QtCore import Qt
from PySide6.QtGui import QAccessible, QAction
from PySide6.QtWidgets import QApplication, QWidget

from ui.frame.window import CHANGES, LAYERS, PICTURES, PRESETS, RUNS
from ui.widgets import dialogs


def test_every_widget_that_takes_the_keyboard_has_a_name(open_window):
    window = open_window()
    for key in (PRESETS, "", "adapter", "data", "samples", PICTURES, LAYERS, CHANGES, RUNS):
        window.show_page(key)
        QApplication.processEvents()
        nameless = [
            (key, type(widget).__name__, widget.objectName())
            for widget in window.stack.currentWidget().findChildren(QWidget)
            if widget.focusPolicy() & Qt.FocusPolicy.TabFocus and widget.isVisible() and not spoken(widget)
        ]
        assert not nameless, nameless


def spoken(widget: QWidget) -> str:
    """What a screen reader says of a widget: its name, or its own text."""
    interface = QAccessible.queryAccessibleInterface(widget)
    inner = widget.objectName().startswith("qt_") or type(widget).__name__ in ("QScrollArea", "FormPage")
    return interface.text(QAccessible.Text.Name) or widget.toolTip() or ("inside another" if inner else "")


def test_no_two_actions_have_the_same_keys(open_window):
    window = open_window()
    for place in window.navigation.places:
        if place.key is not None:
            window.page(place.key)
    keys: dict[str, list[str]] = {}
    for action in window.findChildren(QAction):
        if action.shortcutContext() in (Qt.ShortcutContext.WindowShortcut, Qt.ShortcutContext.ApplicationShortcut):
            for sequence in action.shortcuts():
                keys.setdefault(sequence.toString(), []).append(action.text())
    assert len(keys) > 15
    twice = {sequence: texts for sequence, texts in keys.items() if len(texts) > 1}
    assert not twice


def test_keys_work(open_window, qtbot, monkeypatch):
    window = open_window()
    qtbot.waitUntil(lambda: window.activateWindow() or QApplication.activeWindow() is window)
    qtbot.keyClick(window.navigation, Qt.Key.Key_4, Qt.KeyboardModifier.ControlModifier)
    assert window.stack.currentWidget() is window.pages[CHANGES]
    qtbot.keyClick(window.stack.currentWidget(), Qt.Key.Key_F, Qt.KeyboardModifier.ControlModifier)
    assert window.search.line.hasFocus()
    dialogs_shown = []
    monkeypatch.setattr(dialogs.QueueDialog, "exec", lambda self: dialogs_shown.append(self.name))
    qtbot.keyClick(window.search.line, Qt.Key.Key_T, Qt.KeyboardModifier.ControlModifier)
    assert len(dialogs_shown) == 1
