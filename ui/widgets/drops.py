"""Files and folders that are dropped on a widget."""

from pathlib import Path

from PySide6.QtGui import QDragEnterEvent, QDragMoveEvent, QDropEvent

from ui.core import places


class Drops:
    """A widget that takes dropped files and folders, and says which in its signal `dropped`."""

    folders_only = False

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if not self._takes(event):
            super().dragEnterEvent(event)  # pyright: ignore[reportAttributeAccessIssue]

    def dragMoveEvent(self, event: QDragMoveEvent) -> None:
        if not self._takes(event):
            super().dragMoveEvent(event)  # pyright: ignore[reportAttributeAccessIssue]

    def dropEvent(self, event: QDropEvent) -> None:
        if paths := self._takes(event):
            self.dropped.emit(paths)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            super().dropEvent(event)  # pyright: ignore[reportAttributeAccessIssue]

    def _takes(self, event: QDropEvent) -> list[str]:
        """The paths in what is dragged, as presets write them."""
        urls = event.mimeData().urls()
        paths = [places.shown(Path(url.toLocalFile())) for url in urls if url.isLocalFile()]
        paths = [path for path in paths if not self.folders_only or places.full(path).is_dir()]
        if paths:
            event.acceptProposedAction()
        return paths
