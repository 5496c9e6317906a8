"""Which tests of the short suite come to which places of modules/: the suite is run once in a copy of the repository in
which each place notes the test that reaches it, also in programs that the test starts.

A mistake at a place can only be found by these tests, or by one that uses what such a test left in a cache.
"""

import ast
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

CASES, MOST = 3, 60
"""Of one test, and of all, which is enough to find most mistakes; then whole files run."""


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


def to_run(copy: Path, file: str, tests: Sequence[str]) -> list[list[str]]:
    """Arguments of pytest in turn: some tests that find most mistakes in `file`, then all that may find one."""
    cases: dict[str, int] = defaultdict(int)
    near = {test.partition("::")[0] for test in tests} & set(importers(copy, file))
    some = []
    for test in sorted(tests, key=lambda test: test.partition("::")[0] not in near):
        cases[test.partition("[")[0]] += 1
        if cases[test.partition("[")[0]] <= CASES:
            some.append(test)
    others = {test.partition("::")[0] for test in tests} - near
    return [part for part in (some[:MOST], sorted(near), sorted(others)) if part]


def importers(copy: Path, file: str) -> list[str]:
    """The files of tests that import a file of modules/."""
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    found = []
    for path in sorted((copy / "tests").rglob("test_*.py")):
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if module in names:
            found.append(path.relative_to(copy).as_posix())
    return found
