"""Every preset that there was before presets were composed resolves to the values it had. Goes with its data."""

import gzip
import json
from pathlib import Path

import pytest

from modules.preset import files

OLD = json.loads(gzip.decompress((Path(__file__).parent / "old_values.json.gz").read_bytes()))
"""All options of each preset, by its name."""


def test_there_are_as_many_as_there_were():
    assert len(OLD) == 99


@pytest.mark.parametrize("name", OLD)
def test_a_preset_has_the_values_it_had(name):
    resolved = files.resolve(name)
    assert resolved.notes == []
    assert resolved.preset.model_dump(mode="json") == OLD[name]
