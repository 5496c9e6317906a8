"""LoRA-RITE (Yen et al., arXiv 2410.20625): Adam for pairs `up (out, r)`, `down (r, fan_in)` that act through `up down`
alone. A step changes `up down` in the same way however the product is split: `up T` and `T^-1 down` give the same.

Both factors are written tall, `B = up` and `A = down^T`, with thin QR `B = U_B R_B`, `A = U_A R_A`. In step t from 0

    g_B = grad_B R_A^+                      g_A = grad_A R_B^+          the gradient seen from the other's basis
    skip: g = 0 where its root mean square is above `skip_above`
    clip: all g together are scaled down to the norm `clip`
    V_B = b2 P V_B P^T + (1 - b2) g_B^T g_B / out     P = U_A^T U_A(before), V_A likewise with U_B and fan_in
    M_B = b1 M_B P^T + (1 - b1) g_B V_B^(-1/2)
    B = B - lr (M_B R_A^+T + decay B)       A = A - lr (M_A R_B^+T + decay A)

with `b = beta (1 - beta^t) / (1 - beta^(t+1))`. That is Algorithm 1 as in the authors' PyTorch port, without its escape
mass, which is off there. Four things are ours. The first two change nothing where factors and gradients have full rank
well above rounding, the third next to nothing where the norm of `up down` is above that of a few steps:

- Eigenvalues of V are at least the rounding of the largest. They come out negative where gradients lack rank, and the
  port then drops the step.
- `R^+` leaves out singular values under `CUT` of the largest: those are rounding, too.
- `R_B^+` in A's step is damped: `(R_B^T R_B + N^T N)^-1 R_B^T`, where N is the largest step that B can take, `guard` lr
  sqrt(out) R_A^+T. Where `up` has a smaller norm than one of its steps, `down` hardly moves. Undamped, `up = 0` at the
  start makes `R_B^+` explode in step 2, and with gradients of low rank (small batches) the product of both steps with
  it. Where A is zero instead, N is too, and A's step is undamped: the two are never both damped.
- With calibrated steps (see `modules.adapters.base`) B's step has s sqrt(fan_in) and A's has s sqrt(out) times the
  norm. A step of B along the orthonormal U_A is that much smaller than one along A with a root mean square of s, the
  one that calibrated steps begin with.

Layers of equal shape are computed together. Matrices of `(r, r)` are computed in float64: that costs next to nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modules.adapters.low_rank import spread
from modules.training.plain_adam import adamw_step

CUT = 1e-5
"""Of the largest singular value of a factor: smaller ones are rounding errors."""

ADAM_EPS = 1e-8
"""Of parameters outside of pairs."""


@dataclass
class Side:
    """One factor of the pairs of equal shape, stacked. `k` is the rank r, or the other factor's `length` if less."""

    parameters: list[Tensor]
    tall: Tensor
    """`(n, length, r)`."""
    basis: Tensor
    """`(n, length, own k)`, orthonormal."""
    root: Tensor
    """`(n, own k, r)`: `tall = basis root`; float64."""
    inverse: Tensor
    """`(n, r, own k)`: of `root`; float64."""
    gradient: Tensor
    """`(n, length, k)`, seen from the other's basis."""

    @property
    def length(self) -> int:
        return self.tall.shape[1]


@dataclass
class Stack:
    """The pairs of a group that have equal shapes and are equally old."""

    group: dict[str, Any]
    age: int
    up: Side
    down: Side


class Rite(Optimizer):
    """Groups have `pairs`: places in `params` of `up` and `down`, and `calibrated`. What is in no pair gets AdamW."""

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float], eps: float, skip_above: float,
                 clip: float, guard: float):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "pairs": [],
                                  "calibrated": False})
        self.skip_above, self.clip, self.guard = skip_above, clip, guard

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all parameters that have gradients."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        stacks = [self._look(*found) for group in self.param_groups for found in self._alike(group)]
        norms = [side.gradient.square().sum() for stack in stacks for side in (stack.up, stack.down)]
        if norms:
            clipped = self.clip / torch.stack(norms).sum().sqrt().clamp(min=self.clip)
            for stack in stacks:
                self._move(stack, clipped)
        for group in self.param_groups:
            paired = {place for pair in group["pairs"] for place in pair}
            adamw_step(self, group, [p for n, p in enumerate(group["params"]) if n not in paired], ADAM_EPS)
        return loss

    def _alike(self, group: dict) -> Iterator[tuple[dict, int, list[Tensor], list[Tensor]]]:
        """The group's pairs of equal shapes and age: group, age, the ups, the downs."""
        found: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
        for pair in group["pairs"]:
            up, down = (group["params"][place] for place in pair)
            if up.grad is not None and down.grad is not None:
                age = min(self.state[p].get("step", 0) for p in (up, down))  # if one is new, both start over
                found.setdefault((age, up.shape, down.shape, up.device, up.dtype), []).append((up, down))
        for (age, *_), pairs in found.items():
            ups, downs = zip(*pairs, strict=True)
            yield group, age, list(ups), list(downs)

    def _look(self, group: dict, age: int, ups: list[Tensor], downs: list[Tensor]) -> Stack:
        """Factors and gradients of some pairs."""
        B, A = torch.stack(ups), torch.stack(downs).mT
        grad_B = torch.stack([p.grad for p in ups if p.grad is not None])
        grad_A = torch.stack([p.grad for p in downs if p.grad is not None]).mT
        (U_B, R_B), (U_A, R_A) = torch.linalg.qr(B), torch.linalg.qr(A)
        R_B, R_A = R_B.double(), R_A.double()
        inverse_B, inverse_A = inverse(R_B), inverse(R_A)
        g_B, g_A = self._kept(grad_B @ inverse_A.to(B)), self._kept(grad_A @ inverse_B.to(B))
        return Stack(group, age, Side(ups, B, U_B, R_B, inverse_B, g_B), Side(downs, A, U_A, R_A, inverse_A, g_A))

    def _kept(self, gradient: Tensor) -> Tensor:
        """Zero where the root mean square is too large."""
        square = gradient.square().mean(dim=(-2, -1), keepdim=True)
        return torch.where(square > self.skip_above**2, torch.zeros_like(gradient), gradient)

    def _move(self, stack: Stack, clipped: Tensor) -> None:
        """Both factors' steps, from the states before either moved."""
        up, down, group = stack.up, stack.down, stack.group
        reach = self.guard * self._rate(group, down) * up.length**0.5
        damped = inverse(up.root, reach * down.inverse)
        moments_up = self._moments(stack, up, down, clipped)
        moments_down = self._moments(stack, down, up, clipped)
        for side, other, inverse_of_other, (average, square) in (
            (up, down, down.inverse, moments_up),
            (down, up, damped, moments_down),
        ):
            change = average @ inverse_of_other.mT.to(average)
            moved = side.tall * (1 - group["lr"] * group["weight_decay"]) - self._rate(group, other) * change
            moved = moved if side is up else moved.mT
            torch._foreach_copy_(side.parameters, list(moved.unbind()))
            for p, M, V, U in zip(side.parameters, average, square, side.basis, strict=True):
                self.state[p] = {"step": stack.age + 1, "average": M, "square": V, "basis": U}

    def _rate(self, group: dict, other: Side) -> float:
        """The size of a factor's step along the basis of the other one."""
        calibrated = other.length**0.5 * spread(other.tall.shape[-1])
        return group["lr"] * (calibrated if group["calibrated"] else 1.0)

    def _moments(self, stack: Stack, side: Side, other: Side, clipped: Tensor) -> tuple[Tensor, Tensor]:
        """M `(n, length, k)` and V `(n, k, k)` after this step."""
        beta1, beta2 = (corrected(beta, stack.age) for beta in stack.group["betas"])
        gradient = side.gradient * clipped
        square = (1 - beta2) * (gradient.mT.double() @ gradient.double()) / side.length
        if stack.age:
            rotation = other.basis.mT @ self._stacked(other, "basis")
            before = self._stacked(side, "square").double()
            square = square + beta2 * rotation.double() @ before @ rotation.mT.double()
        update = gradient @ inverse_root(square, torch.finfo(gradient.dtype).eps, stack.group["eps"]).to(gradient)
        if stack.age:
            update = (1 - beta1) * update + beta1 * self._stacked(side, "average") @ rotation.mT
        return update, square.to(gradient)

    def _stacked(self, side: Side, key: str) -> Tensor:
        """The state of a side's parameters."""
        return torch.stack([self.state[p][key] for p in side.parameters])


def corrected(beta: float, age: int) -> float:
    """The decay of an average without initial bias (Shazeer and Stern 2018, section 7.1)."""
    return beta * (1 - beta**age) / (1 - beta ** (age + 1))


def inverse(root: Tensor, reach: Tensor | None = None) -> Tensor:
    """`(n, k, r)` to `(n, r, k)`: the pseudo-inverse, or `(root^T root + reach reach^T)^-1 root^T`."""
    gram = root.mT @ root
    gram = gram if reach is None else gram + reach @ reach.mT
    values, vectors = torch.linalg.eigh(gram)
    told = values > CUT**2 * values[:, -1:]
    inverted = torch.where(told, 1 / torch.where(told, values, 1.0), 0.0)
    return vectors * inverted.unsqueeze(1) @ vectors.mT @ root.mT


def inverse_root(square: Tensor, rounding: float, eps: float) -> Tensor:
    """`(n, k, k)`: `1 / (sqrt + eps)` of symmetric matrices whose eigenvalues are not negative but for rounding."""
    values, vectors = torch.linalg.eigh((square + square.mT) / 2)
    values = torch.maximum(values, rounding * values[:, -1:]).clamp(min=0.0)
    return vectors * (1 / (values.sqrt() + eps)).unsqueeze(1) @ vectors.mT
