"""Plain dense mathematics for the oracles. Shares no line with modules/adapters, and materialises everything."""

import torch
from torch import Tensor, nn


def matrix(base: nn.Module, weight: Tensor) -> Tensor:
    """A weight in the layer's own shape as `(out, fan_in)`; an embedding's table is `(tokens, out)`."""
    return weight.t() if isinstance(base, nn.Embedding) else weight.reshape(weight.shape[0], -1)


def native(base: nn.Module, weight: Tensor) -> Tensor:
    """`(out, fan_in)` back in the layer's own shape."""
    if isinstance(base, nn.Embedding):
        return weight.t()
    kernel = tuple(getattr(base, "kernel_size", ()))
    return weight.reshape(weight.shape[0], -1, *kernel)


def pair_factor(parameters: dict[str, Tensor], options: dict) -> Tensor | float:
    """What a low-rank update is multiplied by: alpha / rank, or with calibrated steps the factor that is saved."""
    if options.get("step_size", "raw") == "calibrated":
        return parameters["factor"]
    return options.get("alpha", options["rank"]) / options["rank"]


def norm(V: Tensor, kernel: int, axis: str) -> Tensor:
    """Norms of `V (out, channels * kernel)` per output `(out, 1)` or per channel `(1, channels * kernel)`."""
    if axis == "output":
        return (V * V).sum(dim=1, keepdim=True).sqrt()
    per_channel = (V * V).reshape(V.shape[0], -1, kernel).sum(dim=(0, 2)).sqrt()
    return per_channel.repeat_interleave(kernel).unsqueeze(0)


def along(vector: Tensor, kernel: int, axis: str) -> Tensor:
    """`(out)` or `(channels)` shaped to multiply `(out, channels * kernel)`."""
    return vector.unsqueeze(1) if axis == "output" else vector.repeat_interleave(kernel).unsqueeze(0)


def length(W: Tensor, parameters: dict[str, Tensor], kernel: int, axis: str, options: dict) -> Tensor:
    """The learned magnitudes of `W (out, channels * kernel)`, as in `norm`: `||W|| exp(l)`, or `||W|| + d`."""
    change = along(parameters["unit"] * parameters["magnitude"], kernel, axis)
    own = norm(W, kernel, axis)
    return own + change if options.get("magnitude") == "absolute" else own * change.exp()


def skew(parameters: dict[str, Tensor], channels: int, rotation: dict) -> Tensor:
    """The skew matrix of all channels `(channels, channels)`, times the factor that is saved with the parameters."""
    factor = parameters["rotation.factor"]
    if rotation["kind"] == "planes":
        u, v = parameters["rotation.u"] / parameters["rotation.length"], parameters["rotation.v"]
        return factor * (u @ v.t() - v @ u.t())
    b = next(b for b in range(rotation["block_size"], 0, -1) if channels % b == 0)
    if rotation.get("divisor") == "nearest":
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        b = min(divisors, key=lambda d: (abs(d - rotation["block_size"]), d))
    blocks, vectors = [], parameters["rotation.skew"]
    for vector in vectors.expand(channels // b, -1) if rotation.get("share") else vectors:
        upper = vector.new_zeros(b, b)
        upper[torch.ones(b, b).triu(1).bool()] = vector
        blocks.append(factor * (upper - upper.t()))
    return torch.block_diag(*blocks)


def rotation(parameters: dict[str, Tensor], channels: int, options: dict) -> Tensor:
    """`R (channels, channels)`: Cayley's `(I + Q)(I - Q)^-1`, the exponential, or Neumann's series cut after some
    terms."""
    Q = skew(parameters, channels, options)
    eye = torch.eye(channels, dtype=Q.dtype)
    name, _, terms = options.get("map", "cayley").partition("_")
    if name == "exponential":
        return torch.linalg.matrix_exp(Q)
    if name == "neumann":
        powers = [torch.linalg.matrix_power(Q, k) for k in range(1, int(terms))]
        return eye + 2 * sum(powers[:-1]) + powers[-1]
    return (eye + Q) @ torch.linalg.inv(eye - Q)


def turned(parameters: dict[str, Tensor], W: Tensor, kernel: int, options: dict) -> Tensor:
    """The weight `(out, channels * kernel)` with its input or its output rotated."""
    if options.get("side", "input") == "output":
        return rotation(parameters, W.shape[0], options["rotation"]) @ W
    if options["rotation"].get("conv") == "kernel":
        return W @ rotation(parameters, W.shape[1], options["rotation"]).t()
    return rotated(W, rotation(parameters, W.shape[1] // kernel, options["rotation"]), kernel)


def rotated(W: Tensor, R: Tensor, kernel: int) -> Tensor:
    """`W R^T` over the channels of `W (out, channels * kernel)`, the same at every kernel position."""
    return W @ torch.kron(R, torch.eye(kernel, dtype=R.dtype)).t()


def by_rotation(W: Tensor, R: Tensor, side: str, kernel: int) -> Tensor:
    """`W` turned by the exporter's terms: blocks on one side, or the stages of a butterfly on the output."""
    if R.dim() == 3:
        whole = torch.block_diag(*R)
        kernel = 1 if len(whole) == W.shape[1] else kernel
        return whole @ W if side == "output" else rotated(W, whole, kernel)
    for number, blocks in enumerate(R):
        out, apart = len(W), 2**number * R.shape[-1] // 2
        order = [run + near + far for run in range(0, out, 2 * apart) for near in range(apart) for far in (0, apart)]
        W = W.clone().index_copy(0, torch.tensor(order), torch.block_diag(*blocks) @ W[order])
    return W


def multiplied(product) -> Tensor:
    """The exporter's product, entry by entry or Kronecker's."""
    first, second = (factor[0] if len(factor) == 1 else factor[0] @ factor[1]
                     for factor in (product.first, product.second))
    return torch.kron(first, second) if product.kind == "kronecker" else first * second
