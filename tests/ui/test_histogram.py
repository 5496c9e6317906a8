"""The bars of the buckets, and what they say."""

from ui.pages.pictures.bucket_bars import Histogram
from ui.pages.pictures.pictures_page import bucket_words
from ui.widgets import theme


def test_buckets_say_what_is_filled_up_and_warn_of_small_ones(qtbot):
    histogram = Histogram()
    qtbot.addWidget(histogram)
    buckets = [
        {"size": [64, 64], "pictures": 30, "repeats": 30, "filled": 2},
        {"size": [96, 48], "pictures": 3, "repeats": 6, "filled": 2},
    ]
    histogram.set_buckets(buckets, 8)
    assert histogram.sentence(buckets[0]).startswith("64 × 64: 30 pictures; 2 repeated")
    assert "shown 6 times per epoch" in histogram.sentence(buckets[1])
    assert [histogram.is_small(bucket) for bucket in buckets] == [False, True]
    assert "Fewer than a batch" in histogram.sentence(buckets[1])
    histogram.resize(400, histogram.sizeHint().height())
    histogram.show()
    for row, bucket in enumerate(buckets):
        bar = histogram.childAt(histogram.rows.cellRect(row, 1).center())
        assert bar.toolTip() == histogram.sentence(bucket)
        widths = [bar.grab().toImage().pixelColor(round(x * (bar.width() - 1)), bar.height() // 2) for x in (0.1, 0.96)]
        assert (widths[1] != bar.palette().window().color()) is (row == 0), "the longest bar fills its column"
        assert widths[0] == theme.colors().warning if row else widths[0] == theme.colors().series[0]
    assert bucket_words(buckets, 8).endswith("4 pictures repeated per epoch to fill last batches (pale).")
