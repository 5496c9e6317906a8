"""The adapters' mathematics: functions of tensors and numbers, in the dtype of their arguments."""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

CANCELLED = -0.99
"""Below this relative change of a squared norm the closed form has lost digits and the direct norm is used."""


VANISHED = 1e-6
"""Singular values that are smaller relative to the largest are rounding errors."""


def principal(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """`left (rows, k)`, `values (k)`, `right (k, columns)`: the largest singular values of `matrix (rows, columns)` in
    descending order, with their vectors. k is `rank`, or less where fewer differ from zero; 0 on the meta device.

    Through the eigenvectors of the smaller Gram matrix in float64, which is far cheaper than an SVD.
    """
    wide = matrix.shape[1] > matrix.shape[0]
    tall = (matrix.mT if wide else matrix).double()
    if matrix.is_meta:
        values, vectors = tall.new_empty(0), tall.new_empty(tall.shape[1], 0)
    else:
        squares, vectors = torch.linalg.eigh(tall.mT @ tall)
        values = squares.clamp_min(0).sqrt().flip(0)[:rank]
        values = values[values > VANISHED * values[0]]
        vectors = vectors.flip(1)[:, : len(values)]
    other = (tall @ vectors / values).to(matrix.dtype)
    own, values = vectors.to(matrix.dtype), values.to(matrix.dtype)
    return (own, values, other.mT) if wide else (other, values, own.mT)


SPARE, ROUNDS = 16, 8
"""Columns of a sketch beyond the wanted rank, and how often it is improved."""


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Like `principal`, for a large matrix and a small rank: by a block power iteration on a random sketch (Halko,
    Martinsson, Tropp, arXiv 0909.4061, algorithm 4.4), which takes seconds for all layers of a model instead of many
    minutes. The result has the same norm to about one percent."""
    width = rank + SPARE
    if matrix.is_meta or 4 * width > min(matrix.shape):
        return principal(matrix, rank)
    columns = torch.randn(matrix.shape[1], width).to(matrix)
    for _ in range(ROUNDS):
        columns = torch.linalg.qr(matrix.mT @ torch.linalg.qr(matrix @ columns).Q).Q
    left, values, right = principal(matrix @ columns, rank)
    return left, values, right @ columns.mT


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


def proportions(first: Tensor, second: Tensor, first_length: Tensor, second_length: Tensor) -> tuple[Tensor, Tensor]:
    """`p, q (n)` with `p a + q b` in the direction of `first a + second b`, of vectors a and b with these norms `(n)`;
    `first` and `second` are `()` or `(n)`, of any value.

    For the larger part p or q is 1 or -1, for the other one it is their ratio. So the sum has the norm of a or b for
    any two factors, and their gradient is orthogonal to them by construction. Where a ratio would be infinite, because
    the other part is zero, it is limited and has no gradient.
    """
    limit = torch.finfo(first.dtype).tiny ** -0.4
    with torch.no_grad():
        far = second.double().abs() * second_length > first.double().abs() * first_length
        usable = ~far & (limit * first.abs() >= second.abs()) & (first != 0)
    to_first = torch.where(usable, second / torch.where(usable, first, 1.0).abs(), limit * second.sign())
    to_second = first / torch.where(far, second, 1.0).abs()
    return torch.where(far, to_second, first.sign()), torch.where(far, second.sign(), to_first)


def row_products(up: Tensor, down: Tensor, through: Tensor) -> tuple[Tensor, Tensor]:
    """`<W_i, D_i>` and `||D_i||^2` for rows of `D = up down`, from `through = W down^T (out, r)`; both `(out)`. All
    may have the same leading dimensions.

    methods.md 8b; "Scaling DoRA", arXiv 2603.22276.
    """
    return _Products.apply(down.mT, up.mT, through.mT)  # pyright: ignore


def channel_products(up: Tensor, down: Tensor, through: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """`<W_j, D_j>` and `||D_j||^2` for channels of `D = up down`, from `through = up^T W (r, fan_in)`. All may have the
    same leading dimensions."""
    cross, gram = _Products.apply(up, down, through)  # pyright: ignore
    return cross.unflatten(-1, (-1, kernel)).sum(-1), gram.unflatten(-1, (-1, kernel)).sum(-1)


class _Products(torch.autograd.Function):
    """`<through_j, own_j>` and `||(other own)_j||^2` for columns, `other (m, r)`, `own` and `through (r, n)`: with one
    backward pass for both, where a graph of single operations has many over tensors of all parameters' size."""

    @staticmethod
    def forward(ctx, other: Tensor, own: Tensor, through: Tensor) -> tuple[Tensor, Tensor]:
        square = other.mT @ other
        ctx.save_for_backward(other, own, through, square)
        return (through * own).sum(-2), (square @ own).mul_(own).sum(-2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        other, own, through, square = ctx.saved_tensors
        cross, gram = (grad.unsqueeze(-2) for grad in grads)
        scaled = 2 * gram * own
        grad_other = other @ (scaled @ own.mT)
        return grad_other, (square @ scaled).addcmul_(cross, through), cross * own


LARGE = 2**19
"""Elements of a tensor from which on a temporary of its size costs more on a CPU than slower reading."""


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float64 if supported, else float32."""
    return dtype if dtype == torch.float64 else torch.float32


def one_pass_pays(x: Tensor) -> bool:
    """Whether `column_dots` is the faster way, and as exact."""
    return (
        not torch.compiler.is_compiling() and x.device.type == "cpu" and x.numel() >= LARGE
        and x.dtype == at_least_float32(x.dtype)
    )


def column_dots(x: Tensor, grad: Tensor, offset: Tensor | None) -> Tensor:
    """`sum((x - offset) * grad)` for columns of `(n, features)`, `offset (features)`, without a temporary: the gradient
    of a layer norm's gain for rows with mean 0 and deviation 1, and that of its bias."""
    count, features = x.shape
    zero, one, gain = x.new_zeros(count, 1), x.new_ones(count, 1), x.new_ones(features)
    _, found, sums = torch.ops.aten.native_layer_norm_backward(
        grad, x, [features], zero, one, gain, gain, [False, True, offset is not None]
    )
    return found if offset is None else found - offset.to(found.dtype) * sums


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


def product_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`U (out, k)`, singular values `(k)` descending, `V (k, fan_in)` of `up (out, r) down (r, fan_in)`, float64."""
    left, upper = torch.linalg.qr(up.double())
    right, lower = torch.linalg.qr(down.double().mT)
    U, values, V = torch.linalg.svd(upper @ lower.mT)
    count = min(U.shape[0], V.shape[0])
    return left @ U[:, :count], values[:count], V[:count] @ right.mT


def sign_stretch(weights: Tensor, rank: int) -> Tensor:
    """How much further than a step in random directions one of signs moves a product: `()`.

    The gradient of `up` in `(up down) * F`, for random `down (r, n)` and `weights` F `(m, n)`, is `(G * F) down^T`. Its
    columns are correlated like those of `down`, which are so by chance if few of the n count; the product adds up the
    correlated parts. The signs of two normal variables of a small correlation c have the correlation `2 c / pi`.
    """
    square = weights.square()
    whole = square.sum(-1).clamp_min(torch.finfo(square.dtype).tiny)
    alike = (square.square().sum(-1) / whole).sum() / whole.sum()
    return (1 + (rank - 1) * 2 / math.pi * alike).sqrt()


def rows_stretch(down: Tensor) -> Tensor:
    """The same for `up down`, for this `down (r, n)`: the signs of two normal variables of correlation c have the
    correlation `2 asin(c) / pi`."""
    lengths = down.norm(dim=1, keepdim=True).clamp_min(torch.finfo(down.dtype).tiny)
    alike = ((down / lengths) @ (down / lengths).mT).clamp(-1, 1)
    return (2 / math.pi * alike.asin() * alike).sum().div(len(down)).sqrt()


def turn(x: Tensor, excess: Tensor) -> Tensor:
    """What `excess (blocks, b, b)` adds to the blocks of channels of `x (n, channels, ...)`, in `x`'s dtype."""
    blocks = x.unflatten(1, excess.shape[:2])
    return torch.einsum("nkb...,kbc->nkc...", blocks, excess.to(x.dtype)).flatten(1, 2)


def skew_blocks(vector: Tensor, size: int) -> Tensor:
    """`Q = U - U^T (blocks, b, b)` with `vector (blocks, b(b-1)/2)` as the upper triangles `U`, row by row."""
    rows, cols = _above_diagonal(size, vector.device)
    upper = vector.new_zeros(vector.shape[0], size, size)
    upper = upper.index_put((torch.arange(len(vector), device=vector.device)[:, None], rows, cols), vector)
    return upper - upper.mT


def triangle_size(count: int) -> int:
    """The b of `count` = b (b - 1) / 2 entries above a diagonal; the next smaller one where no b has so many."""
    return (1 + math.isqrt(1 + 8 * count)) // 2


def upper_triangles(matrix: Tensor) -> Tensor:
    """`(..., b(b-1)/2)`: entries above the diagonal of `matrix (..., b, b)`, row by row, as in `skew_blocks`."""
    rows, columns = _above_diagonal(matrix.shape[-1], matrix.device)
    return matrix[..., rows, columns]


@cache
def _above_diagonal(size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Rows and columns of the entries above the diagonal, row by row."""
    return tuple(torch.triu_indices(size, size, 1).to(device).unbind())


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
        # I - Q is never singular, so the check, which would synchronize with the device, is left out.
        excess = torch.linalg.solve_ex(eye - skew, 2 * skew).result
        ctx.save_for_backward(excess)
        return excess

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (excess,) = ctx.saved_tensors
        left = torch.baddbmm(grads[0], excess.mT, grads[0], alpha=0.5)
        return 2 * torch.baddbmm(left, left, excess.mT, alpha=0.5)


def newton_schulz_excess(skew: Tensor) -> Tensor:
    """`cayley_excess` of `skew (n, b, b)` by matrix products alone, orthogonal to rounding up to `||Q|| = 10`.

    Cayley's transform is the orthogonal factor of `(I + Q)^2`, and so the square of that of `I + Q`, which is found by
    Newton-Schulz steps with the best cubic for the singular values that are left (CANS, arXiv 2506.10935; for OFT:
    OneTrainer pull request 1512). They lie between 1 and `sqrt(1 + ||Q||^2)`, and `||Q||^4 <= ||Q^2||_F^2 / 2`, since
    they come in pairs: a bound that is closer than row sums, and saves steps. The last product, `Q + R Q`, keeps the
    digits of small rotations.
    """
    return _NewtonSchulzExcess.apply(skew)  # pyright: ignore


class _NewtonSchulzExcess(torch.autograd.Function):
    """It is Cayley's transform, and so is its derivative."""

    @staticmethod
    def forward(ctx, skew: Tensor):
        with torch.autocast(skew.device.type, enabled=False):
            square = torch.linalg.matrix_norm(skew @ skew, keepdim=True) / 2**0.5
            low = (1 + square).rsqrt()
            high = torch.ones_like(low)
            turned = low * (skew + torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device))
            for _ in range(8 if skew.dtype == torch.float64 else 6):
                product = low * high
                mean = (low**2 + product + high**2) / 3
                above, below = 2 * mean**1.5, product * (low + high)
                rate = 6 / (above + below)
                turned = rate * mean * turned - rate / 3 * (turned @ turned.mT @ turned)
                spread = (above - below) / (above + below)
                low, high = 1 - spread, 1 + spread
            excess = torch.baddbmm(skew, turned @ turned, skew)
        ctx.save_for_backward(excess)
        return excess

    backward = staticmethod(_CayleyExcess.backward)


PADE = (17297280, 8648640, 1995840, 277200, 25200, 1512, 56, 1)
"""Coefficients of the diagonal Pade approximant of degree 7 to the exponential, from the constant on."""


def exponential_excess(skew: Tensor) -> Tensor:
    """`R - I` for `R = exp(Q)` of `skew (n, b, b)`: rotates by Q's own angles, 180 degrees and beyond.

    By the Pade approximant `(E - O)^-1 (E + O)` with the even and the odd part of one polynomial: orthogonal for every
    skew Q, as `f(Q) f(-Q)^-1` is for any f; within 1e-8 of the exponential up to 180 degrees. One solve of size b.
    """
    eye, square = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device), skew @ skew
    fourth = square @ square
    even, odd = (
        (c[0] / PADE[0]) * eye + (c[2] / PADE[0]) * square
        + fourth @ ((c[4] / PADE[0]) * eye + (c[6] / PADE[0]) * square)
        for c in (PADE, (*PADE[1:], 0))
    )
    odd = skew @ odd
    return torch.linalg.solve_ex(even - odd, 2 * odd).result


def neumann_excess(skew: Tensor, terms: int) -> Tensor:
    """`R - I` for Cayley's transform of `skew (n, b, b)` with the Neumann series truncated to `terms >= 4`, `R = I +
    2 Q + 2 Q^2 + ... + Q^(terms - 1)`, as peft and OneTrainer count them (methods.md 3.2, 3.5).

    Not orthogonal: at a plane's angle theta an even number stretches by `sqrt(1 + theta^(2 terms - 2))`. An odd one
    shrinks by `1 - theta^(terms - 1)`, which is far more.
    """
    square = skew @ skew
    excess = 2 * skew + square if terms % 2 else skew
    for _ in range(2 + terms % 2, terms, 2):
        excess = torch.baddbmm(2 * (skew + square), square, excess)
    return excess


def on_angles(skew: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`skew (n, b, b)` with eigenvalues `i theta` changed to `i change(theta)`, for an odd function."""
    angles, vectors = torch.linalg.eigh(-1j * skew)
    return ((vectors * (1j * change(angles)).unsqueeze(-2)) @ vectors.mH).real


def exponential_angle(tangent: Tensor) -> Tensor:
    """The angle, given as the tangent of its half: Q's of `exponential_excess`."""
    return 2 * tangent.atan()


def neumann_angle(tangent: Tensor, terms: int) -> Tensor:
    """The eigenvalue of Q for which `neumann_excess` rotates by an angle, given as the tangent of its half. Undefined
    where it cannot reach that angle.

    It rotates by `2 atan(theta)` and by the angle of `1 - (i theta)^(terms - 1)`; the equation is solved by fixed-point
    iteration.
    """
    sign, theta = (1 if terms % 4 == 0 else -1), tangent
    for _ in range(200):
        turned = (tangent.atan() - sign * (theta ** (terms - 1)).atan() / 2).tan()
        theta = (theta + turned) / 2
    return theta


def butterfly(V: Tensor, excess: Tensor) -> Tensor:
    """`V (n, features, ...)` with its features rotated by `R = I + excess (stages, blocks, b, b)`, one stage after the
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
    """The block of a butterfly of one stage that rotates all features as `R (..., b, b)` does."""
    order = torch.arange(R.shape[-1], device=R.device).unflatten(0, (2, -1)).mT.flatten()
    return R[..., order, :][..., order]


def plane_factors(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`F (..., channels, 2p)`, `H (..., 2p, channels)` with `I + F H = (I + Q)(I - Q)^-1` for `Q = u v^T - v u^T`.

    With `F = [u, -v]`, `G = [v, u]`: `Q = F G^T` and `H = 2 (I - G^T F)^-1 G^T`, a solve of size 2p.
    """
    first, second = torch.cat([u, -v], -1), torch.cat([v, u], -1)
    eye = torch.eye(first.shape[-1], dtype=u.dtype, device=u.device)
    return first, torch.linalg.solve_ex(eye - second.mT @ first, 2 * second.mT).result
