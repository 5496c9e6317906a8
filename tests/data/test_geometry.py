"""Pictures and their masks are moved alike, as an independent affine transform says: crop, bucket, rotation, flip."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modules.data.augment import pixels, sizes_at, still, variants, view_at
from modules.data.buckets import buckets, nearest
from modules.data.cache import MaskCache
from modules.data.index import Picture
from modules.data.masks import Mask, look, placed
from modules.data.pictures import placement
from modules.preset.data_options import Data
from tests.data.encoder import Encoder

SIZES = [(150, 100), (97, 160), (64, 64), (200, 61), (129, 128)]
WAYS = {
    "plain": {},
    "crop": {"crop": "random"},
    "focus": {"crop": "focus"},
    "rotation": {"rotation": 20.0},
    "all": {"crop": "random", "rotation": 30.0, "brightness": 0.0},
    "focus and rotation": {"crop": "focus", "rotation": 45.0},
}
BUCKETS = buckets(96, 8, 2.5, True)


def made(size: tuple[int, int], focus=(0.8, 0.3), **options) -> Picture:
    data = Data(variants=3, **options)
    bucket = nearest(*size, BUCKETS)
    return Picture(Path("a.png"), "a.png", "", *size, bucket, 1, "key", data, focus=focus)


def matrix(picture: Picture, view, flip: bool) -> np.ndarray:
    """From the bucket's coordinates to the picture's own, 3 x 3; from the view's numbers alone."""
    width, height = picture.bucket
    if view is None:
        resized_w, resized_h, top, left = placement(picture.width, picture.height, picture.bucket)
        angle = 0.0
    else:
        (resized_w, resized_h), top, left, angle = view.resized, view.top, view.left, math.radians(view.angle)

    def moved(x: float, y: float) -> np.ndarray:
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=float)

    mirrored = moved(width, 0) @ np.diag([-1.0, 1, 1]) if flip else np.eye(3)
    turned = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    scaled = np.diag([picture.width / resized_w, picture.height / resized_h, 1])
    return scaled @ moved(left + width / 2, top + height / 2) @ turned @ moved(-width / 2, -height / 2) @ mirrored


def sources(picture: Picture, view, flip: bool, points: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The picture's coordinates at points of the bucket's pixels, across and down."""
    width, height = picture.bucket
    y, x = np.mgrid[0 : height * points, 0 : width * points]
    place = np.stack([(x + 0.5) / points, (y + 0.5) / points, np.ones_like(x)])
    across, down, _ = np.einsum("ij,jhw->ihw", matrix(picture, view, flip), place)
    return across, down


def cases():
    for size in SIZES:
        for name, options in WAYS.items():
            picture = made(size, **options)
            for view in variants(picture.options, picture):
                for flip in (False, True):
                    yield pytest.param(picture, view, flip, id=f"{size}-{name}-{flip}")


every_case = pytest.mark.parametrize("picture, view, flip", list(cases()))


@every_case
def test_pictures_are_where_the_transform_says(picture, view, flip):
    """A picture that shows its own coordinates."""
    down, across = np.mgrid[0 : picture.height, 0 : picture.width]
    shades = np.stack([across / picture.width, down / picture.height, np.full(across.shape, 0.5)], -1)
    image = Image.fromarray((shades * 255).round().astype(np.uint8))
    seen = pixels(image, picture.bucket, view)
    seen = (seen.flip(-1) if flip else seen).add(1).div(2).numpy()
    x, y = sources(picture, view, flip)
    inside = (x > 2) & (x < picture.width - 2) & (y > 2) & (y < picture.height - 2)  # edges ring
    assert inside.mean() > 0.8
    for value, wanted, side in ((seen[0], x, picture.width), (seen[1], y, picture.height)):
        off = (value * side - (wanted - 0.5))[inside]
        assert abs(off.mean()) < 0.1, "on average, since a shade is up to 0.8 pixels wide"
        assert np.abs(off).max() < 0.5 + 1.2 * side / 255
    assert np.abs(seen[2] - 0.5).max() < 0.02, "there are no empty corners"


@every_case
@pytest.mark.parametrize("cell", [1, 8])
def test_masks_are_where_the_transform_says(picture, view, flip, cell):
    """Random blocks, against sums over many points of the independent transform."""
    draw = np.random.default_rng(picture.width)
    values = np.kron(draw.integers(0, 2, (8, 8)) * 255.0, np.ones((32, 32)))[: picture.height, : picture.width]
    found = placed(values, (picture.width, picture.height), picture.bucket, view, cell)
    found = found[:, ::-1] if flip else found
    points = 16 // cell if cell > 1 else 8
    x, y = sources(picture, view, flip, points)
    assert x.min() > -1e-9 and x.max() < picture.width + 1e-9 and y.min() > -1e-9 and y.max() < picture.height + 1e-9
    columns, rows = (np.clip(v.astype(int), 0, n - 1) for v, n in ((x, picture.width), (y, picture.height)))
    width, height = (side // cell for side in picture.bucket)
    wanted = values[rows, columns].reshape(height, cell * points, width, cell * points).mean((1, 3))
    wrong = np.abs(found - wanted) / 255
    assert wrong.mean() < 0.01 and wrong.max() < (0.08 if cell > 1 else 0.76), "only pixels on an edge may differ"
    if cell == 1:
        assert (wrong > 0.26).mean() < 0.03


@pytest.mark.parametrize("size, bucket", [((96, 64), (48, 32)), ((100, 60), (48, 32)), ((30, 20), (48, 32))])
def test_averages_are_over_exact_areas(size, bucket):
    """Against sums over a grid that is a multiple of both: the mask's and the cells'."""
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0])).astype(float)
    resized_w, resized_h, top, left = placement(*size, bucket)
    fine = np.repeat(np.repeat(values, resized_h, 0), resized_w, 1)  # resized * size on each side
    fine = fine[top * size[1] : (top + bucket[1]) * size[1], left * size[0] : (left + bucket[0]) * size[0]]
    wanted = fine.reshape(bucket[1] // 8, 8 * size[1], bucket[0] // 8, 8 * size[0]).mean((1, 3))
    np.testing.assert_allclose(placed(values, size, bucket, None, 8), wanted, rtol=1e-12)


def test_a_mask_of_half_the_size_is_the_same_mask():
    values = np.random.default_rng(0).integers(0, 256, (30, 50)).astype(float)
    whole = np.kron(values, np.ones((2, 2)))
    picture = made((100, 60), rotation=10.0)
    for view in [None, *variants(picture.options, picture)]:
        both = [placed(v, (100, 60), picture.bucket, view, 8) for v in (values, whole)]
        np.testing.assert_allclose(*both, rtol=1e-12)


def test_the_cache_has_masks_as_they_are_seen(tmp_path):
    image = Image.new("L", (100, 60))
    image.paste(255, (0, 0, 50, 60))
    image.save(tmp_path / "m.png")
    mask = look(tmp_path / "m.png", tmp_path / "a.png", (100, 60))
    assert isinstance(mask, Mask) and mask.share == 0.5 and mask.centre == (0.25, 0.5)
    picture = Picture(Path("a.png"), "", "", 100, 60, (80, 48), 1, "k", Data(crop="random", rotation=15.0), mask=mask)
    for cache in (True, False):
        masks = MaskCache(Data(cache=cache, cache_folder=str(tmp_path / "cache")), Encoder())
        masks.fill([picture])
        for view in [None, *variants(picture.options, picture)]:
            shares = placed(np.asarray(image, dtype=float), (100, 60), (80, 48), view, 8) / 255
            assert np.array_equal(masks.get(picture, False, view)[0].numpy(), shares)
            assert torch.equal(masks.get(picture, True, view), torch.from_numpy(shares[None, :, ::-1].copy()))
    half = MaskCache(Data(cache=False), Encoder()).get(picture, False)
    assert half.dtype == torch.float64 and torch.equal(half, torch.tensor([1.0] * 5 + [0.0] * 5).expand(1, 6, 10))


# -- size conditioning ------------------------------------------------------------------------------------------------


@every_case
def test_size_conditioning_has_the_true_crop(picture, view, flip):
    sizes = sizes_at(picture, view, flip).tolist()
    assert sizes[:2] == [picture.height, picture.width] and sizes[4:] == [picture.bucket[1], picture.bucket[0]]
    if view is None:
        _, _, top, left = placement(picture.width, picture.height, picture.bucket)
        assert sizes[2:4] == [top, left]
        return
    mirrored = view.resized[0] - view.left - picture.bucket[0]
    assert sizes[2:4] == [view.top, mirrored if flip else view.left]


def test_views_that_are_the_plain_one_are_none():
    """So that they share its cached latents."""
    square = made((96, 96), crop="random")
    assert variants(square.options, square) == [None] * 3 and still(square.options, square) is None
    wide = made((200, 61), crop="random")
    assert None not in variants(wide.options, wide)[:1] and still(wide.options, wide) is None
    assert still(made((200, 61), crop="focus").options, made((200, 61), crop="focus")) is not None


def test_each_option_has_draws_of_its_own():
    """An option that is switched on leaves the others' draws as they are."""
    small, both = made((200, 61), crop="random"), made((200, 61), crop="random", brightness=0.5)
    for position in range(20):
        one, other = (view_at(p.options, p, 0, position) for p in (small, both))
        assert (one.left, one.top) == (other.left, other.top) and one.brightness == 1 != other.brightness
    turned = made((200, 61), rotation=20.0), made((200, 61), rotation=20.0, hue=0.5, crop="random")
    angles = [[view_at(p.options, p, 0, position).angle for position in range(9)] for p in turned]
    assert angles[0] == angles[1] and len(set(angles[0])) == 3
