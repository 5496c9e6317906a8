"""A low-rank update with a magnitude: `W' = m * V / ||V||`, `V = beta W + c up down`, the norm along one axis.

Only `rho = c / beta` and the sign of beta matter: `W' = sign(beta) m (W + rho D) / ||W + rho D||` with `D = up down`.
The fast route computes with rho, so the gradient of `(c, beta)` is orthogonal to `(c, beta)` by construction. A
magnitude along the output is a scaling of the layer's output, along the input a scaling of its input: no weight is
formed. `m = ||W|| exp(l)`; the log-ratio `l` makes one optimizer step a relative change of lr in every layer.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from modules.adapters import base, linalg
from modules.adapters.layers import Layer
from modules.adapters.low_rank import LowRankConfig, low_rank_pair, set_pair
from modules.preset.section import option


class DecomposedConfig(LowRankConfig):
    """Options of a low-rank update with a magnitude."""

    axis: Literal["input", "output"] = option("input", why="exact in ComfyUI, A1111 and Forge, whatever their version")
    """Whether each input channel or each output feature has a magnitude. diffusers can only read output."""


class Decomposed(base.Adapter):
    """Parameters `up (out, r)`, `down (r, fan_in)`, `magnitude (channels)` or `(out)`: the log-ratio l."""

    undecayed = ("magnitude",)
    full_gradient = True

    def __init__(self, config: Any, layer: Layer):
        super().__init__(config, layer)
        self.axis: str = config.axis
        self.up, self.down = low_rank_pair(config.rank, layer)
        self.magnitude = nn.Parameter(torch.zeros(layer.channels if self.axis == "input" else layer.out_features))

    def weights(self) -> tuple[Tensor, Tensor]:
        """`c` and `beta`, each `()` or along the axis: the weights of update and base."""
        raise NotImplementedError

    def weight(self, W: Tensor) -> Tensor:
        update, base_weight = (w.to(W.dtype) for w in self.weights())
        V = self._along_axis(W, base_weight) + self._along_axis(self.up @ self.down, update)
        norm = linalg.axis_norm(V, self.axis, self.kernel)
        norm = norm if self.full_gradient else norm.detach()
        wanted = linalg.axis_norm(W, self.axis, self.kernel) * self.magnitude.exp()
        return linalg.scale_axis(V, linalg.safe_divide(wanted, norm), self.axis, self.kernel)

    def derive(self, layer: Layer) -> dict[str, Tensor]:
        update, base_weight = self.weights()
        ratio = update / base_weight
        with torch.set_grad_enabled(self.full_gradient and torch.is_grad_enabled()):
            growth = self._log_growth(layer, ratio)
        log_gain = self.magnitude - growth
        alive = self._norms(layer) != 0
        excess = torch.where(base_weight > 0, torch.expm1(log_gain), -1 - torch.exp(log_gain))
        excess = torch.where(alive, excess, -1.0)
        gain = torch.where(alive, ratio * base_weight.sign() * torch.exp(log_gain), 0.0)
        if self.axis == "input":
            return {"excess": excess, "down": linalg.scale_axis(self.down, gain, "input", self.kernel)}
        return {"excess": excess, "up": linalg.scale_axis(self.up, gain, "output", self.kernel)}

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        if self.axis == "input":
            return layer(layer.scale_in(x, derived["excess"])) + layer.expand(
                layer.project(x, derived["down"]), self.up
            )
        y = layer.scale_out(layer.out(x), derived["excess"])
        return layer.add_bias(y + layer.expand(layer.project(x, self.down), derived["up"]))

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        self.refuse_all_but(terms, "up", "magnitude")
        if terms.magnitude is not None and terms.axis != self.axis:
            raise ValueError(f"the file has a magnitude along the {terms.axis} and the run along the {self.axis}; set "
                             f"adapter.axis {terms.axis}")
        set_pair(self.up, self.down, terms, self.weights()[0].item())
        W = layer.dense()
        V = W if terms.up is None or terms.down is None else W + (terms.up @ terms.down).to(W.dtype)
        wanted = linalg.axis_norm(V, self.axis, self.kernel) if terms.magnitude is None else terms.magnitude
        ratio = linalg.safe_divide(wanted.to(W.dtype), linalg.axis_norm(W, self.axis, self.kernel))
        alive = linalg.axis_norm(W, self.axis, self.kernel) != 0
        if (ratio[alive] <= 0).any():
            raise ValueError("the file has magnitudes that are not positive, and those of the run always are")
        with torch.no_grad():
            self.magnitude.copy_(torch.where(alive, ratio.clamp_min(torch.finfo(W.dtype).tiny).log(), 0.0))

    def export_terms(self, W: Tensor) -> base.Terms:
        update, base_weight = (w.to(W.dtype) for w in self.weights())
        ratio = update / base_weight
        wanted = linalg.axis_norm(W, self.axis, self.kernel) * self.magnitude.exp() * base_weight.sign()
        if self.axis == "input":
            return base.Terms(up=self.up, down=self._along_axis(self.down, ratio), magnitude=wanted, axis="input")
        return base.Terms(up=self._along_axis(self.up, ratio), down=self.down, magnitude=wanted, axis="output")

    def curves(self) -> dict[str, Tensor]:
        return {"magnitude": self.magnitude.detach().abs().mean()}

    def _along_axis(self, matrix: Tensor, factor: Tensor) -> Tensor:
        return matrix * factor if factor.dim() == 0 else linalg.scale_axis(matrix, factor, self.axis, self.kernel)

    def _norms(self, layer: Layer) -> Tensor:
        return layer.col_norms() if self.axis == "input" else layer.row_norms()

    def _log_growth(self, layer: Layer, ratio: Tensor) -> Tensor:
        if self.axis == "input":
            cross, gram = linalg.channel_products(self.up, self.down, layer.cols(self.up), self.kernel)
        else:
            cross, gram = linalg.row_products(self.up, self.down, layer.rows(self.down))

        def direct() -> Tensor:
            V = layer.dense().to(self.up.dtype) + self._along_axis(self.up @ self.down, ratio)
            return linalg.axis_norm(V, self.axis, self.kernel)

        square = self._norms(layer).square().to(cross.dtype)
        return linalg.log_growth(square, ratio * cross, ratio.square() * gram, direct, layer.anywhere)
