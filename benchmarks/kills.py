"""No run is lost: trainings that are killed, or whose machine loses its power, and then resumed, against uninterrupted
ones.

    python benchmarks/kills.py --kills 1000 --power-cuts 300 --table docs/reliability.md
    python benchmarks/kills.py --kills 100 --only lora --keep failing --seconds 600
    python benchmarks/kills.py --repeat "lora+adamw+plain cold 57/ 102"

The first takes three quarters of an hour on one core; the last repeats one case alone.

Every method with several optimizers and kinds of runs, every optimizer. Part of the kills fall on every file operation
of a run in turn, part into encoding, sampling, saving and exporting, part on runs of two processes, the rest at random
moments; a run is killed up to four times before it may finish. What is then compared says
`benchmarks/kills_compare.py`, what a power cut may leave `benchmarks/kills_power.py`. The exit code is 1 if anything
was lost, different, missing or left over; each such case is printed with the text that repeats it.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.kills_cases import PLACES, Bench, Result, Unfinished, drawn_cuts
from benchmarks.kills_compare import KINDS, LOST, Finding
from benchmarks.kills_power import MODES
from benchmarks.kills_runs import VARIANTS, Combination, Place, adapters, optimizers_on_cpu, refused
from benchmarks.kills_watch import Kill

BEGIN, END = "<!-- kills: begin -->", "<!-- kills: end -->"

SHARES = {
    "every operation": 0.3,
    "two processes": 0.05,
    "encoding": 0.06,
    "export": 0.06,
    "state": 0.06,
    "sampling": 0.04,
    "anywhere": 0.43,
}
"""Where kills fall, as parts of all."""

CHAIN = 4
"""At most so many kills of one run."""


@dataclass
class Tally:
    """What has been done."""

    results: list[Result] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    """By share, method and optimizer."""

    def add(self, result: Result, share: str) -> None:
        """Count a case."""
        self.results.append(result)
        for name in (share, result.combination.method, result.combination.optimizer, str(result.combination)):
            self.kills[name] += result.kills

    def total(self) -> int:
        """All kills."""
        return sum(result.kills for result in self.results)


def combinations(only: str = "") -> list[Combination]:
    """Each method twice, with other optimizers and other kinds of runs, so that all optimizers and kinds occur."""
    choices, found = list(optimizers_on_cpu()), []
    for turn in range(2):
        for number, method in enumerate(adapters.methods()):
            start = number + turn * 4
            order = [choices[(start + step) % len(choices)] for step in range(len(choices))]
            optimizer = next(name for name in order if not refused(method, name))
            variant = list(VARIANTS)[(number + 3 * turn + number // len(VARIANTS)) % len(VARIANTS)]
            found.append(Combination(method, optimizer, variant))
    return [one for one in found if only in ("", one.method)]


def every_point(bench: Bench, pool: list[Combination], count: int) -> Iterator[tuple[Combination, Kill]]:
    """Every point of one combination after the other; only a part of them, evenly spread, where `count` is less than
    one combination has."""
    for combination in pool:
        points = bench.reference(combination).points()
        stride = max(1.0, len(points) / max(1, count))
        for place in range(int(len(points) / stride)):
            yield combination, points[int(place * stride)]


def next_case(
    bench: Bench,
    tally: Tally,
    pool: list[Combination],
    points: Iterator[tuple[Combination, Kill]],
    count: int,
    draw: random.Random,
) -> None:
    """Carry out a case of the share that is most behind."""
    share = max(SHARES, key=lambda name: SHARES[name] * count - tally.kills[name])
    point = next(points, None) if share == "every operation" else None
    if point is not None:
        tally.add(bench.killed(point[0], [point[1]], cold=True), share)
        return

    def need(one: Combination) -> tuple[int, int]:
        return min(tally.kills[one.method], tally.kills[one.optimizer]), tally.kills[str(one)]

    combination = min(pool, key=need)
    if share == "two processes":
        pairs = [Combination(one.method, one.optimizer, one.variant, 2) for one in pool[:: max(1, len(pool) // 4)]]
        combination = min(pairs, key=lambda one: tally.kills[str(one)])
    reference = bench.reference(combination)
    length = min(draw.randint(1, CHAIN), max(1, count - tally.total()))
    cold = share == "encoding"
    kills = [reference.drawn(draw, cold, part=0.7**number) for number in range(length)]
    if share in PLACES:
        kills[0] = reference.drawn(draw, cold, share)
    if share == "two processes":
        kills = [whom(kill, draw.choice(["0", "1", "both"]), draw, reference.seconds) for kill in kills]
    tally.add(bench.killed(combination, kills, cold), share)


def whom(kill: Kill, who: str, draw: random.Random, seconds: float) -> Kill:
    """The kill for another process; the second one writes little, so it is killed by the clock."""
    if who == "1" or kill.operation is None:
        return Kill(seconds=draw.uniform(0.05, seconds * 1.5), who=who)
    return Kill(kill.operation, kill.torn, kill.seconds, who)


def cut_power(bench: Bench, tally: Tally, pool: list[Combination], count: int, draw: random.Random, late) -> None:
    """Power cuts at evenly spread operations of the first combinations of the pool, in each mode in turn."""
    chosen = pool[: max(1, min(len(pool), count // 100))]
    done = 0
    for number, combination in enumerate(chosen):
        try:
            bench.reference(combination)
        except Unfinished as error:
            tally.add(failed(error), "anywhere")
            said(tally, tally.results[-1])
            continue
        share = count // len(chosen) + (number < count % len(chosen))
        operations = len(bench.reference(combination).record)
        for place in range(share):
            if done >= count or late():
                return
            operation = int((place + draw.random()) * operations / share)
            cuts = drawn_cuts(bench.reference(combination), draw, operation, MODES[place % len(MODES)])
            result = bench.cut(combination, cuts)
            tally.results.append(result)
            done += result.cuts
            said(tally, result)


def failed(error: Unfinished) -> Result:
    """The result of a combination that does not even run without being interrupted."""
    return Result(error.combination, str(error.combination), wrong=[Finding(LOST, str(error))])


def said(tally: Tally, result: Result) -> None:
    """A progress line; a failing case stays on the screen."""
    wrong = sum(bool(one.wrong) for one in tally.results)
    cuts = sum(one.cuts for one in tally.results)
    if result.wrong:
        print(f"\r\033[K{result.repeat}")
        for finding in result.wrong[:4]:
            print(f"    {finding.kind}: {finding.text}")
        if len(result.wrong) > 4:
            print(f"    and {len(result.wrong) - 4} more")
    done = f"{tally.total()} kills, {cuts} power cuts, {wrong} of {len(tally.results)} runs wrong"
    print(f"\r\033[K{done}", end="", flush=True)


def table(tally: Tally, seconds: float, seed: int) -> str:
    """One Markdown table: a row per combination, then where the kills fell."""
    rows: dict[str, list[Result]] = defaultdict(list)
    for result in tally.results:
        rows[str(result.combination)].append(result)
    head = ["combination", "runs", "kills", "power cuts", *KINDS]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, results in [*sorted(rows.items()), ("**all**", tally.results)]:
        numbers = [len(results), sum(one.kills for one in results), sum(one.cuts for one in results)]
        numbers += [sum(one.count(kind) for one in results) for kind in KINDS]
        lines.append(f"| {name} | " + " | ".join(str(number) for number in numbers) + " |")
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    where = ", ".join(f"{share} {tally.kills[share]}" for share in SHARES)
    smallest = {
        "method": min((tally.kills[one.combination.method], one.combination.method) for one in tally.results),
        "optimizer": min((tally.kills[one.combination.optimizer], one.combination.optimizer) for one in tally.results),
    }
    least = ", ".join(f"{kind} with the fewest kills: {name} ({count})" for kind, (count, name) in smallest.items())
    facts = f"{when}, commit {commit.stdout.strip()}, seed {seed}, {seconds:.0f} s. Kills fell: {where}; {least}."
    return "\n".join([facts, "", *lines])


def written(path: Path, text: str) -> None:
    """Put the table between its marks in a page."""
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{path} has no place for the table: it needs the lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def unfinished(tally: Tally, arguments: argparse.Namespace, pool: list[Combination]) -> list[str]:
    """What was asked for and not run."""
    found = []
    cuts = sum(one.cuts for one in tally.results)
    if tally.total() < arguments.kills:
        found.append(f"{arguments.kills - tally.total()} of {arguments.kills} kills")
    if cuts < arguments.power_cuts:
        found.append(f"{arguments.power_cuts - cuts} of {arguments.power_cuts} power cuts")
    least = arguments.kills // 50
    names = {one.method for one in pool} | {one.optimizer for one in pool}
    few = sorted(name for name in names if tally.kills[name] < least)
    return found + ([f"fewer than {least} kills: {', '.join(few)}"] if few else [])


def carried_out(bench: Bench, arguments: argparse.Namespace) -> Tally:
    """All that was asked for, or what fits in the time."""
    tally, draw, started = Tally(), random.Random(arguments.seed), time.monotonic()
    pool = combinations(arguments.only)

    def late() -> bool:
        return arguments.seconds is not None and time.monotonic() - started > arguments.seconds

    points = every_point(bench, pool, round(arguments.kills * SHARES["every operation"]))
    while pool and tally.total() < arguments.kills and not late():
        try:
            next_case(bench, tally, pool, points, arguments.kills, draw)
        except Unfinished as error:
            tally.add(failed(error), "anywhere")
            one = error.combination
            pool = [other for other in pool if (other.method, other.variant) != (one.method, one.variant)]
        said(tally, tally.results[-1])
    cut_power(bench, tally, pool, arguments.power_cuts, draw, late)
    print()
    for sentence in unfinished(tally, arguments, pool):
        print(f"not run: {sentence}")
    return tally


def main(words: list[str] | None = None) -> int:
    """Read the arguments, carry out, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--power-cuts", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="stop after this time and say what was not run")
    parser.add_argument("--only", default="", choices=["", *adapters.methods()], metavar="METHOD")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the folders of failing cases here")
    parser.add_argument("--repeat", metavar="CASE", help="carry out one case, as a failing one was printed")
    parser.add_argument("--table", type=Path, metavar="PAGE", help="put the table into this page")
    arguments = parser.parse_args(words)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Place(Path(folder)), arguments.keep)
        if arguments.repeat:
            result = bench.repeat(arguments.repeat)
            print("\n".join([result.repeat, *(f"    {one.kind}: {one.text}" for one in result.wrong)]))
            return int(bool(result.wrong))
        tally = carried_out(bench, arguments)
    text = table(tally, time.monotonic() - started, arguments.seed)
    print(text)
    if arguments.table:
        written(arguments.table, text)
    return int(any(result.wrong for result in tally.results))


if __name__ == "__main__":
    sys.exit(main())
