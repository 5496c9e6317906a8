"""Judged sample pictures: shares in the events, in TensorBoard, and before a run a sentence where they cannot be."""

import json

import pytest

from modules.judges import judges
from tests.training import runs
from tests.training.runs import Place

SAMPLES = {**runs.SAMPLES, "enabled": True, "prompts": ["owl, noto style", "bus"], "judges": str(judges.FILE)}
TWO = ("--training.steps", "2", "--samples.every", "1")


def test_each_step_with_samples_is_judged(place: Place, monkeypatch):
    asked, answers = [], judges.Facts(0.5, 1.0, 0.0, ())
    monkeypatch.setattr(judges, "judge", lambda *given: asked.append(given) or answers)
    assert place.train("judged", *TWO, samples=SAMPLES) == 0
    assert [event["step"] for event in place.events("judged", "judged")] == [0, 1, 2]
    assert {(e["subject"], e["style"], e["unnamed"]) for e in place.events("judged", "judged")} == {(0.5, 1.0, 0.0)}
    assert [(len(pictures), subjects) for pictures, subjects, _ in asked] == [(2, ["owl", "bus"])] * 3
    assert curve(place, "judged", "samples/style") == [(0, 1.0), (1, 1.0), (2, 1.0)]


def curve(place: Place, name: str, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(place.runs / name / "tensorboard"))
    found.Reload()
    return [(scalar.step, scalar.value) for scalar in found.Scalars(tag)]


@pytest.mark.full
def test_the_real_judges_name_nothing_in_the_pictures_of_a_random_base(place: Place):
    assert place.train("real", "--training.steps", "1", samples=SAMPLES) == 0
    assert all(event["subject"] == 0 for event in place.events("real", "judged"))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"prompts": ["owl", "unicorn, noto style"]}, "does not know the subject 'unicorn'; it knows "),
        ({"judges": "nowhere.safetensors"}, "samples.judges: nowhere.safetensors is missing"),
        ({"judges": __file__}, "not a safetensors file"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_the_run(place: Place, capsys, change, said):
    assert place.train("bad", "--check", "--json", samples={**SAMPLES, **change}) == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert said in problem
