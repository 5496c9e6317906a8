"""Whole trainings with masks, augmentation and prior prediction: resumed ones are the same as others, bit for bit."""

import numpy
import pytest
from PIL import Image

from modules.training.state import latest_state, load_state
from tests.training.runs import OPTIONS, ask, draw_pictures, equal

pytestmark = pytest.mark.usefixtures("forget_accelerate")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pictures with masks, and others for regularisation."""
    place = tmp_path_factory.mktemp("masked")
    draw_pictures(place / "own", 3, 5)
    draw_pictures(place / "class", 2, 6)
    values = numpy.zeros((20, 20), dtype=numpy.uint8)
    values[4:, :10] = 255
    for number in range(2):
        Image.fromarray(values).save(place / "own" / f"{number}-masklabel.png")
    return place


def everything(folders, **more):
    options = {
        **OPTIONS["data"],
        "folders": [{"path": str(folders / "own"), "masks": "files"},
                    {"path": str(folders / "class"), "role": "regularisation", "prior_prediction": True}],
        "crop": "random", "rotation": 10, "brightness": 0.2, "contrast": 0.1, "saturation": 0.2, "hue": 0.05,
        "unmasked_weight": 0.1, "unmasked_probability": 0.2, "normalize_mask": True, "variants": 3,
    }
    return {**options, **more}


@pytest.mark.full
@pytest.mark.parametrize("variants", [3, 0])
def test_a_resumed_run_is_the_same_run(place, folders, monkeypatch, variants):
    data = everything(folders, variants=variants)
    training = {**OPTIONS["training"], "accumulation": 2, "gradient_checkpointing": True}
    assert place.train("whole", data=data, training=training) == 0
    with monkeypatch.context() as patch:
        ask(patch, place, "halves", "stop", 2)
        assert place.train("halves", data=data, training=training) != 0
    assert load_state(latest_state(place.runs / "halves")).step == 2
    assert place.train("halves", data=data, training=training) == 0
    assert equal(place.adapter("halves"), place.adapter("whole"))
    assert place.train("uncached", data={**data, "cache": False}, training=training) == 0
    assert equal(place.adapter("uncached"), place.adapter("whole"))


@pytest.mark.short("off0")
@pytest.mark.parametrize("off", [{"prior_prediction": None}, {"masks": None}])
def test_each_of_them_is_in_the_loss(place, folders, off):
    data = everything(folders)
    with place.session("on", data=data) as session:
        assert any(picture.mask for picture in session.index.pictures)
        assert [picture.is_prior for picture in session.index.pictures] == [False] * 3 + [True] * 2
    changed = [{name: value for name, value in folder.items() if name not in off} for folder in data["folders"]]
    with place.session("off", data={**data, "folders": changed}) as session:
        has = [any(p.mask for p in session.index.pictures), any(p.is_prior for p in session.index.pictures)]
    assert has == ["masks" not in off, "prior_prediction" not in off]
