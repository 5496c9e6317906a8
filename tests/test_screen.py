"""The screen: what cannot be written is dropped, what could harm a terminal is escaped."""

import io
import json
import os
import subprocess
import sys

import pytest

from modules.screen import Dropping, Screen, plain
from tests.training.runs import ROOT

TRAIN = [sys.executable, "scripts/train.py"]


class Broken(io.RawIOBase):
    """A stream that takes `room` bytes and then fails with `error`."""

    def __init__(self, error: Exception, room: int = 0):
        self.error, self.room, self.taken = error, room, b""

    def write(self, data, /) -> int:
        """A part, or an error."""
        if not self.room:
            raise self.error
        taken = bytes(data)[: self.room]
        self.room -= len(taken)
        self.taken += taken
        return len(taken)


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "EIO"), OSError(28, "ENOSPC"), ValueError("closed")])
def test_what_cannot_be_written_is_dropped(error):
    inner = Broken(error, room=5)
    screen = Screen(Dropping(inner), "utf-8", line_buffering=True)
    for _ in range(3):
        print("hello", "world", file=screen)
    screen.flush()
    screen.close()
    assert inner.taken == b"hello"


def test_a_stream_that_takes_little_at_a_time_gets_everything():
    class Slow(Broken):
        def write(self, data, /) -> int:
            self.room = 3
            return super().write(data)

    inner = Slow(OSError())
    assert Dropping(inner).write(b"0123456789") == 10
    assert inner.taken == b"0123456789"


def test_commands_to_the_terminal_are_escaped():
    assert plain("a\x1b]0;title\x07b\x9b1m\x7f\u202e") == r"a\u001b]0;title\u0007b\u009b1m\u007f\u202e"
    assert plain("\r step 3 \r") == "\r step 3 \r" and plain("a\tb\nc äß 漢") == "a\tb\nc äß 漢"
    assert plain("fine\rNot so\r") == "fine\\rNot so\r"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_character_is_an_error(encoding):
    inner = Broken(OSError(), room=10**6)
    with Screen(Dropping(inner), encoding, line_buffering=False) as screen:
        print("caf\udce9 漢", file=screen)
    assert inner.taken.startswith(b"caf\\udce9 ")


# -- the program ------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize(
    "words, code",
    [
        ("--help | head -n 1", 0),
        ("--list | true", 0),
        ("--list >&-", 0),
        ("--list > /dev/full", 0),
        ("--preset nowhere >&- 2>&- <&-", 2),
        ("--preset nowhere 2> /dev/full", 2),
        ("--training.steps=x --preset wora_demo 2>&1 | true", 2),
    ],
)
def test_a_screen_that_is_gone_changes_nothing(words, code):
    """No trace, and the exit code of a screen that is there."""
    script = f"{sys.executable} scripts/train.py {words}; echo code ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.stderr == "" and f"code {code}\n" in done.stdout, (done.stdout, done.stderr)


@pytest.mark.full
@pytest.mark.parametrize(
    "setting",
    [{"PYTHONIOENCODING": "ascii"}, {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}],
    ids=["ascii", "C"],
)
def test_words_from_outside_are_plain_and_never_an_error(setting, tmp_path):
    preset = tmp_path / "odd.json"
    values = {"family": "\x1b[31mroter Äpfel\u202e", "adapter": {"method": "漢\x07"}}
    preset.write_text(json.dumps(values), encoding="utf-8")
    seed = b"--training.seed=\x1b\xe9".decode("utf-8", "surrogateescape")
    command = [*TRAIN, "--preset", str(preset), seed]
    environment = {**os.environ, **setting}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=400, check=False)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stderr and b"\x07" not in done.stderr, done.stderr
    assert b"\\x1b[31mroter" in done.stderr and b"\\udce9" in done.stderr, done.stderr
