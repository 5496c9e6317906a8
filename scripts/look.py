"""Reads pictures for the window: requests on stdin, answers on stdout, one JSON object per line (docs/look.md)."""

import contextlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import script
from modules.training.look import serve


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)  # keep libraries' output apart from the answers

    def answer(facts: dict) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # the window has closed
        serve((line.decode("utf-8", "replace") for line in sys.stdin.buffer), answer)


if __name__ == "__main__":
    sys.exit(script(main, prints=True))
