"""Augmentation: functions of seed and position, cached by what they are, and nothing changes without them."""

import colorsys
import hashlib
from dataclasses import replace

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from modules.data.augment import View, coloured, number_at, pixels, still, variants, view_at
from modules.data.batches import Batches, flip_at
from modules.data.cache import LatentCache
from modules.data.index import build_index
from modules.data.opening import open_picture
from modules.data.pictures import fit, sizes_of
from tests.data.encoder import Encoder, pictures_of

ON = {"crop": "random", "rotation": 8.0, "brightness": 0.2, "contrast": 0.2, "saturation": 0.3, "hue": 0.1}


def on(options, **more):
    return options.model_copy(update={**ON, **more})


def drawn(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8))


def colours(**values) -> View:
    return View((24, 16), 0, 0, **values)


# -- without ----------------------------------------------------------------------------------------------------------


def test_without_the_options_everything_is_as_before(options):
    """Keys as versions without augmentation made them, the same pixels and sizes."""
    options = options.model_copy(update={"flip": True})
    latents, index = LatentCache(options, Encoder()), build_index(options, "training", 32)
    for picture in index.pictures:
        assert variants(options, picture) == [None] and still(options, picture) is None
        for flip in (False, True):
            facts = (2, "latents", "images 1.0", PIL.__version__, picture.key, picture.bucket, flip)
            assert latents.key(picture, flip) == hashlib.sha256(repr(facts).encode()).hexdigest()
        opened = open_picture(picture.path)
        assert torch.equal(pixels(opened, picture.bucket, None), fit(opened, picture.bucket)[0])
    batch = Batches(index, 3, 1, 1, 0, seed=2).at(4, 0)
    assert batch.views == (None,) * 3 and batch.masked == (True,) * 3
    assert batch.flips == tuple(flip_at(options, 2, position) for position in batch.positions)
    assert torch.equal(batch.sizes, torch.stack([sizes_of(p.width, p.height, p.bucket) for p in batch.pictures]))


# -- draws ------------------------------------------------------------------------------------------------------------


def test_variants_do_not_depend_on_the_seed_but_their_use_does(options):
    options = on(options, variants=5)
    picture = pictures_of(options)[2]
    kept = variants(options, picture)
    assert len(set(kept)) == 5 and kept == variants(options, picture)
    uses = [[number_at(options, seed, position) for position in range(300)] for seed in (0, 1)]
    assert uses[0] != uses[1] and all(set(one) == set(range(5)) for one in uses)
    for position in range(20):
        assert view_at(options, picture, 1, position) == kept[uses[1][position]]


def test_on_the_fly_every_use_is_another(options):
    options = on(options, variants=0)
    picture = pictures_of(options)[2]
    views = [view_at(options, picture, 0, position) for position in range(50)]
    assert len(set(views)) == 50 and views == [view_at(options, picture, 0, position) for position in range(50)]
    assert view_at(options, picture, 1, 0) != views[0] and variants(options, picture) == []


def test_draws_reach_their_limits_and_no_further(options):
    options = on(options, variants=0)
    picture = pictures_of(options)[2]
    views = [view_at(options, picture, 0, position) for position in range(500)]
    for name, middle, most in [("angle", 0, 8), ("brightness", 1, 0.2), ("contrast", 1, 0.2), ("saturation", 1, 0.3),
                               ("hue", 0, 0.1)]:
        values = torch.tensor([getattr(view, name) - middle for view in views])
        assert -most <= values.min() < -0.95 * most and 0.95 * most < values.max() <= most
        assert values.mean().abs() < 0.1 * most
    only = [view_at(on(options, rotation=0.0, variants=0), picture, 0, position) for position in range(200)]
    free = {view.left for view in only}, {view.top for view in only}
    width, height = only[0].resized
    assert free == (set(range(width - picture.bucket[0] + 1)), set(range(height - picture.bucket[1] + 1)))


def test_validation_pictures_do_not_vary(options):
    picture = pictures_of(on(options))[2]
    assert still(picture.options, picture) is None
    focused = replace(picture, focus=(0.0, 0.9), options=on(options, crop="focus"))
    seen = still(focused.options, focused)
    assert seen is None or (seen.angle, seen.hue, seen.brightness) == (0, 0, 1)


# -- colours ----------------------------------------------------------------------------------------------------------


def test_brightness_contrast_and_saturation():
    """Against their definitions: towards black, the mean grey, and each pixel's grey."""
    image = drawn()
    values = np.asarray(image).astype(float)
    grey = np.asarray(image.convert("L")).astype(float)
    wanted = {
        "brightness": values * 1.3,
        "contrast": (values - round(grey.mean())) * 1.3 + round(grey.mean()),
        "saturation": (values - grey[..., None]) * 1.3 + grey[..., None],
    }
    for name, expected in wanted.items():
        found = np.asarray(coloured(image, colours(**{name: 1.3}))).astype(float)
        assert np.abs(found - expected.clip(0, 255)).max() <= 1.0, name


@pytest.mark.parametrize("hue", [0.25, -0.25, 0.5])
def test_hue(hue):
    """Against the standard library's circle of colours. 8 bits of hue are 1.4 degrees."""
    image = drawn()
    found = np.asarray(coloured(image, colours(hue=hue))).reshape(-1, 3) / 255
    for before, after in zip(np.asarray(image).reshape(-1, 3) / 255, found, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        assert np.abs(np.array(colorsys.hsv_to_rgb((h + hue) % 1, s, v)) - after).max() < 0.05


def test_colours_without_a_change_are_untouched():
    assert coloured(drawn(), colours()) is not None
    assert np.array_equal(coloured(drawn(), colours()), drawn())


def test_colours_follow_the_crop(options):
    """They are computed of the part that is kept: what is cut off cannot change the contrast."""
    image = Image.new("RGB", (64, 32), "white")
    image.paste(drawn().resize((32, 32)), (0, 0))
    view = View((64, 32), 0, 0, contrast=1.5)
    alone = pixels(image.crop((0, 0, 32, 32)), (32, 32), View((32, 32), 0, 0, contrast=1.5))
    assert torch.equal(pixels(image, (32, 32), view), alone)


# -- cache ------------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("cache", [True, False])
def test_every_variant_is_encoded_once_and_found_again(options, cache):
    options = on(options, flip=True, cache=cache, variants=3)
    pictures, model = pictures_of(options), Encoder()
    latents = LatentCache(options, model)
    latents.fill(pictures)
    assert model.images == len(pictures) * 3 * 2
    for picture in pictures:
        for position in range(30):
            view = view_at(options, picture, 0, position)
            seen = pixels(open_picture(picture.path), picture.bucket, view)
            for flip in (False, True):
                expected = Encoder().encode_images((seen.flip(-1) if flip else seen)[None])[0]
                assert torch.equal(latents.get(picture, flip, view), expected)
    assert model.images == len(pictures) * 3 * 2
    again = Encoder()
    LatentCache(options, again).fill(pictures_of(options))
    assert again.images == (0 if cache else len(pictures) * 3 * 2)
    more = Encoder()
    LatentCache(on(options, variants=4), more).fill(pictures_of(on(options, flip=True, variants=4)))
    assert more.images == len(pictures) * 2 * (1 if cache else 4), "more variants add to those that are there"
    stronger = Encoder()
    LatentCache(options, stronger).fill(pictures_of(on(options, flip=True, variants=3, hue=0.2)))
    assert stronger.images == len(pictures) * 3 * 2


def test_on_the_fly_nothing_is_kept(options, tmp_path):
    options = on(options, variants=0)
    pictures, model = pictures_of(options), Encoder()
    latents = LatentCache(options, model)
    latents.fill(pictures, validation=pictures[:1])
    assert model.images == 1, "those for validation never vary"
    view = view_at(options, pictures[2], 0, 7)
    first, second = (latents.get(pictures[2], False, view) for _ in range(2))
    assert model.images == 3 and torch.equal(first, second)
    assert len(list((tmp_path / "cache" / "latents").rglob("*.safetensors"))) == 1


def test_a_picture_that_changed_is_noticed_in_a_step_too(options, folder):
    options = on(options, variants=0)
    picture = pictures_of(options)[0]
    latents = LatentCache(options, Encoder())
    folder.picture("a.png", (64, 64))
    with pytest.raises(ValueError, match=r"a\.png: has changed"):
        latents.get(picture, False, view_at(options, picture, 0, 0))
