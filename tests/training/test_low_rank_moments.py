"""LoRA-Pre: averages of low rank follow the exact ones, from the first step on, in each of its forms."""

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from modules.training import optimizers
from modules.training.low_rank_moments import first_rows, followed, moments
from modules.training.optimizers import LowRankMoments

RIDGE = LowRankMoments().ridge
BETAS = 0.9, 0.999

in_each_form = pytest.mark.parametrize("form", ["previous", "updated", "sequential"])


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


@in_each_form
def test_a_constant_gradient_makes_steps_of_adamw(form):
    draw = torch.Generator().manual_seed(2)
    mine, theirs = (Parameter(torch.zeros(12, 8)) for _ in range(2))
    constant = torch.randn(12, 8, generator=draw)
    optimizer = LowRankMoments(weight_decay=0.1, moment_rank=8, form=form).build(group(mine), 1e-3)
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
    assert ratios[0] == pytest.approx({"previous": 1, "updated": 1.1, "sequential": 0.78}[form], abs=0.05)
    assert all(0.75 < ratio < 1.1 for ratio in ratios) and ratios[-1] == pytest.approx(1, abs=0.05)


@in_each_form
def test_steps_are_never_much_longer_than_adamws(form):
    draw = torch.Generator().manual_seed(3)
    mine, theirs = (Parameter(torch.zeros(64, 16)) for _ in range(2))
    optimizer = LowRankMoments(weight_decay=0.0, form=form).build(group(mine), 1e-3)
    adamw = torch.optim.AdamW([theirs], lr=1e-3, weight_decay=0.0)
    signal = torch.randn(64, 16, generator=draw)
    for step in range(100):
        before = [p.detach().clone() for p in (mine, theirs)]
        mine.grad = 0.3 * signal + torch.randn(64, 16, generator=draw)
        theirs.grad = mine.grad.clone()
        optimizer.step()
        adamw.step()
        lengths = [(p.detach() - old).norm() for p, old in zip((mine, theirs), before, strict=True)]
        assert lengths[0] < 2 * lengths[1] + 1e-9, step


@in_each_form
@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_it_starts_where_the_first_gradients_are_zero(shape, form):
    p = Parameter(torch.zeros(shape))
    optimizer = LowRankMoments(weight_decay=0.0, moment_rank=3, form=form).build(group(p), 1e-2)
    for step in range(200):
        p.grad = torch.zeros(shape) if step < 50 else p.detach() - 0.5
        optimizer.step()
    assert (p - 0.5).abs().max() < 0.05


def factors(steps: int, in_turn: bool, ridge: float = RIDGE) -> tuple[Tensor, ...]:
    """Of gradients and of their sizes, after some steps."""
    found = [torch.zeros(1, 12, 4), first_rows(4, 4).float()[None]] * 2
    for gradient in slow(steps, 2, (12, 4)):
        for place, target, beta in ((0, gradient, BETAS[0] ** 0.5), (2, gradient.abs(), BETAS[1] ** 0.25)):
            found[place : place + 2] = followed(*found[place : place + 2], target[None], 1 - beta, ridge, in_turn)
    return tuple(found)


def latest(form: str, steps: int = 30) -> float:
    """By how much the first average moves with the latest gradient, over what AdamW's does."""
    before, in_turn = factors(steps, form == "sequential"), form == "sequential"
    gradient, change = slow(steps + 1, 2, (12, 4))[-1][None], 1e-2 * slow(200, 2, (12, 4))[150][None]
    found = []
    for one in (gradient, gradient + change):
        after = (*followed(*before[:2], one, 1 - BETAS[0] ** 0.5, RIDGE, in_turn),
                 *followed(*before[2:], one.abs(), 1 - BETAS[1] ** 0.25, RIDGE, in_turn))
        found.append(moments(form, before, after, one, BETAS, steps)[0])
    own = (1 - BETAS[0]) / (1 - BETAS[0] ** (steps + 1))
    return ((found[1] - found[0]).norm() / (own * change).norm()).item()


def test_the_latest_gradient_counts_once_or_twice():
    assert latest("previous") == pytest.approx(1, abs=1e-3)
    assert latest("updated") == pytest.approx(1.9, abs=0.15), "through the factors, and by itself"
    assert latest("sequential") == pytest.approx(1, abs=0.15)


def test_in_turn_the_first_gradient_is_followed_at_once():
    """With R fitted to the new L, `L R = (1 - beta) g` after one step where nothing regularizes."""
    for in_turn, wanted in ((True, 1 - BETAS[0]), (False, BETAS[0] ** 0.5 * (1 - BETAS[0] ** 0.5))):
        left, right = factors(1, in_turn, ridge=0.0)[:2]
        torch.testing.assert_close((left @ right)[0], wanted * slow(1, 2, (12, 4))[0], rtol=1e-2, atol=1e-3)


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
