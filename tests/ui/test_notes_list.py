"""Problems and notes: every sentence can be read to its end, however long the names in it."""

import pytest
from PySide6.QtCore import QRect, Qt
from PySide6.QtWidgets import QLabel, QTabWidget

from ui.pages.pictures.notes import NotesList


@pytest.mark.parametrize("width", [300, 460, 900])
def test_rows_have_room_for_all_of_their_sentence_also_when_they_were_filled_unseen(qtbot, width):
    tabs, notes = QTabWidget(), NotesList()
    tabs.addTab(QLabel("first"), "first")
    tabs.addTab(notes, "notes")
    qtbot.addWidget(tabs)
    tabs.resize(width, 400)
    tabs.show()
    notes.set_sentences(
        [f"pictures without a caption: photos/{'very_long_name_' * 8}.png, photos/b.png"],
        ["pictures that are enlarged more than 2 times; consider a lower data.resolution (1: photos/i_tiny.png)"],
    )
    tabs.setCurrentIndex(1)
    tabs.grab()
    for row in range(notes.count()):
        item = notes.item(row)
        place = notes.visualItemRect(item)
        room = QRect(0, 0, place.width() - notes.iconSize().width() - notes.fontMetrics().height() * 2, 1000)
        needed = notes.fontMetrics().boundingRect(room, Qt.TextFlag.TextWordWrap, item.text())
        assert needed.width() <= room.width(), "no name is longer than a line"
        assert place.height() >= needed.height() - notes.fontMetrics().height()
        assert place.width() <= notes.viewport().width()
