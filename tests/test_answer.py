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
    assert answer.guarded(main) == code
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert said.count("\n") == bool(words)


def shell(tmp_path: Path, body: str, redirected: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script whose `main` is `body` in a shell, with the code of its end printed last on stdout."""
    path = tmp_path / "script.py"
    begin = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom modules.answer import script\n"
    path.write_text(f"{begin}def main():\n    {body}\n{END}", encoding="utf-8")
    command = f"({sys.executable} {path} {redirected}); echo code $?"
    whole = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", command], env=whole, capture_output=True, text=True, timeout=60, check=False)


END = "sys.exit(script(main, prints='prints' in sys.argv))\n"


def test_a_trace_is_there_for_who_asks(tmp_path):
    done = shell(tmp_path, 'return {}["no \\x1b[2J"]', **{answer.DEBUG: "1"})
    assert done.stdout == "code 1\n"
    assert "Traceback" in done.stderr and "script.py" in done.stderr and "\x1b" not in done.stderr


def test_a_thread_that_ends_by_an_error_leaves_no_trace_on_the_screen(tmp_path):
    body = "import threading; thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()"
    quiet, asked = shell(tmp_path, body), shell(tmp_path, body, GIMBAL_DEBUG="1")
    assert (quiet.stdout, quiet.stderr) == ("code 0\n", "")
    assert "ZeroDivisionError" in asked.stderr


def test_what_is_printed_of_a_file_cannot_steer_the_terminal(tmp_path):
    done = shell(tmp_path, r'print("layer \x1b[31m\u202e"); raise ValueError("bad \x1b]0;owned\x07")')
    assert done.stdout == "layer \\u001b[31m\\u202e\ncode 2\n" and done.stderr == "bad \\u001b]0;owned\\u0007\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("arguments, code", [("", 0), ("prints", 1)])
@pytest.mark.parametrize("redirected, why", [(">&-", "it is closed"), ("> /dev/full", "No space left on device")])
def test_output_that_is_lost_is_told(tmp_path, arguments, code, redirected, why):
    """A script whose result is a file has done its work; one whose result is what it prints has not."""
    done = shell(tmp_path, 'print("result"); print("beside", file=sys.stderr)', f"{arguments} {redirected}")
    assert done.stdout == f"code {code}\n"
    assert done.stderr == f"beside\nstdout: cannot be written ({why}); the output is lost\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("redirected", [">&- 2>&-", "> /dev/full 2> /dev/full", "> /dev/full 2>&-", "<&- >&- 2>&-"])
def test_with_neither_stream_the_code_still_tells(tmp_path, redirected):
    for body, code in (('print("result")', 1), ('raise ValueError("bad")', 2), ("return 7", 7)):
        done = shell(tmp_path, body, f"prints {redirected}")
        assert done.stdout == f"code {code}\n" and done.stderr == ""
    done = shell(tmp_path, 'print("result")', "prints 2>&-")
    assert done.stdout == "result\ncode 0\n"


@pytest.mark.full
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
    """What stands under `if __name__ == "__main__"` is one call of `script`; train.py has its own guard,
    which listens to signals too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    mains = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
    for node in mains:
        *begun, line = [ast.unparse(line) for line in node.body]
        if path.name == "train.py":
            assert begun == ["screen.begin()", "stopping.begin()"] and line == "sys.exit(stopping.run(train))"
            continue
        assert not begun and line.startswith("sys.exit(script("), line
