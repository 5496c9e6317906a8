"""From files to pixels."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from modules.data.opening import content_key, open_picture, read_size
from modules.data.pictures import fit, sizes_of


def gradient(size=(40, 24)):
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(folder, orientation):
    upright = gradient()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that stores it turned as the tag says
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_picture(folder.save("a.png", stored, exif=exif))
    assert opened.size == upright.size
    assert np.array_equal(np.asarray(opened), np.asarray(upright))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.mpo.jpg"])
def test_the_head_tells_the_size(folder, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = ("MPO",) if name == "a.mpo.jpg" else ()
    path = folder.save(name, gradient(), None, *more, exif=exif)
    assert read_size(path) == open_picture(path).size == ((24, 40) if orientation > 4 else (40, 24))


def test_the_size_of_a_png_is_read_without_its_pixels(folder, monkeypatch):
    """They are in several chunks, which are skipped."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    path = folder.save("a.png", Image.fromarray(noise))
    assert path.read_bytes().count(b"IDAT") > 1

    def decoded(*_):
        raise AssertionError("the pixels are decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    assert read_size(path) == (300, 200)


def test_a_rotation_behind_the_pixels_of_a_png(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = folder.save("a.png", gradient(), exif=exif).read_bytes()
    chunk = whole.index(b"eXIf") - 4
    length = 12 + int.from_bytes(whole[chunk : chunk + 4], "big")
    moved = whole[:chunk] + whole[chunk + length : -12] + whole[chunk : chunk + length] + whole[-12:]
    for content in (moved, moved[:-12]):
        path = folder.write("b.png", content)
        assert read_size(path) == open_picture(path).size == (24, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_on_white(folder, mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 4))
    pixels = np.asarray(open_picture(folder.save("a.png", image.convert(mode))))
    assert (pixels[:, :2] == 0).all() and (pixels[:, 2:] == 255).all()


def test_half_transparent(folder):
    opened = open_picture(folder.save("a.png", Image.new("RGBA", (2, 2), (255, 0, 0, 128))))
    assert opened.getpixel((0, 0)) == (255, 127, 127)


def test_palette_colour_that_is_transparent(folder):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    opened = open_picture(folder.save("a.gif", image, transparency=1))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.gif", "a.tif"])
def test_formats(folder, name):
    opened = open_picture(folder.save(name, gradient(), quality=95))
    assert opened.mode == "RGB" and opened.size == (40, 24)
    assert np.abs(np.asarray(opened).astype(int) - np.asarray(gradient())).mean() < 12


@pytest.mark.parametrize(
    "name, mode",
    [(name, mode) for name, modes in {"a.tif": "1 L P CMYK", "a.jpg": "L CMYK", "a.png": "1 L P"}.items()
     for mode in modes.split()],
)  # fmt: skip
def test_modes(folder, name, mode):
    white = open_picture(folder.save(name, Image.new("RGB", (8, 8), "white").convert(mode)))
    assert white.mode == "RGB" and np.asarray(white).min() > 250


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled(folder, name):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    opened = np.asarray(open_picture(folder.save(name, Image.fromarray(values))))
    assert opened[0, :, 0].tolist() == [0, 1, 128, 255]


def test_refused(folder):
    good = folder.picture("good.jpg", (200, 200))
    frames = [Image.new("L", (8, 8), value) for value in (0, 255)]
    bad = {
        folder.write("text.png", "not a picture"): "convert it",
        folder.write("empty.png", ""): "file is empty",
        folder.write("cut.jpg", good.read_bytes()[:2000]): "damaged",
        folder.write("script.png", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"): "convert it",
        folder.save("moving.gif", frames[0], save_all=True, append_images=frames[1:]): "2 frames",
        folder.save("moving.webp", frames[0], save_all=True, append_images=frames[1:]): "2 frames",
        folder.save("float.tif", Image.new("F", (8, 8))): "8 or 16 bits",
        folder.path / "missing.png": "No such file",
    }
    for path, reason in bad.items():
        for read in (open_picture,) if path.name == "cut.jpg" else (open_picture, read_size):
            with pytest.raises(ValueError, match=reason) as raised:
                read(path)
            assert path.name in str(raised.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_cut_is_noticed_or_harmless(folder):
    """Whatever byte a file ends at, there is a picture or a sentence, never another exception."""
    for name in ("a.png", "a.jpg", "a.gif", "a.webp", "a.tif", "a.bmp"):
        whole = folder.picture(name, (20, 20)).read_bytes()
        for end in range(0, len(whole), max(1, len(whole) // 60)):
            broken = whole[:end] + bytes([whole[end] ^ 0xFF]) + whole[end + 1 :]
            for content in (whole[:end], broken):
                path = folder.write(f"cut_{name}", content)
                for read in (open_picture, read_size):
                    try:
                        assert read(path)
                    except ValueError as error:
                        assert path.name in str(error)


def test_a_camera_s_picture_with_previews(folder):
    path = folder.save("a.jpg", gradient(), None, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert open_picture(path).size == (40, 24)


def test_content_key(folder):
    one = folder.picture("a.png")
    same = folder.save("b.bmp", Image.open(one))
    assert content_key(open_picture(one)) == content_key(open_picture(same))
    assert content_key(Image.new("RGB", (2, 8))) != content_key(Image.new("RGB", (8, 2)))


@pytest.mark.parametrize("size", [(64, 64), (100, 50), (37, 91), (10, 10), (1, 300), (64, 32)])
@pytest.mark.parametrize("bucket", [(64, 64), (96, 32), (32, 96)])
def test_fit(size, bucket):
    pixels, sizes = fit(gradient(size), bucket)
    assert pixels.shape == (3, bucket[1], bucket[0]) and pixels.dtype == torch.float32
    assert pixels.min() >= -1 and pixels.max() <= 1
    height, width, top, left, target_h, target_w = sizes.tolist()
    assert (width, height, target_w, target_h) == (*size, *bucket)
    assert top == 0 or left == 0
    assert torch.equal(sizes, sizes_of(*size, bucket))


def test_fit_values():
    white, _ = fit(Image.new("RGB", (50, 20), "white"), (32, 32))
    assert (white == 1).all()
    pixels, sizes = fit(gradient((128, 64)), (64, 64))  # only cropped: 32 off each side
    assert sizes.tolist() == [64, 128, 0, 32, 64, 64]
    expected = torch.from_numpy(np.array(gradient((128, 64)))[:, 32:96]).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(pixels, expected)


def test_orientation_in_a_jpeg(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_picture(folder.save("a.jpg", gradient(), exif=exif)).size == (24, 40)
