"""The part of docs/exports.md that is measured in the real programs: `python -m tests.hosts.table` writes it again.

It is made from tests/data/hosts.json, so that it can be written, and checked, without the programs.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from tests import export_matrix
from tests.hosts import bases
from tests.hosts.measuring import EXACT
from tests.hosts.run import RECORD

HEAD = "## Measured in the real programs"
TITLES = {
    "comfyui": "ComfyUI", "comfyui_node": "ComfyUI with our node", "a1111": "A1111", "forge": "Forge",
    "forge_comfyui": "Forge, with the file for ComfyUI", "sd-scripts": "sd-scripts",
    "onetrainer": "OneTrainer", "onetrainer_diffusers": "OneTrainer, with the file for diffusers",
    "diffusers": "diffusers", "lycoris": "LyCORIS",
}
INTRODUCTION = f"""{HEAD}

Each default file was loaded by the program's own code on a tiny base of each family, and the weights that the program
then has were compared with the trained ones. Errors are relative to the trained change (Frobenius norm, whole file /
worst layer), whose norm is a few per cent of the weight's; errors of at most 1e-5 in float32 are called exact. In
float32 the file's factors are float32 too; in 16 bits it is the default file, and errors of more than twice that of
rounding the exact weight are bold. "on the fly" is ComfyUI's default on NVIDIA cards, "loaded" its other mode.
Written from `tests/data/hosts.json`, which `python -m tests.hosts.run --write` measures; a test fails when an
exported file differs from the one that was measured.

"""


def record() -> dict[str, Any]:
    """What was measured."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def title(name: str, found: dict[str, Any]) -> str:
    """A program with its version."""
    known = found.get("version") or found.get("commit", "")[:12]
    return f"{TITLES[found['kind']]} {known}".strip()


def versions(programs: dict[str, Any]) -> str:
    """Which programs these are, one per line."""
    lines = []
    for name, found in programs.items():
        where = ", ".join(found[key] for key in ("repository", "commit") if found.get(key))
        why = f": not run ({found['not run']})" if "not run" in found else ""
        lines.append(f"- {title(name, found)}" + (f" ({where})" if where else "") + why)
    return "\n".join(dict.fromkeys(lines)) + "\n"


def limit(error: float) -> str:
    """An error in two words: exact, or a part of the change."""
    if error <= EXACT:
        return "exact"
    return f"{error:.1%}" if error < 10 else f"{error:.0f} times"


def cell(found: Any, exact: bool) -> str:
    """A cell's figures, or why there are none."""
    if found is None:
        return "not run: not in the record"
    if isinstance(found, str):
        return found.split(":")[0] if found.startswith("refused") else found.replace("|", "/")[:90]
    error, worst, rounding, _ = found
    if exact:
        return "exact" if worst <= EXACT else f"**{limit(error)} / {limit(worst)}**"
    mark = "**" if error > 2 * rounding and error > EXACT else ""
    return f"{mark}{limit(error)} / {limit(worst)}{mark}"


COLUMNS = ("float32 x 1", "float32 x 0.5", "float32 x -0.7", "float16 x 1", "bfloat16 x 1")


def keys(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The columns of a program's table: the cell's key, its heading."""
    there = list(dict.fromkeys(key for methods in found["cells"].values() for cells in methods.values()
                               for key in cells))
    for column in COLUMNS:
        for key in there:
            if key == column or key.startswith(f"{column},") and not key.endswith("default file"):
                yield key, key.replace(" x 1, ", ", ").removesuffix(" x 1")


def rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """A row per method and group of families that agree."""
    columns = list(keys(found))
    methods = list(dict.fromkeys(label for one in found["cells"].values() for label in one))
    for label in methods:
        alike: dict[tuple[str, ...], list[str]] = {}
        for family, there in found["cells"].items():
            measured = there.get(label, {})
            cells = tuple(cell(measured.get(key), key.startswith("float32")) for key, _ in columns)
            alike.setdefault(cells, []).append(bases.KINDS[family])
        for cells, families in alike.items():
            yield [label, ", ".join(families) if len(alike) > 1 else "all", *cells]


def wrong(programs: dict[str, Any]) -> Iterator[list[str]]:
    """What is not exact in float32 at strength 1, by program, method and cause."""
    for name, found in programs.items():
        for family, there in found.get("cells", {}).items():
            for label, cells in there.items():
                one = cells.get("float32 x 1")
                notes = found.get("notes", {}).get(family, {}).get(label, {})
                is_wrong = isinstance(one, list) and one[1] > EXACT
                if is_wrong or isinstance(one, str) and one.startswith("failed"):
                    shown = one if isinstance(one, str) else f"{limit(one[0])} / {limit(one[1])}"
                    unread = notes.get("unread kinds", "")
                    said = f"not read: {unread}" if unread else str(notes.get("first error", ""))
                    yield [title(name, found), label, bases.KINDS[family], shown.replace("|", "/"),
                           said.replace("|", "/")]


def section() -> str:
    """All of it."""
    programs = record()["programs"]
    text = INTRODUCTION + versions(programs)
    head = ["program", "method", "family", "error", "what it says"]
    text += "\n### Not exact in float32\n\n" + export_matrix.table(head, wrong(programs))
    for name, found in programs.items():
        if "cells" in found:
            head = ["method", "families", *(heading for _, heading in keys(found))]
            text += f"\n### {title(name, found)}\n\n" + export_matrix.table(head, rows(found))
    return text


def page(text: str) -> str:
    """docs/exports.md with the section of today; it is the last one."""
    return f"{text.partition(HEAD)[0].rstrip()}\n\n{section()}"


def main() -> int:
    """Write the page."""
    path = export_matrix.PAGE
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    print("wrote docs/exports.md", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
