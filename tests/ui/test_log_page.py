"""The log of a run, and TensorBoard beside the window."""

import os

import pytest

from ui.pages.runs import tensorboard
from ui.pages.runs.log import Log

# -- the log


def test_the_log_follows_until_the_user_looks_back_and_finds_words(tmp_path, qtbot):
    log, file = Log(), tmp_path / "log.txt"
    qtbot.addWidget(log)
    log.resize(500, 200)
    log.show()
    file.write_text("".join(f"line {number}\n" for number in range(200)))
    log.show_file(file)
    bar = log.text.verticalScrollBar()
    qtbot.waitUntil(lambda: "line 199" in log.text.toPlainText())
    assert bar.value() == bar.maximum() > 0
    log.search.setText("line 42")
    log.find_next()
    assert log.text.textCursor().selectedText() == "line 42" and not log.follow.isChecked()
    place = bar.value()
    with file.open("a") as more:
        more.write("the end\n")
    qtbot.waitUntil(lambda: "the end" in log.text.toPlainText())
    assert bar.value() == place, "reading is not disturbed"
    log.follow.click()
    assert bar.value() == bar.maximum()
    log.search.setText("not in there")
    log.find_next()
    assert "not in there" in log.note.text() and log.note.isVisible()
    log.on_read("")
    assert "not in there" in log.note.text() and log.note.isVisible(), "also after the next look at the file"
    log.search.setText("")
    log.find_next()
    assert not log.note.isVisible()


# -- TensorBoard


def test_tensorboard_that_cannot_start_is_a_sentence(qtbot, tmp_path, monkeypatch):
    board = tensorboard.TensorBoard()
    monkeypatch.setattr(tensorboard.sys, "executable", str(tmp_path / "no python"))
    said = []
    board.said.connect(said.append)
    board.show(tmp_path)
    qtbot.waitUntil(lambda: any("could not be started" in sentence for sentence in said))
    assert board.process is None


@pytest.mark.skipif(os.name == "nt", reason="the made-up Python is a shell script")
def test_tensorboard_starts_once_and_says_where_or_why_not(qtbot, tmp_path, monkeypatch):
    python, opened = tmp_path / "python", []
    monkeypatch.setattr(tensorboard.sys, "executable", str(python))
    monkeypatch.setattr(tensorboard.QDesktopServices, "openUrl", lambda url: opened.append(url.toString()) or True)
    says = 'echo "$@" >> "$0.starts"\necho TensorBoard at http://localhost:4321/ now\nexec sleep 30\n'
    python.write_text(f"#!/bin/sh\n{says}")
    python.chmod(0o755)
    board = tensorboard.TensorBoard()
    board.show(tmp_path)
    qtbot.waitUntil(lambda: opened == ["http://localhost:4321/"])
    board.show(tmp_path)
    assert len(opened) == 2 and (tmp_path / "python.starts").read_text().count("--logdir") == 1
    board.stop()
    python.write_text("#!/bin/sh\necho python: No module named tensorboard\nexit 1\n")
    with qtbot.waitSignal(board.said, check_params_cb=lambda sentence: "pip install tensorboard" in sentence):
        board.show(tmp_path)
