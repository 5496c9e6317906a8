"""What people read: numbers, sizes, times."""

from datetime import datetime, timezone

import pytest

from ui.core import words


@pytest.mark.parametrize("value", [0, 1, -3, 0.0001, 1e-8, 2.5e-7, -0.8, 2000.0, 1e20, 123456.789, 0.1 + 0.2])
def test_a_number_reads_back_as_itself(value):
    assert float(words.number(value)) == value


@pytest.mark.parametrize(
    "value, text", [(1e-5, "1e-5"), (0.0001, "0.0001"), (4.0, "4"), (-0.8, "-0.8"), (10**20, "1e20")]
)
def test_numbers_are_short(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize("count, text", [(551626, "551,626 times"), (1, "1 time"), (1 / 3, "0.33 times")])
def test_counts(count, text):
    assert words.plural(count, "time") == text


@pytest.mark.parametrize("count, text", [(12, "12 B"), (1024, "1.0 KiB"), (1144252, "1.1 MiB"), (5 * 2**40, "5.0 TiB")])
def test_sizes(count, text):
    assert words.size(count) == text


@pytest.mark.parametrize(
    "seconds, text", [(0, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3700, "1 h 1 min"), (90000, "1 d 1 h")]
)
def test_durations(seconds, text):
    assert words.duration(seconds) == text


def test_a_time_of_today_has_no_date():
    now = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
    assert words.when(now.isoformat(), now).startswith("today ")
    assert words.when(datetime(2026, 11, 1, 12, tzinfo=timezone.utc), now).startswith("2026-11-0")


@pytest.mark.parametrize(
    "thing, text",
    [
        (None, "none"),
        (True, "on"),
        (False, "off"),
        ("", "empty"),
        ([], "nothing"),
        (["a", 1], "a, 1"),
        (1e-4, "0.0001"),
    ],
)
def test_values(thing, text):
    assert words.value(thing) == text


@pytest.mark.parametrize("length", [3, 9, 10, 11, 200])
@pytest.mark.parametrize("most", [9, 10])
def test_long_texts_are_shortened_in_their_middle(length, most):
    text = "".join(chr(0x100 + place) for place in range(length))
    short = words.shortened(text, most)
    assert short == text if length <= most else len(short) == most
    assert short[:3] == text[:3] and short[-3:] == text[-3:]
