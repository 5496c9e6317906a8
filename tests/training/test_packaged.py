"""Optimizers of the packages by name: their arguments, what is tried before a training, what they are told."""

import pytest
import torch
from torch import nn

from modules.adapters import methods
from modules.adapters.base import attach
from modules.adapters.blocks import BlocksConfig
from modules.training import optimizer_table, optimizer_trial
from modules.training.library_optimizers import Muon
from modules.training.packaged import AdvOptm, PytorchOptimizer, is_matrix


def groups(up, down, skew, magnitude) -> list[dict]:
    common = {"lr_scale": 1.0, "calibrated": False}
    return [
        {**common, "params": [up, down, skew], "names": ["up", "down", "rotation.skew"], "decay": True,
         "pairs": [(0, 1)]},
        {**common, "params": [magnitude], "names": ["magnitude"], "decay": False, "pairs": []},
    ]


def parameters() -> tuple[nn.Parameter, ...]:
    draw = torch.Generator().manual_seed(0)
    return tuple(nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((12, 4), (4, 16), (4, 6), (12,)))


def stepped(options, rate: float = 0.01) -> list[torch.Tensor]:
    """The first changes of the parameters."""
    given = parameters()
    before = [p.detach().clone() for p in given]
    optimizer = options.build(groups(*given), rate)
    for number, p in enumerate(given):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 + number))
    optimizer.step()
    return [p.detach() - old for p, old in zip(given, before, strict=True)]


@pytest.mark.parametrize(("arguments", "said"), [
    (("betas",), "write it as name=value"),
    (("lr=1",), "set training.learning_rate instead"),
    (("weight_decay=1",), "set optimizer.weight_decay instead"),
    (("beta=1",), "AdaBelief takes betas, "),
    (("betas=0.9",), r"betas is \(0.9, 0.999\) by default"),
    (("rectify=perhaps",), "valid boolean"),
    (("rectify=True", "rectify=False"), "given twice"),
])
def test_arguments_that_do_not_fit(arguments, said):
    options = PytorchOptimizer(algorithm="adabelief", arguments=arguments)
    (problem,) = options.problems(1e-4, "cpu")
    assert problem.startswith(f"optimizer.arguments[{len(arguments) - 1}] is ")
    with pytest.raises(ValueError, match=said):
        options.build(groups(*parameters()), 1e-4)


@pytest.mark.parametrize(("options", "said"), [
    (PytorchOptimizer(algorithm="AdaBelif"), "it has AdaBelief"),
    (AdvOptm(algorithm="adopt"), "it has Adopt_adv"),
    (PytorchOptimizer(algorithm="Ranger21"), "add num_iterations=... to optimizer.arguments"),
    (PytorchOptimizer(algorithm="AliG"), "needs a closure"),
    (PytorchOptimizer(algorithm="AdaHessian"), "second backward pass"),
    (PytorchOptimizer(algorithm="LOMO"), "whole model"),
    (PytorchOptimizer(algorithm="Conda"), "could not be resumed"),
    (PytorchOptimizer(algorithm="ADOPT", arguments=("clip_lambda=1",)), "takes a function"),
    (PytorchOptimizer(algorithm="Lion"), ""),
    (AdvOptm(algorithm="Muon_adv", arguments=("spectral_normalization=True",)), ""),
])
def test_what_cannot_train_is_refused_before_the_training(options, said):
    found = options.problems(1e-4, "cpu")
    assert (said in found[0]) if said else not found


def test_notes_of_the_trial():
    assert "does not resume exactly" in PytorchOptimizer(algorithm="Kron").notes(1e-4, "cpu")[0]
    assert "does not use training.learning_rate" in PytorchOptimizer(algorithm="AdaFactor").notes(1e-4, "cpu")[0]
    plain = PytorchOptimizer(algorithm="AdaFactor", arguments=("relative_step=False",))
    assert not plain.notes(1e-4, "cpu") and not plain.problems(1e-4, "cpu")


def test_the_trial_leaves_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    PytorchOptimizer(algorithm="Lion").problems(1e-4, "cpu")
    assert torch.equal(torch.rand(2), expected)


def test_the_trial_sees_what_a_state_does_not_keep():
    class Forgetful(torch.optim.SGD):
        """Its count of steps is no part of its state."""

        steps = 0

        def step(self, closure=None):  # pyright: ignore
            self.steps += 1
            for group in self.param_groups:
                group["lr"] = group["lr"] * self.steps
            return super().step(closure)

    def build(given):
        return Forgetful([{"params": g["params"], "lr": 0.1, "initial_lr": 0.1} for g in given], lr=0.1)

    found = optimizer_trial.trial(build, "cpu")
    assert not found.resumes and found.uses_rate and not found.matrices and not found.error


def test_muon_takes_the_pair_as_matrices_and_nothing_else():
    up, down, skew, magnitude = stepped(Muon(weight_decay=0.0))
    for change in (up, down):  # Newton-Schulz leaves singular values between 0.7 and 1.2
        values = torch.linalg.svdvals(change)
        assert values.max() < 2 * values.min()
        assert values.mean() == pytest.approx(0.01 * 0.2 * max(change.shape) ** 0.5, rel=0.4)  # as AdamW's in size
    for change in (skew, magnitude):  # AdamW's first step
        assert torch.allclose(change.abs(), torch.full_like(change, 0.01), rtol=1e-3)
    assert not is_matrix(parameters()[2], "rotation.skew") and is_matrix(parameters()[0], "up")


def test_adv_optm_is_told_what_parameters_are():
    """With spectral normalization it keeps singular vectors: of each block of a rotation, of a factor as a whole, and
    none of a magnitude. `down` gets steps of norm 1, other matrices of sqrt(rows / columns)."""
    options = AdvOptm(arguments=("spectral_normalization=True",), weight_decay=0.0)
    given = parameters()
    optimizer = options.build(groups(*given), 0.01)
    before = [p.detach().clone() for p in given]
    gradients = [torch.outer(torch.randn(len(p)), torch.randn(p[0].numel())).view(p.shape) for p in given[:2]]
    for _ in range(3):  # the singular vectors of a constant gradient of rank 1 are found at once
        for p, gradient in zip(given, [*gradients, torch.ones(4, 6), torch.ones(12)], strict=True):
            p.grad = gradient.clone()
        optimizer.step()
    vectors = [optimizer.state[p].get("spectral_u") for p in given]
    assert [None if one is None else tuple(one.shape) for one in vectors] == [(12,), (4,), (4, 4), None]
    norms = [torch.linalg.matrix_norm(p.detach() - old, ord=2) for p, old in zip(given[:2], before, strict=False)]
    assert norms[0] / norms[1] == pytest.approx((12 / 4) ** 0.5, rel=0.3)


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("step_size", ["calibrated", "raw"])
def test_spectral_steps_of_a_rotation_are_lr_for_every_block_size(size, step_size):
    """Of the weight, in relative spectral norm, once the singular vectors are found and the bias is corrected."""
    config = methods()["oft"].Config(rotation=BlocksConfig(block_size=size), step_size=step_size)
    rotation = attach(nn.Sequential(nn.Linear(64, 4)), "0", config, 0).adapter.rotation
    group = {"params": [rotation.skew], "names": ["rotation.skew"], "pairs": [], "lr_scale": 1.0, "decay": True}
    options = AdvOptm(arguments=("spectral_normalization=True", "state_precision=fp32"), weight_decay=0.0)
    optimizer = options.build([{**group, "calibrated": step_size == "calibrated"}], 1e-4)
    rotation.skew.grad = torch.randn(rotation.skew.shape, generator=torch.Generator().manual_seed(0))
    for _ in range(50):
        before = rotation.derive()["excess"].detach()
        optimizer.step()
    step = torch.linalg.matrix_norm(rotation.derive()["excess"].detach() - before, 2)
    assert torch.allclose(step, torch.full_like(step, 1e-4), rtol=0.05)


def test_decay_is_left_to_the_factors():
    """Magnitudes never decay, in whatever optimizer: a magnitude moves as without."""
    for algorithm in ("Lion", "ADOPT", "NorMuon"):
        with_decay, without = (
            stepped(PytorchOptimizer(algorithm=algorithm, weight_decay=decay)) for decay in (0.9, 0.0)
        )
        assert torch.equal(with_decay[3], without[3])


@pytest.mark.full
def test_the_page_about_optimizers():
    assert optimizer_table.PATH.read_text(encoding="utf-8") == optimizer_table.write(), (
        "run python -m modules.training.optimizer_table")


def test_an_optimizer_that_changes_gradients_is_refused_where_they_are_read():
    from modules.preset.files import resolve
    from modules.training import setup

    def said(method: str) -> list[str]:
        return setup.optimizer_problems(resolve(f"{method}_demo", [("optimizer.name", "muon")]).preset)

    assert "changes gradients in a step, but adalora reads them" in said("adalora")[0]
    assert not said("lora")


def test_unknown_name_is_answered_with_a_few_names():
    (problem,) = PytorchOptimizer(algorithm="").problems(1e-4, "cpu")
    assert len(problem) < 250 and "docs/optimizers.md" in problem


@pytest.mark.parametrize(("options", "refused"), [
    (PytorchOptimizer(algorithm="Prodigy"), True),  # takes the rate of the first group
    (PytorchOptimizer(algorithm="DAdaptAdam"), True),
    (AdvOptm(algorithm="Prodigy_adv"), False),
    (PytorchOptimizer(algorithm="Muon"), False),
])
def test_rates_of_layers_are_refused_where_the_class_has_one_for_all(options, refused):
    assert not options.problems(1e-3, "cpu", (("targets.rules[0].lr_scale", 1.0),))
    found = options.problems(1e-3, "cpu", (("targets.rules[0].lr_scale", 0.5),))
    assert len(found) == refused
    assert all(one.startswith("targets.rules[0].lr_scale gives some layers 0.5 times") for one in found)
