"""Micro-batches are made ready once each, one ahead, and are what they would be if made at the time."""

import dataclasses

import pytest
import torch

from modules import losses
from modules.training import feed, loop, outputs

pytestmark = pytest.mark.usefixtures("forget_accelerate")

TYPED = {
    "plain": [],
    "shuffled": ["--data.shuffle", "true"],
    "unweighted": ["--objective.min_snr_gamma", "null"],
    "texts": ["--targets.text_encoders", "true"],
    "debiased": ["--objective.min_snr_gamma", "null", "--objective.debiased", "true"],
}
STEPS = ("--training.steps", "3", "--training.accumulation", "2")


def tensors(prepared: feed.Prepared) -> dict[str, torch.Tensor]:
    values = {field.name: getattr(prepared, field.name) for field in dataclasses.fields(prepared)}
    values |= values.pop("texts") or {}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


@pytest.mark.full
@pytest.mark.parametrize("kind", TYPED)
def test_what_was_made_ahead_is_what_would_be_made_now(place, kind):
    with place.session("run", *STEPS, *TYPED[kind]) as session:
        ahead = feed.Feed(session)
        for number in range(6):
            step, micro = divmod(number, 2)
            ahead.reach(step)
            found = ahead.at(step, micro)
            again = feed.prepare(session, session.batches.at(step, micro))
            assert found.captions == again.captions and (found.texts is None) == (kind == "texts")
            assert (found.weights is None) == (kind == "unweighted")
            for name, tensor in tensors(again).items():
                assert torch.equal(tensors(found)[name], tensor), name
            ahead.look_ahead(step, micro)
            assert (ahead.ahead is None) == (number == 5), "nothing comes after the last step"


def test_each_is_made_once_and_before_the_step_that_uses_it_begins(place, monkeypatch):
    made, real = [], feed.prepare
    with place.session("run", *STEPS) as session:
        monkeypatch.setattr(feed, "prepare", lambda s, batch: made.append((s.step, batch.positions)) or real(s, batch))
        progress = loop.Progress(feed.Feed(session))
        for session.step in range(3):
            loop.take_step(session, progress)
        order = [session.batches.at(*divmod(number, 2)).positions for number in range(6)]
    assert made == list(zip([0, 0, 0, 1, 1, 2], order, strict=True))


def test_another_step_than_the_one_made_ahead_is_made_at_the_time(place):
    with place.session("run", "--training.steps", "9") as session:
        ahead = feed.Feed(session)
        ahead.look_ahead(0, 0)
        wanted = session.batches.at(7, 0)
        assert torch.equal(ahead.at(7, 0).times, feed.prepare(session, wanted).times)
        assert ahead.ahead is None


def test_a_perturbation_is_in_the_input_and_not_in_the_target(place):
    made = {}
    for name, strength in (("plain", "0"), ("perturbed", "0.3")):
        with place.session(name, "--objective.perturbation", strength) as session:
            made[name] = feed.prepare(session, session.batches.at(0, 0))
            process = session.model.process
    plain, perturbed = made["plain"], made["perturbed"]
    assert torch.equal(plain.wanted, perturbed.wanted) and torch.equal(plain.times, perturbed.times)
    added = (perturbed.noisy - plain.noisy) / process.parts(plain.times)[1].view(-1, 1, 1, 1)
    assert float(added.std()) == pytest.approx(0.3, rel=0.2) and float(added.mean()) == pytest.approx(0, abs=0.06)


def test_noise_levels_are_bounded_in_training_and_in_validation(place, monkeypatch):
    bounds = ("--objective.min_noise", "0.6", "--objective.max_noise", "0.7", "--objective.loss", "pseudo_huber",
              "--objective.delta_schedule", "snr")  # fmt: skip
    seen = []
    with place.session("run", *bounds) as session:
        real = feed.errors
        monkeypatch.setattr(feed, "errors", lambda session, given: seen.append(given) or real(session, given))
        outputs.validate(session)
        prepared = [feed.prepare(session, session.batches.at(step, 0)) for step in range(4)]
        for given in (*seen, *prepared):
            assert given.times.min() >= 600 and given.times.max() < 700
            assert torch.equal(given.deltas, losses.thresholds(session.loss, session.model.process, given.times))
        assert seen and len(set(prepared[0].times.tolist())) > 1
