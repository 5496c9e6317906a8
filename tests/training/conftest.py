"""What the trainings in these tests start from."""

from pathlib import Path

import pytest

from modules.training import collapse
from tests.training import distilled
from tests.training.runs import Place, draw_pictures, make_base


@pytest.fixture(scope="session")
def stage(tmp_path_factory) -> Path:
    """A tiny base and pictures."""
    folder = tmp_path_factory.mktemp("stage")
    make_base(folder)
    draw_pictures(folder / "pictures", 5, 0)
    draw_pictures(folder / "validation", 2, 1)
    draw_pictures(folder / "one", 1, 2)
    return folder


@pytest.fixture(autouse=True)
def few_samples(request, monkeypatch):
    """A collapse is judged by one step's samples instead of ten: else they are half of a short run's time."""
    if not request.node.path.stem.endswith("faults_loop"):
        monkeypatch.setattr(collapse, "SAMPLES", 1)


@pytest.fixture
def place(stage: Path, tmp_path: Path) -> Place:
    """The same with a folder for this test's runs."""
    return Place(stage, tmp_path)


@pytest.fixture(scope="session")
def given(stage: Path, tmp_path_factory) -> distilled.Given:
    """A training adapter for the base, and a base with it in its weights."""
    return distilled.make(stage, tmp_path_factory.mktemp("given"))
