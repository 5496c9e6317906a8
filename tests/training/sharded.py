"""What each of the processes in test_sharding.py does: several trainings, one after the other, in one process group.

    accelerate launch ... tests/training/sharded.py PLANS

PLANS is a JSON file with a list of `Plan`s.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from modules.adapters import methods
from modules.adapters.base import attach
from modules.adapters.derived import Derived
from modules.training import loop, session
from modules.training.command import main

start_accelerator, take_step, sample = session.start_accelerator, loop.take_step, loop.sample


@dataclass
class Plan:
    """One training."""

    command: list[str]
    stop_at: int = 0
    """Step in which to ask for a stop."""
    sharded: bool = True
    reshard: bool = True
    """Whether a block is in shares again between its forward and its backward pass."""
    as_on_gpu: bool = False
    """Let accelerate take this for FSDP, which by itself it does on GPUs alone."""
    failing: int = -1
    """Process whose samples fail."""


def write_plans(path: Path, plans: list[Plan]) -> Path:
    """The file that this script reads."""
    path.write_text(json.dumps([asdict(plan) for plan in plans]), encoding="utf-8")
    return path


def start(preset, machine):
    """Accelerate in the state that it has on GPUs."""
    accelerator = start_accelerator(preset, machine)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    for shared in (PartialState._shared_state, AcceleratorState._shared_state):
        shared["distributed_type"] = DistributedType.FSDP
    assert accelerator.is_fsdp2
    return accelerator


def train(plan: Plan) -> int:
    """The command's exit code."""

    def step(running, progress):
        if running.step + 1 == plan.stop_at and running.accelerator.is_main_process:
            (running.run.folder / "requests" / "stop").touch()
        return take_step(running, progress)

    def fail(running):
        if running.accelerator.process_index == plan.failing:
            raise ValueError("no samples here")
        sample(running)

    session.start_accelerator = start if plan.as_on_gpu else start_accelerator
    loop.take_step, loop.sample = step, fail
    os.environ["ACCELERATE_USE_FSDP"] = str(plan.sharded).lower()
    os.environ["FSDP_RESHARD_AFTER_FORWARD"] = str(plan.reshard).lower()
    AcceleratorState._reset_state()
    GradientState._reset_state()
    code = main(plan.command)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    return code


def read_together() -> None:
    """A layer whose update cancels the weight in the last process alone, so that only this one needs the weight."""
    state = session.start_processes()
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    network, weight = nn.Sequential(linear).requires_grad_(False), linear.weight.detach().clone()
    fully_shard(network, mesh=init_device_mesh("cpu", (state.num_processes,)))
    adapted = attach(network, "0", methods()["dora"].Config(method="dora", rank=4), 0)
    if state.is_last_process:
        adapted.adapter.load_state_dict({"up": -weight, "down": torch.eye(4)}, strict=False)
    Derived([adapted]).begin()
    assert bool((adapted.leaves["excess"].abs() > 0.1).any()) == state.is_last_process
    print("read together")


if __name__ == "__main__":
    read_together()
    codes = [train(Plan(**plan)) for plan in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))]
    print("codes", codes)
    sys.exit(codes[-1])
