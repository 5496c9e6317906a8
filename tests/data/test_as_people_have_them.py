"""Folders of pictures as people really have them, and what they are told about them."""

import json

import numpy as np
import pytest
from PIL import Image

from modules.data import wildcards
from modules.data.folders import line_about
from modules.data.index import DataProblems, build_index
from modules.preset import files
from modules.preset.data_options import Data
from modules.preset.effects import notes as idle_options
from modules.preset.folder_options import Folder


def read(folder, /, **options):
    """The index of a folder, whose settings may be among the options as `folder`."""
    own = {"path": str(folder.path), **options.pop("folder", {})}
    data = {"resolution": 64, "cache": False, **options, "folders": [own, *options.get("folders", [])]}
    return build_index(Data.model_validate(data), "training", 8)


def notes(folder, /, **options) -> str:
    return "\n".join(read(folder, **options).notes)


def problems(folder, /, **options) -> str:
    with pytest.raises(DataProblems) as told:
        read(folder, **options)
    return "\n".join(told.value.problems)


def black(folder, *names: str) -> None:
    for name in names:
        Image.new("L", (64, 64), 0).save(folder.path / name)


# -- captions ---------------------------------------------------------------------------------------------------------


def test_a_picture_that_is_skipped_needs_no_caption(folder):
    for name in ("a.png", "b.png"):
        folder.picture(name)
    (folder.path / "gone.png").symlink_to("nowhere.png")
    folder.write("empty.png", b"")
    assert [picture.name for picture in read(folder, broken="skip").pictures] == ["a.png", "b.png"]
    said = problems(folder)
    assert "without a caption (2: empty.png, gone.png)" in said and "nowhere.png, which does not exist" in said
    folder.picture("bare.png", caption=None)
    assert "without a caption (1: bare.png)" in problems(folder, broken="skip")


@pytest.mark.parametrize("caption, options, words", [
    ("a [name] apple", {"trigger": "sks"}, "[name] or [Trigger], which are read as they are"),
    ("a [Trigger] apple", {"trigger": "sks"}, "[name] or [Trigger], which are read as they are"),
    ("a [trigger] apple", {"trigger": "sks"}, ""),
    ("a (red:1.2) apple", {}, "captions with weights"),
    ("a (red:1.2) apple", {"emphasis": True}, ""),
    ("series (game), at 10:30, \\(a:1\\)", {}, ""),
    ("a {red|green apple", {"wildcards": True}, "a brace that has no partner"),
    ("a {red|green} apple {{x}}", {"wildcards": True}, ""),
    ("an apple", {"caption_text": "text"}, "data.caption_text has no effect"),
    ("an apple", {"captions": "text", "caption_text": "text"}, "are not used"),
    ("one part", {"shuffle": True}, "data.shuffle has no effect, because no caption has parts to shuffle"),
    ("two, parts", {"shuffle": True}, "data.shuffle has no effect, because no caption has parts to shuffle"),
    ("two, parts", {"shuffle": True, "keep_tokens": 0}, ""),
    ("three, parts, of it", {"shuffle": True}, ""),
    ("one part", {"part_dropout": 0.5}, "data.part_dropout has no effect, because no caption has a part to drop"),
    ("one part", {"part_dropout": 0.5, "keep_tokens": 0}, ""),
    ("two, parts", {"part_dropout": 0.5}, ""),
    ("a, b, c", {"keep_separator": "|||"}, "data.keep_separator has no effect, because no caption has this mark"),
    ("a ||| b, c", {"keep_separator": "|||", "shuffle": True}, ""),
    ("a, red_hair", {"part_dropout": 0.5, "drop_never": ["Red hair", "hat"]},
     "data.drop_never: no caption has these parts: hat"),
    ("a, red_hair", {"part_dropout": 0.5, "drop_only": ["red hair"]}, ""),
])  # fmt: skip
def test_what_captions_have_in_vain_and_options_that_find_nothing_in_them(folder, caption, options, words):
    folder.picture("a.png", caption=caption)
    said = notes(folder, **options)
    assert words in said and bool(words) == bool(said), said


def test_one_caption_that_has_it_is_enough(folder):
    folder.picture("a.png", caption="one part")
    folder.picture("b.png", caption="three, parts ||| of it, hat")
    more = {"shuffle": True, "keep_separator": "|||", "part_dropout": 0.5, "drop_never": ["hat"]}
    assert not notes(folder, **more)


@pytest.mark.parametrize("text, lone", [
    ("", False), ("{a|b}", False), ("{{a}}", False), ("{a", True), ("a}", True), ("{a{b}", True), ("{{", False),
    ("}}", False), ("}{", True), ("{{{a|b}}}", False), ("{a}}", True),
])  # fmt: skip
def test_lone_braces(text, lone):
    assert wildcards.has_lone_brace(text) is lone


def test_why_a_json_file_has_no_caption_is_said(folder):
    for name, text in (("a", '{"bad'), ("b", json.dumps({"prompt": "x"}))):
        folder.picture(f"{name}.png")
        (folder.path / f"{name}.txt").unlink()
        folder.write(f"{name}.json", text)
    said = notes(folder, missing_captions="empty")
    assert "(2: a.json, b.json)" in said and "a.json: is not" in said and "JSON" in said


# -- weights and masks ------------------------------------------------------------------------------------------------


def test_pictures_that_are_never_learned_are_noted_and_nothing_to_learn_is_an_error(folder):
    folder.picture("a.png")
    folder.picture("b.png")
    black(folder, "a-masklabel.png")
    none = {"masks": "files", "unmasked_weight": 0}
    assert read(folder, **none).pictures
    black(folder, "b-masklabel.png")
    assert "nothing would be learned" in problems(folder, **none)
    assert read(folder, **{**none, "unmasked_weight": 0.1}).pictures
    assert read(folder, **none, unmasked_probability=0.5).pictures
    assert "nothing would be learned" in problems(folder, folder={"loss_weight": 0})
    other = folder.path.with_name("other")
    other.mkdir()
    for path in folder.path.glob("a.*"):
        (other / path.name).write_bytes(path.read_bytes())
    assert "has loss_weight 0, so its pictures are not learned" in notes(
        folder, folder={"loss_weight": 0}, folders=[str(other)]
    )


@pytest.mark.parametrize("name, noted", [
    ("masks", True), ("Mask", True), ("img_masks", True), ("masked balls", False), ("others", False),
])  # fmt: skip
def test_a_folder_of_masks_among_the_pictures_is_pointed_out(folder, name, noted):
    folder.picture("a.png")
    folder.picture(f"{name}/a.png")
    folder.picture(f"{name}/alone.png")
    said = notes(folder)
    assert ("give that folder as data.masks" in said) is noted
    assert "alone.png" not in said
    masks = str(folder.path / name)
    assert "give that folder" not in notes(folder, masks=masks)


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, value", [
    ("512,768,1024", (512, 768, 1024)), ("512, 768", (512, 768)), ("[512,768]", (512, 768)), ("512", (512,)),
])  # fmt: skip
def test_a_list_of_numbers_is_written_with_commas(text, value):
    preset = files.resolve("lora_sdxl", [("base.path", "x"), ("data.resolutions", text)]).preset
    assert preset.data.resolutions == value


def test_texts_with_commas_are_one_text():
    given = [("base.path", "x"), ("data.drop_never", "a, b"), ("data.folders", "one, two")]
    data = files.resolve("lora_sdxl", given).preset.data
    assert data.drop_never == ("a, b",) and data.folders == ("one, two",)


def test_settings_that_are_no_json_are_not_called_a_folder_that_is_missing(folder):
    folder.picture("a.png")
    said = problems(folder, folders=["{path: photos, repeats: 2}"])
    assert 'JSON with double quotes, as in {"path": "FOLDER", "repeats": 2}' in said


def test_a_role_that_no_folder_has_is_not_blamed_on_another(folder):
    given = [("base.path", "x"), ("data.folders", json.dumps(["a", {"path": "v", "role": "validation"}])),
             ("data.prior_prediction", "true")]  # fmt: skip
    said = [note for note in idle_options(files.resolve("lora_sdxl", given).preset, {}) if "prior" in note]
    assert said == ["data.prior_prediction true has no effect without data.folders[].role regularisation"]


def test_a_wrong_number_of_shares_is_said_wherever_the_folder_is_described(folder):
    folder.picture("a.png")
    options = {"resolutions": (64, 128), "resolution_shares": (1.0,)}
    assert "data.resolution_shares has 1 values, but data.resolutions has 2" in problems(folder, **options)
    assert "64 px, 128 px" in line_about(Data(**options), Folder(path="x"), [])


def test_a_validation_folder_is_described_by_what_holds_for_it():
    line = line_about(Data(flip=True, rotation=4, trigger="sks"), Folder(path="v", role="validation"), [])
    assert 'trigger "sks"' in line and "flip" not in line and "rotation" not in line


def test_settings_of_validation_folders_read_well(folder):
    folder.picture("a.png")
    for own, words in (({"flip": True}, "so flip has no effect"),
                       ({"flip": True, "repeats": 2, "hue": 0.1}, "so repeats, flip and hue have no effect")):
        data = Data.model_validate({"folders": [{"path": str(folder.path), "role": "validation", **own}]})
        said = build_index(data.model_copy(update={"resolution": 64, "cache": False}), "validation", 8).notes
        assert any(words in note for note in said)


def test_a_picture_of_two_kinds_with_one_text_file(folder):
    """What people have without noticing: the same name as .png and .jpg."""
    folder.picture("a.png")
    pixels = np.random.default_rng(9).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder.path / "a.jpg")
    index = read(folder)
    assert {picture.caption for picture in index.pictures} == {"a thing"} and len(index.pictures) == 2
    assert any("a.txt is the caption of several pictures (2: a.jpg, a.png)" in note for note in index.notes)


@pytest.mark.parametrize("role", ["validation", "regularisation"])
def test_a_folder_inside_the_training_folder_is_what_its_entry_says(folder, role):
    """So pictures for validation are never trained on, wherever they are."""
    folder.picture("a.png")
    folder.picture("held/b.png")
    own = {"path": str(folder.path / "held"), "role": role}
    index = read(folder, folders=[own])
    assert [picture.path.name for picture in index.pictures if picture.role == "train"] == ["a.png"]
    assert any("entries of data.folders themselves; only those count" in note for note in index.notes)


def test_pictures_for_regularisation_alone_are_nothing_to_train_on(folder):
    for name in ("a.png", "b.png"):
        folder.picture(name)
        folder.write(name, b"broken")
    folder.picture("reg/c.png")
    own = {"path": str(folder.path / "reg"), "role": "regularisation"}
    said = problems(folder, broken="skip", folders=[own])
    assert "none of the pictures of the role train can be read" in said


def test_a_home_folder_that_no_shell_has_read(folder):
    folder.picture("a.png")
    assert "~ is known to shells alone; write the whole path" in problems(folder, folders=["~/pictures"])
