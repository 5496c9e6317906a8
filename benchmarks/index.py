"""Time and memory of indexing a large set of pictures: what `--check` and every training do first.

    python benchmarks/index.py                            # 100,000 small pictures in a temporary folder, removed after
    python benchmarks/index.py --pictures 20000 --folder /tmp/many    # kept, and used again by the next call
    python benchmarks/index.py --code ../other_checkout   # the index of another checkout, to compare with

The pictures are JPEG, PNG and WebP files of 64 to 160 px a side, 1,000 in a folder, each with a caption. The index is
made by a process of its own, twice: without a record of earlier looks, then with it. Memory is the peak of the
resident pages of that process above what it has when everything is imported, and of all its workers together.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = ("jpg", "png", "webp")
PER_FOLDER = 1000
HEAD = "| index | pictures | seconds | CPU seconds | pictures/s | memory | of workers |\n|---|---|---|---|---|---|---|"
POLL = 0.2
"""Seconds between two looks at the memory."""


def draw(folder: Path, count: int) -> None:
    """Different pictures with captions, unless they are there."""
    drawing = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // PER_FOLDER:03}" / f"{number:06}.{SUFFIXES[number % len(SUFFIXES)]}"
        width, height, *colours = (int(value) for value in drawing.integers(64, 160, 8))
        if path.with_suffix(".txt").exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        small = np.array(colours * 8, dtype=np.uint8).reshape(4, 4, 3) + drawing.integers(0, 90, (4, 4, 3), np.uint8)
        Image.fromarray(small).resize((width, height)).save(path, compress_level=1, method=0)
        path.with_suffix(".txt").write_text(f"picture {number}, a thing, red, on a table", encoding="utf-8")


def measure(code: Path, folder: Path, record: Path) -> dict[str, float]:
    """Seconds and bytes of one index. In a process of its own; `code` is the checkout whose index it is."""
    sys.path.insert(0, str(code))
    from modules.data.index import build_index
    from modules.preset.data_options import Data

    me, peak, ended = psutil.Process(), [0, 0], threading.Event()
    before = me.memory_info().rss

    def watch() -> None:
        while not ended.wait(POLL):
            workers = 0
            for child in me.children(recursive=True):
                try:
                    found = child.memory_info()
                    workers += found.rss - found.shared
                except psutil.Error:  # it has ended since
                    continue
            peak[:] = max(peak[0], me.memory_info().rss - before), max(peak[1], workers)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begun, imported = time.perf_counter(), time.process_time()
    index = build_index(Data(folders=(str(folder),), resolution=64, cache_folder=str(record)), "training", 32)
    seconds = time.perf_counter() - begun
    ended.set()
    watcher.join()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    work = sum(one.ru_utime + one.ru_stime for one in used) - imported
    return {"pictures": len(index.pictures), "seconds": seconds, "work": work, "own": peak[0], "workers": peak[1]}


def measured(code: Path, folder: Path, record: Path) -> str:
    """A row of the table."""
    command = [sys.executable, __file__, "--measure", str(record), "--folder", str(folder), "--code", str(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""})
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    per_second = found["pictures"] / found["seconds"]
    memory = f"{found['own'] / 2**20:.0f} MiB | {found['workers'] / 2**20:.0f} MiB"
    return f"{found['pictures']:,} | {found['seconds']:.1f} | {found['work']:.1f} | {per_second:,.0f} | {memory}"


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the pictures are, and stay; a temporary one otherwise")
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout whose index is measured")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.code.resolve(), arguments.folder, arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch, "pictures")
        draw(folder, arguments.pictures)
        print(HEAD)
        for name in ("first", "again"):
            print(f"| {name} | {measured(arguments.code, folder, Path(scratch, 'cache'))} |", flush=True)


if __name__ == "__main__":
    main()
