"""What the real trainer does with files, processes and requests, in a tenth of a second and without a model.

The preset's "fake" says how: {"mode": "good" | "fail" | "refuse" | "crash" | "mute", "steps": n, "pause": s}.
"""

import json
import os
import platform
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import psutil


def now(precision: str = "milliseconds") -> str:
    return datetime.now(timezone.utc).isoformat(timespec=precision)


def option(name: str) -> str:
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag == name:
            return value if equals else following
    return ""


def main() -> int:
    source = Path(option("--preset"))
    preset = json.loads((source / "preset.json" if source.is_dir() else source).read_text(encoding="utf-8"))
    how = preset["fake"]
    print(f"note: fake, on GPUs {os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}", file=sys.stderr)
    if how["mode"] == "refuse":
        print("Cannot start:", file=sys.stderr)
        print(
            "  - data.folders pictures: no such folder\n    Look for it.\n  - training.steps: too many", file=sys.stderr
        )
        return 2
    if how["mode"] == "crash":
        raise RuntimeError("no such library")
    if how["mode"] == "mute":
        time.sleep(60)
    name = option("--name") or preset["name"]
    folder = Path(option("--saving.folder") or preset["saving"]["folder"]) / name
    begin(folder, preset)
    with (folder / "events.jsonl").open("a", encoding="utf-8") as events:
        return train(folder, name, how, events)


def begin(folder: Path, preset: dict) -> None:
    (folder / "requests").mkdir(parents=True, exist_ok=True)
    for path in (folder / "requests").iterdir():
        path.unlink()
    (folder / "preset.json").write_text(json.dumps(preset), encoding="utf-8")
    path, process = folder / "environment.json", psutil.Process()
    starts = json.loads(path.read_text()) if path.exists() else []
    facts = {
        "pid": process.pid,
        "created": process.create_time(),
        "host": platform.node(),
        "folder": str(Path.cwd()),
    }
    path.write_text(json.dumps([*starts, {"time": now("seconds"), "process": facts}]), encoding="utf-8")


def train(folder: Path, name: str, how: dict, events) -> int:
    def tell(kind: str, facts: dict) -> None:
        events.write(json.dumps({"time": now(), "event": kind, **facts}) + "\n")
        events.flush()

    def finish(outcome: str, code: int, step: int, path: str | None = None) -> int:
        tell("finished", {"outcome": outcome, "exit_code": code, "step": step, "path": path})
        return code

    steps, states = how["steps"], folder / "state"
    done = max((int(state.name.removeprefix("step-")) for state in states.glob("step-*")), default=0)
    tell("stage", {"name": "load", "detail": "loading demo/base"})
    if done:
        tell("stage", {"name": "resume", "detail": f"resuming from step {done}"})
    for step in range(done + 1, steps + 1):
        time.sleep(how["pause"])
        print(f"step {step}", flush=True)
        numbers = dict.fromkeys(("loss", "loss_average", "learning_rate", "grad_norm", "memory_mb", "epoch"), 0.1)
        times = {"seconds": 1.0, "seconds_per_step": 0.1, "seconds_left": 0.1 * (steps - step)}
        tell("step", {"step": step, "steps": steps, **numbers, **times, "adapter": {}})
        if how["mode"] == "fail" and step == 2:
            tell("error", {"message": "Non-finite loss at step 3.", "detail": "Traceback"})
            return finish("failed", 1, step)
        if (folder / "requests/stop").exists():
            (folder / "requests/stop").unlink()
            tell("stage", {"name": "stopping", "detail": "stop requested; saving the state"})
            (states / f"step-{step:06d}").mkdir(parents=True)
            return finish("stopped", 130, step)
    (folder / f"{name}.safetensors").write_bytes(b"file")
    tell("saved", {"what": "export", "path": f"{name}.safetensors", "step": steps, "bytes": 4})
    return finish("done", 0, steps, f"{name}.safetensors")


if __name__ == "__main__":
    sys.exit(main())
