"""How thin the short suite is: places of modules/ are broken one at a time, and the suite is run on each.

    python -m tests.broken_places [--seed 0] [--places 30] [--out broken_places.jsonl] [--notes broken_places.notes]

A place is drawn by the seed: first its room (at least five in export or files, in training, and in data), then the
kind of mistake, then one of all places of that room where it can be made. It is found when a test fails by assertion.
Where tests only fail with an exception (a sign between two texts), the mistake is too easy to see: it does not count,
and another is drawn. First the suite runs once to see which tests come to which place (`tests/reaching.py`, the file of
--notes); then only these run for each. What was done is in the file of --out, a JSON line for each, and is not done
again. At last the tests that found something are run with nothing broken.
"""

import argparse
import ast
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import pytest

from tests import reaching

ROOT = Path(__file__).parent.parent
LEAST = [("export", "files"), ("training",), ("data",)]
"""Each of these has at least five places."""

TRIES = 8
"""Places drawn for each number; of the first ones that only raise, the next is taken."""

ASSERTED = ("AssertionError", "assert ", "Failed: DID NOT")
"""How the message of a failed assertion begins, in pytest's report."""


@dataclass(frozen=True)
class Place:
    """Where a mistake is made: characters `begin` to `end` of a file are replaced."""

    file: str
    line: int
    kind: str
    begin: int
    end: int
    before: str
    after: str


class Finder(ast.NodeVisitor):
    """Collects all places of one file."""

    def __init__(self, file: str, text: str):
        self.file, self.text, self.places = file, text, []
        self.starts = [0]
        for line in text.encode().splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.inside = 0

    def replace(self, kind: str, node: ast.expr, after: str) -> None:
        if not self.inside:  # constants of the module are often words for users
            return
        assert node.end_lineno and node.end_col_offset is not None
        begin = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[node.end_lineno - 1] + node.end_col_offset
        before = self.text.encode()[begin:end].decode()
        self.places.append(Place(self.file, node.lineno, kind, begin, end, before, after))

    def source(self, node: ast.AST) -> str:
        return f"({ast.get_source_segment(self.text, node)})"

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.inside += 1
        for statement in node.body:
            self.visit(statement)
        self.inside -= 1

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """A sentence: nothing in it is arithmetic."""

    def visit_BinOp(self, node: ast.BinOp) -> None:
        signs = {ast.Add: "-", ast.Sub: "+"}
        text = any(isinstance(side, ast.Constant | ast.JoinedStr | ast.List | ast.Dict) and not _is_number(side)
                   for side in (node.left, node.right))
        if type(node.op) in signs and not text:
            self.replace("sign", node, f"{self.source(node.left)} {signs[type(node.op)]} {self.source(node.right)}")
        if isinstance(node.op, ast.Mult | ast.Div) and not text:
            self.replace("scale", node, self.source(node.left))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
            self.replace("sign", node, self.source(node.operand))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        edges = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
        if len(node.ops) == 1 and type(node.ops[0]) in edges:
            sides = self.source(node.left), self.source(node.comparators[0])
            self.replace("off by one", node, f"{sides[0]} {edges[type(node.ops[0])]} {sides[1]}")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg in ("dim", "axis") and _is_number(keyword.value):
                self.replace("axis", keyword.value, "1" if ast.literal_eval(keyword.value) in (0, -2) else "0")
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "range" and node.args:
            self.replace("off by one", node.args[-1], f"{self.source(node.args[-1])} - 1")
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        index = node.slice
        if isinstance(index, ast.Constant) and isinstance(index.value, str):
            self.replace("key", index, repr(index.value + "_"))
        if _is_number(index) and isinstance(node.ctx, ast.Load) and not isinstance(node.value, ast.Name | ast.Call):
            self.replace("off by one", index, str(ast.literal_eval(index) + 1))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr == "T":
            self.replace("axis", node, self.source(node.value))
        self.generic_visit(node)


def _is_number(node: ast.AST) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(inner, ast.Constant) and type(inner.value) in (int, float)


def candidates() -> dict[str, list[Place]]:
    """All places by room."""
    rooms: dict[str, list[Place]] = {}
    for path in sorted((ROOT / "modules").rglob("*.py")):
        parts = path.relative_to(ROOT / "modules").parts
        finder = Finder(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        finder.visit(ast.parse(finder.text))
        rooms.setdefault(parts[0] if len(parts) > 1 else "", []).extend(finder.places)
    return {room: places for room, places in rooms.items() if places}


def drawn(seed: int, number: int, rooms: dict[str, list[Place]]) -> Iterator[tuple[str, Place]]:
    """The places that may be the one of this number, with their rooms, in the order in which they are tried."""
    choice = random.Random(f"{seed} {number}")
    group = LEAST[number // 5] if number < 5 * len(LEAST) else sorted(rooms)
    while True:
        room = choice.choice(group)
        kind = choice.choice(sorted({place.kind for place in rooms[room]}))
        yield room, choice.choice([place for place in rooms[room] if place.kind == kind])


def broken(copy: Path, place: Place) -> Callable[[], None]:
    """Make the mistake in a copy of the repository; the function returned undoes it."""
    path = copy / place.file
    whole = path.read_bytes()
    path.write_bytes(whole[: place.begin] + f"({place.after})".encode() + whole[place.end :])

    def undo() -> None:
        path.write_bytes(whole)

    return undo


def pytest_exception_interact(node: pytest.Item, call: pytest.CallInfo) -> None:
    """As a plug-in of pytest: the first failed assertion is enough."""
    if call.excinfo and call.excinfo.errisinstance((AssertionError, pytest.fail.Exception)):
        node.session.shouldstop = "found"


LIBRARIES = ("numpy", "PIL.Image", "torch", "torch._dynamo", "diffusers.loaders", "diffusers.models.modeling_utils",
             "diffusers.pipelines.pipeline_utils", "transformers.modeling_utils", "accelerate", "peft", "bitsandbytes")
"""What nearly all tests import, in a second or ten: imported once for all places."""


def tested_in(copy: Path, arguments: list[str]) -> None:
    """Run the tests of a copy of the repository, in a process that has only to import what is in the copy."""
    if sys.platform != "linux":
        subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=copy, capture_output=True, check=False)
        return
    if "torch" not in sys.modules:
        os.environ |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
        for name in LIBRARIES:
            importlib.import_module(name)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "modules")]:
        del sys.modules[name]
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(silent, stream)
    os._exit(pytest.main(arguments))


def run(copy: Path, targets: list[str], processes: int) -> tuple[str, str]:
    """The first test that an assertion ended, and what it says; else an empty name and the first other failure."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        options = ["-q", "--maxfail=12", f"--junitxml={report}", "-p", "no:cacheprovider", "-p", "tests.broken_places"]
        options += ["-n", str(processes if processes > 1 else 0)]
        tested_in(copy, [*options, *targets])
        if not report.exists():
            return "", "pytest itself failed"
        other = ""
        for case in xml.parse(report).iter("testcase"):
            for failure in (*case.findall("failure"), *case.findall("error")):
                message = (failure.get("message") or "").strip()
                if case.get("name") == "internal":
                    raise RuntimeError(f"pytest: {failure.text}")
                name = f"{str(case.get('classname')).replace('.', '/')}.py::{case.get('name')}"
                if message.startswith(ASSERTED):
                    return name, message.splitlines()[0][:120]
                other = other or f"{name}: {message[:120]}"
        return "", other


def tried(copy: Path, room: str, place: Place, tests: list[str], processes: int) -> dict:
    """One place broken, and what the tests say of it."""
    found, other = "", ""
    undo = broken(copy, place)
    try:
        for targets in reaching.to_run(copy, place.file, tests):
            if not found and not other:
                found, other = run(copy, targets, processes)
    finally:
        undo()
    outcome = "found" if found else "raised" if other else "survived"
    return {"room": room, **asdict(place), "outcome": outcome, "by": found, "said": other}


def cloned(folder: str, name: str) -> Path:
    """A copy of the repository's last commit."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(Path(folder) / name)], check=True)
    return Path(folder) / name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--places", type=int, default=30)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("broken_places.jsonl"))
    parser.add_argument("--notes", type=Path, default=Path("broken_places.notes"))
    parser.add_argument("--list", action="store_true", help="only say what would be broken")
    arguments = parser.parse_args()
    rooms = candidates()
    tries = [list(islice(drawn(arguments.seed, number, rooms), TRIES)) for number in range(arguments.places)]
    if arguments.list:
        print("\n".join(f"{number} {described(some[0][1])}" for number, some in enumerate(tries, 1)))
        return
    spots = list(dict.fromkeys(place for some in tries for _, place in some))
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.notes.exists():
            reaching.note(cloned(folder, "noting"), spots, arguments.notes.absolute(), arguments.processes)
        tests = reaching.noted(arguments.notes)
        carry_out(cloned(folder, "copy"), tries, {place: tests[at] for at, place in enumerate(spots)}, arguments)


def carry_out(copy: Path, tries: list[list[tuple[str, Place]]], tests: dict[Place, list[str]],
              arguments: argparse.Namespace) -> None:
    """Break one place of each number, the first that counts."""
    lines = arguments.out.read_text(encoding="utf-8").splitlines() if arguments.out.exists() else []
    rows = list(map(json.loads, lines))
    done = {(row["file"], row["begin"], row["after"]): row["outcome"] for row in rows}
    for number, some in enumerate(tries, 1):
        for room, place in some:
            print(f"{number} {described(place)} ({len(tests[place])} tests)", flush=True)
            outcome = done.get((place.file, place.begin, place.after))
            if outcome is None:
                rows.append(tried(copy, room, place, tests[place], arguments.processes))
                outcome = rows[-1]["outcome"]
                with arguments.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(rows[-1]) + "\n")
                print(f"    {outcome} {rows[-1]['by']}: {rows[-1]['said']}", flush=True)
            if outcome != "raised":
                break
    finders = sorted({row["by"] for row in rows if row["by"]})
    print("with nothing broken:", run(copy, finders, arguments.processes), flush=True)


def described(place: Place) -> str:
    return f"{place.file}:{place.line} {place.kind}: {place.before}  ->  {place.after}"


if __name__ == "__main__":
    main()
