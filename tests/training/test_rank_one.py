"""The warning at the end of a training whose updates are nearly of rank 1."""

import torch

from modules.files import singular_values
from modules.training import rank_one
from tests.training.runs import Place


def warnings(place: Place) -> list[str]:
    return [event["message"] for event in place.events("run", "warning") if "rank 1" in event["message"]]


def test_updates_of_one_direction_are_warned_of(place: Place):
    with place.session("run", adapter={"method": "dora", "rank": 4}) as session:
        for adapted in session.adapted.values():
            torch.nn.init.normal_(adapted.adapter.up)
        rank_one.look(session)
        assert not warnings(place)
        for adapted in session.adapted.values():
            adapted.adapter.up.data[:, 1:] *= 1e-3
        rank_one.look(session)
        count = len(session.adapted)
        (message,) = warnings(place)
        assert f"the changes of {count} of {count} layers are nearly of rank 1" in message and "--spectrum" in message


def test_a_training_looks_at_its_end(place: Place, monkeypatch):
    monkeypatch.setattr(singular_values, "NEARLY_ONE", 100)
    training = {"steps": 1, "batch_size": 1, "learning_rate": 0.01, "gradient_checkpointing": False}
    assert place.train("run", adapter={"method": "lora", "rank": 4}, training=training) == 0
    assert len(warnings(place)) == 1
