"""Which cases `python -m pytest` runs without `--all`: of a parametrised test as few as it takes for every two values
of different parameters to meet once (pairwise testing).

Options of a method are no parameter of their own: each is met once, with whatever comes. A test that is marked `once`
meets each single value once, `short("one", "other")` runs the cases of these ids, and `full` only runs with `--all`.
A test of every family (with the fixture `row`) meets a quarter of them, others than the next test does, unless it
is marked `every_family`.
"""

import zlib
from collections.abc import Hashable, Iterable
from itertools import combinations
from typing import Any

import pytest

Facts = frozenset[Hashable]
PART = 4


def short(items: list[pytest.Item]) -> list[pytest.Item]:
    """The items of the short run, in their order."""
    kept = {item.nodeid for group in groups(items) for item in some_families(fewest(group))}
    return [item for item in items if item.nodeid in kept]


def groups(items: list[pytest.Item]) -> list[list[pytest.Item]]:
    """The cases of each test of the short run."""
    found: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("full") is None:
            found.setdefault(item.nodeid.split("[")[0], []).append(item)
    return list(found.values())


def named(group: list[pytest.Item]) -> list[pytest.Item]:
    """The cases that a test's mark `short` names, none without it. Raises UsageError for one that is not there."""
    if not (chosen := group[0].get_closest_marker("short")):
        return []
    cases = {item.name.partition("[")[2].removesuffix("]"): item for item in group}
    if unknown := [name for name in chosen.args if name not in cases]:
        raise pytest.UsageError(f"{group[0].nodeid}: short names {unknown}, which are no cases of it")
    return [cases[name] for name in chosen.args]


def fewest(group: list[pytest.Item]) -> list[pytest.Item]:
    """As few cases of one test as a greedy choice finds that together have all facts of all of them."""
    if chosen := named(group):
        return chosen
    singly = group[0].get_closest_marker("once") is not None
    return [group[i] for i in cover([facts(values_of(item), singly) for item in group])]


def some_families(cases: list[pytest.Item]) -> list[pytest.Item]:
    """Those of a quarter of the families, by the test's name, of a test that has cases for each."""
    if any(cases[0].get_closest_marker(name) for name in ("every_family", "short", "once")):
        return cases
    families = [vars(item)["callspec"].params.get("row") if "callspec" in vars(item) else None for item in cases]
    rows = list(dict.fromkeys(families))
    if len(rows) < 6:
        return cases
    chosen = rows[zlib.crc32(cases[0].nodeid.split("[")[0].encode()) % PART :: PART]
    return [item for item, family in zip(cases, families, strict=True) if family in chosen]


def cover(rows: list[Facts]) -> list[int]:
    """Numbers of rows that together have all facts, each time the one that adds most, the first among equals."""
    left, missing, chosen = list(range(len(rows))), set().union(*rows), []
    while missing:
        best = max(left, key=lambda i: (len(rows[i] & missing), -i))
        missing -= rows[best]
        left = [i for i in left if rows[i] & missing]
        chosen.append(best)
    return sorted(chosen) if rows and rows[0] else list(range(len(rows)))


def facts(values: dict[str, Hashable], singly: bool) -> Facts:
    """What a case shows: each value with each other and a method's options alone; `singly`, each value but options."""
    options = {name: value for name, value in values.items() if name == "options"}
    others = [(name, value) for name, value in values.items() if name not in options]
    if singly:
        return frozenset(others)
    return frozenset([*options.items(), *(combinations(others, 2) if len(others) > 1 else others)])


def values_of(item: pytest.Item) -> dict[str, Hashable]:
    """The values of a case's parameters; a pair of a method and its options is two."""
    callspec: Any = vars(item).get("callspec")
    found: dict[str, Hashable] = {}
    for name, value in callspec.params.items() if callspec else ():
        match value:
            case (str() as method, dict() as options):
                found |= {name: method, "options": repr((method, options))}
            case dict() if name == "options":
                found["options"] = repr((callspec.params.get("method"), value))
            case _:
                found[name] = hashable(value)
    return found


def hashable(value: Any) -> Hashable:
    """The value, or what it looks like where it cannot be compared by hash."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return repr(value)
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
