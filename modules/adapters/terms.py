"""A layer's change in the exporter's terms, which every method and every file is translated to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Product:
    """A matrix `(out, fan_in)` with few parameters, the product of two factors."""

    kind: Literal["hadamard", "kronecker"]
    """Multiplied elementwise, or as `kron(first, second)`."""
    first: tuple[Tensor, ...]
    """A matrix; or an `up` and a `down`, whose product it is."""
    second: tuple[Tensor, ...]

    def map(self, change: Callable[[Tensor], Any]) -> "Product":
        """The same with each tensor mapped by `change`."""
        return Product(self.kind, tuple(change(t) for t in self.first), tuple(change(t) for t in self.second))


def matrix(factor: tuple[Tensor, ...]) -> Tensor:
    """A factor of a `Product` in full."""
    return factor[0] if len(factor) == 1 else factor[0] @ factor[1]


@dataclass
class Terms:
    """A layer's change in the exporter's terms: `W' = magnitude * normalised(V)` with `V = W R^T + up down +
    difference` (or `R W` in place of `W R^T`, see `side`), and `bias` added to the bias.

    All parts are optional; those present apply in this order. Tensors are 2-D as in `Layer`.
    """

    rotation: Tensor | None = None
    """`(blocks, b, b)`, applied on `side`; or `(stages, blocks, b, b)`, a butterfly (`linalg.butterfly`). On the input
    of a convolution it is over the channels, or, if it has `fan_in` rows, over channels and kernel positions."""
    series: Tensor | None = None
    """`(blocks, b, b)`: the skew-symmetric Q of `rotation` if that is `I + 2Q + 2Q^2 + 2Q^3 + Q^4`."""
    up: Tensor | None = None
    """`(out, r)`, with every scale included."""
    down: Tensor | None = None
    """`(r, fan_in)`."""
    difference: Tensor | None = None
    """`(out, fan_in)`."""
    product: Product | None = None
    """What `up down` or `difference` is, with fewer values. If neither is given, it replaces them."""
    magnitude: Tensor | None = None
    """`(out)` or `(channels)`; may be negative. `W'` is `V * magnitude / norm(V)` along `axis`."""
    axis: str = ""
    """"output" or "input", with `magnitude`."""
    side: str = "input"
    """Where `rotation` acts: "input", `W blockdiag(R)^T` on the channels, or "output", `blockdiag(R) W` on the rows."""
    bias: Tensor | None = None
    """`(out)`: added to the layer's bias."""
