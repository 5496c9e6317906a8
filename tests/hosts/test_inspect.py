"""What inspect says of programs is what their own loaders do with the corpus of tests/files/inspect_corpus.py.

diffusers is installed and always asked; the others where GIMBAL_HOSTS names a folder with them.
"""

import os
import re
from functools import cache

import pytest

from modules.hosts import key_maps
from tests.files import inspect_corpus
from tests.hosts import loaders
from tests.hosts.loaders import HOSTS, Line


@cache
def lines(host: str, family: str) -> list[Line]:
    """All files of a family in a program; every second where no programs are named, which is quicker."""
    cases = [case for case in inspect_corpus.cases() if case.family == family]
    return list(loaders.measured((host,), cases[:: 1 if os.environ.get("GIMBAL_HOSTS") else 2]))


@pytest.mark.once
@pytest.mark.parametrize("family", inspect_corpus.MODELS)
@pytest.mark.parametrize("host", HOSTS)
def test_nothing_false_is_said_of_a_program(host, family):
    if loaders.loader(host) is None:
        pytest.skip(f"GIMBAL_HOSTS names no folder with {key_maps.load(host).TITLE}")
    found = lines(host, family)
    assert len(found) > 7
    false = [line.text() for line in found if line.false]
    assert not false, "\n".join(false)


@pytest.mark.full
def test_the_corpus_has_sixty_files_and_others_than_ours():
    cases = inspect_corpus.cases()
    assert len([case for case in cases if case.family]) >= 60
    assert len({case.name for case in cases}) == len(cases)
    sorts = {re.sub(r"^\w+, ", "", case.name) for case in cases}
    assert len(sorts) > 60
