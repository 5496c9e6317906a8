"""The tiny base of each row of `rows.FAMILIES`."""

import pytest

from modules.families import load_class
from tests.families.rows import FAMILIES, Row

VARIANTS = ("sd2", "sd3 without t5", "flux2 dev")
"""Rows of a family that has another one, which the short run has: these have tests of their own for what differs."""
ROWS = [pytest.param(name, marks=pytest.mark.full) if name in VARIANTS else name for name in FAMILIES]


@pytest.fixture(scope="module", params=ROWS)
def row(request) -> Row:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def pair(row, tmp_path_factory):
    return row.make_pair(tmp_path_factory.mktemp(row.family))


@pytest.fixture(scope="module")
def folder(pair):
    return pair[0]


@pytest.fixture(scope="module")
def family(row):
    return load_class(row.family)
