"""Pictures that cannot be read and are skipped: what is said, where it is written, and how a run resumes."""

import csv
import json

import pytest

from tests.training.runs import Place, draw_pictures, equal, make_base

KEEP = {"state_every": 1, "keep_states": 20}


@pytest.fixture
def place(tmp_path) -> Place:
    make_base(tmp_path)
    draw_pictures(tmp_path / "pictures", 6, 0)
    (tmp_path / "runs").mkdir()
    (tmp_path / "pictures" / "3.png").write_bytes((tmp_path / "pictures" / "3.png").read_bytes()[:90])
    (tmp_path / "pictures" / "4.png").unlink()
    (tmp_path / "pictures" / "4.png").symlink_to("away.png")
    return Place(tmp_path, tmp_path / "runs")


def data(place, **more) -> dict:
    return {"resolution": 16, "validation_folder": "", "broken": "skip", **more}


@pytest.mark.full
def test_a_run_without_broken_pictures_equals_one_that_skips_them(place, capsys):
    assert place.train("stop", data=data(place, broken="error")) == 2
    assert "3.png" in (said := capsys.readouterr().err) and "away.png, which does not exist" in said
    assert place.train("whole", data=data(place)) == 0
    rows = list(csv.reader((place.runs / "whole" / "broken.tsv").read_text().splitlines(), delimiter="\t"))
    assert [row[0] for row in rows] == ["name", "3.png", "4.png"] and "away.png" in rows[2][1]
    assert any("skipped" in event["message"] for event in place.events("whole", "warning"))
    assert place.train("report", "--check", "--json", data=data(place)) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["name"] for one in facts["skipped"]] == ["3.png", "4.png"] and facts["pictures"] == 4
    assert facts["alike"] == []

    for name in ("3", "4"):
        (place.stage / "pictures" / f"{name}.png").unlink()
        (place.stage / "pictures" / f"{name}.txt").unlink()
    assert place.train("without", data=data(place, broken="error")) == 0
    assert equal(place.adapter("whole"), place.adapter("without"))
    assert not (place.runs / "without" / "broken.tsv").exists()


@pytest.mark.full
def test_a_resumed_run_is_the_same_or_says_what_has_changed(place):
    assert place.train("whole", data=data(place), saving=KEEP) == 0
    assert place.train("half", "--training.steps", "2", data=data(place), saving=KEEP) == 0
    assert place.train("half", data=data(place), saving=KEEP) == 0
    assert equal(place.adapter("whole"), place.adapter("half"))
    assert not any("have changed" in event["message"] for event in place.events("half", "warning"))

    (place.stage / "pictures" / "5.png").write_bytes(b"x")
    (place.stage / "pictures" / "4.png").unlink()
    (place.stage / "pictures" / "0.png").rename(place.stage / "pictures" / "4.png")
    assert place.train("half", "--training.steps", "5", data=data(place), saving=KEEP) == 0
    said = " ".join(event["message"] for event in place.events("half", "warning"))
    assert "1 skipped, since they cannot be read any more (5.png)" in said
    assert "1 that were skipped and can be read now (4.png)" in said and "1 removed (0.png)" in said
