"""The table of layers that every method is tested on, and what the adapter tests set up with it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modules import adapters, quant
from modules.adapters.base import Adapted, Adapter, attach
from modules.adapters.derived import Derived
from tests.adapters import dense

DOUBLE, SINGLE, HALF = torch.float64, torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """One row of the table: how to make the layer, and the shape of what it is given."""

    name: str
    kind: str
    """The kind of `Layer` it is to the adapters."""
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    packing: str = ""
    """"nf4", "int8", "fp8" or none."""


CASES = [
    Case("linear", "linear", lambda: nn.Linear(16, 12), (3, 5, 16)),
    Case("linear without bias", "linear", lambda: nn.Linear(16, 12, bias=False), (7, 16)),
    Case("conv1d", "conv", lambda: nn.Conv1d(8, 6, 3, padding="same", dilation=2), (2, 8, 9)),
    Case("conv2d", "conv", lambda: nn.Conv2d(8, 6, (3, 2), stride=2, padding=1, dilation=(1, 2)), (2, 8, 7, 8)),
    Case("conv2d 1x1", "conv", lambda: nn.Conv2d(16, 12, 1, stride=2, bias=False), (2, 16, 5, 5)),
    Case("conv3d", "conv", lambda: nn.Conv3d(8, 6, 2, stride=(1, 2, 1), padding=(1, 0, 1)), (1, 8, 3, 4, 3)),
    Case("embedding", "embedding", lambda: nn.Embedding(16, 12), (3, 7)),
    Case("nf4", "linear", lambda: nn.Linear(64, 12), (5, 64), packing="nf4"),
    Case("int8", "linear", lambda: nn.Linear(64, 12), (5, 64), packing="int8"),
    Case("fp8", "linear", lambda: nn.Linear(64, 12), (5, 64), packing="fp8"),
]


def oracle(method: str) -> ModuleType:
    """The dense definition of `method`, written for the tests: `VARIANTS` and `weight`."""
    name = f"tests.adapters.oracles.{method}"
    if find_spec(name) is None:
        raise ValueError(f"the method {method} has no oracle: write tests/adapters/oracles/{method}.py, see lora.py")
    return import_module(name)


def has_oracle(method: str) -> bool:
    return find_spec(f"tests.adapters.oracles.{method}") is not None


def variants() -> list[tuple[str, dict]]:
    """All methods that have an oracle, by discovery, each with the options to walk."""
    return [(name, options) for name in adapters.methods() if has_oracle(name) for options in oracle(name).VARIANTS]


def label(method: str, options: dict) -> str:
    """A readable test id."""
    flat = {**options, **options.get("rotation", {})}
    return "-".join([method, *(f"{key}={value}" for key, value in flat.items() if key != "rotation")])


def adapter_class(method: str) -> type[Adapter]:
    return adapters.methods()[method].Adapter


PAIRS = [(m, options, case) for m, options in variants() for case in CASES if case.kind in adapter_class(m).kinds]
FIRST = dict(reversed(variants()))

every_pair = pytest.mark.parametrize(
    "method, options, case", PAIRS, ids=[f"{label(m, o)}-{c.name}" for m, o, c in PAIRS]
)
every_variant = pytest.mark.parametrize("method, options", variants(), ids=[label(*v) for v in variants()])


def exact(case: Case) -> tuple[torch.dtype, float]:
    """The dtype to compare exactly in, and the tolerance: a packed layer's dense weight and its norms are float32."""
    return DOUBLE, 1e-6 if case.packing else 1e-10


def network(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """A network of one frozen layer with random weights, called "0"."""
    torch.manual_seed(seed)
    layers = nn.Sequential(case.make())
    if case.packing:
        quant.pack_linears(layers, case.packing)
    return layers.to(dtype).requires_grad_(False)


def inputs(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Random inputs; they ask for gradients unless they are tokens."""
    generator = torch.Generator().manual_seed(seed)
    if case.kind == "embedding":
        return torch.randint(0, 16, case.shape, generator=generator)
    return torch.randn(case.shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def randomise(adapter: nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Move every trained parameter away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += (scale * noise).to(parameter.dtype)


def adapt(method: str, options: dict, case: Case, dtype: torch.dtype = torch.float32, start: bool = False) -> Adapted:
    """The case's layer with an adapter, away from its start unless `start`."""
    config = adapters.methods()[method].Config(method=method, **options)
    adapted = attach(network(case, dtype), "0", config, seed=1)
    if dtype == DOUBLE:
        adapted.adapter.double()  # a packed weight's own dtype does not ask for it
    if not start:
        randomise(adapted.adapter)
    return adapted


def trained(adapter: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in adapter.named_parameters() if parameter.requires_grad}


def fast(adapted: Adapted, x: Tensor) -> Tensor:
    """The method's own route."""
    return adapted.adapter(x, adapted.layer, adapted.adapter.derive(adapted.layer))


def through_weight(adapted: Adapted, x: Tensor) -> Tensor:
    """The dense route through the adapted weight, which every method inherits."""
    return Adapter.forward(adapted.adapter, x, adapted.layer, {})


def probe(y: Tensor, seed: int = 0) -> Tensor:
    """A fixed random linear loss of `y`."""
    generator = torch.Generator().manual_seed(seed)
    return (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum()


def gradients(loss: Tensor, parameters: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Gradients of the trained parameters, and of `x` unless it is tokens."""
    wanted = {**parameters, "x": x} if x.requires_grad else parameters
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return {name: torch.zeros_like(wanted[name]) if g is None else g for name, g in zip(wanted, found, strict=True)}


def by_oracle(method: str, options: dict, adapted: Adapted, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of the loss `probe` from the method's dense definition, in float64."""
    state = {name: value.double() for name, value in adapted.adapter.state_dict().items()}
    parameters = {name: state[name].clone().requires_grad_() for name in trained(adapted.adapter)}
    base: Any = adapted.base
    W = dense.matrix(base, quant.dense_weight(base)).double()
    kernel = adapted.layer.kernel
    changed = oracle(method).weight({**state, **parameters}, W, W.shape[1] // kernel, kernel, options)
    x = x.detach().double().requires_grad_() if x.is_floating_point() else x
    y = apply(base, dense.native(base, changed), x)
    return y, gradients(probe(y), parameters, x)


def apply(base: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """The base layer with another weight, by torch's own layers."""
    if quant.is_packed(base):
        stand_in: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=base.bias is not None)
    else:
        stand_in = base
    tensors = {"weight": weight}
    if getattr(base, "bias", None) is not None:
        tensors["bias"] = base.bias.to(weight.dtype)
    return torch.func.functional_call(stand_in, tensors, (x,))


def close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "", floor: float = 1e-12) -> None:
    """Assert that the norm of the difference is within `tolerance` of the norm of `expected`."""
    error = (actual.detach().double() - expected.detach().double()).norm()
    assert error <= tolerance * expected.detach().double().norm() + floor, f"{what}: {error} of {expected.norm()}"


def all_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, floor: float = 1e-12) -> None:
    """`close`, tensor by tensor."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        close(actual[name], tensor, tolerance, name, floor)


def step_gradients(derived: Derived, micro_batches: list[Tensor]) -> dict[str, Tensor]:
    """Summed gradients of `probe` over micro-batches by the derived route: derive once, pull back once."""
    (adapted,) = derived.adapted
    adapted.zero_grad(set_to_none=True)
    derived.begin()
    for i, x in enumerate(micro_batches):
        probe(adapted(x), seed=i).backward()
    derived.pull_back()
    wanted = trained(adapted.adapter)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in wanted.items()}
