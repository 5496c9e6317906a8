"""Some damaged files of every reader; `python benchmarks/mutations.py` reads thousands."""

import random
from pathlib import Path

import pytest

from benchmarks import mutating, mutations
from benchmarks.readers import Reader, all_readers


@pytest.mark.full
def test_every_reader_answers_or_refuses_in_a_sentence():
    readers = all_readers()
    tallies = mutations.run(readers, 5 * len(readers), seed=7, seconds=60)
    assert not [entry for tally in tallies for entry in tally.bad], mutations.table(tallies)
    assert all(sum(tally.outcomes.values()) for tally in tallies)


def forget(folder: Path) -> None:
    raise KeyError("x")


def wait(folder: Path) -> None:
    while True:
        pass


def fill(folder: Path) -> bytes:
    return bytes(8 << 30)


def gossip(folder: Path) -> None:
    raise ValueError("something is wrong somewhere")


@pytest.mark.full
@pytest.mark.parametrize("read, words", [(forget, "KeyError"), (wait, "Late"), (fill, "MemoryError"),
                                         (gossip, "does not say which file")])  # fmt: skip
def test_what_is_bad_is_found(read, words, monkeypatch):
    """Of a reader that is sound until its file is damaged."""
    monkeypatch.setattr(mutations, "SECONDS", 0.5)

    def make(folder: Path) -> None:
        (folder / "x.json").write_text('{"a": 1}')

    def careless(folder: Path) -> str:
        path = folder / "x.json"
        whole = path.is_file() and path.stat().st_size < 100 and path.read_bytes() == b'{"a": 1}'
        return "sound" if whole else read(folder)

    [tally] = mutations.run([Reader("careless", make, careless)], 3, seed=0, seconds=30)
    assert tally.bad and words in " ".join(tally.bad), tally.bad


def test_the_same_seed_damages_the_same(tmp_path):
    found = []
    for name in "ab":
        path = tmp_path / name
        path.write_text('{"a": [1, {"b": "c"}]}')
        mutating.damage(path, (mutating.json_bytes,), random.Random("3"))
        found.append(path.read_bytes())
    assert found[0] == found[1] != b'{"a": [1, {"b": "c"}]}'
