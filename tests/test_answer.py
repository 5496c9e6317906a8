"""How scripts end: whatever happens, one sentence, the right exit code, and no trace unless one is asked for."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modules import answer

ROOT = Path(__file__).parents[1]


def broken() -> int:
    """As an error of ours may look."""
    return {}["no such layer \x1b[2J"]


def deep() -> int:
    return deep()


def refused() -> int:
    raise ValueError("x.json: is no preset \x1b]0;owned\x07")


def denied() -> int:
    raise PermissionError(13, "Permission denied", "/root/x.json")


def stopped() -> int:
    raise KeyboardInterrupt


def full() -> int:
    raise MemoryError


@pytest.mark.parametrize(
    "main, code, words",
    [(broken, 1, "KeyError"), (deep, 1, "RecursionError"), (refused, 2, "x.json: is no preset"),
     (denied, 2, "/root/x.json: Permission denied"), (stopped, 130, "Stopped"), (full, 1, "main memory"),
     (lambda: 7, 7, ""), (lambda: None, 0, "")],
)  # fmt: skip
def test_every_end_is_a_sentence_and_a_code(main, code, words, capsys, monkeypatch):
    monkeypatch.delenv(answer.DEBUG, raising=False)
    assert answer.script(main) == code
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said and "\x1b" not in said
    assert said.count("\n") == bool(words)


def test_a_trace_is_there_for_who_asks(capsys, monkeypatch):
    monkeypatch.setenv(answer.DEBUG, "1")
    assert answer.script(broken) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "test_answer.py" in said and "\x1b" not in said


def test_what_is_printed_of_a_file_cannot_steer_the_terminal(capsys):
    answer.script(lambda: print("layer \x1b[31m\u202e"))
    assert capsys.readouterr().out == "layer \\u001b[31m\\u202e\n"


@pytest.mark.parametrize("words", [["train.py", "--list"], ["train.py", "--help"], ["inspect_adapter.py", "-h"]])
def test_a_reader_that_goes_away_is_not_told(words):
    """As `| head -0` does: the pipe is closed before the first line."""
    here, there = os.pipe()
    os.close(here)
    command = [sys.executable, str(ROOT / "scripts" / words[0]), *words[1:]]
    done = subprocess.run(command, stdout=there, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(there)
    assert done.returncode in (0, answer.UNREAD) and done.stderr == ""


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_every_script_is_guarded(path):
    """What stands under `if __name__ == "__main__"` is one call of `guarded` or `script`; train.py has its own guard,
    which listens to signals too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    mains = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
    for node in mains:
        *begun, line = [ast.unparse(line) for line in node.body]
        if path.name == "train.py":
            assert begun == ["screen.begin()", "stopping.begin()"] and line == "sys.exit(stopping.run(train))"
            continue
        assert not begun and line.startswith(("sys.exit(script(", "sys.exit(guarded(")), line
