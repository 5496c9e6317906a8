"""Damaged files, read by everything that reads files: `python benchmarks/mutations.py --count 5000`.

A small valid example of what each reader takes is damaged in some way and read, in a process of its own with little
memory and ten seconds. Good are: the same result, another result (what was damaged means something else, or nothing),
and a sentence with the file's name. Bad are any other error, more time and more memory. Printed is a table; the exit
code is 1 if anything was bad. The same `--seed` damages the same files.
"""

import argparse
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import mutating
from benchmarks.readers import LANGUAGES, Reader, all_readers
from modules.data.index import DataProblems
from modules.preset.problems import PresetProblems

SECONDS, MEMORY = 10, 1 << 30
"""For one file: time, and bytes beyond what the process has."""

SAME, OTHER, SENTENCE = "same", "other", "sentence"
GOOD = (SAME, OTHER, SENTENCE)


@dataclass
class Tally:
    """What came of one reader's files."""

    reader: Reader
    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    """Number, damage and error of each."""
    slowest: tuple[float, str] = (0.0, "")
    """Seconds of the file that took longest, and which it was."""


def run(readers: Sequence[Reader], count: int, seed: int, seconds: float) -> list[Tally]:
    """Damage and read `count` files, shared among the readers in turn, or as many as `seconds` allow."""
    tallies, end = [Tally(reader) for reader in readers], time.monotonic() + seconds
    share = -(-count // len(readers))
    for place, tally in enumerate(tallies):
        limit = time.monotonic() + (end - time.monotonic()) / (len(tallies) - place)
        number = 0
        while number < share and time.monotonic() < limit:
            number = read_some(tally, range(number, share), seed, limit)
    return tallies


def read_some(tally: Tally, numbers: range, seed: int, limit: float) -> int:
    """Read files in one child until one ends it, or all are read; the number of the next."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(here)
        code = 1
        try:
            work(tally.reader, numbers, seed, there)
            code = 0
        finally:
            os._exit(code)
    os.close(there)
    number, damage = numbers.start, ""
    for line in lines_of(here, SECONDS + 10):
        kind, _, rest = line.partition("\t")
        if kind == "damage":
            damage = rest
            continue
        taken, _, outcome = rest.partition("\t")
        tally.slowest = max(tally.slowest, (float(taken), f"{number} ({damage})"))
        count(tally, number, damage, outcome)
        number, damage = number + 1, ""
        if time.monotonic() > limit:
            break
    os.close(here)
    os.kill(child, signal.SIGKILL)
    how = os.waitpid(child, 0)[1]
    if number < numbers.stop and time.monotonic() <= limit:
        word = "hangs" if how == signal.SIGKILL else f"ends the process (status {how})"
        count(tally, number, damage, word)
        number += 1
    return number


def count(tally: Tally, number: int, damage: str, outcome: str) -> None:
    """Note what came of a file."""
    kind = outcome if outcome in GOOD else "BAD"
    tally.outcomes[kind] += 1
    if kind == "BAD":
        tally.bad.append(f"{number} ({damage}): {outcome}")


def lines_of(pipe: int, patience: float) -> Iterator[str]:
    """Lines from a pipe, until it ends or is silent for too long."""
    rest = b""
    while select.select([pipe], [], [], patience)[0]:
        read = os.read(pipe, 1 << 16)
        if not read:
            return
        *whole, rest = (rest + read).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)


def work(reader: Reader, numbers: range, seed: int, pipe: int) -> None:
    """In the child: damage and read each file, and write down what came of it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    signal.signal(signal.SIGALRM, _ring)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * MEMORY, mapped + 2 * MEMORY))
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        sound = made(reader, Path(place) / "sound")
        usual = result(reader, sound)
        for number in numbers:
            draw = random.Random(f"{seed} {reader.name} {number}")
            folder = made(reader, Path(place) / f"case{number}")
            path = draw.choice(sorted(folder.iterdir()))
            own = LANGUAGES.get(path.suffix)
            damage = mutating.damage(path, (own,) if own else (), draw)
            os.write(pipe, f"damage\t{path.name}: {damage}\n".encode())
            begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            outcome = outcome_of(reader, folder, path, usual)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            outcome = f"takes {grown / 2**20:.0f} MiB" if grown > MEMORY else outcome
            os.write(pipe, f"done\t{time.monotonic() - begun:.3f}\t{outcome}\n".encode("utf-8", "replace"))
            remove(folder)


def made(reader: Reader, folder: Path) -> Path:
    """The reader's example in a new folder."""
    folder.mkdir()
    reader.make(folder)
    return folder


def remove(folder: Path) -> None:
    """Delete what is there, whatever it has become."""
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)


def outcome_of(reader: Reader, folder: Path, path: Path, usual: str) -> str:
    """What comes of reading a damaged example."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return SAME if result(reader, folder) == usual else OTHER
    except (PresetProblems, DataProblems):  # they name the option, or every file by itself
        return SENTENCE
    except ValueError as error:
        said = str(error)
        if not reader.tells:
            return f"refused, but may not: {_short(error)}"
        named = any(name in said for name in (str(path), path.name, str(folder), folder.name))
        return SENTENCE if named and "Traceback" not in said else f"does not say which file: {_short(error)}"
    except BaseException as error:  # noqa: BLE001  whatever it is, it is what is looked for
        return _short(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def result(reader: Reader, folder: Path) -> str:
    """What a reader makes of an example, but for the name of its folder."""
    return repr(reader.read(folder)).replace(str(folder), "FOLDER").replace(folder.name, "FOLDER")


class Late(BaseException):
    """The time is over."""


def _ring(number: int, frame: object) -> None:
    raise Late(f"takes more than {SECONDS} s")


def _short(error: BaseException) -> str:
    """Kind and words of an error, and where it comes from, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename and "/lib/python" not in frame.filename]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:160]!r}"


def table(tallies: Sequence[Tally]) -> str:
    """A row per reader, then every bad file."""
    lines = [f"{'reader':24} {'same':>6} {'other':>6} {'sentence':>9} {'BAD':>5} {'slowest':>8}"]
    for tally in tallies:
        kinds = [tally.outcomes[kind] for kind in (*GOOD, "BAD")]
        columns = f"{kinds[0]:6} {kinds[1]:6} {kinds[2]:9} {kinds[3]:5} {tally.slowest[0]:7.1f}s {tally.slowest[1]}"
        lines.append(f"{tally.reader.name:24} {columns}")
    lines += [f"{tally.reader.name}: {entry}" for tally in tallies for entry in tally.bad]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, damage, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="files, for all readers together")
    parser.add_argument("--seconds", type=float, default=1e6, help="end after about so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name has this in it")
    arguments = parser.parse_args(argv)
    readers = [reader for reader in all_readers() if arguments.only in reader.name]
    if not readers:
        parser.error(f"--only {arguments.only}: there is no such reader")
    tallies = run(readers, arguments.count, arguments.seed, arguments.seconds)
    print(table(tallies))
    return int(any(tally.bad for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
