"""Masks: never pictures, found for their pictures, read as they are meant, and said where they are missing or wrong."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from modules.data.batches import Batches
from modules.data.index import DataProblems, build_index
from modules.data.masks import look, read
from modules.data.survey import survey
from modules.preset.data_options import Data
from tests.data.conftest import Folder

GREY = Image.new("L", (64, 64), 128)


def options_of(folder, **options) -> Data:
    return Data(folders=(str(folder.path),), resolution=64, **options)


def index_of(folder, **options):
    return build_index(options_of(folder, **options), "training", 8)


def half(size=(64, 64)) -> Image.Image:
    image = Image.new("L", size)
    image.paste(255, (0, 0, size[0] // 2, size[1]))
    return image


@pytest.mark.parametrize("missing", ["error", "empty", "filename"])
@pytest.mark.parametrize("masks", ["none", "alpha", "files"])
def test_a_mask_is_never_a_picture(folder, masks, missing):
    folder.picture("a.png")
    for name in ("a-masklabel.png", "a-condlabel.png", "b-masklabel.png", "sub/A-MASKLABEL.PNG"):
        folder.save(name, GREY, caption=None)
    index = index_of(folder, masks=masks, missing_captions=missing)
    assert [picture.name for picture in index.pictures] == ["a.png"]
    said = "\n".join(index.notes)
    assert "a-condlabel.png" in said and "b-masklabel.png" in said
    off = "mask files are not pictures, and are ignored because data.masks is not files (1: a-masklabel.png)"
    assert (off in index.notes) == (masks != "files")


def test_a_folder_of_masks_alone_has_no_pictures(folder):
    folder.save("a-masklabel.png", GREY, caption=None)
    with pytest.raises(DataProblems, match="has no pictures"):
        index_of(folder)


def test_masks_beside_pictures(folder):
    folder.picture("a.jpg")
    folder.picture("b.png")
    folder.picture("sub/a.png")
    folder.save("a-masklabel.png", half(), caption=None)
    folder.save("sub/a-masklabel.webp", GREY, caption=None, lossless=True)
    index = index_of(folder, masks="files")
    found = {picture.name: picture.mask for picture in index.pictures}
    assert found["b.png"] is None
    assert (found["a.jpg"].path.name, found["a.jpg"].share, found["a.jpg"].alpha) == ("a-masklabel.png", 0.5, False)
    assert found["sub/a.png"].path.name == "a-masklabel.webp" and abs(found["sub/a.png"].share - 128 / 255) < 1e-9
    assert "pictures without a mask; all of the picture is trained (1: b.png)" in index.notes


@pytest.mark.parametrize("inside", [True, False])
def test_masks_in_a_folder(folder, tmp_path, inside):
    """Also in one inside of the pictures' folder: what is there is no picture."""
    for name in ("a.jpg", "sub/a.png", "b.png", "c.png"):
        folder.picture(name)
    folder.picture("bare.png")
    masks = Folder(folder.path / "masks" if inside else tmp_path / "masks")
    for name in ("a.png", "sub/a.png", "b-masklabel.webp", "deeper/c.png"):
        masks.save(name, half(), caption=None)
    index = index_of(folder, masks=str(masks.path))
    found = {p.name: p.mask and p.mask.path.relative_to(masks.path).as_posix() for p in index.pictures}
    assert found == {"a.jpg": "a.png", "sub/a.png": "sub/a.png", "b.png": "b-masklabel.webp", "c.png": "deeper/c.png",
                     "bare.png": None}
    assert any("bare.png" in note and "without a mask" in note for note in index.notes)
    assert any("in the folder of data.masks" in note for note in index.notes) == inside


def test_several_masks_in_a_folder_are_a_problem(folder, tmp_path):
    folder.picture("a.png")
    masks = Folder(tmp_path / "masks")
    masks.save("one/a.png", half(), caption=None)
    masks.save("two/a.png", half(), caption=None)
    with pytest.raises(DataProblems, match=r"a\.png: has several masks .*one.*two"):
        index_of(folder, masks=str(masks.path))


WRONG = [("file", "did you mean files"), ("Alpha", "did you mean alpha"), ("/no", "give none, alpha, files")]


@pytest.mark.parametrize("word, hint", WRONG)
def test_a_wrong_word_is_a_problem(folder, word, hint):
    folder.picture("a.png")
    with pytest.raises(DataProblems, match=rf"data\.masks: .* is neither none, alpha or files nor a folder; {hint}"):
        index_of(folder, masks=word)


def test_the_pictures_own_folder_is_a_problem(folder):
    folder.picture("a.png")
    for path in (folder.path, folder.path.parent):
        with pytest.raises(DataProblems, match="has the pictures themselves"):
            index_of(folder, masks=str(path))


def test_transparency(folder):
    folder.picture("opaque.png")
    image = Image.new("RGBA", (64, 64), (10, 200, 30, 0))
    image.paste((10, 200, 30, 255), (0, 0, 64, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    folder.save("seen.png", image)
    folder.save("turned.png", image, exif=exif)
    index = index_of(folder, masks="alpha")
    found = {picture.name: picture.mask for picture in index.pictures}
    assert found["opaque.png"] is None and found["seen.png"].share == 0.25
    assert any("pictures without transparency; all of the picture is trained (1: opaque.png)" in n for n in index.notes)
    assert (read(found["seen.png"])[:16] == 255).all() and not read(found["seen.png"])[16:].any()
    assert (read(found["turned.png"])[:, 48:] == 255).all() and not read(found["turned.png"])[:, :48].any()
    plain = index_of(folder)
    assert [p.key for p in plain.pictures] == [p.key for p in index.pictures], "the pixels are on white, as ever"


MODES = {
    "1": lambda grey: grey.point(lambda v: 255 * (v > 127)).convert("1"),
    "L": lambda grey: grey,
    "LA": lambda grey: Image.merge("LA", (grey, Image.new("L", grey.size, 77))),
    "P": lambda grey: grey.convert("P"),
    "RGB": lambda grey: grey.convert("RGB"),
    "RGBA": lambda grey: Image.merge("RGBA", (grey, grey, grey, Image.new("L", grey.size, 77))),
    "I;16": lambda grey: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("mode", MODES)
def test_masks_of_every_mode(tmp_path, mode):
    """White is trained; what is transparent in a mask file does not matter."""
    values = np.random.default_rng(0).integers(0, 2, (8, 8), dtype=np.uint8) * 255
    MODES[mode](Image.fromarray(values)).save(tmp_path / "m.png")
    mask = look(tmp_path / "m.png", tmp_path / "a.png", (8, 8))
    assert mask is not None and np.array_equal(read(mask), values)


def test_shapes(folder):
    for name in ("same", "smaller", "rounded", "long"):
        folder.picture(f"{name}.png", (90, 61))
    for name, size in {"same": (90, 61), "smaller": (45, 31), "rounded": (30, 20)}.items():
        folder.save(f"{name}-masklabel.png", half(size), caption=None)
    with pytest.raises(DataProblems) as caught:
        folder.save("long-masklabel.png", half((61, 90)), caption=None)
        index_of(folder, masks="files")
    (problem,) = caught.value.problems
    assert "long-masklabel.png: the mask has 61 x 90 px" in problem and "long.png has 90 x 61" in problem
    (folder.path / "long-masklabel.png").unlink()
    notes = "\n".join(index_of(folder, masks="files").notes)
    assert "masks are resized to their pictures' size (2: rounded.png, smaller.png)" in notes


def test_what_a_mask_does_not_say_is_said(folder):
    for name, shade in {"white": 255, "black": 0}.items():
        folder.picture(f"{name}.png")
        folder.save(f"{name}-masklabel.png", Image.new("L", (64, 64), shade), caption=None)
    notes = "\n".join(index_of(folder, masks="files", unmasked_weight=0.0).notes)
    assert "masks that are white everywhere have no effect (1: white.png)" in notes
    assert "black everywhere are trained not at all, because data.unmasked_weight is 0 (1: black.png)" in notes


def test_a_broken_mask_is_a_problem_of_its_own(folder):
    folder.picture("a.png")
    folder.write("a-masklabel.png", b"no picture")
    with pytest.raises(DataProblems, match=r"a-masklabel\.png: its content is not"):
        index_of(folder, masks="files")


def test_a_mask_that_changes_while_training_is_refused(folder):
    folder.picture("a.png")
    folder.save("a-masklabel.png", half(), caption=None)
    mask = index_of(folder, masks="files").pictures[0].mask
    folder.save("a-masklabel.png", GREY, caption=None)
    with pytest.raises(ValueError, match=r"a-masklabel\.png: has changed since"):
        read(mask)


def test_focus_points(folder):
    """Given ones come before the middle of the mask; what is no point is a problem, with its line."""
    for name in ("given", "masked", "bare"):
        folder.picture(f"{name}.png", (160, 64), caption="")
    folder.save("masked-masklabel.png", half((160, 64)), caption=None)
    folder.save("given-masklabel.png", half((160, 64)), caption=None)
    line = '{"file_name": "%s.png", "text": "a"%s}\n'
    lines = [line % ("given", ', "focus": [0.75, 0.5]'), line % ("masked", ""), line % ("bare", "")]
    folder.write("metadata.jsonl", "".join(lines))
    index = index_of(folder, masks="files", crop="focus")
    assert {p.name: p.focus for p in index.pictures} == {
        "given.png": (0.75, 0.5), "masked.png": (0.25, 0.5), "bare.png": None
    }
    assert any("without a mask or a focus" in note and "bare.png" in note for note in index.notes)
    for wrong in ("[2, 0.5]", '"left"', "[0.5]", "[true, 0]", "null"):
        folder.write("metadata.jsonl", "".join([line % ("given", f', "focus": {wrong}'), *lines[1:]]))
        with pytest.raises(DataProblems, match=r'metadata\.jsonl line 1: "focus" is'):
            index_of(folder, masks="files", crop="focus")
    assert not survey(options_of(folder), "training", 8).problems, "not read, not wrong"


def test_focus_points_of_pictures_named_as_captions_may_name_them(folder):
    folder.picture("a.png")
    folder.picture("in/ä.png")
    folder.write("metadata.jsonl", "".join(
        f"{json.dumps({'file_name': name, 'text': 'a thing', 'focus': focus})}\n"
        for name, focus in (("a", [0.1, 0.2]), ("in\\a\u0308.png", [0.3, 0.4]))
    ))  # fmt: skip
    index = index_of(folder, crop="focus", captions="metadata")
    assert {p.path.name: p.focus for p in index.pictures} == {"a.png": (0.1, 0.2), "ä.png": (0.3, 0.4)}


def test_masks_are_ignored_as_often_as_asked(folder):
    folder.picture("a.png")

    def masked(**options):
        data = options_of(folder, **options)
        batches = Batches(build_index(data, "training", 8), 4, 1, 1, 0, seed=5)
        return [one for step in range(250) for one in batches.at(step, 0).masked]

    assert Counter(masked()) == {True: 1000} and Counter(masked(unmasked_probability=1.0)) == {False: 1000}
    some = masked(unmasked_probability=0.25)
    assert some == masked(unmasked_probability=0.25, flip=True) and 200 < Counter(some)[False] < 300
