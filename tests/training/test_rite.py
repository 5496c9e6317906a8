"""LoRA-RITE: the published steps, the same whatever the split of the product, and steady where these are not."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from modules.adapters import methods
from modules.training import optimizers
from modules.training.optimizers import Rite

DOUBLE = torch.float64


def build(pairs: list[tuple[Parameter, Parameter]], lr: float = 1e-2, calibrated: bool = False, **options):
    params = [p for pair in pairs for p in pair]
    places = [(2 * n, 2 * n + 1) for n in range(len(pairs))]
    group = {"params": params, "lr_scale": 1.0, "decay": True, "pairs": places, "calibrated": calibrated}
    return Rite(**options).build([group], lr)


def factors(seed: int, out: int = 12, fan_in: int = 20, rank: int = 3, dtype=DOUBLE) -> tuple[Parameter, Parameter]:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((out, rank), (rank, fan_in))
    up, down = (Parameter(torch.randn(shape, generator=draw, dtype=DOUBLE).to(dtype)) for shape in shapes)
    return up, down


def set_gradients(up: Parameter, down: Parameter, G: Tensor) -> None:
    """Those of a loss whose gradient by the product is G."""
    up.grad, down.grad = (G @ down.mT).detach(), (up.mT @ G).detach()


def gradient(step: int, out: int = 12, fan_in: int = 20, size: float = 0.02) -> Tensor:
    """A drawn gradient by the product."""
    return size * torch.randn(out, fan_in, generator=torch.Generator().manual_seed(step), dtype=DOUBLE)


# -- the published steps ----------------------------------------------------------------------------------------------


class Published:
    """The formulas of methods.md 7.5, one pair at a time, without any care; shares no code with modules."""

    def __init__(self, betas: tuple[float, float], eps: float):
        self.betas, self.eps, self.kept, self.t = betas, eps, {}, 0

    def step(self, pairs: list[tuple[Tensor, Tensor]], gradients: list[Tensor], lr: float, decay: float):
        rows = []
        for (B, A), G in zip(pairs, gradients, strict=True):
            (UB, RB), (UA, RA) = torch.linalg.qr(B), torch.linalg.qr(A)
            IB, IA = torch.linalg.pinv(RB), torch.linalg.pinv(RA)
            seen = [(G @ A) @ IA, (G.mT @ B) @ IB]
            seen = [torch.zeros_like(g) if g.square().mean().sqrt() > 1 else g for g in seen]
            rows.append((UB, UA, IB, IA, seen))
        total = math.sqrt(sum(float(g.norm()) ** 2 for *_, seen in rows for g in seen))
        b1, b2 = (b * (1 - b**self.t) / (1 - b ** (self.t + 1)) for b in self.betas)
        moved = []
        for n, ((B, A), (UB, UA, IB, IA, seen)) in enumerate(zip(pairs, rows, strict=True)):
            old = self.kept.get(n, None)
            turns = (UA.mT @ old[1], UB.mT @ old[0]) if old else (torch.zeros(3, 3, dtype=DOUBLE),) * 2
            new, averages = [], []
            for side, (g, P) in enumerate(zip(seen, turns, strict=True)):
                g = g / max(1.0, total)
                V = (1 - b2) * g.mT @ g / len(g) + (b2 * P @ old[2][side][1] @ P.mT if old else 0)
                value, vector = torch.linalg.eigh(V)
                u = g @ vector @ torch.diag(1 / (value.sqrt() + self.eps)) @ vector.mT
                M = (1 - b1) * u + (b1 * old[2][side][0] @ P.mT if old else 0)
                new.append((M, V))
                averages.append(M)
            self.kept[n] = (UB, UA, new)
            moved.append((B - lr * (averages[0] @ IA.mT + decay * B), A - lr * (averages[1] @ IB.mT + decay * A)))
        self.t += 1
        return moved


@pytest.mark.parametrize("size", [0.02, 0.5, 3.0], ids=["small", "clipped", "skipped now and then"])
def test_without_guard_the_steps_are_the_published_ones(size):
    pairs = [factors(1), factors(2), factors(3, out=8, fan_in=9)]
    optimizer = build(pairs, lr=0.02, guard=0, weight_decay=0.1, eps=1e-6)
    plain = [(up.detach().clone(), down.detach().mT.clone()) for up, down in pairs]
    reference = Published((0.9, 0.999), 1e-6)
    for step in range(6):
        draw = [gradient(10 * step + n, len(up), down.shape[1], size) for n, (up, down) in enumerate(pairs)]
        draw[0] /= 3  # else all are skipped together
        for (up, down), G in zip(pairs, draw, strict=True):
            set_gradients(up, down, G)
        optimizer.step()
        plain = reference.step(plain, draw, 0.02, 0.1)
        for (up, down), (B, A) in zip(pairs, plain, strict=True):
            assert torch.allclose(up, B, rtol=0, atol=1e-9) and torch.allclose(down.mT, A, rtol=0, atol=1e-9)


def test_the_guard_leaves_long_factors_alone():
    pairs = [factors(1), factors(1)]
    optimizers = [build([pair], lr=1e-4, guard=guard) for pair, guard in zip(pairs, (0, 1), strict=True)]
    for step in range(5):
        for (up, down), optimizer in zip(pairs, optimizers, strict=True):
            set_gradients(up, down, gradient(step))
            optimizer.step()
    assert torch.allclose(pairs[0][1], pairs[1][1], rtol=0, atol=1e-9)


# -- invariance -------------------------------------------------------------------------------------------------------


def products(turn: Tensor, calibrated: bool) -> list[Tensor]:
    """The products after each of a few steps, with `up turn` and `turn^-1 down` in place of the pair."""
    up, down = factors(4)
    with torch.no_grad():
        up.copy_(up @ turn)
        down.copy_(torch.linalg.solve(turn, down))
    optimizer, found = build([(up, down)], calibrated=calibrated, weight_decay=0.1), []
    for step in range(5):
        set_gradients(up, down, gradient(step) + 0.01 * (up @ down).detach())
        optimizer.step()
        found.append((up @ down).detach())
    return found


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("kind", ["ten times", "any matrix"])
def test_the_split_of_the_product_does_not_matter(kind, calibrated):
    one = torch.eye(3, dtype=DOUBLE)
    turn = 10 * one if kind == "ten times" else one + 0.4 * gradient(9, 3, 3, 1.0)
    for mine, other in zip(products(one, calibrated), products(turn, calibrated), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-10)


def test_adam_minds_the_split():
    def product(factor: float) -> Tensor:
        up, down = factors(4)
        with torch.no_grad():
            up.mul_(factor)
            down.div_(factor)
        optimizer = optimizers.AdamW().build([{"params": [up, down], "lr_scale": 1.0, "decay": True}], 1e-2)
        set_gradients(up, down, gradient(0))
        optimizer.step()
        return (up @ down).detach()

    assert not torch.allclose(product(1.0), product(10.0), atol=0.1)


# -- the start, and gradients of low rank -----------------------------------------------------------------------------


def test_in_the_first_step_down_waits_and_the_product_moves_by_the_rate():
    up, down = factors(5, rank=3)
    with torch.no_grad():
        up.zero_()
    before = down.detach().clone()
    optimizer = build([(up, down)], lr=1e-2)
    set_gradients(up, down, gradient(0))
    optimizer.step()
    assert torch.equal(down, before)
    assert (up @ down).norm().item() == pytest.approx(1e-2 * math.sqrt(12 * 3), rel=1e-6)


@pytest.mark.parametrize("zero", ["up", "down"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("lr", [1e-3, 3e-2])
def test_gradients_of_rank_one_stay_bounded(zero, dtype, lr):
    sizes, _ = low_rank_run(zero, dtype, lr, guard=1.0)
    # A step moves the product by at most lr sqrt(length r) for each factor, and half of that for both at once.
    reach = lr * math.sqrt(3) * (math.sqrt(12) + 1.5 * math.sqrt(20))
    assert all(size <= 1.01 * reach * (step + 1) for step, size in enumerate(sizes))
    assert max(sizes) < 200 * reach / 4


def test_without_guard_they_blow_up():
    sizes, down = low_rank_run("up", torch.float32, 1e-2, guard=0.0)
    assert max(sizes) > 20 and down > 1e3


def low_rank_run(zero: str, dtype, lr: float, guard: float) -> tuple[list[float], float]:
    """Norms of the product over 200 steps of batch size 1 towards a small goal, and of `down` at the end."""
    up, down = factors(6, dtype=dtype)
    with torch.no_grad():
        (up if zero == "up" else down).zero_()
    optimizer, draw, sizes = build([(up, down)], lr=lr, guard=guard), torch.Generator().manual_seed(1), []
    goal = 0.1 * torch.randn(12, 20, generator=draw).to(dtype)
    for _ in range(200):
        x, noise = torch.randn(20, 1, generator=draw).to(dtype), torch.randn(12, 1, generator=draw).to(dtype)
        set_gradients(up, down, 0.01 * ((up @ down).detach() @ x - goal @ x + noise) @ x.mT)
        optimizer.step()
        assert torch.isfinite(up).all() and torch.isfinite(down).all()
        sizes.append((up @ down).norm().item())
    return sizes, down.norm().item()


def test_a_pair_without_any_gradient_stays():
    pair = factors(7, dtype=torch.float32)
    before = [p.detach().clone() for p in pair]
    optimizer = build([pair])
    for _ in range(3):
        for p in pair:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(pair, before, strict=True))


def test_rank_above_the_sides():
    up, down = factors(8, out=4, fan_in=5, rank=9)
    with torch.no_grad():
        up.zero_()
    goal, optimizer = gradient(1, 4, 5, 0.3), build([(up, down)], lr=0.02)
    for _ in range(60):
        set_gradients(up, down, 0.1 * ((up @ down).detach() - goal))
        optimizer.step()
    assert (up @ down - goal).norm() < 0.3 * goal.norm()


# -- calibrated steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [4, 32])
@pytest.mark.parametrize("width", [320, 1280])
def test_a_calibrated_step_changes_the_weight_by_the_rate(rank, width):
    from modules.adapters.base import attach

    network = torch.nn.Sequential(torch.nn.Linear(width, 320))
    adapted = attach(network, "0", methods()["lora"].Config(rank=rank, step_size="calibrated"), seed=1)  # pyright: ignore
    adapter: Any = adapted.adapter
    W = adapted.adapted_weight()
    optimizer = build([(adapter.up, adapter.down)], lr=1e-3, calibrated=True)
    changes = []
    for step in range(12):
        set_gradients(adapter.up, adapter.down, adapter.factor * gradient(step, 320, width, 1e-5).float())
        before = adapted.adapted_weight()
        optimizer.step()
        changes.append(((adapted.adapted_weight() - before).norm() / W.norm()).item())
    assert changes[0] == pytest.approx(1e-3, rel=0.15)
    assert max(changes) < 2.5e-3


# -- beside the pairs -------------------------------------------------------------------------------------------------


def test_what_is_in_no_pair_gets_adamw():
    own, other = (Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    up, down = factors(1, dtype=torch.float32)
    group = {"params": [own, up, down], "lr_scale": 1.0, "decay": True, "pairs": [(1, 2)], "calibrated": False}
    mine = Rite(weight_decay=0.1).build([group], 1e-2)
    theirs = torch.optim.AdamW([other], lr=1e-2, weight_decay=0.1)
    for step in range(5):
        own.grad = gradient(step, 1, 7)[0].float()
        other.grad = own.grad.clone()
        set_gradients(up, down, gradient(step).float())
        mine.step()
        theirs.step()
    assert torch.equal(own, other)


def test_pairs_are_computed_together_as_each_alone():
    together, alone = [factors(n) for n in range(3)], [factors(n) for n in range(3)]
    many, single = build(together, clip=1e9), [build([pair], clip=1e9) for pair in alone]
    for step in range(4):
        for n in range(3):
            for pair in (together[n], alone[n]):
                set_gradients(*pair, gradient(10 * n + step))
        many.step()
        for optimizer in single:
            optimizer.step()
    for pair, other in zip(together, alone, strict=True):
        assert all(torch.allclose(p, q, rtol=0, atol=1e-12) for p, q in zip(pair, other, strict=True))


@pytest.mark.parametrize("which", [0, 1])
def test_a_forgotten_factor_makes_the_pair_new(which):
    pair, fresh = factors(1), factors(1)
    old = build([pair])
    for step in range(3):
        set_gradients(*pair, gradient(step))
        old.step()
    with torch.no_grad():
        for p, q in zip(pair, fresh, strict=True):
            q.copy_(p)
    optimizers.forget(old, [pair[which]])
    new = build([fresh])
    for both, optimizer in ((pair, old), (fresh, new)):
        set_gradients(*both, gradient(9))
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(pair, fresh, strict=True))


def test_methods_without_pairs_are_refused_by_name():
    (problem,) = Rite().problems(1e-3, "cpu", unpaired="oft")
    assert "lora_rite" in problem and "method oft has none" in problem
    assert Rite().problems(1e-3, "cpu") == []
