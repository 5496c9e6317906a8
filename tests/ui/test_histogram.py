"""The bars of the buckets, and what they say."""

from ui.pages.pictures.bucket_bars import Histogram
from ui.pages.pictures.pictures_page import bucket_words


def test_buckets_say_what_is_filled_up_and_warn_of_small_ones(qtbot):
    histogram = Histogram()
    qtbot.addWidget(histogram)
    buckets = [
        {"size": [64, 64], "pictures": 30, "repeats": 30, "filled": 2},
        {"size": [96, 48], "pictures": 3, "repeats": 6, "filled": 2},
    ]
    histogram.set_buckets(buckets, 8)
    assert histogram.sentence(buckets[0]).startswith("64 × 64: 30 pictures; 2 more")
    assert "shown 6 times per epoch" in histogram.sentence(buckets[1])
    assert [histogram.is_small(bucket) for bucket in buckets] == [False, True]
    assert "Fewer than a batch" in histogram.sentence(buckets[1])
    histogram.resize(400, histogram.sizeHint().height())
    row = histogram.sizeHint().height() // 2
    assert histogram.bar_at(histogram.rect().topLeft()) is buckets[0]
    assert histogram.bar_at(histogram.rect().topLeft() + type(histogram.pos())(0, row + 2)) is buckets[1]
    assert bucket_words(buckets, 8).endswith("4 are shown again per epoch (pale).")
