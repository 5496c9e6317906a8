"""Runs the real programs on all files: `python -m tests.hosts.run --write` makes tests/data/hosts.json.

    python -m tests.hosts.run --only comfyui --methods oft,wora --families sdxl --strengths 1

prints what it measures and writes nothing. `GIMBAL_HOSTS` names the folder with the programs, see programs.py.
"""

import argparse
import json
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.export import every
from tests.hosts import bases, files, measuring, programs
from tests.hosts.measuring import Cell, Figures

RECORD = Path(__file__).parents[1] / "data/hosts.json"
LONG = 160
"""Characters of a message that are kept."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"programs: {', '.join(programs.DRIVER)}")
    parser.add_argument("--methods", default="", help="parts of the methods' names, as oft or \"DoRA, output\"")
    parser.add_argument("--families", default=",".join(bases.MAKE))
    parser.add_argument("--strengths", default=",".join(f"{one:g}" for one in measuring.STRENGTHS))
    parser.add_argument("--dtypes", default=",".join(measuring.DTYPES))
    parser.add_argument("--layers", action="store_true", help="print the error of every layer")
    parser.add_argument("--write", action="store_true", help="write tests/data/hosts.json; of the programs in --only")
    options = parser.parse_args()
    parts = ("methods", "families", "strengths", "dtypes")
    if options.write and any(getattr(options, part) != parser.get_default(part) for part in parts):
        parser.error("--write needs all methods, families, strengths and dtypes: a part of a record is none")
    return options


def chosen(named: str) -> list[str]:
    """The methods whose name or title has one of these parts."""
    parts = [part.strip().lower() for part in named.split(",") if part.strip()]
    return [label for label, (method, _) in every.VARIANTS.items()
            if not parts or any(part in label.lower() or part == method for part in parts)]


def found(only: str) -> list[programs.Program]:
    """The programs that are there, and a line for each that is not."""
    kinds = [kind for kind in programs.DRIVER if not only or kind in only.split(",")]
    there = []
    for kind in kinds:
        if not programs.programs(kind):
            print(f"not run: {kind} is not in GIMBAL_HOSTS ({programs.checkouts() or 'unset'})", file=sys.stderr)
        there += programs.programs(kind)
    return there


def row(program: programs.Program, cell: Cell, got: Figures, layers: bool) -> str:
    """A line of the printed table."""
    what = f"{program.name:38.38} {cell.family:5} {cell.method:28} {cell.key:30}"
    if got.reason:
        return f"{what} {got.reason[:LONG]}"
    text = (f"{what} error {got.error:.1e}  worst {got.worst:.1e}  rounding {got.rounding:.1e} "
            f"{got.rounding_worst:.1e}  {got.layer}")
    text += f"  unread {len(got.unread)}: {got.unread[0]}" if got.unread else ""
    text += f"  {len(got.errors)} errors: {got.errors[0][:LONG]}" if got.errors else ""
    text += f"  also changed: {', '.join(got.stray[:3])}" if got.stray else ""
    rest = [f"    {error:.1e}  {name}" for name, error in got.layers.items()] if layers else []
    return "\n".join([text, *rest])


def kept(got: Figures) -> Any:
    """What the record has of one cell."""
    if got.reason:
        return short(got.reason)
    return [float(f"{number:.1e}") for number in (got.error, got.worst, got.rounding, got.rounding_worst)]


def short(text: str) -> str:
    """A message without what differs from run to run."""
    return re.sub(r"/\S+/", "", " ".join(text.split()))[:LONG]


def notes(got: Figures) -> dict[str, Any]:
    """What else is to be known of a file in a program."""
    kinds = sorted({name.split(".", 1)[-1] for name in got.unread})
    said = {"unread": len(got.unread), "unread kinds": kinds, "errors": len(got.errors),
            "first error": short(got.errors[0]) if got.errors else "", "also changed": list(got.stray[:3])}
    return {name: value for name, value in said.items() if value}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and give what the record has of the programs."""
    record: dict[str, Any] = {}
    for program in found(options.only):
        started = time.monotonic()
        try:
            program.start()
        except RuntimeError as error:
            print(f"not run: {error}", file=sys.stderr)
            record[program.name] = {**program.about(), "kind": program.kind, "not run": short(str(error))}
            continue
        cells, about = one_program(program, options)
        program.close()
        print(f"{program.name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        record[program.name] = {**program.about(), "kind": program.kind, "cells": cells, "notes": about}
    return record


def one_program(program: programs.Program, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """By family, method and cell: what was measured, and what else is to be known."""
    strengths, dtypes = tuple(map(float, options.strengths.split(","))), tuple(options.dtypes.split(","))
    cells: dict[str, Any] = {}
    about: dict[str, Any] = {}
    for family in options.families.split(","):
        for label in chosen(options.methods):
            done, said = cells.setdefault(family, {}).setdefault(label, {}), {}
            for cell in measuring.cells(program, family, label, strengths, dtypes):
                got = measuring.measure(program, cell)
                print(row(program, cell, got, options.layers), flush=True)
                done[cell.key] = kept(got)
                if notes(got):
                    said[cell.key] = notes(got)
            about.setdefault(family, {})[label] = together(said)
    return cells, about


def together(said: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The notes of all cells of a file: once where they are the same everywhere, else by cell."""
    alike: dict[str, Any] = {}
    for kind in sorted({kind for one in said.values() for kind in one}):
        found = {key: one[kind] for key, one in said.items() if kind in one}
        values = list(found.values())
        alike[kind] = values[0] if all(value == values[0] for value in values) else found
    return alike


def written() -> dict[str, str]:
    """The fingerprint of every file that we write, or that there is none."""
    return {name: one for family in bases.MAKE for label in files.methods()
            for name, one in files_of(family, label).items()}


def files_of(family: str, label: str) -> dict[str, str]:
    """The same of one method on one base."""
    found = {}
    for host in sorted({driver.file for driver in programs.DRIVER.values()}):
        for dtype in ("float32", "float16"):
            file = files.written(family, label, host, dtype)
            name = " / ".join((family, label, host, dtype))
            found[name] = measuring.fingerprint(file.path) if file.path else "refused"
    return found


def main() -> int:
    """As the command line says."""
    options = arguments()
    record = run(options)
    if options.write:
        old = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() and options.only else {}
        whole = {"torch": version("torch"), "files": written(), "programs": {**old.get("programs", {}), **record}}
        RECORD.write_text(packed(whole), encoding="utf-8")
        print(f"wrote {RECORD}", file=sys.stderr)
    return 0


def packed(record: dict[str, Any]) -> str:
    """JSON with a line per method."""
    text = json.dumps(record, ensure_ascii=False, indent=1)
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda m: "[" + re.sub(r",\s+", ", ", m.group(1)) + "]", text)
    return text + "\n"


if __name__ == "__main__":
    sys.exit(main())
