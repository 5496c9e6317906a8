"""What the real programs load of a file, key by key, on models of real size; and whether inspect says the same.

`python -m tests.hosts.loaders` prints the table of all files and programs.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from modules.files import opening
from modules.hosts.key_maps import diffusers_keys
from modules.tools import inspect_file
from modules.tools.inspect_file import ALL, NOTHING, PART, UNJUDGED, Inspection, Statement
from tests.files import inspect_corpus
from tests.files.inspect_corpus import Case
from tests.hosts import programs
from tests.hosts.programs import Program

HOSTS = {"comfyui": "comfyui", "forge": "forge", "a1111": "a1111", "sd_scripts": "sd-scripts",
         "diffusers": "diffusers"}
"""Programs as inspect calls them, and the kind of `programs` whose checkouts are run."""

NEWEST = {"comfyui": "ComfyUI", "a1111": "stable-diffusion-webui-1.10.1"}
"""Of several checkouts the one that inspect speaks of."""

ALPHA = ".alpha"
"""Numbers, which drivers cannot tell apart by their tensors."""


@dataclass(frozen=True)
class Outcome:
    """What a program did."""

    read: frozenset[str] = frozenset()
    """Keys that it took; of diffusers the layers that were given values."""
    failed: str = ""
    absent: str = ""


class Loader(Program):
    """A program that answers which keys it takes."""

    def __init__(self, kind: str, folder: Path | None):
        super().__init__(kind, folder)
        self.driver = replace(self.driver, script=f"keys_{self.driver.script}")

    def outcome(self, file: Path, family: str) -> Outcome:
        """Of one file, on the family's model."""
        said = self._ask({
            "file": str(file), "family": family, "model": inspect_corpus.MODELS[family],
            "layers": str(inspect_corpus.listed(family)), "folder": str(inspect_corpus.folder(family)),
        })
        self.version = said.get("version") or self.version
        return Outcome(frozenset(said.get("read") or said.get("layers") or ()), said.get("failed", ""),
                       said.get("absent", ""))


@cache
def loader(host: str) -> Loader | None:
    """The program, if it can be run here."""
    kind = HOSTS[host]
    if not programs.DRIVER[kind].checkouts:
        return Loader(kind, None)
    found = programs.folders(kind)
    wanted = [folder for folder in found if folder.name == NEWEST.get(host, folder.name)]
    return Loader(kind, wanted[0]) if wanted else None


def disagreement(host: str, statement: Statement, outcome: Outcome, case: Case, path: Path) -> str:
    """What is false in the statement, empty if nothing is."""
    if statement.loads == UNJUDGED:
        return ""
    if outcome.absent:
        return f"{statement.loads}, and the program has no such model"
    if bool(outcome.failed) != bool(statement.raises):
        return f"stops with {statement.raises or 'nothing'}, really {outcome.failed or 'nothing'}"
    if outcome.failed:
        return "" if statement.loads == NOTHING else f"{statement.loads}, and it stops with {outcome.failed}"
    if host == "diffusers":
        said = set(diffusers_keys.targets(opening.read(path).tensors, case.family))
        real = set(outcome.read)
    else:
        said = set() if statement.loads == NOTHING else {*case.tensors} - {*statement.dropped}
        said, real = ({key for key in keys if not key.endswith(ALPHA)} for keys in (said, outcome.read))
    if said != real:
        return (f"{statement.loads}: says that it reads {sorted(said - real)[:2]} ({len(said - real)}), and not "
                f"{sorted(real - said)[:2]} ({len(real - said)})")
    real_loads = NOTHING if not outcome.read else ALL if not statement.dropped else PART
    return "" if statement.loads == real_loads else f"{statement.loads}, really {real_loads}"


@dataclass(frozen=True)
class Line:
    """A file in a program."""

    case: Case
    host: str
    inspection: Inspection
    outcome: Outcome
    false: str

    def text(self) -> str:
        """For people."""
        statement = self.inspection.hosts[self.host]
        real = self.outcome.failed and "stops" or self.outcome.absent and "absent" or f"{len(self.outcome.read)} read"
        return (f"{'FALSE' if self.false else 'ok':5} {self.case.name:45} {self.host:10} {statement.loads}"
                f"{' and stops' if statement.raises else ''}; {len(statement.dropped)} dropped; really {real} "
                f"{self.false}")


def measured(hosts: tuple[str, ...] = tuple(HOSTS), cases: list[Case] | None = None) -> Iterator[Line]:
    """Every file in every program that is here."""
    with tempfile.TemporaryDirectory(prefix="gimbal_inspect_") as place:
        for case in inspect_corpus.cases() if cases is None else cases:
            path = case.write(Path(place))
            try:
                found = inspect_file.inspect(opening.read(path))
            except ValueError as refusal:
                print(f"refused {case.name}: {refusal}", file=sys.stderr)
                continue
            for host in hosts:
                program = loader(host)
                if program is not None and case.family:
                    outcome = program.outcome(path, case.family)
                    yield Line(case, host, found, outcome, disagreement(host, found.hosts[host], outcome, case, path))
            path.unlink()


if __name__ == "__main__":
    lines = []
    for line in measured(tuple(sys.argv[1:]) or tuple(HOSTS)):
        lines.append(line)
        print(line.text(), flush=True)
    print(f"{len({line.case.name for line in lines})} files, {len(lines)} statements, "
          f"{sum(bool(line.false) for line in lines)} false")
