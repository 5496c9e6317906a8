"""One of our scripts, run in this process: the peak of its memory, for `benchmarks/files.py`.

    python benchmarks/watched.py RESULT.json inspect_adapter.py FILE ...

Imports by itself nothing that the script does not, so that the process' time is the script's.
"""

import json
import runpy
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SAMPLES = 0.004
"""Seconds between two looks at the memory."""


def anonymous() -> int:
    """Bytes of this process' anonymous pages that are in memory."""
    with Path("/proc/self/status").open(encoding="ascii") as file:
        line = next(line for line in file if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def import_all(script: str) -> None:
    """What the tool will import anyway."""
    if script.startswith("inspect"):
        from modules.tools import inspect_file

        assert inspect_file
        return
    if script.startswith("resize"):
        from modules.tools import resize

        assert resize
        return
    from modules import families
    from modules.tools import apply, base_of_file, convert, verify
    from modules.tools.merge import command as merge

    assert all((apply, base_of_file, convert, verify, merge))
    for name in ("sdxl", "flux"):
        families.load_class(name).pipeline_class()


def watched(result: Path, script: str, arguments: list[str]) -> int:
    """Run a script, and write the peak of its memory above that of the imports, and its seconds; its exit code."""
    import_all(script)
    begun = peak = anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLES):
            peak = max(peak, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    start, code = time.perf_counter(), 1
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        seconds = time.perf_counter() - start
        done.set()
        thread.join()
        result.write_text(json.dumps({"peak": peak - begun, "imports": begun, "inside": seconds}), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(watched(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
