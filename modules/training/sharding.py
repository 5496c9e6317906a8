"""The frozen base in shards, one per process (torch's FSDP2), where accelerate's launcher is set up for it.

Only the denoiser's weights are sharded. Adapters are attached afterwards: they are whole in every process, and the loop
averages their gradients, as without sharding. A weight that is read outside of its layer's forward and backward pass is
gathered from all processes (`quant.whole`); so all of them validate, sample and export, and the main one writes.
"""

import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object, parse_flag_from_env

from modules.preset.schema import Preset
from modules.training import setup


@dataclass(frozen=True)
class Setting:
    """An option of accelerate's launcher."""

    variable: str
    """The environment variable that the launcher sets."""
    fitting: tuple[str, ...]
    """Valid values, in lower case."""
    advice: str
    """What to do otherwise."""
    absent: str = ""
    """The value meant by a missing variable; empty is always valid."""


OFF, OURS = ("false",), "remove it: the trainer sets the blocks and its adapters itself"

SETTINGS: dict[str, Setting] = {
    "fsdp_version": Setting("FSDP_VERSION", ("2",), "set it to 2", absent="1"),
    "fsdp_reshard_after_forward": Setting("FSDP_RESHARD_AFTER_FORWARD", ("true", "false"), "set it to true"),
    "fsdp_sharding_strategy": Setting("FSDP_SHARDING_STRATEGY", ("full_shard", "1"), "remove it"),
    "fsdp_offload_params": Setting("FSDP_OFFLOAD_PARAMS", OFF, "set it to false, and use more processes"),
    "fsdp_cpu_ram_efficient_loading": Setting(
        "FSDP_CPU_RAM_EFFICIENT_LOADING", OFF, "set it to false: every process loads the base"
    ),
    "fsdp_activation_checkpointing": Setting(
        "FSDP_ACTIVATION_CHECKPOINTING", OFF, "set it to false, and use training.gradient_checkpointing"
    ),
    "fsdp_activation_checkpointing_offload": Setting("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", OFF, "set it to false"),
    "fsdp_auto_wrap_policy": Setting("FSDP_AUTO_WRAP_POLICY", ("no_wrap", "transformer_based_wrap"), OURS),
    "fsdp_transformer_layer_cls_to_wrap": Setting("FSDP_TRANSFORMER_CLS_TO_WRAP", (), OURS),
    "fsdp_ignored_modules": Setting("FSDP_IGNORED_MODULES", (), OURS),
    "fsdp_state_dict_type": Setting("FSDP_STATE_DICT_TYPE", (), "remove it: the base is never saved"),
    "fsdp_backward_prefetch": Setting("FSDP_BACKWARD_PREFETCH", ("no_prefetch",), "remove it"),
    "fsdp_forward_prefetch": Setting("FSDP_FORWARD_PREFETCH", OFF, "set it to false"),
    "use_parallelism_config": Setting(
        "ACCELERATE_USE_PARALLELISM_CONFIG", OFF, "remove it: all processes are one group"
    ),
}
"""By their names in the launcher's files."""

INSTEAD = "or start without FSDP (configs/several_gpus.yaml)"


def is_wanted() -> bool:
    """Whether accelerate's launcher is set up for FSDP."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def problems(preset: Preset, processes: int) -> list[str]:
    """Why the base cannot be sharded as accelerate's launcher is set up, as sentences."""
    if not is_wanted():
        return []
    found = []
    for option, setting in SETTINGS.items():
        value = os.environ.get(setting.variable, setting.absent)
        if value.lower() not in ("", *setting.fitting):
            found.append(f"accelerate's {option} is {value}: {setting.advice}")
    if processes == 1:
        found.append("accelerate is set up for FSDP, but there is only one process: give accelerate launch "
                     "--num_processes 2 or more, or use configs/one_gpu.yaml")
    base = preset.base
    if base.quantization != "none":
        found.append(f"base.quantization: weights in {base.quantization} cannot be sharded; use none, {INSTEAD}")
    if base.offload_blocks:
        found.append(f"base.offload_blocks: blocks in main memory cannot be sharded; use 0, {INSTEAD}")
    if preset.training.compile:
        found.append(f"training.compile: sharded blocks cannot be compiled; turn it off, {INSTEAD}")
    return found


def shard(model: Any, preset: Preset, device: torch.device) -> str:
    """Move this process' shard of the denoiser from main memory to the device, block by block, and whole text encoders
    if they are adapted. Returns the sizes of the shards, in words."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # It warns of writing into what a block returns, which would lose FSDP's hook; diffusers' networks do not do that.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    count = torch.distributed.get_world_size()
    mesh = init_device_mesh(device.type, (count,))
    denoiser: Any = next(iter(model.networks.values()))
    reshard = parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", True)
    for block in model.blocks():
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(denoiser, mesh=mesh)
    if setup.trains_texts(model, preset.targets):
        model.place_texts()
    total = sum(parameter.numel() for parameter in denoiser.parameters())
    shards = gather_object([sum(parameter.to_local().numel() for parameter in denoiser.parameters())])
    return f"{total:,} weights of the base in {count} shards of {', '.join(f'{shard:,}' for shard in shards)}"
