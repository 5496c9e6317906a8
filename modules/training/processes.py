"""Several processes on a CPU, of which accelerate's launcher starts only the first.

`accelerate launch --num_processes 2 --cpu scripts/train.py` prepares the environment for two processes but starts the
script once (accelerate 1.15: unless mpirun does it). The first process then has to start the others: without this, a
training would silently run with half of the pictures per step.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers that do start all processes say how many there are."""

FLAGS = ("--num_processes", "--num-processes")

FAREWELL = 60
"""Seconds that the other processes have to end after the first one."""

PARTING = 10
"""The same after a failure, or a stop before the first step: they may wait for the first one forever. Nothing is lost:
only the first process writes."""

HOW = (
    "accelerate launch --cpu started only one process, and the intended number of processes is unknown: give "
    "--num_processes N on its command line, or use ACCELERATE_USE_CPU=1 accelerate launch --config_file "
    "configs/two_cpu_processes.yaml; for one process, unset MASTER_ADDR and MASTER_PORT"
)


def is_main_process() -> bool:
    """Whether this is the main process (launchers number them)."""
    return os.environ.get("RANK", "0") == "0"


def missing_processes() -> int:
    """How many processes accelerate's launcher was asked for, beside this one, but has not started.

    Raises ValueError when there are some and their number is not known.
    """
    if not promised(os.environ):
        return 0
    import psutil

    parent = psutil.Process().parent()
    try:
        count = asked_for(parent.cmdline()) if parent is not None else None
    except psutil.Error:
        count = None
    if count is None:
        raise ValueError(HOW)
    return count - 1


def promised(environment: Mapping[str, str]) -> bool:
    """Whether this is the environment that accelerate's launcher makes for several processes on the CPU."""
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return on_cpu and "MASTER_PORT" in environment and not any(name in environment for name in COUNTS)


def asked_for(command: Sequence[str]) -> int | None:
    """The number of processes in the launcher's command line."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in FLAGS:
            text = value if equals else following
            return int(text) if text.isdigit() else None
    return None


@contextmanager
def companions(count: int) -> Iterator[list[subprocess.Popen]]:
    """Start `count` more processes of this very command on the CPU, which find each other through the environment.
    Afterwards they are waited for (see `farewell`)."""
    if not count:
        yield []
        return
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        WORLD_SIZE=str(count + 1),
        LOCAL_WORLD_SIZE=str(count + 1),
        RANK="0",
        LOCAL_RANK="0",
    )
    command = [sys.executable, *sys.orig_argv[1:]]
    others = [
        subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(1, count + 1)
    ]
    print(f"accelerate started only one CPU process; starting {count} more", file=sys.stderr)
    try:
        yield others
    finally:
        farewell(others, FAREWELL)


def farewell(others: Sequence[subprocess.Popen], seconds: float) -> None:
    """Wait for the other processes to end; kill those that do not."""
    try:
        for other in others:
            other.wait(seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for other in others:
            other.kill()


def free_port() -> int:
    """A free port on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
