"""Cases of benchmarks/kills.py: one run that is killed, once or several times, or whose disk lost what was not flushed;
then resumed, and compared with the uninterrupted run of the same combination.

A case is told by a text, and can be repeated from it (`Bench.repeat`):

    COMBINATION [cold] KILL KILL ...            kills as in `kills_watch.Kill`; cold: with an empty cache
    COMBINATION cut:OPERATION:MODE[:SEED] ...   power cuts after an operation of the uninterrupted run, then of the
                                                resumed one
"""

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import kills_power
from benchmarks.kills_compare import (
    LOST,
    MISSING,
    Finding,
    Outcome,
    announced,
    due_files,
    events_of,
    findings,
    read_lines,
    restart,
)
from benchmarks.kills_runs import DONE, Combination, Ended, Place
from benchmarks.kills_watch import Kill, Operation

EVENTS = "runs/run/events.jsonl"

PLACES = {
    "encoding": lambda path: path.startswith("cache/"),
    "state": lambda path: path.startswith("runs/run/state/"),
    "sampling": lambda path: path.startswith("runs/run/samples/"),
    "export": lambda path: path.count("/") == 2 and (".safetensors" in path or ".errors.tsv" in path),
}
"""What a run is doing when it writes to a path."""


@dataclass(frozen=True)
class Cut:
    """A power cut after an operation; `mode` as in `kills_power.MODES`."""

    operation: int
    mode: str
    seed: int = 0

    def __str__(self) -> str:
        return f"cut:{self.operation}:{self.mode}" + (f":{self.seed}" if self.mode == "mixed" else "")

    @classmethod
    def parse(cls, text: str) -> "Cut":
        """Back from `str`."""
        _, operation, mode, *seed = text.split(":")
        return cls(int(operation), mode, int(seed[0]) if seed else 0)


class Unfinished(RuntimeError):
    """An uninterrupted run failed, so there is nothing to compare with."""

    def __init__(self, combination: Combination, ended: Ended):
        super().__init__(f"{combination}: the uninterrupted run failed ({ended.code}): {last_words(ended.out)}")
        self.combination = combination


@dataclass
class Reference:
    """An uninterrupted run that began with an empty cache."""

    outcome: Outcome
    record: list[Operation]
    seconds: float
    cache: Path
    wrong: list[Finding]

    def operations(self, cold: bool) -> list[Operation]:
        """The operations of a run with an empty cache, or with a full one, to which nothing is written."""
        return [one for one in self.record if cold or not PLACES["encoding"](one.path)]

    def during(self, place: str, cold: bool = True) -> list[int]:
        """The numbers of the operations of a part of the run (`PLACES`)."""
        return [number for number, one in enumerate(self.operations(cold)) if PLACES[place](one.path)]

    def points(self) -> list[Kill]:
        """Every point at which a kill leaves other files: before each operation, and in the middle of each write."""
        before = [Kill(number) for number in range(len(self.record))]
        torn = [Kill(number, True) for number, one in enumerate(self.record) if one.kind == "write"]
        return sorted([*before, *torn], key=lambda kill: (kill.operation or 0, kill.torn))

    def drawn(self, draw: random.Random, cold: bool, place: str = "", part: float = 1.0) -> Kill:
        """A kill somewhere, or while something is being made and written; among the first `part` of the run."""
        operations = self.operations(cold)
        numbers = self.during(place, cold) if place else range(1, max(2, int(len(operations) * part)))
        if not numbers or not place and draw.random() < 0.5:
            return Kill(seconds=draw.uniform(0.05, 0.05 + self.seconds * part))
        number, kind = draw.choice(list(numbers)), draw.randrange(3)
        if kind == 0 and number:
            pause = operations[number].seconds - operations[number - 1].seconds
            return Kill(number - 1, seconds=max(1e-4, pause * draw.random()))
        return Kill(number, kind == 1 and operations[number].kind == "write")


@dataclass
class Result:
    """What came of a case."""

    combination: Combination
    repeat: str
    kills: int = 0
    cuts: int = 0
    wrong: list[Finding] = field(default_factory=list)

    def count(self, kind: str) -> int:
        """1 if there is a finding of this kind, else 0."""
        return int(any(finding.kind == kind for finding in self.wrong))


class Bench:
    """Carries out cases in `place`. Folders of failing ones are moved to `keep`, if it is given."""

    def __init__(self, place: Place, keep: Path | None = None):
        self.place, self.keep = place, keep
        self.references: dict[Combination, Reference] = {}

    def reference(self, combination: Combination) -> Reference:
        """The uninterrupted run, made when it is first wanted. Raises Unfinished."""
        if combination not in self.references:
            case = self.place.case(f"reference-{combination}")
            ended = self.place.run(case, combination, record=True)
            if ended.code != DONE:
                raise Unfinished(combination, ended)
            outcome, record = Outcome.of(case), ended.record
            due = sorted(due_files(combination, self.place.stage) - outcome.files.keys())
            wrong = [Finding(MISSING, f"{name}, also without a kill") for name in due]
            found = Reference(outcome, record, record[-1].seconds, case / "work" / "cache", wrong)
            self.references[combination] = found
        return self.references[combination]

    def killed(self, combination: Combination, kills: list[Kill], cold: bool = False) -> Result:
        """A run that is killed at each of `kills` in turn, then resumed to its end. One that ends earlier is compared
        as it is."""
        reference, case, points, wrong = self.reference(combination), self.place.case("case"), [], []
        if not cold:
            shutil.copytree(reference.cache, case / "work" / "cache", dirs_exist_ok=True)
        for kill in [*kills, None]:
            ended, found = self._go(case, combination, kill)
            wrong += found
            if not ended.killed:
                wrong += findings(Outcome.of(case), reference.outcome) if ended.code == DONE else []
                break
            points.append(ended.point)
        repeat = " ".join([str(combination), *(["cold"] if cold else []), *map(str, points)])
        return self._result(Result(combination, repeat, len(points), 0, [*reference.wrong, *wrong]), case)

    def cut(self, combination: Combination, cuts: list[Cut]) -> Result:
        """A run whose machine loses its power after an operation, then perhaps again while it resumes."""
        reference, case, before = self.reference(combination), self.place.case("case"), 0
        wrong, record = list(reference.wrong), reference.record
        disk = kills_power.Disk(case / "work")
        for number, cut in enumerate(cuts):
            for operation in record[: cut.operation + 1]:
                disk.do(operation)
            shown = disk.find(EVENTS)
            before = max(before, announced(read_lines(shown.data)) if isinstance(shown, kills_power.File) else 0)
            shutil.rmtree(case / "work")
            kills_power.leave(disk, case / "work", cut.mode, cut.seed)
            disk = kills_power.Disk(case / "work")
            ended, found = self._go(case, combination, None, before, number + 1 < len(cuts))
            wrong, record = [*wrong, *found], ended.record
            if found:
                break
        else:
            wrong += findings(Outcome.of(case), reference.outcome, events_may_be_lost=True)
        repeat = " ".join([str(combination), *map(str, cuts)])
        return self._result(Result(combination, repeat, 0, len(cuts), wrong), case)

    def repeat(self, text: str) -> Result:
        """The case that a result's `repeat` tells."""
        name, *words = text.split()
        combination = Combination.parse(name)
        if words and words[0].startswith("cut:"):
            return self.cut(combination, [Cut.parse(word) for word in words])
        cold = words[:1] == ["cold"]
        return self.killed(combination, [Kill.parse(word) for word in words[cold:]], cold)

    def _go(
        self, case: Path, combination: Combination, kill: Kill | None, before: int | None = None, record: bool = False
    ) -> tuple[Ended, list[Finding]]:
        """One start of the command, and what is wrong with how it began and ended. `before`: steps of the newest state
        that had been announced; None: as the events say."""
        earlier = events_of(case)
        before = announced(earlier) if before is None else before
        ended = self.place.run(case, combination, kill, record)
        wrong = restart(before, new_events(earlier, events_of(case)))
        if ended.code != DONE and not ended.killed:
            wrong.append(Finding(LOST, f"exit code {ended.code}: {last_words(ended.out)}"))
        return ended, wrong

    def _result(self, result: Result, case: Path) -> Result:
        if result.wrong and self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            target = self.keep / f"{len(list(self.keep.iterdir())):04d}"
            shutil.copytree(case, target)
            text = "\n".join([result.repeat, *(f"{finding.kind}: {finding.text}" for finding in result.wrong)])
            (target / "findings.txt").write_text(text + "\n", encoding="utf-8")
        return result


def new_events(earlier: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What has come, also where damaged lines were taken out of the file or the whole file was put aside."""
    same = 0
    while same < min(len(earlier), len(now)) and earlier[same] == now[same]:
        same += 1
    return now[same:]


def last_words(out: str) -> str:
    """The last lines that a run has printed."""
    lines = [line.strip() for line in out.replace("\r", "\n").splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-400:]


def drawn_cuts(reference: Reference, draw: random.Random, operation: int, mode: str) -> list[Cut]:
    """A power cut, in a third of all cases followed by another while the run resumes."""
    cuts = [Cut(operation, mode, draw.randrange(1000))]
    if draw.random() < 1 / 3:
        again: Any = draw.choice(kills_power.MODES)
        cuts.append(Cut(draw.randrange(len(reference.record)), again, draw.randrange(1000)))
    return cuts
