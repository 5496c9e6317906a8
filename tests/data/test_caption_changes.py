"""What is done to captions with each use: alternatives, kept parts, lists of tags, trigger, prefix and suffix."""

import itertools
import re
from collections import Counter

import pytest

from modules.data.captions import caption_for, whole_caption
from modules.data.wildcards import expanded
from modules.preset.data_options import Data

N = 3000


def seen(caption: str, count: int = N, seed: int = 0, **options) -> list[str]:
    data = Data(**({"caption_dropout": 0.0} | options))
    return [caption_for(data, caption, seed, position) for position in range(count)]


def is_even(found: list[str], expected: set[str]) -> bool:
    """Whether all of the expected texts were found, and equally often (within five deviations)."""
    counts, mean = Counter(found), len(found) / len(expected)
    return counts.keys() == expected and all(abs(count - mean) < 5 * mean**0.5 for count in counts.values())


# -- alternatives -----------------------------------------------------------------------------------------------------


def as_in_sd_scripts(caption: str) -> set[str]:
    """All that its scheme may make of a caption: doubled braces are braces, and of the parts between single ones,
    divided by bars, one is taken. Its groups have no braces inside."""
    text = caption.replace("{{", "\1").replace("}}", "\2")
    pieces = re.split(r"(\{[^{}]+\})", text)
    ways = [piece[1:-1].split("|") if re.fullmatch(r"\{[^{}]+\}", piece) else [piece] for piece in pieces]
    return {"".join(way).replace("\1", "{").replace("\2", "}") for way in itertools.product(*ways)}


@pytest.mark.parametrize(
    "caption",
    [
        "1girl, hatsune miku, {white|orange|blue} shirt",
        "a {cat|dog}, {sitting|running|asleep} , {|small}",
        "{{retro style}}, {a|b}",
        "{{a|b}} and {c}",
        "no braces",
        "",
        "{}, a | b",
        "{|}x",
    ],
)
def test_alternatives_are_those_of_sd_scripts(caption):
    assert is_even(seen(caption, wildcards=True), as_in_sd_scripts(caption))
    assert set(seen(caption, 50)) == {caption}, "only where they are asked for"


@pytest.mark.parametrize(
    "text, shares",
    [
        ("{a|{b|c}}", {"a": 1 / 2, "b": 1 / 4, "c": 1 / 4}),
        ("{{a|b}|c}", {"a": 1 / 4, "b": 1 / 4, "c": 1 / 2}),
        ("{3::a|b}", {"a": 3 / 4, "b": 1 / 4}),
        ("{0::a|0.5::b| 1.5::{c|d} e}", {"b": 1 / 4, "c e": 3 / 8, "d e": 3 / 8}),
        ("{0::a|0::b}", {"a": 1 / 2, "b": 1 / 2}),
        ("{{{a|b}}}", {"{a}": 1 / 2, "{b}": 1 / 2}),
        ("{a|{{b}}}", {"a": 1 / 2, "{b}": 1 / 2}),
    ],
)
def test_alternatives_inside_others_and_weights(text, shares):
    counts = Counter(seen(text, wildcards=True))
    assert counts.keys() == shares.keys()
    assert all(counts[key] / N == pytest.approx(share, abs=0.05) for key, share in shares.items())


@pytest.mark.parametrize("text", ["{", "}", "a } b", "} {", ":-}", "{a|b", "a|b}", "{" * 5000 + "}" * 5000, "|"])
def test_what_is_no_pair_of_braces_stays(text):
    assert expanded(text, None).replace("{", "").replace("}", "") == text.replace("{", "").replace("}", "")
    assert len(text) > 9 or expanded(text, None) == text


# -- kept parts -------------------------------------------------------------------------------------------------------


def orders(caption: str, mark: str) -> set[str]:
    """All that sd-scripts' keep_tokens_separator allows: what is before the first mark stays in front, what is behind
    the second at the end, and the parts between are in any order."""
    sides = [[tag.strip() for tag in side.split(",") if tag.strip()] for side in caption.split(mark, 2)]
    front, middle, end = (sides + [[]])[:3] if len(sides) < 3 else sides
    return {", ".join([*front, *order, *end]) for order in itertools.permutations(middle)}


MARKED = [
    "1girl, miku, vocaloid ||| stage, mic, singing",
    "1girl, miku ||| stage, mic, singing ||| best quality, rating: safe",
    "||| a, b, c",
    "a, b ||| c ||| d ||| e",
    "x,, y|||  a ,b, , c |||",
    "a|||",
]


@pytest.mark.parametrize("caption", MARKED)
def test_the_kept_parts_are_those_of_sd_scripts(caption):
    for keep_tokens in (0, 1, 5):  # without effect, as there
        found = seen(caption, shuffle=True, keep_separator="|||", keep_tokens=keep_tokens)
        assert is_even(found, orders(caption, "|||"))
    assert set(seen(caption, 50, keep_separator="|||")) <= orders(caption, "|||"), "the mark itself is never learned"
    assert "|||" in seen(caption, 1)[0]


def test_captions_without_the_mark_are_treated_as_before():
    for options in ({"shuffle": True, "keep_tokens": 2}, {"part_dropout": 0.4}, {}):
        assert seen("a, b, c, d, e", 200, **options) == seen("a, b, c, d, e", 200, keep_separator="|||", **options)


def test_dropping_leaves_the_marked_parts():
    found = seen("a ||| b, c ||| d", part_dropout=0.5, keep_separator="|||")
    assert is_even(found, {"a, b, c, d", "a, b, d", "a, c, d", "a, d"})
    found = seen("sks ||| b, c", shuffle=True, keep_separator="|||", trigger="sks")
    assert is_even(found, {"sks, b, c", "sks, c, b"}), "the trigger is not added again"


# -- lists of tags ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lists, dropped",
    [
        ({}, {"b", "c d", "e"}),
        ({"drop_never": ("C_D", "a")}, {"b", "e"}),
        ({"drop_only": ("c_d", "x")}, {"c d"}),
        ({"drop_only": ("b", "c d"), "drop_never": ("b",)}, {"c d"}),
        ({"drop_never": ("b", "c d", "e")}, set()),
    ],
)
def test_tags_that_are_never_dropped_or_alone(lists, dropped):
    found = [text.split(", ") for text in seen("a, b, c d, e", part_dropout=0.3, **lists)]
    for tag in ("a", "b", "c d", "e"):
        share = sum(tag not in parts for parts in found) / N
        assert share == pytest.approx(0.3 if tag in dropped else 0.0, abs=0.05 if tag in dropped else 0.0)
    together = [sum(tag not in parts for tag in dropped) for parts in found]
    if dropped:
        assert max(together) == len(dropped), "each on its own"


# -- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "caption, options, expected",
    [
        ("long_hair, ^_^,  red_eyes", {"underscores": True}, "long hair, ^_^,  red eyes"),
        ("sks_dog, big_dog", {"underscores": True, "trigger": "sks_dog"}, "sks_dog, big dog"),
        ("a_b_c", {"underscores": True, "separator": ""}, "a b c"),
        ("a photo of [trigger] here", {"trigger": "sks"}, "a photo of sks here"),
        ("sks, with [trigger]", {"trigger": "sks"}, "sks, with sks"),
        ("a photo of [trigger] here", {}, "a photo of here"),
        ("[trigger], dog", {}, "dog"),
        ("[trigger]", {"trigger": "sks"}, "sks"),
        ("[name], dog", {"trigger": "sks"}, "sks, [name], dog"),
        ("dog", {"prefix": "photo of a", "suffix": "outside"}, "photo of a dog outside"),
        ("", {"prefix": "photo", "suffix": " x "}, "photo x"),
        ("sks, dog", {"prefix": "photo of", "trigger": "sks"}, "sks, photo of dog"),
        ("dog", {"prefix": "photo of", "trigger": "sks"}, "sks, photo of dog"),
        ("dog", {"caption_dropout": 1.0, "prefix": "photo", "trigger": "sks"}, ""),
        ("one\ntwo", {"caption_lines": "all"}, "one\ntwo"),
        ("{x|x}_y_z, [trigger]", {"wildcards": True, "underscores": True, "trigger": "s_t"}, "x y z, s_t"),
        ("a_b_c, [trigger], d", {"shuffle": True, "keep_tokens": 9, "underscores": True, "trigger": "s_t"},
         "a b c, s_t, d"),
    ],
)  # fmt: skip
def test_texts(caption, options, expected):
    assert set(seen(caption, 20, **options)) == {expected}


def test_prefix_and_suffix_count_as_parts_as_in_sd_scripts():
    found = seen("c, d", shuffle=True, keep_tokens=1, prefix="a, b,", suffix=", e")
    assert is_even(found, {", ".join(["a", *order]) for order in itertools.permutations(["b", "c", "d", "e"])})


EVERYTHING = {
    "caption_lines": "random", "wildcards": True, "shuffle": True, "part_dropout": 0.2, "caption_dropout": 0.1,
    "keep_separator": "|||", "underscores": True, "trigger": "sks", "drop_never": ("cat",), "prefix": "p,",
}  # fmt: skip
CAPTION = "a_b_c ||| {cat|dog}, {red|blue} sofa, x ||| end\n[trigger] ||| other, {one|two}, three"


def test_every_use_is_a_pure_function_of_seed_and_position():
    forward, data = seen(CAPTION, 300, **EVERYTHING), Data(**EVERYTHING)
    assert [caption_for(data, CAPTION, 0, position) for position in reversed(range(300))] == forward[::-1]
    assert len(set(forward)) > 50 and forward != seen(CAPTION, 300, seed=1, **EVERYTHING)
    lines = Counter("end" in text.split(", ") for text in forward if text)
    assert min(lines.values()) > 90, "both lines"


def test_each_purpose_has_its_own_draw():
    """Turning one on does not change what the others do."""
    parts = [text.split(", ")[1:] for text in seen("{a|b}, c, d, e, f", 300, shuffle=True, wildcards=True)]
    assert parts == [text.split(", ")[1:] for text in seen("a, c, d, e, f", 300, shuffle=True)]
    lines = seen("a\nb", 300, caption_lines="random")
    words = [text.split()[0] for text in seen("a {x|y}\nb {x|y}", 300, caption_lines="random", wildcards=True)]
    assert words == lines


def test_validation_pictures_have_the_first_of_everything():
    assert whole_caption(Data(**EVERYTHING), CAPTION) == "sks, p, a b c, cat, red sofa, x, end"
    assert whole_caption(Data(wildcards=True), "{0::a|b|c}") == "b"
