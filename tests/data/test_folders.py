"""Folders with settings of their own: what holds in each, how often an epoch has each picture, and at which sizes."""

from collections import Counter
from fractions import Fraction
from itertools import chain
from pathlib import Path
from random import Random

import pytest

from modules.adapters.base import seed_of
from modules.data.batches import Batches
from modules.data.captions import caption_for, whole_caption
from modules.data.folders import OF_FOLDERS, folder_options
from modules.data.index import DataProblems, Index, Picture, build_index, by_shape
from modules.preset.data_options import Data
from modules.preset.folder_options import Folder
from tests.data.conftest import Folder as Pictures

STEP = 8


@pytest.fixture
def places(tmp_path) -> dict[str, str]:
    """Folders: cats (6 pictures, one wide), dogs (4), held (2)."""
    made = {name: Pictures(tmp_path / name) for name in ("cats", "dogs", "held")}
    for name, count in (("cats", 5), ("dogs", 4), ("held", 2)):
        for number in range(count):
            made[name].picture(f"{number}.png", (64, 64), f"{name} {number}")
    made["cats"].picture("wide.png", (128, 64), "cats wide")
    return {name: str(one.path) for name, one in made.items()}


def index_of(folders, which="training", **options) -> Index:
    return build_index(Data(folders=tuple(folders), **{"resolution": 64, **options}), which, STEP)


def epochs_of(batches: Batches, count: int) -> list[Counter]:
    """How often each of the first epochs shows each picture, without what fills batches up (batch size 1)."""
    assert batches.total == 1
    found, number = [], 0
    for epoch in range(count):
        many = batches.epochs.batches(epoch)
        found.append(Counter(batches.at(number + n, 0).pictures[0] for n in range(many)))
        number += many
    return found


def shown(index: Index, epochs: int, seed: int = 0) -> list[Counter]:
    return epochs_of(Batches(index, 1, 1, 1, 0, seed), epochs)


# -- settings ---------------------------------------------------------------------------------------------------------


def test_a_path_stays_a_path_and_settings_are_written_as_given():
    given = ("a", {"path": "b"}, {"path": "c", "role": "train", "repeats": 1}, {"path": "d", "repeats": 2})
    assert Data(folders=given).model_dump(mode="json")["folders"] == ["a", "b", "c", {"path": "d", "repeats": 2.0}]
    assert Data.model_validate(Data(folders=given).model_dump()) == Data(folders=given)


def test_settings_of_a_folder_are_those_of_the_data_set():
    """Same bounds and choices, or null: so whatever a folder says could be said of all."""
    for name, field in Folder.model_fields.items():
        if name not in OF_FOLDERS:
            usual = Data.model_fields[name]
            assert field.default is None and field.annotation == usual.annotation | None, name
            assert [*map(repr, field.metadata)] == [*map(repr, usual.metadata)], name
            assert f"data.{name}" in (field.description or ""), name


def test_a_folders_value_wins_over_that_of_all():
    options = Data(flip=True, trigger="sks", resolutions=(512, 768), resolution_shares=(1, 0.5), caption_dropout=0.2)
    assert folder_options(options, Folder(path="x")) is options
    own = folder_options(options, Folder(path="x", flip=False, trigger="", caption_dropout=0))
    assert (own.flip, own.trigger, own.caption_dropout, own.resolutions) == (False, "", 0, (512, 768))
    assert folder_options(options, Folder(path="x", resolution=256)).resolutions == ()
    own = folder_options(options, Folder(path="x", resolutions=(256,)))
    assert (own.resolutions, own.resolution_shares) == ((256,), ())


def test_pictures_carry_what_holds_in_their_folder(places):
    cats = {"path": places["cats"], "trigger": "tom", "flip": True, "loss_weight": 0.5, "resolution": 32}
    index = index_of([cats, places["dogs"]], trigger="sks", caption_dropout=0)
    for picture in index.pictures:
        own = picture.entry == 0
        assert (picture.options.trigger, picture.options.flip) == (("tom", True) if own else ("sks", False))
        assert (picture.loss_weight, picture.role) == (0.5 if own else 1.0, "train")
        assert picture.options.resolution == (32 if own else 64) and max(picture.bucket) <= (48 if own else 96)
    batches = Batches(index, 1, 1, 1, 0, seed=1)
    seen = [batches.at(step, 0) for step in range(60)]
    flips = {batch.pictures[0].entry for batch in seen if batch.flips[0]}
    assert flips == {0}
    for batch in seen:
        start = "tom" if batch.pictures[0].entry == 0 else "sks"
        assert batch.captions[0].startswith(f"{start}, ")


@pytest.mark.parametrize("caption, prompt", [
    ("a cat", "photo of a cat outside"),
    ("", "photo of outside"),
])
def test_prefix_and_suffix_are_around_the_caption(caption, prompt):
    data = Data(prefix="photo of ", suffix=" outside", caption_dropout=0)
    assert caption_for(data, caption, 0, 0) == whole_caption(data, caption) == prompt
    trigger = data.model_copy(update={"trigger": "sks"})
    assert caption_for(trigger, caption, 0, 0) == f"sks, {prompt}"
    assert caption_for(trigger, f"sks, {caption}" if caption else "sks", 0, 0) == f"sks, {prompt}"
    parts = Data(prefix="a, b,", suffix=", z", shuffle=True, keep_tokens=1, caption_dropout=0)
    found = {caption_for(parts, "c, d", 0, position) for position in range(50)}
    assert len(found) > 5 and all(one.startswith("a, ") and sorted(one.split(", ")) == [*"abcdz"] for one in found)


# -- which pictures ---------------------------------------------------------------------------------------------------


def test_sub_folders_are_only_read_where_that_is_wanted(folder):
    for name in ("a.png", "2_more/b.png", "deep/c.png", "2_more/deep/d.png"):
        folder.picture(name)
    path = str(folder.path)
    assert {p.name for p in index_of([path]).pictures} == {"a.png", "2_more/b.png", "deep/c.png", "2_more/deep/d.png"}
    for index in (index_of([{"path": path, "recursive": False}]), index_of([path], recursive=False)):
        assert {p.name: p.repeats for p in index.pictures} == {"a.png": 1, "2_more/b.png": 2}
        assert any("sub-folders are ignored" in note and "deep" in note for note in index.notes)


def test_one_path_twice_with_other_settings(places):
    path = places["cats"]
    small = {"path": path, "resolution": 32, "repeats": 2}
    index = index_of([path, small])
    assert Counter(picture.options.resolution for picture in index.pictures) == {64: 6, 32: 6}
    assert {picture.repeats for picture in index.pictures if picture.entry == 1} == {2}
    assert not any("same content" in note for note in index.notes)
    assert any("is given 2 times with different settings" in note for note in index.notes)
    for same in (path, {"path": path, "resolution": 64}, {"path": path, "flip": False}):  # the same, said otherwise
        with pytest.raises(DataProblems, match="is given twice"):
            index_of([path, same])


@pytest.mark.parametrize("settings", [{"role": "regularisation"}, {"repeats": 2}, {"trigger": "x"}])
def test_a_folder_inside_another_is_read_by_its_own_entry_alone(folder, settings):
    for name in ("a.png", "sub/b.png", "sub/deep/c.png"):
        folder.picture(name)
    inner = {"path": str(folder.path / "sub"), **settings}
    for order in ([str(folder.path), inner], [inner, str(folder.path)]):
        index = index_of(order)
        assert Counter(picture.path.name for picture in index.pictures) == {"a.png": 1, "b.png": 1, "c.png": 1}
        assert {picture.path.name for picture in index.pictures if picture.entry == order.index(inner)} == {
            "b.png", "c.png"
        }  # fmt: skip
        assert any("entries of data.folders themselves" in note for note in index.notes)
    with pytest.raises(DataProblems, match="whose sub-folders are also read"):
        index_of([str(folder.path), str(folder.path / "sub")])
    alone = index_of([{"path": str(folder.path), "recursive": False}, {"path": inner["path"], "recursive": False}])
    assert Counter(picture.path.name for picture in alone.pictures) == {"a.png": 1, "b.png": 1}


def test_validation_pictures_are_no_training_pictures(places):
    folders = [places["cats"], {"path": places["held"], "role": "validation", "repeats": 3}]
    assert {picture.role for picture in index_of(folders).pictures} == {"train"}
    held = index_of(folders, "validation")
    assert [picture.role for picture in held.pictures] == ["validation"] * 2
    assert any("repeats has no effect" in note for note in held.notes)


# -- how often --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [0.5, 0.3, 1.25, 2.5, 1 / 3, 0.1, 3])
def test_a_part_of_the_pictures_is_another_one_each_epoch(places, repeats):
    """Every epoch has its share to within one picture, and so has every picture in any number of epochs."""
    index = index_of([{"path": places["cats"], "repeats": repeats}])
    share, total = Fraction(repeats).limit_denominator(1000), Counter()
    for epoch, counts in enumerate(shown(index, 40), start=1):
        assert abs(sum(counts.values()) - 6 * share) < 1
        assert all(counts[picture] in (int(share), -int(-share // 1)) for picture in index.pictures)
        total += counts
        assert all(abs(total[picture] - epoch * share) < 2 for picture in index.pictures)
    assert sum(total.values()) == pytest.approx(40 * 6 * share, abs=1)


def test_every_folder_gives_its_own_share(places):
    folders = [{"path": places["cats"], "repeats": 0.5}, {"path": places["dogs"], "repeats": 0.5}]
    for counts in shown(index_of(folders), 10):
        by_entry = Counter()
        for picture, count in counts.items():
            by_entry[picture.entry] += count
        assert by_entry == {0: 3, 1: 2}


def test_names_and_repeats_are_multiplied(folder):
    folder.picture("3_x/a.png")
    folder.picture("b.png")
    (a, b) = index_of([{"path": str(folder.path), "repeats": 1.5}]).pictures
    assert (a.name, a.repeats, b.repeats) == ("3_x/a.png", 4.5, 1.5)


@pytest.mark.parametrize("ratio", [1, 0.5, 2, 0.37, 5])
def test_regularisation_pictures_come_at_their_ratio(places, ratio):
    """6 training samples (one picture twice) and 4 regularisation pictures, of which one folder counts twice."""
    more = {"path": places["held"], "role": "regularisation", "repeats": 2}
    folders = [places["cats"], {"path": places["dogs"], "role": "regularisation"}, more]
    index = index_of(folders, regularisation_ratio=ratio)
    assert {p.role for p in index.pictures if p.entry} == {"regularisation"}
    total = Counter()
    for counts in shown(index, 60):
        roles = Counter()
        for picture, count in counts.items():
            roles[picture.role] += count
        assert roles["train"] == 6 and abs(roles["regularisation"] - 6 * ratio) < 2  # of each folder: less than one
        total += counts
    for picture in index.pictures:
        wanted = 1 if picture.role == "train" else 6 * ratio / 8 * (2 if picture.entry == 2 else 1)
        assert abs(total[picture] / 60 - wanted) < 0.06


def test_regularisation_alone_is_refused(places):
    for role in ("regularisation", "validation"):
        with pytest.raises(DataProblems, match="data.folders has no folder of the role train; give the folder"):
            index_of([{"path": places["cats"], "role": role}])


def test_without_a_ratio_regularisation_pictures_are_repeated_as_they_say(places):
    folders = [places["cats"], {"path": places["dogs"], "role": "regularisation", "repeats": 3}]
    repeats = {(p.role, p.repeats) for p in index_of(folders, regularisation_ratio=None).pictures}
    assert repeats == {("train", 1), ("regularisation", 3)}


# -- resolutions ------------------------------------------------------------------------------------------------------


def test_pictures_at_several_resolutions(places):
    index = index_of([places["cats"]], resolutions=(32, 64, 128), resolution_shares=(1, 2, 0.5))
    assert len(index.pictures) == 18 and len({picture.key for picture in index.pictures}) == 6
    for picture in index.pictures:
        alone = index_of([places["cats"]], resolution=picture.options.resolution)
        assert picture.bucket in {one.bucket for one in alone.pictures if one.path == picture.path}
    total = Counter()
    for counts in shown(index, 20):
        for picture, count in counts.items():
            total[picture.options.resolution] += count
    assert total == {32: 20 * 6, 64: 20 * 12, 128: 20 * 3}
    assert all(size in index.table() for size in ("32 x 32", "64 x 64", "128 x 128"))


def test_resolutions_that_share_a_size_share_batches(places):
    index = index_of([places["dogs"]], resolutions=(64, 65))  # both 64 x 64 in steps of 8
    assert set(by_shape(index.pictures)) == {((64, 64), ())}
    assert any("data.resolution 65 is not a multiple of 8" in note for note in index.notes)
    mixed = Batches(index, 4, 1, 1, 0, 0)
    seen = {len({p.options.resolution for p in mixed.at(step, 0).pictures}) for step in range(20)}
    assert seen == {1, 2} or seen == {2}


def test_nothing_is_enlarged_beyond_a_limit_where_it_has_another_size(folder):
    folder.picture("small.png", (40, 40))
    folder.picture("large.png", (200, 200))
    folder.picture("tiny.png", (10, 10))
    index = index_of([str(folder.path)], resolutions=(32, 64, 128), max_enlargement=1.5)
    kept: dict[str, list[int]] = {}
    for picture in index.pictures:
        kept.setdefault(picture.name, []).append(picture.options.resolution)
    assert kept == {"large.png": [32, 64, 128], "small.png": [32], "tiny.png": [32]}
    notes = " ".join(index.notes)
    assert "are left out there (2: small.png, tiny.png)" in notes
    assert "too small for some of the resolutions" in notes and "small.png" in notes
    assert "enlarged more than 1.5 times" in notes and "tiny.png" in notes
    free = index_of([str(folder.path)], resolutions=(32, 64, 128))
    assert len(free.pictures) == 9 and any("enlarged more than 2 times" in note for note in free.notes)


@pytest.mark.parametrize("options, words", [
    ({"resolutions": (32, 64), "resolution_shares": (1,)}, "data.resolution_shares has 1 values"),
    ({"resolutions": (32, 64, 32)}, "data.resolutions has 32 twice"),
    ({"resolution_shares": (1,)}, "data.resolution_shares has 1 values, but data.resolutions has 0"),
])
def test_shares_that_do_not_fit_are_refused(places, options, words):
    with pytest.raises(DataProblems, match=words):
        index_of([places["cats"]], **options)


# -- invariance -------------------------------------------------------------------------------------------------------


def features(places) -> Index:
    """Everything at once."""
    return index_of(
        [
            {"path": places["cats"], "repeats": 1.5, "loss_weight": 2, "flip": True, "trigger": "tom"},
            {"path": places["dogs"], "role": "regularisation", "resolutions": [32, 64]},
            {"path": places["held"], "repeats": 0.4, "shuffle": True},
        ],
        resolutions=(32, 64, 96), resolution_shares=(0.5, 1, 0.3), max_enlargement=1.2, regularisation_ratio=0.7,
    )  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 3])
def test_batches_are_pure_and_the_same_for_any_number_of_processes(places, accumulation):
    index = features(places)
    alone = Batches(index, 4, accumulation, 1, 0, seed=7)
    forward = [[alone.at(step, micro) for micro in range(accumulation)] for step in range(40)]
    late = Batches(index, 4, accumulation, 1, 0, seed=7)  # as after a resume: it has not seen the steps before
    for step in (39, 3, 17, 0):
        assert [late.at(step, micro) for micro in range(accumulation)] == forward[step]
    shared = [Batches(index, 2, accumulation, 2, rank, seed=7) for rank in (0, 1)]
    for step in range(40):
        for micro in range(accumulation):
            slices = [vars(one.at(step, micro)) for one in shared]
            for name, whole in vars(forward[step][micro]).items():
                assert tuple(chain.from_iterable(one[name] for one in slices)) == whole
    assert all(len({p.bucket for p in batch.pictures}) == 1 for step in forward for batch in step)


def test_epochs_are_counted_as_they_are(places):
    batches = Batches(features(places), 2, 3, 1, 0, seed=3)
    starts = [sum(batches.epochs.batches(epoch) for epoch in range(count)) for count in range(12)]
    assert len({after - before for before, after in zip(starts, starts[1:], strict=False)}) > 1  # they differ
    for epoch, start in enumerate(starts):
        assert batches.epochs.place(start) == (epoch, 0)
    floats = [batches.epoch(step) for step in range(60)]
    assert floats == sorted(floats) and floats[0] == 0
    assert batches.steps(5) == sum(-(-batches.epochs.batches(epoch) // 3) for epoch in range(5))


@pytest.mark.parametrize("counts", [[(7, 1)], [(5, 1), (1, 1), (3, 2)], [(4, 10), (2, 3), (1, 1)]])
def test_without_settings_the_order_is_what_it_was(counts):
    """Restated as it was before folders had settings."""
    pictures = [
        Picture(Path(f"{b}_{n}"), f"{b}_{n}", "", 64, 64, (64 + 8 * b, 64), repeats, "")
        for b, (count, repeats) in enumerate(counts)
        for n in range(count)
    ]
    for total in (1, 4):
        batches = Batches(Index(tuple(pictures)), total, 1, 1, 0, seed=5)
        expected = []
        for epoch in range(3):
            draw, order = Random(seed_of("order", 5, epoch)), []
            for b in range(len(counts)):
                group = [picture for picture in pictures if picture.bucket[0] == 64 + 8 * b]
                every = [picture for picture in group for _ in range(picture.repeats)]
                every = draw.sample(every, len(every))
                while len(every) % total:
                    last = every[len(every) - len(every) % total :]
                    further = sorted(draw.sample(group, len(group)), key=last.__contains__)
                    every += further[: -len(every) % total]
                order += [tuple(every[at : at + total]) for at in range(0, len(every), total)]
            expected += draw.sample(order, len(order))
        assert [batches.at(step, 0).pictures for step in range(len(expected))] == expected
        assert batches.epoch(len(expected)) == 3


def test_plain_folders_give_the_index_they_gave(places):
    plain = index_of([places["cats"], places["dogs"]])
    written = index_of([{"path": places["cats"]}, {"path": places["dogs"], "role": "train", "loss_weight": 1}])
    assert plain == written and {picture.loss_weight for picture in plain.pictures} == {1}
    assert all(type(picture.repeats) is int for picture in plain.pictures)
    assert plain.rows() == "".join(
        [
            "name\twidth\theight\tbucket\trepeats\tsha256\tcaption\n",
            *(f"{p.name}\t{p.width}\t{p.height}\t{p.bucket[0]}x{p.bucket[1]}\t1\t{p.key}\t{p.caption}\n"
              for p in plain.pictures),
        ]
    )  # fmt: skip
