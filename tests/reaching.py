"""Which tests of the short suite come to which places of modules/: the suite is run once in a copy of the repository in
which each place notes the test that reaches it, also in programs that the test starts.

A mistake at a place can only be found by these tests, or by one that uses what such a test left in a cache.
"""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

NOTING = '''
import os

SEEN, NOTES = set(), {notes!r}


def reached(number):
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    if test and (number, test) not in SEEN:
        SEEN.add((number, test))
        with open(NOTES, "a", encoding="utf-8") as file:
            file.write(f"{{number}}\\t{{test}}\\n")
'''
"""A module of the copy; pytest has the name of the test in the environment."""

CASES = 3
"""Of one test, which is enough to find a mistake, mostly; then the whole file runs."""


class Spot(Protocol):
    """Characters `begin` to `end` of a file, an expression."""

    @property
    def file(self) -> str: ...
    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...


def note(copy: Path, spots: Sequence[Spot], notes: Path, processes: int) -> None:
    """Run the suite in `copy`, which is changed, and write a line for each place and test to `notes`."""
    (copy / "modules" / "noting.py").write_text(NOTING.format(notes=str(notes)), encoding="utf-8")
    inserted: dict[str, list[tuple[int, int, bytes]]] = defaultdict(list)
    for number, spot in enumerate(spots):
        call = f'(__import__("modules.noting").noting.reached({number}), '.encode()
        # At one offset ends come before beginnings, the inner end first and the outer beginning first.
        inserted[spot.file] += [(spot.begin, 10**9 - spot.end, call), (spot.end, -spot.begin, b")[1]")]
    for file, texts in inserted.items():
        whole, parts, last = (copy / file).read_bytes(), [], 0
        for offset, _, text in sorted(texts):
            parts += [whole[last:offset], text]
            last = offset
        (copy / file).write_bytes(b"".join([*parts, whole[last:]]))
    notes.touch()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(processes)]
    subprocess.run(command, cwd=copy, capture_output=True, check=False)


def noted(notes: Path) -> dict[int, list[str]]:
    """The tests by the number of the place."""
    found: dict[int, list[str]] = defaultdict(list)
    for line in notes.read_text(encoding="utf-8").splitlines():
        number, _, test = line.partition("\t")
        found[int(number)].append(test)
    return found


def to_run(tests: Sequence[str]) -> list[list[str]]:
    """Arguments of pytest that find a mistake soon, then those of all that may find it."""
    few: dict[str, list[str]] = defaultdict(list)
    for test in tests:
        if len(few[test.partition("[")[0]]) < CASES:
            few[test.partition("[")[0]].append(test)
    files = sorted({test.partition("::")[0] for test in tests})
    return [[test for cases in few.values() for test in cases], files] if files else []
