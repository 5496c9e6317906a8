"""Work on other threads: whom its outcome reaches."""

import gc
from threading import Event

from PySide6.QtCore import QObject, Signal
from shiboken6 import delete

from ui.core import workers


class Owner(QObject):
    """Somebody who waits for an outcome."""

    changed = Signal()

    def on_done(self, result):
        """Take it."""
        self.result = result
        self.changed.emit()


def test_an_outcome_arrives_but_not_at_somebody_who_is_gone(qtbot):
    here, gone, go, arrived = Owner(), Owner(), Event(), []
    for owner in (gone, here):
        workers.run(go.wait, done=owner.on_done, failed=arrived.append)
    workers.run(go.wait, done=arrived.append, failed=arrived.append)
    delete(gone)
    with qtbot.waitSignal(here.changed):
        go.set()
    qtbot.waitUntil(lambda: arrived == [True] and not workers._waiting)
    assert here.result is True


def test_a_failure_is_a_sentence(qtbot):
    said = []

    def fail():
        raise ValueError("the file is empty")

    workers.run(fail, done=said.append, failed=said.append)
    qtbot.waitUntil(lambda: said == ["the file is empty"])


def test_no_garbage_is_collected_on_another_thread(qtbot):
    """It would delete widgets there: the window crashed so, some time after its presets were listed."""
    said = []
    workers.run(gc.isenabled, done=said.append, failed=said.append)
    qtbot.waitUntil(lambda: bool(said))
    assert said == [False] and gc.isenabled()
