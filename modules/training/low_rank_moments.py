"""LoRA-Pre (Wang et al., arXiv 2602.24283): AdamW whose averages are kept as products of two thin factors.

An average of gradients, `m = beta m + (1 - beta) g`, is a regression on the latest gradients. Its rank-q form
`m = L R`, with `L (p, q)` and `R (q, n)`, takes one Newton step of each factor, from the other's old value:

    L = (1 - c) L + c g R^T (R R^T)^-1          R = (1 - c) R + c (L^T L)^-1 L^T g          1 - c = sqrt(beta1)

A second pair of factors follows `|g|` with `1 - c = beta2^(1/4)`. The authors' code is not public, and three secondary
sources make different m and v of the factors. `form` has all of them, of step t:

    previous      m = beta1 L1 R1 + (1 - beta1) g     v = beta2 (L2 R2)^2 + (1 - beta2) g^2     factors of t - 1
    updated       the same                              the same                                 factors of t
    sequential    m = L1 R1                             v = (L2 R2)^2                            factors of t

The first is a port that gives the lines of the paper's Algorithm 1 for what it does; the second the documentation of
the package zij; the third a port of the conference's version, where R is fitted to the new L, not to the old one. They
are compared in docs/methods.md. Chosen here:

- The start: R has orthonormal rows, the first along (1, ..., 1), the others drawn with a fixed seed; L is zero. So it
  works from the first step, also where that has no gradient, as `down` while `up` is zero. (Both ports draw R from
  0.02 N(0, 1).) Tensors are taken tall (p >= n), so that with a full rank R spans everything.
- After each step R is made orthonormal again and L takes up the rest: the product stays, `R R^T` needs no inverse.
- `L^T L` has a ridge: `SMALL` of its mean eigenvalue, and `(ridge c)^2` of that of `g R^T`. Where L is weak against
  c g, R stays as it is. Without it, R explodes where gradients lack rank, and where an average has to pass zero: there
  the next change is `c^2 g^2 / m`, away from zero. (The first port has 1e-6 there, whatever the gradient's size.)
- `L1 R1` and `L2 R2` begin at zero. Each is divided by the sum of its weights, `1 - beta1^t` and `1 - beta2^(t/2)`,
  before it is used. The sources divide m and v by `1 - beta1^t` and `1 - beta2^t`, which is not the sum of v's weights:
  for some hundred steps v would be mostly the latest g^2 alone, and steps up to five times as long. With `previous` g
  and g^2 have the weights that AdamW's averages give them, `(1 - beta) / (1 - beta^t)`; with `updated` always 1 - beta.

It is not AdamW at full rank: v is the square of the mean of |g|, not the mean of the squares; and with `updated` g
counts in m both through the factors and by itself. On a constant gradient all are the same.

Only matrices are factored; other tensors get plain AdamW. Matrices of equal shape are computed together.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from modules.training.plain_adam import adamw_step

Form = Literal["previous", "updated", "sequential"]

KEYS = ("left", "right", "size_left", "size_right")
"""A matrix's factors `L1, R1, L2, R2` in its state."""

SMALL = 1e-4
"""Lower bound of eigenvalues, as a part of their mean: float32 does not tell smaller ones from zero."""


class LowRankMoments(Optimizer):
    """AdamW with averages of rank `rank` for matrices."""

    def __init__(
        self, groups: list[dict], lr: float, betas: tuple[float, float], eps: float, rank: int, ridge: float, form: Form
    ):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.rank, self.ridge = rank, ridge
        self.form: Form = form

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all parameters that have gradients."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            adamw_step(self, group, [p for p in group["params"] if p.dim() != 2], group["eps"])
            alike: dict[tuple, list[Tensor]] = {}
            for p in group["params"]:
                if p.dim() == 2 and p.grad is not None:
                    key = (self.state[p].get("step", 0), p.shape, p.device, p.dtype)
                    alike.setdefault(key, []).append(p)
            for (age, *_), parameters in alike.items():
                self._move(group, age, parameters)
        return loss

    def _move(self, group: dict, age: int, parameters: list[Tensor]) -> None:
        """A step of matrices of equal shape and age."""
        wide = parameters[0].shape[0] < parameters[0].shape[1]
        gradient = torch.stack([p.grad for p in parameters if p.grad is not None])
        gradient = gradient.mT if wide else gradient
        if not age:
            self._begin(parameters, gradient)
        betas, states = group["betas"], [self.state[p] for p in parameters]
        before = tuple(torch.stack([state[key] for state in states]) for key in KEYS)
        rates = 1 - betas[0] ** 0.5, 1 - betas[1] ** 0.25
        after = (
            *followed(before[0], before[1], gradient, rates[0], self.ridge, self.form == "sequential"),
            *followed(before[2], before[3], gradient.abs(), rates[1], self.ridge, self.form == "sequential"),
        )
        m, v = moments(self.form, before, after, gradient, betas, age)
        change = m / (v.sqrt() + group["eps"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list((change.mT if wide else change).unbind()), alpha=-group["lr"])
        for state, *values in zip(states, *after, strict=True):
            state.update(zip(KEYS, values, strict=True))
            state["step"] = age + 1

    def _begin(self, parameters: list[Tensor], gradient: Tensor) -> None:
        """Factors for tensors without state."""
        p, n = gradient.shape[1:]
        rank = min(self.rank, n)
        right = first_rows(rank, n).to(gradient)
        for parameter in parameters:
            self.state[parameter] = {
                "left": gradient.new_zeros(p, rank),
                "right": right.clone(),
                "size_left": gradient.new_zeros(p, rank),
                "size_right": right.clone(),
            }


def first_rows(rank: int, n: int) -> Tensor:
    """`(rank, n)` orthonormal rows, the first along (1, ..., 1): the mean of |g| is found at once."""
    drawn = torch.randn(n, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn[:, 0] = 1.0
    return torch.linalg.qr(drawn)[0].mT.contiguous()


def moments(
    form: Form, before: Sequence[Tensor], after: Sequence[Tensor], gradient: Tensor, betas: Sequence[float], age: int
) -> tuple[Tensor, Tensor]:
    """`m` and `v (n, p, m)` without bias, from the factors before and after the step with this `gradient`; `age`: how
    many steps there were before it."""
    left, right, size_left, size_right = before if form == "previous" else after
    count = age if form == "previous" else age + 1
    if count == 0:
        return gradient, gradient.square()
    average = left @ right / (1 - betas[0] ** count)
    size = size_left @ size_right / (1 - betas[1] ** (count / 2))
    if form == "sequential":
        return average, size.square()
    if form == "updated":
        first, second = betas
    else:  # the weight of all steps before in AdamW's average without its bias
        first, second = (beta * (1 - beta**age) / (1 - beta ** (age + 1)) for beta in betas)
    return first * average + (1 - first) * gradient, second * size.square() + (1 - second) * gradient.square()


def followed(
    left: Tensor, right: Tensor, target: Tensor, pace: float, ridge: float, in_turn: bool = False
) -> tuple[Tensor, Tensor]:
    """Factors `(n, p, q)` and `(n, q, m)` after one step of size `pace` towards `target (n, p, m)`; the rows of `right`
    are orthonormal before and after. `in_turn`: `right` is fitted to the new `left`."""
    seen = target @ right.mT
    new = (1 - pace) * left + pace * seen
    seen_from = new if in_turn else left
    gram = seen_from.mT @ seen_from
    firm = SMALL * gram + (ridge * pace) ** 2 * (seen.mT @ seen)
    mean = firm.diagonal(dim1=-2, dim2=-1).mean(-1) + torch.finfo(gram.dtype).tiny
    gram.diagonal(dim1=-2, dim2=-1).add_(mean.unsqueeze(-1))
    fitted = torch.linalg.solve_ex(gram, seen_from.mT @ target)[0]
    rows, turn = torch.linalg.qr(((1 - pace) * right + pace * fitted).mT)
    return new @ turn.mT, rows.mT
