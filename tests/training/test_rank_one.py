"""The warning at the end of a training whose updates are nearly of rank 1."""

from statistics import median

import pytest
import torch
from safetensors.torch import load_file

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


def test_the_singular_values_are_recorded_with_each_validation(place: Place):
    training = {"steps": 2, "batch_size": 1, "learning_rate": 0.01, "gradient_checkpointing": False}
    given = {"training": training, "validation": {"draws": 1, "every": 1, "spectrum": True}}
    assert place.train("run", adapter={"method": "lora", "rank": 4}, **given) == 0
    first, _, last = place.events("run", "spectrum")
    assert (first["step"], first["spectral_norm"], first["stable_rank"], first["effective_rank"]) == (0, 0, 0, 0)
    tensors = load_file(place.runs / "run" / "run.safetensors")
    values = []
    for name, up in tensors.items():
        if name.endswith("lora_up.weight"):
            down = tensors[name.replace("up", "down")].double().flatten(1)
            scale = float(tensors[name.replace("lora_up.weight", "alpha")]) / len(down)
            values.append(scale * torch.linalg.svdvals(up.double().flatten(1) @ down))
    norms = [float(one[0]) for one in values]
    ranks = [float(one.square().sum() / one[0].square()) for one in values]
    assert last["step"] == 2 and len(values) > 3
    assert last["spectral_norm"] == pytest.approx(median(norms), rel=1e-2)  # files are in bfloat16 or float16
    assert last["stable_rank"] == pytest.approx(median(ranks), rel=1e-2)
