"""Reference pictures beside the pictures of a data set: how they are found, what can be wrong, which part is used."""

import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from modules.data.index import DataProblems, build_index
from modules.data.references import as_it_is, read
from modules.preset.data_options import Data
from tests.training.runs import draw_pictures


@pytest.fixture
def stage(tmp_path):
    draw_pictures(tmp_path / "pictures", 3, 0)
    draw_pictures(tmp_path / "before", 3, 1)
    for file in (tmp_path / "before").glob("*.txt"):
        file.unlink()
    return tmp_path


def index(stage, given=("before",), fitted=None, **more):
    folder = {"path": str(stage / "pictures"), "references": [str(stage / one) for one in given]}
    folder |= {name: more.pop(name) for name in ("role", "flip", "crop", "hue", "references") if name in more}
    options = Data.model_validate({"folders": [folder], "resolution": 16, "cache": False, **more})
    return build_index(options, "training", 8, None, *([fitted] if fitted else []))


def said(stage, **more) -> str:
    with pytest.raises(DataProblems) as caught:
        index(stage, **more)
    (problem,) = caught.value.problems
    return problem


def test_each_picture_has_the_reference_of_its_name(stage):
    """Whatever its ending; in a sub-folder like the picture's own; in the order of the folders."""
    Image.open(stage / "before/0.png").save(stage / "before/0.bmp")
    (stage / "before/0.png").unlink()
    shutil.copytree(stage / "before", stage / "style/deep")
    found = index(stage, ("style", "before"))
    names = [[one.path.relative_to(stage).as_posix() for one in picture.references] for picture in found.pictures]
    assert names == [[f"style/deep/{name}", f"before/{name}"] for name in ("0.bmp", "1.png", "2.png")]
    assert found.pictures[0].shape == ((16, 16), ((20, 20), (20, 20)))
    assert not index(stage, ()).pictures[0].references


def test_a_name_may_be_in_another_normal_form(stage):
    (stage / "pictures/0.png").rename(stage / "pictures" / unicodedata.normalize("NFC", "é.png"))
    (stage / "pictures/0.txt").rename(stage / "pictures" / unicodedata.normalize("NFC", "é.txt"))
    (stage / "before/0.png").rename(stage / "before" / unicodedata.normalize("NFD", "é.png"))
    assert all(len(picture.references) == 1 for picture in index(stage).pictures)


def test_a_folder_of_references_inside_of_the_pictures_has_no_pictures(stage):
    (stage / "before").rename(stage / "pictures/before")
    found = index(stage, ("pictures/before",))
    assert [picture.name for picture in found.pictures] == ["0.png", "1.png", "2.png"]
    assert any("files in folders of reference pictures" in note for note in found.notes)


def test_pictures_may_be_made_from_those_of_another_folder(stage):
    draw_pictures(stage / "after", 3, 1)
    both = [{"path": str(stage / one), "references": str(stage / other)}
            for one, other in (("pictures", "after"), ("after", "pictures"))]
    options = Data.model_validate({"folders": both, "resolution": 16, "cache": False})
    pictures = build_index(options, "training", 8).pictures
    found = [(one.path.parent.name, one.references[0].path.parent.name) for one in pictures]
    assert found == [("pictures", "after")] * 3 + [("after", "pictures")] * 3


def test_what_is_wrong_is_one_sentence(stage):
    assert "before2: no such folder" in said(stage, given=("before2",))
    assert "is given twice" in said(stage, given=("before", "before"))
    assert "is given twice" in said(stage, given=("before", "pictures/../before"))
    assert said(stage, references=["", str(stage / "before")]).endswith(
        "[0].references: one of the folders is empty; remove it")
    assert "has the pictures themselves" in said(stage, given=("pictures",))
    assert "flip is set, but pictures with references" in said(stage, flip=True)
    sentence = said(stage, hue=0.1, crop="random")
    assert "hue and crop are set" in sentence
    assert sentence.endswith('give this folder\'s entry "hue": 0.0, "crop": "centre"')
    shutil.copy(stage / "before/1.png", stage / "before/1.jpg")
    assert "1.png: has several reference pictures in one folder" in said(stage)
    (stage / "before/1.jpg").unlink()
    (stage / "before/1.png").unlink()
    assert "pictures without a reference picture of the same name in" in said(stage)
    assert "(1: 1.png)" in said(stage)
    (stage / "before/1.png").write_bytes(b"no picture")
    assert "before/1.png: its content is not a" in said(stage)


def test_a_size_that_the_model_does_not_take_is_named(stage):
    def fitted(width, height):
        raise ValueError(f"it has {width} px, and the model takes more")

    with pytest.raises(DataProblems, match=r"before/0\.png: it has 20 px, and the model takes more"):
        index(stage, fitted=fitted)


def test_pictures_whose_reference_is_damaged_are_left_out_where_that_is_wanted(stage):
    (stage / "before/1.png").write_bytes(b"no picture")
    (stage / "before/2.png").unlink()
    assert "(1: 2.png)" in said(stage, broken="skip")
    shutil.copy(stage / "before/0.png", stage / "before/2.png")
    found = index(stage, broken="skip")
    assert [picture.name for picture in found.pictures] == ["0.png", "2.png"]
    assert "before/1.png" in dict(found.skipped)["1.png"]


def test_a_reference_of_its_pictures_shape_is_cropped_as_that_is(stage):
    """Of another shape it is used whole, and the whole part is what the model is asked the size of."""
    shape = np.arange(40 * 80, dtype=np.uint8).reshape(40, 80)
    Image.fromarray(shape).save(stage / "before/0.png")
    Image.fromarray(shape[:20, :40]).save(stage / "pictures/0.png")
    asked = []
    found = index(stage, fitted=lambda *size: asked.append(size) or size, buckets=False)
    first, second, _ = found.pictures
    (reference,) = first.references  # 40 x 20 becomes 32 x 16, of which the middle 16 are kept
    assert reference.box == (20, 0, 60, 40) and reference.size == (40, 40) == asked[0]
    assert np.array_equal(np.asarray(reference.image())[..., 0], shape[:, 20:60])
    assert second.references[0].box is None and second.references[0].size == (20, 20)


def test_references_without_a_picture_are_noted_and_a_changed_one_is_refused(stage):
    shutil.copy(stage / "before/0.png", stage / "before/9.png")
    found = index(stage)
    assert any("without a picture of the same name" in note and "9.png" in note for note in found.notes)
    (reference,) = found.pictures[0].references
    shutil.copy(stage / "before/1.png", stage / "before/0.png")
    with pytest.raises(ValueError, match="has changed since training started"):
        reference.image()


def test_a_picture_that_is_its_own_reference_is_noted(stage):
    Image.open(stage / "pictures/1.png").save(stage / "before/1.bmp")
    (stage / "before/1.png").unlink()
    assert [note for note in index(stage).notes if "one of their own references" in note and "(1: 1.png)" in note]


def test_an_empty_file_of_a_prompt_is_one_sentence():
    with pytest.raises(ValueError, match="^one of the files is empty; remove it$"):
        read([""], as_it_is)
