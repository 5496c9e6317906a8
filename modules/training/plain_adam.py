"""AdamW for the tensors that an optimizer of another kind leaves to it, such as magnitudes."""

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw


def adamw_step(optimizer: Optimizer, group: dict, parameters: list[Tensor], eps: float) -> None:
    """One step of AdamW on some parameters of a group, with the group's `lr`, `betas` and `weight_decay`."""
    wanted = [p for p in parameters if p.grad is not None]
    for p in wanted:
        if not optimizer.state[p]:
            optimizer.state[p] = {
                "step": torch.tensor(0.0),
                "average": torch.zeros_like(p, memory_format=torch.preserve_format),
                "square": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
    states = [optimizer.state[p] for p in wanted]
    adamw(
        wanted,
        [p.grad for p in wanted if p.grad is not None],
        [state["average"] for state in states],
        [state["square"] for state in states],
        [],
        [state["step"] for state in states],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=eps,
        maximize=False,
    )
