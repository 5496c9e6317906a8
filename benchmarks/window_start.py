"""How long the window takes from the start of its process to the first paint: `python benchmarks/window_start.py`.

Whole processes, one after the other, as a user would start them; prints each time, the median, and what is loaded.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = 7
HEAVY = ("torch", "diffusers", "transformers", "pyqtgraph", "numpy")

CHILD = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
from ui import app

def painted(window, event):
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"time": time.time(), "loaded": loaded}), flush=True)
    os._exit(0)

app.Window.paintEvent = painted
app.main([])
"""


def seconds_to_paint() -> tuple[float, list[str]]:
    """Seconds from the start of a process to its window's first paint, and the packages that are loaded then."""
    before = time.time()
    done = subprocess.run([sys.executable, "-c", CHILD, str(ROOT)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the window did not open:\n{done.stderr}")
    answer = json.loads(done.stdout)
    return answer["time"] - before, answer["loaded"]


def main() -> None:
    """Print the table."""
    if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    times = []
    for number in range(RUNS + 1):
        seconds, loaded = seconds_to_paint()
        heavy = ", ".join(name for name in HEAVY if name in loaded) or "none"
        print(f"{number or 'warm-up':>8}: {seconds:.2f} s, heavy packages: {heavy}")
        times += [seconds] if number else []
    print(f"  median: {statistics.median(times):.2f} s, smallest {min(times):.2f} s, largest {max(times):.2f} s")


if __name__ == "__main__":
    main()
