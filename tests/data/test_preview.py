"""The preview of a picture is what training sees: crops, rotation, colours, masks and pixels of every position."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from modules.data.augment import pixels, still, variants
from modules.data.batches import Batches
from modules.data.cache import MaskCache
from modules.data.index import build_index
from modules.data.opening import open_picture
from modules.preset.data_options import Data
from modules.training.look import Bases, answer_one
from tests.data.encoder import Encoder

ON = {"crop": "random", "rotation": 8.0, "contrast": 0.3, "hue": 0.1, "flip": True, "unmasked_probability": 0.3}


def ask(what: str, data: Data, **more) -> dict:
    """Without a base: buckets and latents have steps of 8."""
    answers = []
    request = {"id": 1, "ask": what, "preset": {"data": data.model_dump(mode="json")}, **more}
    answer_one(json.dumps(request), Bases(), answers.append)
    assert "error" not in answers[-1], answers[-1]
    return json.loads(json.dumps(answers[-1]))


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.fixture
def data(folder) -> Data:
    folder.picture("a.png", (96, 60))
    mask = Image.new("L", (96, 60))
    mask.paste(255, (10, 20, 70, 50))
    folder.save("a-masklabel.png", mask, caption=None)
    return Data(folders=(str(folder.path),), resolution=64, masks="files", caption_dropout=0.0)


@pytest.mark.parametrize("count", [0, 3])
def test_every_position_is_what_a_batch_has(data, folder, count):
    data = data.model_copy(update={**ON, "variants": count})
    index = build_index(data, "training", 8)
    (picture,), masks = index.pictures, MaskCache(data.model_copy(update={"cache": False}), Encoder())
    found = ask("sees", data, path=str(folder.path / "a.png"), seed=4, draws=12, pixels=True)
    batches, opened = Batches(index, 1, 1, 1, 0, seed=4), open_picture(picture.path)
    for position, draw in enumerate(found["draws"]):
        batch = batches.at(position, 0)
        (view,), (flip,) = batch.views, batch.flips
        assert draw["flip"] == flip and draw["masked"] == batch.masked[0]
        assert [draw[name] for name in ("angle", "contrast", "hue")] == [view.angle, view.contrast, view.hue]
        seen = pixels(opened, picture.bucket, view)
        seen = (seen.flip(-1) if flip else seen).add(1).mul(127.5).round().permute(1, 2, 0)
        assert np.array_equal(decoded(draw["pixels"]), seen.numpy().astype(np.uint8))
        if draw["masked"]:
            shares = masks.get(picture, flip, view)[0].mul(255).round()
            assert torch.equal(torch.from_numpy(decoded(draw["mask"]).astype(float)), shares)
        else:
            assert draw["mask"] is None
        assert (draw["variant"] is None) == (count == 0)
        if count:
            assert view == variants(picture.options, picture)[draw["variant"]]
    assert len(found["variants"]) == count and {draw["masked"] for draw in found["draws"]} == {True, False}
    assert all(decoded(one["pixels"]).shape == (*picture.bucket[::-1], 3) for one in found["variants"])


def test_the_plain_crop_is_said_without_reading_pixels(data, folder):
    found = ask("sees", data, path=str(folder.path / "a.png"), draws=2)
    for draw in found["draws"]:
        assert draw["crop"] == found["crop"] and draw["angle"] == 0 and draw["brightness"] == 1
        assert "pixels" not in draw and draw["masked"]


def test_validation_is_seen_in_one_way_and_with_its_mask(data, folder):
    entry = {"path": str(folder.path), "role": "validation"}
    data = Data.model_validate({**data.model_dump(), **ON, "crop": "focus", "folders": [entry]})
    (draw,) = ask("sees", data, path=str(folder.path / "a.png"), which="validation", pixels=True)["draws"]
    (picture,) = build_index(data, "validation", 8).pictures
    seen = pixels(open_picture(picture.path), picture.bucket, still(picture.options, picture))
    assert np.array_equal(decoded(draw["pixels"]), seen.add(1).mul(127.5).round().permute(1, 2, 0).byte().numpy())
    assert draw["masked"] and decoded(draw["mask"]).shape == (picture.bucket[1] // 8, picture.bucket[0] // 8)


def test_the_list_names_masks(data, folder):
    folder.picture("b.png")
    rows = ask("pictures", data)["pictures"]
    assert [row["mask"] for row in rows] == [str(folder.path / "a-masklabel.png"), None]
