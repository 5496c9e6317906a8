"""The tiny base of each row of `rows.FAMILIES`."""

import pytest

from modules.families import load_class
from tests.families.rows import FAMILIES, Row


@pytest.fixture(scope="module", params=FAMILIES)
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
