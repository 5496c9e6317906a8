"""Two processes of one training, forked from this one: everything is in memory already, which each process that
accelerate's launcher starts has to import for five seconds.

The launcher itself is in test_processes.py, test_sharding.py and tests/preset/test_presets.py.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from accelerate.state import AcceleratorState, GradientState

from modules.training import stopping
from modules.training.command import main
from modules.training.processes import free_port


@dataclass
class Pair:
    """Two processes that are under way."""

    pids: list[int]
    files: list[Path]
    """What each of them says."""

    def wait(self, seconds: float = 240) -> tuple[list[int], str]:
        """The exit codes, and what both have said."""
        end, codes = time.monotonic() + seconds, dict[int, int]()
        while len(codes) < len(self.pids):
            for pid in set(self.pids) - codes.keys():
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > end:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        said = "".join(path.read_text(encoding="utf-8") for path in self.files)
        assert time.monotonic() < end, f"they took too long: {said}"
        return [codes[pid] for pid in self.pids], said


def begin(command: Sequence[str], folder: Path) -> Pair:
    """Start the command of `scripts/train.py` twice; `folder` takes what they say. They are as the parent is, with what
    a test has replaced in it."""
    port, pids = free_port(), list[int]()
    files = [folder / f"process {rank}.txt" for rank in range(2)]
    for rank, file in enumerate(files):
        pid = os.fork()
        if not pid:
            carry_out(command, rank, port, file)
        pids.append(pid)
    return Pair(pids, files)


def train(command: Sequence[str], folder: Path) -> tuple[list[int], str]:
    """The exit codes of both processes, and what they have said."""
    return begin(command, folder).wait()


def carry_out(command: Sequence[str], rank: int, port: int, file: Path) -> NoReturn:
    """Be one of the processes, with what torch's launcher sets for it and as `scripts/train.py` begins."""
    code = 1
    try:
        sys.stdout = sys.stderr = file.open("w", encoding="utf-8", buffering=1)
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(sys.stdout.fileno(), 2)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        os.environ.update(ACCELERATE_USE_CPU="true", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        stopping.begin()
        code = stopping.run(lambda: main(command))
    except BaseException:  # whatever it is: a forked process must not go on with the parent's tests
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
