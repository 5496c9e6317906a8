"""Small pictures for the grid: read in a few threads, the visible ones first, and kept in memory."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QObject, QThreadPool, Signal
from PySide6.QtGui import QImage, QImageReader, QPixmap

from ui.core import workers
from ui.widgets.images import read_scaled

SIDE = 256
"""Longest side of a thumbnail in pixels; enough for a grid on a screen of double density."""

THREADS = 2
IN_MEMORY = 400
"""Thumbnails kept ready to be painted."""

LARGEST = 1024
"""MiB that Qt may take to decode one picture."""


class Thumbnails(QObject):
    """Thumbnails by path; `ready` tells of each that was asked for with `want`."""

    ready = Signal(str)

    def __init__(self, parent: QObject | None = None):
        super().__init__(parent)
        self._pixmaps: OrderedDict[str, QPixmap] = OrderedDict()
        self._old: set[str] = set()
        self._wanted: frozenset[str] = frozenset()
        self._queued: set[str] = set()
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(THREADS)
        QImageReader.setAllocationLimit(LARGEST)

    def get(self, path: str) -> QPixmap | None:
        """The thumbnail if it is in memory; one that cannot be read is a null pixmap."""
        pixmap = self._pixmaps.get(path)
        if pixmap is not None:
            self._pixmaps.move_to_end(path)
        return pixmap

    def want(self, paths: Sequence[str]) -> None:
        """Read these, in this order; what was wanted before and is not among them is dropped."""
        new = [path for path in paths if path not in self._pixmaps or path in self._old]
        self._wanted = frozenset(new)
        for path in new:
            if path not in self._queued:
                self._start(path)

    def forget(self) -> None:
        """The files may have changed: what is wanted next is read again, and the old one shown meanwhile."""
        self._old = set(self._pixmaps)

    def close(self) -> None:
        """Read no more."""
        self._wanted = frozenset()
        self._pool.waitForDone()

    def on_read(self, outcome: tuple[str, QImage | None]) -> None:
        """A thread has read a thumbnail, or passed it over."""
        path, image = outcome
        self._queued.discard(path)
        if image is None:
            if path in self._wanted:  # again, since then
                self._start(path)
            return
        self._old.discard(path)
        self._pixmaps[path] = QPixmap.fromImage(image)
        while len(self._pixmaps) > IN_MEMORY:
            self._pixmaps.popitem(last=False)
        self.ready.emit(path)

    def _start(self, path: str) -> None:
        self._queued.add(path)
        failed = lambda _: self._queued.discard(path)  # noqa: E731
        workers.run(self._read, path, done=self.on_read, failed=failed, pool=self._pool)

    def _read(self, path: str) -> tuple[str, QImage | None]:
        """On another thread: the path and its picture, None when it is not wanted any more."""
        return path, read_scaled(Path(path), SIDE) if path in self._wanted else None
