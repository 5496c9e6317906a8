"""Micro-batches are made ready once each, one ahead, and are what they would be if made at the time."""

import dataclasses

import pytest
import torch

from modules.training import feed, loop

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
