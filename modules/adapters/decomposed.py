"""A low-rank update with a magnitude: `W' = m * V / ||V||`, `V = beta W + c up down`, the norm along one axis.

Only `rho = c / beta` and the sign of beta matter: `W' = sign(beta) m (W + rho D) / ||W + rho D||` with `D = up down`.
All is computed with rho, so the gradient of `(c, beta)` is orthogonal to `(c, beta)` by construction. A magnitude along
the output is a scaling of the layer's output, along the input a scaling of its input: no weight is formed.
`m = ||W|| exp(l)`: one optimizer step of the log-ratio `l` is a relative change of lr in every layer, with raw steps
too. As published the magnitude itself is trained, `m = ||W|| + d`: a step of lr is a relative change of `lr / ||W||`.

Near beta = 0 there is no rho, and the base is a rounding error of the sum, from which its gradient cannot be computed.
The weight of such a layer (see `FARTHEST`) is formed once a step, with `beta / c` instead of rho where the update has a
larger norm than the base; in a file it is a full difference. Where `V` is zero, so is `W'`.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modules.adapters import base, fused, linalg
from modules.adapters.active_rank import ActiveRankAdapter, ActiveRankConfig
from modules.adapters.dropout import Drop, InputDropoutConfig, of_tokens
from modules.adapters.input_start import InputStartAdapter, InputStartConfig
from modules.adapters.layers import Layer
from modules.adapters.limit import Limited, LimitedConfig, pair_norm
from modules.adapters.low_rank import low_rank_pair, set_pair
from modules.adapters.products import frozen_cols, frozen_rows
from modules.preset.section import option

FARTHEST = 64.0
"""A layer is near beta = 0 where `|c / beta|` is more than this times what it is at the start."""


class DecomposedConfig(InputStartConfig, InputDropoutConfig, LimitedConfig, ActiveRankConfig):
    """Options of a low-rank update with a magnitude."""

    axis: Literal["input", "output"] = option("input", why="exact in all versions of ComfyUI, A1111 and Forge")
    """Whether the magnitude is per input channel or per output feature. diffusers can read only output."""

    magnitude: Literal["relative", "absolute"] = option(
        "relative", why="one learning rate then suits layers of any norm", advanced=True, needs="!.step_size raw"
    )
    """What is trained of the magnitude. relative: the logarithm of its ratio to the base's norm, so that a step changes
    it by learning_rate times itself. absolute: the magnitude itself, as published; a step changes it by learning_rate,
    whatever its size."""

    step_size: Literal["calibrated", "raw"] = option(
        "raw", why="learning rates known for this method apply", advanced=True
    )
    """calibrated: one step of a sign-like optimizer (Adam, Lion) changes each layer's weight by about learning_rate
    times its norm. raw: up and down are scaled as in the method's publication; so are magnitudes with magnitude
    absolute. Exported files are exact either way."""


class Decomposed(ActiveRankAdapter, InputStartAdapter, Limited, base.Together):
    """Parameters `up (out, r)`, `down (r, fan_in)`, `magnitude (channels)` or `(out)`: the log-ratio l, or d with
    magnitude absolute, in units of the buffer `unit ()`. The buffer `factor ()` is that of `low_rank_pair`."""

    pairs = (("up", "down"),)
    undecayed = ("magnitude",)
    moves_zero = False
    full_gradient = True
    parts = 2

    learns_weights = False
    """Whether `weights` are learned; else they are constant."""

    first = 1.0
    """The weight of the update at the start, in units of `factor`."""

    def __init__(self, config: Any, layer: Layer):
        super().__init__(config, layer)
        self.axis: str = config.axis
        self.absolute: bool = config.magnitude == "absolute"
        self.up, self.down, factor = low_rank_pair(config, layer, self.parts)
        self.magnitude = nn.Parameter(torch.zeros(layer.channels if self.axis == "input" else layer.out_features))
        self.factor: Tensor
        self.unit: Tensor
        self.register_buffer("factor", factor)
        self.register_buffer("unit", torch.tensor(1 / math.sqrt(2) if config.step_size == "calibrated" else 1.0))

    def change(self) -> Tensor:
        """What is learned of the magnitude: `l`, or `d` with magnitude absolute."""
        return self.unit * self.magnitude

    def lengths(self, own: Tensor) -> Tensor:
        """The magnitudes of a base with the norms `own`."""
        if self.absolute:
            return torch.where(own == 0, 0.0, own + self.change())
        return own * self.change().exp()

    def weights(self) -> tuple[Tensor, Tensor]:
        """`c` and `beta`, each `()` or along the axis: the weights of update and base."""
        raise NotImplementedError

    def weight(self, W: Tensor) -> Tensor:
        update, base_weight = (w.to(W.dtype) for w in self.weights())
        D = self.up @ self.down
        own, moved = (linalg.axis_norm(matrix, self.axis, self.kernel) for matrix in (W, D.detach()))
        base_part, update_part = linalg.proportions(base_weight, update, own, moved)
        V = self._along_axis(W, base_part) + self._along_axis(D, update_part)
        norm = linalg.axis_norm(V, self.axis, self.kernel)
        norm = norm if self.full_gradient else norm.detach()
        wanted = self.lengths(own)
        return linalg.scale_axis(V, linalg.safe_divide(wanted, norm), self.axis, self.kernel)

    def likeness(self, layer: Layer) -> Hashable:
        return super().likeness(layer), self.axis, self.full_gradient, self.absolute, self.first

    @classmethod
    def derive_alike(cls, pairs: Sequence[tuple["Decomposed", Layer]]) -> list[dict[str, Tensor]]:
        far = far_from_base([adapter for adapter, _ in pairs])
        return base.alike(
            list(zip(pairs, far, strict=True)), lambda item: item[1],
            lambda group: (_formed if group[0][1] else cls.derive_near)([pair for pair, _ in group]),
        )

    @classmethod
    def derive_near(cls, pairs: Sequence[tuple["Decomposed", Layer]]) -> list[dict[str, Tensor]]:
        """`derive_alike` of layers with a rho."""
        adapters, layers = [adapter for adapter, _ in pairs], [layer for _, layer in pairs]
        axis, kernel, full = adapters[0].axis, adapters[0].kernel, adapters[0].full_gradient
        up, down = torch.stack([a.up for a in adapters]), torch.stack([a.down for a in adapters])
        weights = [adapter.weights() for adapter in adapters]
        update, base_weight = (_columns([pair[n] for pair in weights]) for n in (0, 1))
        ratio = update / base_weight
        norms = torch.stack([layer.col_norms() if axis == "input" else layer.row_norms() for layer in layers])
        with torch.set_grad_enabled(full and torch.is_grad_enabled()):
            growth = _log_growth(adapters, layers, up, down, ratio, norms)
        excess, gain = _gain(torch.stack([one.change() for one in adapters]), growth, norms, adapters[0].absolute)
        alive = norms != 0
        excess = torch.where(alive, torch.where(base_weight > 0, excess, -1 - gain), -1.0)
        gain = torch.where(alive, ratio * base_weight.sign() * gain, 0.0)
        if axis == "input":
            return base.rows_of(excess=excess, down=linalg.scale_axis(down, gain, "input", kernel))
        return base.rows_of(excess=excess, up=linalg.scale_axis(up, gain, "output", kernel))

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        if self.drop is not None and self.drop.inside:
            return self._dropped(x, layer, derived, self.drop)
        if "weight" in derived:
            return layer.adapted(x, derived["weight"])
        excess, up, down = derived["excess"], derived.get("up", self.up), derived.get("down", self.down)
        return self.masked(x, layer, up, down, 1.0, *((excess, None) if self.axis == "input" else (None, excess)))

    def _dropped(self, x: Tensor, layer: Layer, derived: dict[str, Tensor], drop: Drop) -> Tensor:
        if layer.kind == "embedding":
            change = self._change(x, layer, derived)
            return layer(x) + drop.with_adapter(change * of_tokens(drop, x, layer.channels).to(change.dtype))
        x = fused.in_compute_dtype(x) if layer.fusible else x
        y = fused.scaled(layer, x, None) if layer.fusible else layer(x)
        kept = drop.with_adapter(x * drop.kept(x, fused.features_of(layer)))
        return y + self._change(kept, layer, derived)

    def _change(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        """`(W' - W) x`."""
        if "weight" in derived:
            return layer.with_weight(x, derived["weight"] - layer.dense())
        excess, up, down = derived["excess"], derived.get("up", self.up), derived.get("down", self.down)
        if self.axis == "output":
            plain = layer.with_weight(x, None)
            plain = plain * layer.spread_out(excess, plain)
        elif layer.kind == "embedding":
            plain = layer.with_weight(x, None)
            plain = plain * excess[x].unsqueeze(-1).to(plain.dtype)
        else:
            plain = layer.with_weight(x * layer.spread_in(excess, x), None)
        return plain + layer.expand(self.projected(x, layer, down), up)

    def limited(self) -> tuple[Tensor, list[nn.Parameter]]:
        """Of the update beside the base: with weights, `c / beta up down`."""
        update, base_weight = self.weights()
        up, down, ratio = self.up, self.down, update / base_weight
        if self.axis == "input":
            down = self._along_axis(down, ratio)
        else:
            up = self._along_axis(up, ratio)
        return pair_norm(up, down), [self.up, self.down]

    def gradient_pair(self) -> tuple[nn.Parameter, nn.Parameter] | None:
        return (self.up, self.down) if self.config.init == "gradient" else None

    def start_from(self, terms: base.Terms, layer: Layer) -> None:
        self.refuse_all_but(terms, "up", "magnitude")
        if terms.magnitude is not None and terms.axis != self.axis:
            raise ValueError(f"the file has a magnitude along the {terms.axis}, but the run along the {self.axis}; set "
                             f"adapter.axis {terms.axis}")
        set_pair(self.config, self.up, self.down, terms, self.weights()[0].detach().flatten()[0])
        W = layer.dense()
        V = W if terms.up is None or terms.down is None else W + (terms.up @ terms.down).to(W.dtype)
        wanted = linalg.axis_norm(V, self.axis, self.kernel) if terms.magnitude is None else terms.magnitude
        own, wanted = linalg.axis_norm(W, self.axis, self.kernel), wanted.to(W.dtype)
        ratio, alive = linalg.safe_divide(wanted, own), own != 0
        if not self.absolute and (ratio[alive] <= 0).any():
            raise ValueError("the file has magnitudes that are not positive, which this method represents only with "
                             "adapter.step_size raw and adapter.magnitude absolute")
        with torch.no_grad():
            change = wanted - own if self.absolute else ratio.clamp_min(torch.finfo(W.dtype).tiny).log()
            self.magnitude.copy_(torch.where(alive, change, 0.0) / self.unit)

    def export_terms(self, W: Tensor) -> base.Terms:
        if far_from_base([self])[0]:
            return base.Terms(difference=self.weight(W) - W)
        update, base_weight = (w.to(W.dtype) for w in self.weights())
        ratio = update / base_weight
        wanted = self.lengths(linalg.axis_norm(W, self.axis, self.kernel)) * base_weight.sign()
        up, down = self.components()
        if self.axis == "input":
            return base.Terms(up=up, down=self._along_axis(down, ratio), magnitude=wanted, axis="input")
        return base.Terms(up=self._along_axis(up, ratio), down=down, magnitude=wanted, axis="output")

    def curves(self) -> dict[str, Tensor]:
        return {"magnitude": self.change().detach().abs().mean()}

    def _along_axis(self, matrix: Tensor, factor: Tensor) -> Tensor:
        return matrix * factor if factor.dim() == 0 else linalg.scale_axis(matrix, factor, self.axis, self.kernel)


def far_from_base(adapters: Sequence[Decomposed]) -> list[bool]:
    """Which of adapters that are alike are near beta = 0, somewhere along their axis; none without values."""
    if not adapters[0].learns_weights or adapters[0].factor.is_meta:
        return [False] * len(adapters)
    with torch.no_grad():
        pairs = zip(*(adapter.weights() for adapter in adapters), strict=True)
        update, base_weight = (_columns(list(weights)) for weights in pairs)
        limit = FARTHEST * adapters[0].first * _columns([adapter.factor for adapter in adapters])
        return (~(update.abs() < limit * base_weight.abs()).all(1)).tolist()


def _gain(change: Tensor, growth: Tensor, norms: Tensor, absolute: bool) -> tuple[Tensor, Tensor]:
    """`g - 1` and `g = m / ||V||`, `(adapters, n)`, of `change` as in `Decomposed.change`, `growth` as in `_log_growth`
    and `norms` of W. Nothing cancels where both changes are small."""
    if not absolute:
        log_gain = change - growth
        return torch.expm1(log_gain), torch.exp(log_gain)
    relative, shrink = linalg.safe_divide(change, norms.to(change.dtype)), torch.expm1(-growth)
    excess = relative + (1 + relative) * shrink
    return excess, (1 + relative) * torch.exp(-growth)


def _formed(pairs: Sequence[tuple[Decomposed, Layer]]) -> list[dict[str, Tensor]]:
    """The adapted weights `(out, fan_in)` themselves."""
    return [{"weight": adapter.weight(layer.dense())} for adapter, layer in pairs]


def _columns(weights: list[Tensor]) -> Tensor:
    """`()` or `(n)` of each adapter as `(adapters, 1)` or `(adapters, n)`."""
    return torch.stack(weights).view(len(weights), -1)


def _log_growth(
    adapters: list[Decomposed], layers: list[Layer], up: Tensor, down: Tensor, ratio: Tensor, norms: Tensor
) -> Tensor:
    """`log(||W + ratio D|| / ||W||)` `(adapters, n)` of adapters that are alike; `norms` are `||W||`."""
    axis, kernel = adapters[0].axis, adapters[0].kernel
    if axis == "input":
        cross, gram = linalg.channel_products(up, down, frozen_cols(up, layers), kernel)
    else:
        cross, gram = linalg.row_products(up, down, frozen_rows(down, layers))

    def direct() -> Tensor:
        found = []
        for number, layer in enumerate(layers):
            change = linalg.scale_axis(up[number] @ down[number], ratio[number].expand_as(norms[number]), axis, kernel)
            found.append(linalg.axis_norm(layer.dense().to(up.dtype) + change, axis, kernel))
        return torch.stack(found)

    square = norms.square().to(cross.dtype)
    return linalg.log_growth(square, ratio * cross, ratio.square() * gram, direct, layers[0].anywhere)
