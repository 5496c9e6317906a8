"""Small pictures for the grid: read in a few threads, the visible ones first, and kept in memory."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QObject, QRunnable, QSize, Qt, QThreadPool, Signal
from PySide6.QtGui import QColor, QImage, QImageReader, QPainter, QPixmap

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
        self._queue = _Queue()
        self._queue.made.connect(self.on_made)
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
        for _ in range(self._queue.replace([path for path in paths if path not in self._pixmaps or path in self._old])):
            self._pool.start(_Reader(self._queue))

    def forget(self) -> None:
        """The files may have changed: what is wanted next is read again, and the old one shown meanwhile."""
        self._old = set(self._pixmaps)

    def close(self) -> None:
        """Read no more."""
        self._queue.replace([])
        self._pool.waitForDone()

    def on_made(self, path: str, image: QImage) -> None:
        """A thread has read a thumbnail."""
        self._old.discard(path)
        self._pixmaps[path] = QPixmap.fromImage(image)
        while len(self._pixmaps) > IN_MEMORY:
            self._pixmaps.popitem(last=False)
        self.ready.emit(path)


def read_scaled(path: Path, side: int) -> QImage:
    """A picture, at most `side` pixels large, turned as its EXIF block says, on white; null if it cannot be read."""
    reader = QImageReader(str(path))
    reader.setDecideFormatFromContent(True)
    reader.setAutoTransform(True)
    size = reader.size()
    if size.isValid() and max(size.width(), size.height()) > side:
        reader.setScaledSize(size.scaled(side, side, Qt.AspectRatioMode.KeepAspectRatio).expandedTo(QSize(1, 1)))
    image = reader.read()
    if not image.hasAlphaChannel():
        return image
    white = QImage(image.size(), QImage.Format.Format_RGB32)
    white.fill(QColor("white"))
    painter = QPainter(white)
    painter.drawImage(0, 0, image)
    painter.end()
    return white


class _Queue(QObject):
    """What is to be read, shared by the threads. Without a parent: a thread may outlive the grid."""

    made = Signal(str, QImage)

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._paths: list[str] = []
        self._under_way: set[str] = set()
        self._readers = 0

    def replace(self, paths: Sequence[str]) -> int:
        """How many readers have to be started for the new queue."""
        with self._lock:
            self._paths = [path for path in paths if path not in self._under_way][::-1]
            new = max(0, min(THREADS, len(self._paths)) - self._readers)
            self._readers += new
            return new

    def take(self) -> str:
        """The next path; "" ends the reader."""
        with self._lock:
            if not self._paths:
                self._readers -= 1
                return ""
            path = self._paths.pop()
            self._under_way.add(path)
            return path

    def finish(self, path: str, image: QImage) -> None:
        """The path was read; from now on it can be wanted anew."""
        with self._lock:
            self._under_way.discard(path)
        self.made.emit(path, image)


class _Reader(QRunnable):
    """One thread that reads until nothing is wanted any more."""

    def __init__(self, queue: _Queue):
        super().__init__()
        self._queue = queue

    def run(self) -> None:
        while path := self._queue.take():
            self._queue.finish(path, read_scaled(Path(path), SIDE))
