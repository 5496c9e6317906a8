"""SORA: `W' = (I + P)(diag(exp(l)) W + s up down)`, `P = s' (D C^T - C D^T)`; or Cayley's rotation with P / 2."""

import torch

from tests.adapters.dense import along, pair_factor

VARIANTS = [
    {"rank": 3, "planes": 2, "step_size": "calibrated"},
    {"rank": 3, "planes": 2, "step_size": "calibrated", "exact": True},
    {"rank": 3, "alpha": 6.0, "planes": 3, "step_size": "raw"},
]


def turn(parameters, exact):
    """`I + P`, or the rotation, `(out, out)`."""
    C, D = (parameters["turn_unit"] * parameters[name] for name in ("source", "target"))
    P = torch.minimum(C.new_tensor(1.0), 1 / (C.norm() + D.norm() + 1e-6)) * (D @ C.t() - C @ D.t())
    eye = torch.eye(len(C), dtype=C.dtype)
    return (eye + P / 2) @ torch.linalg.inv(eye - P / 2) if exact else eye + P


def weight(parameters, W, channels, kernel, options):
    gain = (parameters["unit"] * parameters["magnitude"]).exp()
    M = along(gain, kernel, "output") * W + pair_factor(parameters, options) * parameters["up"] @ parameters["down"]
    return turn(parameters, options.get("exact", False)) @ M
