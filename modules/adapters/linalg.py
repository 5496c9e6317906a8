"""The adapters' mathematics: functions of tensors and numbers, in the dtype they are given."""

from collections.abc import Callable

import torch
from torch import Tensor

CANCELLED = -0.99
"""Below this relative change of a squared norm the closed form has lost digits and the direct norm is taken."""


def axis_norm(V: Tensor, axis: str, kernel: int) -> Tensor:
    """Norms of `V (out, channels * kernel)`: `(out)` for axis "output", `(channels)` for "input"."""
    if axis == "output":
        return V.norm(dim=1)
    return V.unflatten(1, (-1, kernel)).norm(dim=(0, 2))


def scale_axis(V: Tensor, factor: Tensor, axis: str, kernel: int) -> Tensor:
    """`V (..., n, channels * kernel)` with row `i` (axis "output") or channel `j` ("input") times `factor (..., n)` or
    `(..., channels)`."""
    if axis == "output":
        return V * factor.unsqueeze(-1)
    return V * factor.repeat_interleave(kernel, -1).unsqueeze(-2)


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator`, 0 where the denominator is 0, with finite gradients there too."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))


def row_products(up: Tensor, down: Tensor, through: Tensor) -> tuple[Tensor, Tensor]:
    """`<W_i, D_i>` and `||D_i||^2` for rows of `D = up down`, from `through = W down^T (out, r)`; both `(out)`. All
    may have the same leading dimensions.

    methods.md 8b; "Scaling DoRA", arXiv 2603.22276.
    """
    return (up * through).sum(-1), (up @ (down @ down.mT) * up).sum(-1)


def channel_products(up: Tensor, down: Tensor, through: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """`<W_j, D_j>` and `||D_j||^2` for channels of `D = up down`, from `through = up^T W (r, fan_in)`. All may have the
    same leading dimensions."""
    cross = (through * down).sum(-2)
    gram = ((up.mT @ up) @ down * down).sum(-2)
    return cross.unflatten(-1, (-1, kernel)).sum(-1), gram.unflatten(-1, (-1, kernel)).sum(-1)


def log_growth(
    square: Tensor, cross: Tensor, gram: Tensor, direct: Callable[[], Tensor], anywhere: Callable[[Tensor], bool]
) -> Tensor:
    """`log(||W + D|| / ||W||)` from `square = ||W||^2`, `cross = <W, D>`, `gram = ||D||^2`, all `(..., n)`.

    Exact to rounding unless D nearly cancels W; then `direct()`, the norms of the sum itself, is used. Where W is
    zero the value is 0, where the sum is zero it is infinite, so that the gain becomes 0. `anywhere` says whether a
    condition holds in any process that `direct()` needs.
    """
    change = safe_divide(2 * cross + gram, square)
    lost = change < CANCELLED
    growth = 0.5 * torch.log1p(torch.where(lost, 0.0, change))
    if anywhere(lost.any()):
        # Not as a change: -1 + 1e-6 has no digits left in float32.
        ratio = safe_divide(direct(), square.sqrt())
        exact = torch.where(ratio == 0, torch.inf, torch.where(ratio == 0, 1.0, ratio).log())
        growth = torch.where(lost, exact, growth)
    return growth


def skew_blocks(vector: Tensor, size: int) -> Tensor:
    """`Q = U - U^T (blocks, b, b)` with `vector (blocks, b(b-1)/2)` as the upper triangles `U`, row by row."""
    rows, cols = torch.triu_indices(size, size, 1, device=vector.device)
    upper = vector.new_zeros(vector.shape[0], size, size)
    upper = upper.index_put((torch.arange(len(vector), device=vector.device)[:, None], rows, cols), vector)
    return upper - upper.mT


def cayley_excess(skew: Tensor) -> Tensor:
    """`R - I` for the Cayley transform `R = (I + Q)(I - Q)^-1` of `skew (n, b, b)`: `2 (I - Q)^-1 Q`.

    Orthogonal for every skew Q, never at 180 degrees (Cayley 1846; OFT, arXiv 2306.07280). A truncated Neumann series
    is not: five terms are off by 0.12 at ||Q|| = 0.5.
    """
    return _CayleyExcess.apply(skew)  # pyright: ignore


class _CayleyExcess(torch.autograd.Function):
    """With `M = (I - Q)^-1 = I + E / 2`, `dE = 2 M dQ M`: the backward pass needs no second solve."""

    @staticmethod
    def forward(ctx, skew: Tensor):
        eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
        # I - Q is never singular, so that the check, for which the device would be waited for, is left out.
        excess = torch.linalg.solve_ex(eye - skew, 2 * skew).result
        ctx.save_for_backward(excess)
        return excess

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (excess,) = ctx.saved_tensors
        left = torch.baddbmm(grads[0], excess.mT, grads[0], alpha=0.5)
        return 2 * torch.baddbmm(left, left, excess.mT, alpha=0.5)


def butterfly(V: Tensor, excess: Tensor) -> Tensor:
    """`V (n, features, ...)` with its features turned by `R = I + excess (stages, blocks, b, b)`, one stage after the
    other; the first is `excess[0]` (BOFT, arXiv 2311.06243; the order of the features is LyCORIS')."""
    for stage, one in enumerate(excess):
        blocks = butterfly_blocks(V, stage, one.shape[-1])
        V = butterfly_features(blocks + torch.einsum("kij,nkj...->nki...", one, blocks), stage)
    return V


def butterfly_blocks(V: Tensor, stage: int, size: int) -> Tensor:
    """The features of `V (n, features, ...)` as `(n, blocks, b, ...)`: each block has b / 2 pairs of features that are
    `2^stage b / 2` apart."""
    apart = 2**stage * (size // 2)
    return V.unflatten(1, (-1, 2, apart)).transpose(2, 3).flatten(1, 3).unflatten(1, (-1, size))


def butterfly_features(blocks: Tensor, stage: int) -> Tensor:
    """Back from `butterfly_blocks`."""
    apart = 2**stage * (blocks.shape[2] // 2)
    return blocks.flatten(1, 2).unflatten(1, (-1, apart, 2)).transpose(2, 3).flatten(1, 3)


def butterfly_order(R: Tensor) -> Tensor:
    """The block of a butterfly of one stage that turns all features as `R (..., b, b)` does."""
    order = torch.arange(R.shape[-1], device=R.device).unflatten(0, (2, -1)).mT.flatten()
    return R[..., order, :][..., order]


def plane_factors(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`F (..., channels, 2p)`, `H (..., 2p, channels)` with `I + F H = (I + Q)(I - Q)^-1` for `Q = u v^T - v u^T`.

    With `F = [u, -v]`, `G = [v, u]`: `Q = F G^T` and `H = 2 (I - G^T F)^-1 G^T`, a solve of size 2p.
    """
    first, second = torch.cat([u, -v], -1), torch.cat([v, u], -1)
    eye = torch.eye(first.shape[-1], dtype=u.dtype, device=u.device)
    return first, torch.linalg.solve_ex(eye - second.mT @ first, 2 * second.mT).result
