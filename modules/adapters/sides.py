"""Which side of a layer is rotated, and over which of its axes: what all kinds of rotations share."""

from torch import Tensor, nn

from modules.adapters import fused
from modules.adapters.base import Terms
from modules.adapters.layers import Layer


class Rotation(nn.Module):
    """A rotation of a layer's `features`: its channels, alike at each of `kernel` positions, or its outputs.

    `over_kernel`: channels and kernel positions are one axis of `channels * kernel` features instead.
    """

    def __init__(self, layer: Layer, side: str, over_kernel: bool = False):
        super().__init__()
        self.side = side
        self.over_kernel = over_kernel and side == "input" and layer.kernel > 1
        self.positions = layer.kernel if side == "input" else 1
        self.kernel = 1 if self.over_kernel else self.positions
        self.features = layer.fan_in // self.kernel if side == "input" else layer.out_features
        if self.features < 2:
            raise ValueError(f"{layer.name}: a layer with {self.features} {side} channel cannot be rotated; exclude it")

    def forward(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        """The layer with the rotation, and with the gain that it was derived with, bias included."""
        if self.side == "output":
            return self.rotate_out(fused.scaled(layer, x, None) if layer.fusible else layer(x), layer, derived)
        x, gain = self.rotate_in(x, layer, derived), derived.get("gain")
        if layer.fusible:
            return fused.scaled(layer, x, gain)
        return layer(x) if gain is None else layer.scale_out(layer(x), gain)

    def rotate(self, W: Tensor) -> Tensor:
        """`W R^T`, with the same R at each kernel position or over all of them, or `R W`."""
        return self.turn(W) if self.side == "input" else self.turn(W.mT).mT

    def check_side(self, terms: Terms) -> None:
        """ValueError if the rotation of `terms` is on the other side, or over other axes of a convolution."""
        if terms.side != self.side:
            raise ValueError(f"the file rotates the layer's {terms.side}, but the run its {self.side}; set "
                             f"adapter.side {terms.side}")
        if terms.rotation is None or terms.rotation.dim() != 3 or self.positions == 1:
            return
        count = terms.rotation.shape[0] * terms.rotation.shape[1]
        whole, over_kernel = self.features * self.kernel, count == self.features * self.kernel
        if over_kernel is not self.over_kernel and count in (whole, whole // self.positions):
            axes = ("channels alone", "channels and kernel positions")
            raise ValueError(f"the file rotates a convolution's {axes[over_kernel]}, but the run its "
                             f"{axes[self.over_kernel]}; set adapter.rotation.conv "
                             f"{'kernel' if over_kernel else 'channels'}")

    def rotate_in(self, x: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        """`x R`."""
        raise NotImplementedError

    def rotate_out(self, y: Tensor, layer: Layer, derived: dict[str, Tensor]) -> Tensor:
        """`y R^T`, times the gain; the bias, which `y` has, is left as it is."""
        raise NotImplementedError

    def turn(self, W: Tensor) -> Tensor:
        """`W R^T` of `W (n, features * kernel)`."""
        raise NotImplementedError
