"""A compiled layer does what it does otherwise, whatever the method, and pictures of a third size compile nothing new.

The compiler's last stage is left out here: what is traced runs as it is.
"""

import pytest
import torch
from torch import Tensor, nn

from modules.adapters.derived import Derived
from tests.adapters.cases import CASES, DOUBLE, PAIRS, adapt, all_close, label, trained

SHOWN = ("linear", "conv2d")
ALL = [(m, options, case) for m, options, case in PAIRS if case.name in SHOWN]
NINTH = ALL[::9]
SHORT = ("wora-rank=4-axis=output-linear", "doft-kind=planes-planes=2-conv2d")
COMPILED = [case for n, case in enumerate(ALL) if case in NINTH or f"{label(*case[:2])}-{case[2].name}" in SHORT
            or case[0] not in {one[0] for one in NINTH + ALL[:n]}]
"""Every ninth, so that linear layers and convolutions take turns, one of each other method, and those of the short
run."""
WARM_UP, LATER = ((9, 8), (8, 10)), ((12, 11), (9, 8), (10, 13))
"""Heights and widths; the second makes sizes unknown numbers."""


def step(layer: nn.Module, parameters: dict[str, Tensor], derived: Derived, x: Tensor) -> dict[str, Tensor]:
    """The result and gradients of one step of training."""
    for parameter in parameters.values():
        parameter.grad = None
    x = x.clone().requires_grad_()
    derived.begin()
    y = layer(x)
    y.square().sum().backward()
    derived.pull_back()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
    assert x.grad is not None
    return {**grads, "x": x.grad, "y": y.detach()}


pytestmark = pytest.mark.usefixtures("compiler")


@pytest.mark.short(*SHORT)
@pytest.mark.parametrize("method, options, case", COMPILED, ids=[f"{label(m, o)}-{c.name}" for m, o, c in COMPILED])
def test_compiled_layers_do_the_same_and_know_every_size_after_two(method, options, case):
    adapted = adapt(method, options, case, DOUBLE)
    derived, parameters = Derived([adapted]), trained(adapted.adapter)
    compiled = torch.compile(adapted, backend="aot_eager")
    generator, counters = torch.Generator().manual_seed(0), torch._dynamo.utils.counters
    counters.clear()
    graphs = []
    for height, width in WARM_UP + LATER:
        shape = (1, height * width, 16) if case.kind == "linear" else (1, 8, height, width)
        x = torch.randn(shape, generator=generator, dtype=DOUBLE)
        all_close(step(compiled, parameters, derived, x), step(adapted, parameters, derived, x), 1e-9)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0, "nothing was compiled"
    assert graphs[len(WARM_UP) :] == [graphs[1]] * len(LATER), "a size that was not seen before was compiled anew"
    assert not counters["graph_break"] and not counters["recompile_limit"]


def test_both_cases_are_there():
    assert {case.name for case in CASES} >= set(SHOWN)
