"""The short run leaves out repetitions, not facts."""

import random
import subprocess
import sys
from itertools import combinations, product
from types import SimpleNamespace

import pytest

from tests import thinning

AXES = {"method": list("abcdef"), "layer": list("klmn"), "dtype": [16, 32], "host": list("xyz")}


def rows() -> list[dict]:
    """Most of a full product, in random order: some pairs are missing from it, as in real tables."""
    full = [dict(zip(AXES, values, strict=True)) for values in product(*AXES.values())]
    kept = [row for row in full if not (row["method"] == "a" and row["layer"] == "n")]
    random.Random(0).shuffle(kept)
    return kept


def test_every_pair_of_values_still_meets():
    chosen = [rows()[i] for i in thinning.cover([thinning.facts(row, False) for row in rows()])]
    for one, other in combinations(AXES, 2):
        met = {(row[one], row[other]) for row in rows()}
        assert {(row[one], row[other]) for row in chosen} == met
    assert len(chosen) < len(rows()) / 3


def test_options_of_a_method_are_met_once_each():
    table = [
        {"method": method, "options": f"{method}{number}", "layer": layer}
        for method in "ab" for number in range(5) for layer in "klmn"
    ]
    chosen = [table[i] for i in thinning.cover([thinning.facts(row, False) for row in table])]
    assert {row["options"] for row in chosen} == {row["options"] for row in table}
    assert {(row["method"], row["layer"]) for row in chosen} == set(product("ab", "klmn"))
    assert len(chosen) <= 5 * 2


def test_once_meets_each_value():
    chosen = [rows()[i] for i in thinning.cover([thinning.facts(row, True) for row in rows()])]
    assert all({row[name] for row in chosen} == set(values) for name, values in AXES.items())
    assert len(chosen) <= 2 * max(map(len, AXES.values()))


@pytest.mark.parametrize("values", [[], [{}], [{"n": 1}, {"n": 2}, {"n": 3}]])
def test_tests_of_no_or_one_parameter_stay_whole(values):
    assert thinning.cover([thinning.facts(row, False) for row in values]) == list(range(len(values)))


class Case(SimpleNamespace):
    """As little of a test's case as is looked at."""

    def get_closest_marker(self, name):
        return name if name in self.marks else None


def of_families(test: str, *marks: str) -> list:
    params = [{"row": row, "kind": kind} for row in "abcdefg" for kind in range(2)]
    return [Case(nodeid=f"tests/test_x.py::{test}[{one}]", callspec=SimpleNamespace(params=one), marks=marks)
            for one in params]


def test_a_quarter_of_the_families_and_others_for_another_test():
    chosen = [thinning.some_families(of_families(f"test_{n}")) for n in range(20)]
    for cases in chosen:
        rows = {case.callspec.params["row"] for case in cases}
        assert len(rows) in (1, 2) and len(cases) == 2 * len(rows), "both kinds of each"
    assert {case.callspec.params["row"] for cases in chosen for case in cases} == set("abcdefg")
    for mark in ("every_family", "short", "once"):
        assert len(thinning.some_families(of_families("test_0", mark))) == 14


def test_tests_of_no_or_few_families_stay_whole():
    plain = [Case(nodeid="tests/test_x.py::test_y", marks=())]
    assert thinning.some_families(plain) == plain
    assert len(thinning.some_families(of_families("test_0")[:10])) == 10


CONFTEST = "from tests.conftest import pytest_addoption, pytest_collection_modifyitems\n"
SUITE = """
import pytest
@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("b", range(4))
@pytest.mark.parametrize("c", range(4))
def test_three(a, b, c): pass
@pytest.mark.full
def test_long(): pass
@pytest.mark.short("b", "d")
@pytest.mark.parametrize("a", "abcde")
def test_some(a): pass
def test_short(): pass
"""


@pytest.mark.parametrize(
    "more, ran", [([], range(19, 32)), (["--all"], [71]), (["::test_three"], [64]), (["::test_long"], [1])]
)
def test_what_pytest_runs(tmp_path, more, ran):
    (tmp_path / "test_made.py").write_text(SUITE)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n every_family\n full\n once\n short\n")
    words = [word for word in more if not word.startswith("::")]
    target = str(tmp_path / "test_made.py") + "".join(word for word in more if word.startswith("::"))
    command = [sys.executable, "-m", "pytest", "-q", "-c", tmp_path / "pytest.ini", f"--rootdir={tmp_path}", target]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert int(done.stdout.split(" passed")[0].split()[-1]) in ran, done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.parametrize("more", [[], ["--all"]])
def test_a_case_that_is_gone_is_an_error(tmp_path, more):
    """In all too, which is what is run before a change is accepted."""
    (tmp_path / "test_made.py").write_text(SUITE.replace('short("b"', 'short("z"'))
    (tmp_path / "conftest.py").write_text(CONFTEST)
    command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={tmp_path}", "-c", "/dev/null", str(tmp_path)]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert done.returncode and "short names ['z']" in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize("minutes, command, code", [(5, "pass", 0), (5, "raise SystemExit(3)", 3), (-1, "pass", 1)])
def test_a_command_that_takes_too_long_fails(minutes, command, code):
    words = [sys.executable, "-m", "tests.timed", str(minutes), sys.executable, "-c", command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code and "CPU seconds" in done.stdout, done.stdout + done.stderr
