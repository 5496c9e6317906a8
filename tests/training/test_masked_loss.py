"""Masks in the loss: what is excluded is as if it were cut off, in every loss and with every weight."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from modules import losses
from modules.data import masks
from modules.data.masks import look
from modules.preset.data_options import Data
from modules.training import feed, outputs
from tests.training.runs import OPTIONS

pytestmark = pytest.mark.usefixtures("forget_accelerate")

LOSSES = ["mse", "huber", "smooth_l1"]
WEIGHTS = {
    "min-snr": {},
    "debiased": {"min_snr_gamma": None, "debiased": True},
    "unweighted": {"min_snr_gamma": None},
}


def tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    predicted, wanted = (torch.randn(3, 4, 6, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    return predicted.requires_grad_(), wanted


def with_gradient(errors: torch.Tensor, predicted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    (gradient,) = torch.autograd.grad(errors.mean(), predicted)
    return errors.detach(), gradient


def parts(shares: torch.Tensor, **options) -> torch.Tensor:
    return torch.stack([masks.weights(Data(**options), shares)] * 3)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("width", [5, 3, 7])
def test_a_normalised_mask_is_a_cut(loss, width):
    """Loss and gradient, exactly, also for shares such as 3 of 10 that have no exact binary fraction."""
    predicted, wanted = tensors()
    shares = (torch.arange(10) < width).double().expand(1, 6, 10)
    given = parts(shares, unmasked_weight=0.0, normalize_mask=True)
    found, gradient = with_gradient(losses.errors(losses.Loss(loss, 0.3), predicted, wanted, given), predicted)
    cut = losses.errors(losses.Loss(loss, 0.3), predicted[..., :width], wanted[..., :width])
    alone, wanted_gradient = with_gradient(cut, predicted)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, alone, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-14, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_without_normalisation_it_is_the_areas_share(loss):
    predicted, wanted = tensors()
    shares = (torch.arange(10) < 5).double().expand(1, 6, 10)
    given = parts(shares, unmasked_weight=0.0)
    found, gradient = with_gradient(losses.errors(losses.Loss(loss, 0.3), predicted, wanted, given), predicted)
    cut = losses.errors(losses.Loss(loss, 0.3), predicted[..., :5], wanted[..., :5])
    alone, wanted_gradient = with_gradient(cut, predicted)
    torch.testing.assert_close(found, alone / 2, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient / 2, rtol=1e-14, atol=0)


def test_the_weight_outside_is_the_least_weight():
    """As OneTrainer has it: clamped, not mixed."""
    shares = torch.tensor([0.0, 0.05, 0.2, 1.0], dtype=torch.float64).view(1, 1, 4)
    found = masks.weights(Data(unmasked_weight=0.1), shares)
    assert found.flatten().tolist() == [0.1, 0.1, 0.2, 1.0]
    normal = masks.weights(Data(unmasked_weight=0.1, normalize_mask=True), shares)
    torch.testing.assert_close(normal, found / found.mean(), rtol=1e-15, atol=0)
    black = torch.zeros_like(shares)
    assert not masks.weights(Data(unmasked_weight=0.0, normalize_mask=True), black).any()
    assert (masks.weights(Data(unmasked_weight=0.1, normalize_mask=True), black) == 1).all()


def masked(session, tmp_path, batch, **options):
    """The batch with the left half of each picture trained."""
    values = np.zeros((20, 20), dtype=np.uint8)
    values[:, :10] = 255
    Image.fromarray(values).save(tmp_path / "mask.png")
    mask = look(tmp_path / "mask.png", tmp_path / "other.png", (20, 20))
    own = batch.pictures[0].options.model_copy(update=options)
    pictures = tuple(replace(picture, mask=mask, options=own) for picture in batch.pictures)
    return replace(batch, pictures=pictures, masked=(True,) * len(pictures))


@pytest.mark.once
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("normalize", [True, False])
def test_every_weight_and_loss_of_a_training(place, tmp_path, monkeypatch, loss, weights, normalize):
    """In float64, with the prediction itself as the variable: `feed.errors` of masked samples against the weighted
    errors of the tensors that are cut to the half."""
    delta = {} if loss == "mse" else {"loss_delta": 0.3}
    objective = {"loss": loss, **delta, **WEIGHTS[weights]}
    data = {**OPTIONS["data"], "flip": False}
    with place.session("run", data=data, objective=objective) as session:
        batch = session.batches.at(0, 0)
        plain = feed.prepare(session, batch)
        given = feed.prepare(session, masked(session, tmp_path, batch, unmasked_weight=0.0, normalize_mask=normalize))
        assert plain.parts is None and given.parts.shape == (2, 1, *given.wanted.shape[2:])
        predicted = torch.randn(given.wanted.shape, dtype=torch.float64).requires_grad_()
        monkeypatch.setattr(session.model, "predict", lambda *_: predicted)
        found = with_gradient(feed.errors(session, given), predicted)
    half = given.wanted.shape[-1] // 2
    cut = losses.errors(losses.Loss(loss, 0.3), predicted[..., :half], plain.wanted[..., :half].double())
    cut = cut if plain.weights is None else cut * plain.weights
    wanted = with_gradient(cut if normalize else cut / 2, predicted)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=0)


def test_masks_are_mirrored_with_their_pictures_and_left_out_where_ignored(place, tmp_path):
    with place.session("run") as session:
        batch = replace(masked(session, tmp_path, session.batches.at(0, 0), unmasked_weight=0.0), flips=(False, True))
        parts = feed.prepare(session, batch).parts
        left = (torch.arange(parts.shape[-1]) < parts.shape[-1] / 2).double()
        assert torch.equal(parts[0], left.expand_as(parts[0])) and torch.equal(parts[1], 1 - left.expand_as(parts[1]))
        one = feed.prepare(session, replace(batch, masked=(False, True))).parts
        assert (one[0] == 1).all() and torch.equal(one[1], parts[1])
        assert feed.prepare(session, replace(batch, masked=(False, False))).parts is None


def test_validation_uses_masks_too(place, tmp_path, monkeypatch):
    """As in OneTrainer: the loss that is compared is of the same kind as the one that is trained."""
    seen = []
    with place.session("run") as session:
        assert session.validation is not None
        monkeypatch.setattr(feed, "errors", lambda s, prepared: seen.append(prepared.parts) or torch.ones(2))
        outputs.validate(session)
        batch = masked(session, tmp_path, session.batches.at(0, 0), unmasked_weight=0.0)
        pictures = tuple(replace(p, mask=batch.pictures[0].mask) for p in session.validation.pictures)
        session.validation = replace(session.validation, pictures=pictures)
        outputs.validate(session)
    assert seen[:2] == [None, None] and [part.shape[0] for part in seen[2:]] == [2, 2]
