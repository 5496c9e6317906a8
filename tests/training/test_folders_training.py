"""Trainings on folders with settings: weights of the loss, resuming, what the check and the window are told."""

import json

import pytest
import torch

from modules.data.folders import folder_options
from modules.data.index import build_index
from modules.training import feed, outputs
from tests.training.runs import Place, draw_pictures, equal
from tests.training.test_rules import ask

pytestmark = pytest.mark.usefixtures("forget_accelerate")


def everything(place: Place) -> dict:
    """Data with all settings of folders at once."""
    if not (place.stage / "reg").exists():
        draw_pictures(place.stage / "reg", 3, 7)
    return {
        "resolutions": [16, 32],
        "resolution_shares": [1, 0.5],
        "max_enlargement": 4,
        "regularisation_ratio": 0.6,
        "caption_dropout": 0.3,
        "prefix": "a",
        "folders": [
            {"path": str(place.stage / "pictures"), "repeats": 1.5, "flip": True, "loss_weight": 2},
            {"path": str(place.stage / "reg"), "role": "regularisation", "loss_weight": 0.5, "trigger": "sks"},
            {"path": str(place.stage / "one"), "resolution": 24, "shuffle": True, "repeats": 0.5},
        ],
    }


MORE = ("--training.steps", "6", "--training.accumulation", "2")


def test_the_loss_of_a_folder_has_its_weight(place: Place):
    """Each sample's error times the weight of its folder: 0 means not learned, whatever else weighs it."""
    weights = {"pictures": 3.0, "one": 0.25}
    data = {"resolution": 16, "folders": [
        {"path": str(place.stage / name), "loss_weight": weight} for name, weight in weights.items()
    ]}  # fmt: skip
    plain = {"resolution": 16, "folders": [str(place.stage / name) for name in weights]}
    found = {}
    for name, options in (("weighted", data), ("plain", plain)):
        with place.session(name, *MORE, data=options) as session:
            batches = [session.batches.at(step, micro) for step in range(6) for micro in range(2)]
            found[name] = [feed.errors(session, feed.prepare(session, batch)) for batch in batches]
    expected = [
        error * torch.tensor([weights[picture.path.parent.name] for picture in batch.pictures])
        for error, batch in zip(found["plain"], batches, strict=True)
    ]
    assert {picture.path.parent.name for batch in batches for picture in batch.pictures} == set(weights)
    torch.testing.assert_close(found["weighted"], expected, rtol=1e-6, atol=0)


@pytest.mark.full
def test_with_all_settings_a_resumed_run_is_the_whole_one(place: Place, monkeypatch):
    data = everything(place)
    assert place.train("whole", *MORE, data=data) == 0
    ask(monkeypatch, place, "halves", "stop", at=3)
    assert place.train("halves", *MORE, data=data) == 130
    assert place.train("halves", *MORE, data=data) == 0
    assert equal(place.adapter("whole"), place.adapter("halves"))
    assert not any("have changed" in event["message"] for event in place.events("halves", "warning"))
    rows = (place.runs / "whole" / "pictures.tsv").read_text().splitlines()[1:]
    assert len(rows) == 2 * 5 + 2 * 3 + 1


def test_regularisation_leaves_the_validation_loss_alone(place: Place):
    losses = []
    for name, folders in (("plain", ["pictures"]), ("regularised", ["pictures", "reg"])):
        everything(place)
        roles = {"reg": "regularisation"}
        data = {"resolution": 16, "folders": [
            {"path": str(place.stage / one), "role": roles.get(one, "train")} for one in folders
        ]}  # fmt: skip
        with place.session(name, *MORE, data=data) as session:
            outputs.validate(session)
            assert {picture.role for picture in session.validation.pictures} == {"validation"}
        losses += [event["loss"] for event in place.events(name, "validation")]
    assert len(losses) == 2 and losses[0] == losses[1]


def test_the_check_says_what_holds_in_each_folder(place: Place, capsys):
    data = {**everything(place), "trigger": "all"}
    assert place.train("looked", *MORE, "--check", "--json", data=data) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = facts["folders"]
    assert [row["role"] for row in rows] == ["train", "regularisation", "train", "validation"]
    assert [row["pictures"] for row in rows] == [5, 3, 1, 2] and facts["pictures"] == 9
    assert [row["trigger"] for row in rows] == ["all", "sks", "all", "all"]
    assert [row["flip"] for row in rows] == [True, False, False, False]
    assert (rows[0]["resolutions"], rows[2]["resolutions"], rows[2]["resolution"]) == ([16, 32], [], 24)
    assert rows[0]["per_epoch"] == 5 * 1.5 * 1.5 and rows[2]["per_epoch"] == 0.5
    assert rows[1]["per_epoch"] == pytest.approx(0.6 * (5 * 2.25 + 0.5))
    assert place.train("looked", *MORE, "--check", data=data) == 0
    said = capsys.readouterr().out
    assert "9 pictures, 2 for validation" in said
    first = next(line for line in said.splitlines() if line.strip().startswith(str(place.stage / "pictures")))
    for words in ("train, 5 pictures", "repeats 1.5", "loss weight 2", "16 px, 32 px x 0.5", 'trigger "all"', "flip"):
        assert words in first, first


def test_the_options_of_folders_reach_training_and_cache(place: Place):
    """What a picture is encoded and captioned with is what its folder says."""
    with place.session("run", *MORE, data=everything(place)) as session:
        options, index = session.preset.data, session.index
        for picture in index.pictures:
            folder = options.folders[picture.entry]
            assert picture.options.flip == folder_options(options, folder).flip
            sides = [side // session.model.latent_factor for side in reversed(picture.bucket)]
            for flip in (False, True):
                key = session.latents.key(picture, flip)
                stored = session.latents.store.get(key)
                assert (stored is not None) == (picture.options.flip or not flip)
                assert stored is None or list(stored["latents"].shape[1:]) == sides
        assert build_index(options, "training", session.model.bucket_step) == index
