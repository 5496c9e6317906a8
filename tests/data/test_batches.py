"""The order of pictures: complete, repeatable, and the same for every number of processes."""

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from modules.data.batches import Batches
from modules.data.captions import caption_for
from modules.data.index import Index, Picture
from modules.preset.data_options import Data

PLAIN = Data(caption_dropout=0.0)


def index_of(*groups):
    """An index with (number of pictures, repeats) for each bucket."""
    pictures = [
        Picture(Path(f"{b}_{n}.png"), f"{b}_{n}.png", f"one {b}, two, three {n}", 100 + b, 90, (64 + 8 * b, 64), r, "")
        for b, (count, r) in enumerate(groups)
        for n in range(count)
    ]
    return Index(tuple(pictures))


CASES = [
    index_of((1, 1)),
    index_of((7, 1)),
    index_of((5, 1), (1, 1), (3, 2)),
    index_of((4, 10), (2, 3), (1, 1)),
]


def with_options(index, options):
    return Index(tuple(replace(picture, options=options) for picture in index.pictures))


def samples(index, steps, batch_size=1, accumulation=1, processes=1, rank=0, seed=0, options=PLAIN):
    batches = Batches(with_options(index, options), batch_size, accumulation, processes, rank, seed)
    return [[batches.at(step, micro) for micro in range(accumulation)] for step in range(steps)]


@pytest.mark.parametrize("index", CASES)
@pytest.mark.parametrize("total", [1, 2, 4, 6])
def test_an_epoch_shows_everything(index, total):
    batches = Batches(index, total, 1, 1, 0, seed=3)
    for epoch in range(3):
        first = epoch * batches.steps_per_epoch
        shown = [batches.at(step, 0) for step in range(first, first + batches.steps_per_epoch)]
        counts = Counter(picture for batch in shown for picture in batch.pictures)
        assert all(counts[picture] >= picture.repeats for picture in index.pictures)
        surplus = sum(counts.values()) - sum(picture.repeats for picture in index.pictures)
        assert surplus < total * len({picture.bucket for picture in index.pictures})
        assert batches.epoch(first) == epoch
        assert all(len(batch.pictures) == total and len({p.bucket for p in batch.pictures}) == 1 for batch in shown)


@pytest.mark.parametrize("index", CASES)
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches_of_one(index, accumulation, processes):
    options = Data(flip=True, shuffle=True)
    alone = samples(index, 12, 2 * processes, accumulation, options=options)
    shared = [samples(index, 12, 2, accumulation, processes, rank, options=options) for rank in range(processes)]
    for step in range(12):
        for micro in range(accumulation):
            slices = [shared[rank][step][micro] for rank in range(processes)]
            for name in ("pictures", "positions", "flips", "captions"):
                together = tuple(chain.from_iterable(vars(batch)[name] for batch in slices))
                assert together == vars(alone[step][micro])[name]


def test_positions_are_unique_and_rise():
    positions = [n for step in samples(CASES[2], 20, 2, 3) for batch in step for n in batch.positions]
    assert positions == list(range(120))


@pytest.mark.parametrize("index", CASES)
def test_pure(index):
    options = Data(flip=True, shuffle=True, part_dropout=0.2)
    forward = samples(index, 40, 3, 2, options=options)
    fresh = Batches(with_options(index, options), 3, 2, 1, 0, seed=0)
    for step in (39, 0, 17, 3, 17):
        assert [fresh.at(step, micro) for micro in (0, 1)] == forward[step]


def test_seeds_and_epochs_differ():
    def order(seed, epoch):
        batches = Batches(CASES[1], 1, 1, 1, 0, seed)
        return [batches.at(epoch * 7 + step, 0).pictures[0].name for step in range(7)]

    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_buckets_alternate():
    """The buckets of an epoch are mixed, not one after the other."""
    sizes = [step[0].pictures[0].bucket for step in samples(index_of((30, 1), (30, 1)), 60)]
    assert 15 < sum(a != b for a, b in zip(sizes, sizes[1:], strict=False)) < 45


def test_filling_takes_other_pictures_first():
    for seed in range(20):
        for step in samples(index_of((5, 1)), 2, 4, seed=seed):
            assert len(set(step[0].pictures)) == 4


def test_accumulation_over_epochs():
    """A step takes consecutive batches; nothing is left out where an epoch ends within a step."""
    single = [batch for step in samples(CASES[2], 30, 2, 1) for batch in step]
    grouped = [batch for step in samples(CASES[2], 6, 2, 5) for batch in step]
    assert single == grouped
    batches = Batches(CASES[1], 2, 3, 1, 0, seed=0)  # four batches an epoch
    assert batches.steps_per_epoch == 2 and batches.epoch(4) == 3.0


def test_flips():
    on = [flip for step in samples(CASES[1], 1000, options=Data(flip=True)) for flip in step[0].flips]
    assert 400 < sum(on) < 600
    assert not any(flip for step in samples(CASES[1], 100) for flip in step[0].flips)


def test_captions_and_sizes():
    options = Data(shuffle=True, caption_dropout=0.3, trigger="sks")
    batches = Batches(with_options(CASES[2], options), 2, 2, 2, 1, seed=5)
    ahead = list(batches.captions(7))
    used = [batches.at(step, micro) for step in range(7) for micro in (0, 1)]
    assert ahead == [caption for batch in used for caption in batch.captions]
    assert list(batches.captions(7, start=5)) == ahead[5 * 4 :]
    for batch in used:
        pairs = zip(batch.pictures, batch.positions, strict=True)
        assert batch.captions == tuple(caption_for(options, p.caption, 5, n) for p, n in pairs)
        assert batch.sizes.shape == (2, 6) and batch.sizes.dtype == torch.float32
        assert batch.sizes[0].tolist()[:2] == [90, batch.pictures[0].width]
