"""What becomes of captions."""

import pytest

from modules.data.captions import caption_for, read_text
from modules.preset.data_options import Data

TAGS = "cat, sitting,  red sofa , window,night"
N = 4000


def seen(caption=TAGS, seed=0, positions=range(N), **options):
    data = Data(**({"caption_dropout": 0.0} | options))
    return [caption_for(data, caption, seed, position) for position in positions]


@pytest.mark.parametrize(
    "caption, options, expected",
    [
        (TAGS, {}, TAGS),
        (" odd ,, text\n", {}, " odd ,, text\n"),
        (TAGS, {"trigger": "sks"}, "sks, " + TAGS),
        ("", {"trigger": "sks"}, "sks"),
        ("", {}, ""),
        ("sks, dog", {"trigger": "sks"}, "sks, dog"),
        ("sks", {"trigger": "sks"}, "sks"),
        ("sksy, dog", {"trigger": "sks"}, "sks, sksy, dog"),
        ("a, b, dog", {"trigger": "a, b"}, "a, b, dog"),
        ("dog here", {"trigger": "sks", "separator": " "}, "sks dog here"),
        ("dog|cat", {"trigger": "sks", "separator": "|"}, "sks| dog|cat"),
        ("dog", {"trigger": "sks", "separator": ""}, "sks dog"),
        (TAGS, {"caption_dropout": 1.0, "trigger": "sks"}, ""),
        (TAGS, {"shuffle": True, "keep_tokens": 1000}, "cat, sitting, red sofa, window, night"),
        ("sks, dog, b", {"shuffle": True, "keep_tokens": 2, "trigger": "sks"}, "sks, dog, b"),
    ],
)
def test_table(caption, options, expected):
    assert set(seen(caption, positions=range(20), **options)) == {expected}


def test_pure():
    options = {"shuffle": True, "part_dropout": 0.3, "caption_dropout": 0.2}
    forward = seen(positions=range(50), **options)
    backward = seen(positions=range(49, -1, -1), **options)
    assert forward == backward[::-1]
    assert forward != seen(positions=range(50), seed=1, **options)


def test_shuffle_keeps_the_first_and_all_parts():
    results = [text.split(", ") for text in seen(shuffle=True, keep_tokens=2)]
    assert {tuple(parts[:2]) for parts in results} == {("cat", "sitting")}
    assert {tuple(sorted(parts[2:])) for parts in results} == {("night", "red sofa", "window")}
    orders = [tuple(parts[2:]) for parts in results]
    counts = {order: orders.count(order) for order in set(orders)}
    assert len(counts) == 6 and min(counts.values()) > 0.8 * N / 6


def test_keep_nothing_but_the_trigger():
    results = [text.split(", ") for text in seen(shuffle=True, keep_tokens=0, trigger="sks")]
    assert {parts[0] for parts in results} == {"sks"}
    assert len({parts[1] for parts in results}) == 5


def test_part_dropout():
    results = [text.split(", ") for text in seen(part_dropout=0.25, trigger="sks")]
    assert {tuple(parts[:2]) for parts in results} == {("sks", "cat")}
    for tag in ("sitting", "red sofa", "window", "night"):
        assert sum(tag in parts for parts in results) / N == pytest.approx(0.75, abs=0.03)
    order = ["sks", "cat", "sitting", "red sofa", "window", "night"]
    assert all(parts == [tag for tag in order if tag in parts] for parts in results)


def test_caption_dropout():
    results = seen(caption_dropout=0.1, trigger="sks", shuffle=True)
    assert results.count("") / N == pytest.approx(0.1, abs=0.02)


def test_read_text(tmp_path):
    path = tmp_path / "a.txt"
    for content, expected in [
        (b"\xef\xbb\xbfcaf\xc3\xa9 \n", "café"),
        (b"one\r\ntwo", "one\r\ntwo"),
        (b"", ""),
    ]:
        path.write_bytes(content)
        assert read_text(path) == expected
    for content in ("café".encode("latin-1"), "cat".encode("utf-16"), "cat".encode("utf-16-le")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.txt: is not UTF-8 .* save it"):
            read_text(path)
