"""LoRA-Pre: averages of low rank follow the exact ones, from the first step on."""

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from modules.training import optimizers
from modules.training.low_rank_moments import first_rows, followed
from modules.training.optimizers import LowRankMoments

RIDGE = LowRankMoments().ridge


def group(*params: Parameter) -> list[dict]:
    return [{"params": list(params), "lr_scale": 1.0, "decay": True, "pairs": [], "calibrated": False}]


def errors(stream: list[Tensor], rank: int, beta: float, pace: float) -> list[float]:
    """Of the factored average of a stream, relative to the exact one, after each step."""
    rows, columns = stream[0].shape
    left, right = torch.zeros(1, rows, rank), first_rows(rank, columns).float()[None]
    exact, found = torch.zeros(rows, columns), []
    for target in stream:
        left, right = followed(left, right, target[None], pace, RIDGE)
        exact = beta * exact + (1 - beta) * target
        found.append(((left @ right)[0] - exact).norm().item() / exact.norm().item())
    return found


def slow(steps: int, rank: int, size: tuple[int, int] = (64, 16)) -> list[Tensor]:
    """Gradients of one rank whose columns turn slowly."""
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(size[0], rank, generator=draw) for _ in range(2))
    rows = torch.randn(rank, size[1], generator=draw)
    return [(first + 0.5 * torch.sin(torch.tensor(step / 50)) * second) @ rows for step in range(steps)]


@pytest.mark.parametrize("rank", [4, 16])
def test_it_follows_the_exact_average_of_a_slow_stream(rank):
    beta = 0.9
    found = errors(slow(300, 4), rank, beta, 1 - beta**0.5)
    assert max(found[50:]) < 0.1 and sum(found[50:]) / 250 < 0.05
    sizes = [gradient.abs() for gradient in slow(300, 4)]
    assert max(errors(sizes, 16, 0.999**0.5, 1 - 0.999**0.25)[50:]) < 0.1


@pytest.mark.parametrize("rank", [1, 4])
def test_an_average_passes_zero(rank):
    constant = torch.ones(64, 16)
    stream = [constant if step < 50 else -constant for step in range(100)]
    found = errors(stream, rank, 0.9, 1 - 0.9**0.5)
    assert max(found[70:]) < 0.3 and found[-1] < 0.02


@pytest.mark.parametrize("rank", [4, 16])
def test_gradients_of_rank_one_do_not_make_it_overshoot(rank):
    draw = torch.Generator().manual_seed(1)
    stream = [torch.randn(64, 1, generator=draw) @ torch.randn(1, 16, generator=draw) for _ in range(300)]
    assert max(errors(stream, rank, 0.9, 1 - 0.9**0.5)[5:]) < 1.1  # zero would be off by 1


def test_a_constant_gradient_makes_steps_of_adamw():
    draw = torch.Generator().manual_seed(2)
    mine, theirs = (Parameter(torch.zeros(12, 8)) for _ in range(2))
    constant = torch.randn(12, 8, generator=draw)
    optimizer = LowRankMoments(weight_decay=0.1, moment_rank=8).build(group(mine), 1e-3)
    adamw = torch.optim.AdamW([theirs], lr=1e-3, weight_decay=0.1)
    ratios = []
    for _ in range(60):
        before = [p.detach().clone() for p in (mine, theirs)]
        mine.grad, theirs.grad = constant.clone(), constant.clone()
        optimizer.step()
        adamw.step()
        steps = [(p.detach() - old).abs().mean() for p, old in zip((mine, theirs), before, strict=True)]
        ratios.append((steps[0] / steps[1]).item())
    # Of the exact average's 1 - beta^t, the product has c (1 - c), half of it, after the first step. From there on they
    # differ by c^2 in (1 - c)^2 = 1 - 2 c + c^2 alone, and by the ridge.
    assert ratios[0] == pytest.approx(1.1, abs=0.05)
    assert all(0.75 < ratio < 1.1 for ratio in ratios) and ratios[-1] == pytest.approx(1, abs=0.05)


def test_steps_are_never_much_longer_than_adamws():
    draw = torch.Generator().manual_seed(3)
    mine, theirs = (Parameter(torch.zeros(64, 16)) for _ in range(2))
    optimizer = LowRankMoments(weight_decay=0.0).build(group(mine), 1e-3)
    adamw = torch.optim.AdamW([theirs], lr=1e-3, weight_decay=0.0)
    signal = torch.randn(64, 16, generator=draw)
    for step in range(200):
        before = [p.detach().clone() for p in (mine, theirs)]
        mine.grad = 0.3 * signal + torch.randn(64, 16, generator=draw)
        theirs.grad = mine.grad.clone()
        optimizer.step()
        adamw.step()
        lengths = [(p.detach() - old).norm() for p, old in zip((mine, theirs), before, strict=True)]
        assert lengths[0] < 2 * lengths[1] + 1e-9, step


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_it_starts_where_the_first_gradients_are_zero(shape):
    p = Parameter(torch.zeros(shape))
    optimizer = LowRankMoments(weight_decay=0.0, moment_rank=3).build(group(p), 1e-2)
    for step in range(300):
        p.grad = torch.zeros(shape) if step < 100 else p.detach() - 0.5
        optimizer.step()
    assert (p - 0.5).abs().max() < 0.05


def test_vectors_and_stacks_get_adamw():
    shapes = [(5,), (), (3, 4, 4)]
    mine, theirs = ([Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    optimizer = LowRankMoments().build(group(*mine), 1e-2)
    adamw = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.01)
    for step in range(5):
        draw = torch.Generator().manual_seed(step)
        for p, q in zip(mine, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=draw)
            q.grad = p.grad.clone()
        optimizer.step()
        adamw.step()
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


def test_states_are_as_small_as_said():
    p = Parameter(torch.randn(256, 128))
    optimizer = LowRankMoments(moment_rank=4).build(group(p), 1e-3)
    p.grad = torch.randn(256, 128)
    optimizer.step()
    numbers = sum(value.numel() for value in optimizer.state[p].values() if isinstance(value, Tensor))
    assert numbers == 2 * 4 * (256 + 128)


def test_a_forgotten_matrix_begins_again():
    p, q = (Parameter(torch.zeros(8, 4)) for _ in range(2))
    optimizer, fresh = (LowRankMoments(moment_rank=2).build(group(x), 1e-2) for x in (p, q))
    p.grad = torch.ones(8, 4)
    optimizer.step()
    optimizers.forget(optimizer, [p])
    with torch.no_grad():
        p.zero_()
    p.grad, q.grad = torch.ones(8, 4), torch.ones(8, 4)
    optimizer.step()
    fresh.step()
    assert torch.equal(p, q)
