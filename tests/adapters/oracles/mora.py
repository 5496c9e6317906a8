"""MoRA: a square between 0/1 matrices that wrap inputs around and repeat outputs; with kind rope, one turned copy of
the square per group of inputs."""

import torch

VARIANTS = [{"rank": 1}, {"rank": 2}]
"""Kind sharing only: the table has layers with more inputs than rope takes. test_mora.py walks rope."""


def weight(parameters, W, channels, kernel, options):
    square = parameters["factor"] * parameters["square"]
    n, (out, fan_in) = len(square), W.shape
    groups = (fan_in + n - 1) // n
    wrap = torch.zeros(groups * n, fan_in, dtype=W.dtype)
    for position in range(groups * n):
        wrap[position, position % fan_in] = 1
    if options.get("kind") == "rope":
        middle = torch.zeros(groups * n, groups * n, dtype=W.dtype)
        for j in range(groups):
            middle[j * n : (j + 1) * n, j * n : (j + 1) * n] = square @ turn(j, n, W.dtype)
    else:
        middle = square @ torch.eye(n, dtype=W.dtype).repeat(1, groups)
    repeat = torch.zeros(out, len(middle), dtype=W.dtype)
    for position in range(out):
        repeat[position, position % len(middle)] = 1
    return W + repeat @ middle @ wrap


def turn(position, n, dtype):
    """The rotary rotation of a position, entry k with entry k + n / 2."""
    R = torch.zeros(n, n, dtype=dtype)
    for k in range(n // 2):
        angle = torch.tensor(position / 10000 ** (2 * k / n), dtype=dtype)
        a, b = k, k + n // 2
        R[a, a], R[a, b], R[b, a], R[b, b] = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
    return R
