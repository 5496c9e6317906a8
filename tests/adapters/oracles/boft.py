"""BOFT: `W' = R_m ... R_1 W`, every stage as one matrix of all outputs."""

import torch

VARIANTS = [{"block_size": 6}, {"block_size": 7, "step_size": "raw"}]


def stage(skews, number, factor):
    """One stage `(out, out)` from its triangles `(blocks, b(b-1)/2)`."""
    blocks = len(skews)
    size = round((1 + (1 + 8 * skews.shape[1]) ** 0.5) / 2)
    out, apart = blocks * size, 2**number * size // 2
    # The outputs in the order in which blocks take them: pairs that are `apart`, within runs of twice that.
    order = [run + near + far for run in range(0, out, 2 * apart) for near in range(apart) for far in (0, apart)]
    P = torch.eye(out, dtype=skews.dtype)[order]
    turns = []
    for triangle in skews:
        upper = triangle.new_zeros(size, size)
        upper[torch.ones(size, size).triu(1).bool()] = factor * triangle
        Q, eye = upper - upper.t(), torch.eye(size, dtype=skews.dtype)
        turns.append((eye + Q) @ torch.linalg.inv(eye - Q))
    return P.t() @ torch.block_diag(*turns) @ P


def weight(parameters, W, channels, kernel, options):
    for number, skews in enumerate(parameters["skew"]):
        W = stage(skews, number, parameters["factor"]) @ W
    return W
