"""Runs for benchmarks/kills.py: what is trained, and how a run is forked from the warm interpreter and killed.

Everything heavy is imported here once; a fork then begins at the first line of the training command. The parent stays
with one thread and computes nothing with torch: a forked process cannot use threads that its parent has started.
"""

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
import traceback
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)

import numpy
from PIL import Image

from benchmarks.kills_watch import Kill, Operation, Shared, Watch, record_of
from modules import adapters
from modules.training import optimizers
from modules.training.command import DONE, main, quiet_libraries
from modules.training.optimizer_options import Options
from tests.tiny_sdxl import make_folder

WARM = (
    "bitsandbytes",
    "diffusers.guiders",
    "modules.export.export",
    "modules.hosts.comfyui",
    "modules.families.sdxl",
    "modules.training.check",
    "modules.training.loop",
    "modules.training.run",
    "prodigyopt",
    "schedulefree",
    "torch.utils.tensorboard.writer",
    "PIL.PngImagePlugin",
)
"""What the command imports only when it is needed: a fork has it already."""

NAME = "run"
"""Of every run, so that files of two runs can be compared."""

STEPS = 6
POOL = "pool"
"""Folder of finished adapters, for methods that start from some."""

LIMIT = 120.0
"""Seconds after which a run counts as hanging."""

HUNG = -1000

FAREWELL = 4.0
"""Seconds that a process has after the other one was killed, until it is killed too, as a launcher would."""

LONG = {"state_every": 2, "keep_states": 2, "export_every": 3}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "accumulation": {
        "training": {"accumulation": 2, "schedule": "cosine", "warmup": 2},
        "saving": {"state_every": 3, "keep_states": 1, "export_every": 2},
    },
    "captions": {
        "data": {"shuffle": True, "part_dropout": 0.3},
        "targets": {"text_encoders": True, "text_encoder_lr_scale": 1.0},  # some optimizers take one rate only
        "saving": {"state_every": 2, "keep_states": 3, "export_every": 2},
    },
    "every-step": {
        "validation": {"every": 1},
        "samples": {"every": 1},
        "saving": {"state_every": 1, "keep_states": 1, "export_every": 1},
    },
    "bfloat16": {"training": {"precision": "bfloat16", "gradient_checkpointing": True, "batch_size": 2}},
    "end-only": {"validation": {"every": 0}, "samples": {"every": 0}, "saving": {"state_every": 0, "export_every": 2}},
}
"""What is trained differently, by section, on top of `options`."""

OWN: dict[str, dict[str, Any]] = {
    "adalora": {"interval": 2, "rank": 4, "target_rank": 2},
    "doft": {"rotation": {"kind": "blocks", "block_size": 4}},
    "oft": {"rotation": {"kind": "blocks", "block_size": 4}},
    "boft": {"block_size": 4},
    "lokr": {"factor": 2},
}
"""Options of methods, so that all of them fit a tiny base and do what they do within a few steps."""


@dataclass(frozen=True, order=True)
class Combination:
    """What is trained. As text: `method+optimizer+variant`, with `+2` for two processes."""

    method: str
    optimizer: str
    variant: str = "plain"
    processes: int = 1

    def __str__(self) -> str:
        parts = [self.method, self.optimizer, self.variant, *(["2"] if self.processes > 1 else [])]
        return "+".join(parts)

    @classmethod
    def parse(cls, text: str) -> "Combination":
        """Back from `str`."""
        method, optimizer, variant, *processes = text.split("+")
        return cls(method, optimizer, variant, int(processes[0]) if processes else 1)


def optimizers_on_cpu() -> dict[str, type[Options]]:
    """All optimizers that run here, by name."""
    classes = typing.get_args(typing.get_args(optimizers.OptimizerOptions)[0])
    return {cls().name: cls for cls in classes if not cls().problems(cls.highest_lr, "cpu")}


def refused(method: str, optimizer: str) -> bool:
    """Whether the optimizer refuses the method, whose parameters are no pairs."""
    unpaired = "" if adapters.methods()[method].Adapter.pairs else method
    return bool(optimizers_on_cpu()[optimizer]().problems(rate(optimizer), "cpu", (), unpaired))


def rate(optimizer: str) -> float:
    """A learning rate with which a few steps change something."""
    return 0.01 if optimizers_on_cpu()[optimizer].highest_lr < 1 else 1.0


def options(combination: Combination, stage: Path) -> dict[str, Any]:
    """The preset. Its folders for runs and cache are relative, so that nothing in two runs tells them apart."""
    config = adapters.methods()[combination.method].Config.model_fields
    own = {name: value for name, value in {"rank": 2, "folder": str(stage / POOL)}.items() if name in config}
    preset: dict[str, dict[str, Any]] = {
        "base": {"path": str(stage / "base")},
        "targets": {"layers": "attention", "exclude": ["unet.up_*", "unet.mid_*", "unet.down_blocks.2.*"]},
        "adapter": {"method": combination.method, **own, **OWN.get(combination.method, {})},
        "optimizer": {"name": combination.optimizer},
        "data": {
            "folders": [str(stage / "pictures"), {"path": str(stage / "validation"), "role": "validation"}],
            "cache_folder": "cache",
            "resolution": 32,
            "caption_dropout": 0.3,
            "flip": True,
        },
        "training": {
            "steps": STEPS,
            "learning_rate": rate(combination.optimizer),
            "schedule": "constant",
            "warmup": 0,
            "gradient_checkpointing": False,
        },
        "validation": {"every": 2, "draws": 1},
        "samples": {"every": 2, "steps": 1, "prompts": ["red apple", "blue heart"]},
        "saving": {"folder": "runs", **LONG},
    }
    for section, changed in VARIANTS[combination.variant].items():
        preset[section] = {**preset[section], **changed}
    if optimizers_on_cpu()[combination.optimizer].averages:  # it takes the place of a schedule
        preset["training"]["schedule"] = "constant"
    return {"family": "sdxl", **preset}


@dataclass
class Ended:
    """How a forked run ended."""

    code: int
    """Exit code of the first process; negative: the signal that ended it; or `HUNG`."""
    killed: bool = False
    point: Kill | None = None
    """The kill as it happened, in terms of operations, so that it can be repeated."""
    out: str = ""
    """What was printed."""
    record: list[Operation] = field(default_factory=list)


class Place:
    """Where runs take place: a stage with base and pictures, and one folder per case.

    A case's folder has `work`, in which the run takes place (`work/runs/run`, `work/cache`) and which is watched.
    """

    def __init__(self, folder: Path):
        self.folder, self.stage = folder, folder / "stage"
        self.before = lambda: None
        """What a forked process does first; tests break the trainer here."""
        quiet_libraries()
        for module in WARM:
            importlib.import_module(module)
        if not self.stage.exists():
            pid = os.fork()
            if pid == 0:
                end_with(lambda: make_stage(self.stage))
            assert os.waitpid(pid, 0)[1] == 0, "the base could not be made"

    def case(self, name: str) -> Path:
        """A new folder for a case."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "work" / "runs").mkdir(parents=True)
        (folder / "work" / "cache").mkdir()
        return folder

    def run(
        self, case: Path, combination: Combination, kill: Kill | None = None, record: bool = False
    ) -> Ended:
        """Start the combination's command in `case`, or start it again, and wait until it has ended."""
        preset = options(combination, self.stage)
        if "folder" in preset["adapter"] and not (self.stage / POOL).exists():
            self._fill_pool()
        (case / "preset.json").write_text(json.dumps(preset), encoding="utf-8")
        port = free_port() if combination.processes > 1 else 0
        shared = Shared()
        pids = []
        for rank in range(combination.processes):
            own = kill if kill is not None and kill.operation is not None and rank == int(kill.who == "1") else None
            pid = os.fork()
            if pid == 0:
                end_with(lambda rank=rank, own=own: self._train(case, combination, rank, port, shared, own, record))
            pids.append(pid)
        started = time.monotonic()
        codes = wait(pids, kill, started)
        killed = kill is not None and any(code in (-signal.SIGKILL, -signal.SIGALRM) for code in codes)
        number, last = shared.get()
        point = kill
        if killed and kill is not None and kill.operation is None and kill.seconds and number and kill.who != "1":
            point = Kill(number - 1, False, max(1e-4, started + kill.seconds - last), kill.who)
        out = (case / "out.txt").read_text(encoding="utf-8", errors="replace")
        ended = Ended(codes[0] or max(codes), killed, point, out)
        if record and codes[0] == DONE:
            ended.record = record_of(case / "record")
        return ended

    def _fill_pool(self) -> None:
        """Train an adapter for methods that start from finished ones."""
        case = self.case("pool")
        ended = self.run(case, Combination("lora", "adamw", "end-only"))
        assert ended.code == DONE, ended.out
        (self.stage / POOL).mkdir()
        shutil.copy(case / "work" / "runs" / NAME / f"{NAME}.safetensors", self.stage / POOL)

    def _train(
        self,
        case: Path,
        combination: Combination,
        rank: int,
        port: int,
        shared: Shared,
        kill: Kill | None,
        record: bool,
    ) -> int:
        """The training command, in a forked process; its exit code."""
        out = os.open(case / ("out.txt" if rank == 0 else "out1.txt"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(case / "work")
        if combination.processes > 1:
            os.environ.update(
                ACCELERATE_USE_CPU="true",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                WORLD_SIZE=str(combination.processes),
                LOCAL_WORLD_SIZE=str(combination.processes),
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                GLOO_SOCKET_IFNAME="lo",
            )
        self.before()
        watch = Watch(case / "work", shared if rank == 0 or kill is not None else Shared(), kill, record)
        watch.start()
        code = main(["--preset", str(case / "preset.json"), "--name", NAME])
        if record and rank == 0:
            watch.save(case / "record")
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        return code


def end_with(work) -> None:
    """Do `work` and end this forked process, without anything that the parent would do at its end."""
    code = 99
    try:
        code = work() or 0
    except BaseException:  # noqa: BLE001  a forked process must not go on with what its parent does
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait(pids: list[int], kill: Kill | None, started: float) -> list[int]:
    """Exit codes of the processes, as in `subprocess`; kills whom and when `kill` says."""
    handles = {os.pidfd_open(pid): rank for rank, pid in enumerate(pids)}
    codes: list[int | None] = [None] * len(pids)
    aims = [] if kill is None else list(range(len(pids))) if kill.who == "both" else [int(kill.who)]
    timed = kill is not None and kill.operation is None
    moment = started + (kill.seconds or 0.0) if kill is not None and timed else started + LIMIT
    hung = False
    while handles:
        ready, _, _ = select.select(list(handles), [], [], max(0.0, moment - time.monotonic()))
        for handle in ready:
            rank = handles.pop(handle)
            os.close(handle)
            codes[rank] = os.waitstatus_to_exitcode(os.waitpid(pids[rank], 0)[1])
        if ready:
            if handles and kill is not None and kill.who == "both":
                moment = time.monotonic()  # the other one at once
            elif handles and any(codes):  # one has failed or was killed
                moment = min(moment, time.monotonic() + FAREWELL)
            continue
        left = list(handles.values())
        hung = hung or not timed and all(code is None for code in codes)
        for rank in [rank for rank in aims if rank in left] if timed and len(left) == len(pids) else left:
            os.kill(pids[rank], signal.SIGKILL)
        timed, moment = False, time.monotonic() + FAREWELL
    return [HUNG if hung else code for code in codes if code is not None]


def make_stage(folder: Path) -> None:
    """A tiny base and 64-pixel pictures of two shapes."""
    made = folder.with_name(folder.name + ".part")
    make_folder(made)
    draw = numpy.random.default_rng(0)
    for place, count in {"pictures": 4, "validation": 1}.items():
        (made / place).mkdir()
        for number in range(count):
            size = (64, 64 if number % 3 else 48, 3)
            Image.fromarray(draw.integers(0, 256, size, dtype=numpy.uint8)).save(made / place / f"{number}.png")
            caption = f"red apple, face, style {'ab'[number % 2]}, heart"
            (made / place / f"{number}.txt").write_text(caption, encoding="utf-8")
    made.rename(folder)


def free_port() -> int:
    """A port on this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
