"""Buckets: sizes and choice."""

import math

import pytest

from modules.data.buckets import buckets, nearest


@pytest.mark.parametrize("resolution", [64, 100, 128, 512, 1000, 1024])
@pytest.mark.parametrize("step", [8, 32, 64])
@pytest.mark.parametrize("max_aspect", [1, 1.5, 2, 8])
def test_properties(resolution, step, max_aspect):
    sizes = buckets(resolution, step, max_aspect, True)
    side = next(w for w, h in sizes if w == h)
    assert abs(side - resolution) <= step / 2
    assert len(set(sizes)) == len(sizes)
    assert {(h, w) for w, h in sizes} == set(sizes)
    for w, h in sizes:
        assert w % step == h % step == 0 and min(w, h) >= step
        assert w * h <= side * side and max(w, h) / min(w, h) <= max_aspect
        assert nearest(w, h, sizes) == (w, h)
    assert buckets(resolution, step, max_aspect, False) == ((side, side),)


def test_usual_sizes():
    sizes = buckets(1024, 64, 2.0, True)
    assert {(1024, 1024), (1152, 896), (1216, 832), (1344, 768), (768, 1344), (832, 1216)} <= set(sizes)


def test_nearest_is_nearest_by_ratio():
    sizes = buckets(1024, 64, 2.0, True)
    for width, height in [(1920, 1080), (1080, 1920), (4000, 3000), (100, 100), (10, 9000), (3000, 1)]:
        chosen = nearest(width, height, sizes)
        distance = [abs(math.log(w / h * height / width)) for w, h in sizes]
        assert abs(math.log(chosen[0] / chosen[1] * height / width)) == pytest.approx(min(distance))


def test_too_small():
    with pytest.raises(ValueError, match=r"data\.resolution 32 .* at least 64"):
        buckets(32, 64, 2.0, True)
