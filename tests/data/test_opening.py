"""Pictures as people really have them: colour profiles, new formats, huge scans, links to nowhere."""

import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from modules.data import formats, opening
from modules.data.colours import DAMAGED
from modules.data.index import DataProblems, build_index
from modules.data.opening import content_key, open_picture, open_with_note, read_size
from modules.preset.data_options import Data
from tests.data import profiles
from tests.data.test_pictures import gradient

ADOBE = profiles.of_primaries(profiles.ADOBE, profiles.ADOBE_GAMMA)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def first(image: Image.Image) -> np.ndarray:
    return np.array(image.getpixel((2, 2)), dtype=float)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.avif"])
@pytest.mark.parametrize("colour", [(172, 44, 44), (60, 200, 60), (90, 90, 90), (255, 255, 255), (10, 20, 200)])
def test_the_colours_of_adobe_rgb(folder, name, colour):
    better = {} if name.endswith((".png", ".tif")) else {"quality": 100}
    better |= {"lossless": True} if name.endswith("webp") else {}
    path = folder.save(name, Image.new("RGB", (16, 16), colour), icc_profile=ADOBE, **better)
    assert np.abs(first(open_picture(path)) - profiles.adobe(colour)).max() < 4
    if colour == (172, 44, 44):
        assert np.abs(first(open_picture(path)) - (200, 40, 40)).max() < 4, "faults/data.md, 12"


def test_what_is_srgb_already_is_not_touched(folder):
    """To the bit: of most pictures nothing changes."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    plain, tagged = folder.save("a.png", image), folder.save("b.png", image, icc_profile=SRGB)
    assert content_key(open_picture(plain)) == content_key(open_picture(tagged)) == content_key(image)
    other = open_picture(folder.save("c.png", image, icc_profile=ADOBE))
    assert content_key(other) != content_key(image), "the key is of the converted pixels"


def test_grey(folder):
    profile = profiles.of_grey(1.0)
    for name, mode in (("a.png", "L"), ("b.tif", "L"), ("c.png", "LA"), ("d.png", "I;16")):
        value = 55 * 257 if mode == "I;16" else (55, 255) if mode == "LA" else 55
        opened = open_picture(folder.save(name, Image.new(mode, (8, 8), value), icc_profile=profile))
        linear = np.full(3, 55 / 255)
        assert np.abs(first(opened) - profiles.encoded(profiles.SRGB @ linear)).max() < 2, name
    opened = open_picture(folder.save("e.jpg", Image.new("L", (8, 8), 90), icc_profile=ADOBE))
    assert np.abs(first(opened) - profiles.adobe((90, 90, 90))).max() < 3, "a grey JPEG with a profile of RGB"


def test_inks(folder):
    corners = np.zeros((2, 2, 2, 2, 3))
    corners[..., 0, 0] = 90
    corners[0, 0, 0, 0] = (100, 0, 0)
    corners[1, 0, 0, 0], corners[0, 1, 0, 0], corners[0, 0, 1, 0] = (60, -30, -40), (50, 60, 0), (85, 0, 75)
    profile = profiles.of_inks(corners)
    for ink, meant in (((255, 0, 0, 0), (60, -30, -40)), ((0, 255, 0, 0), (50, 60, 0)), ((0, 0, 0, 0), (100, 0, 0))):
        for name in ("a.tif", "a.jpg"):
            opened = open_picture(folder.save(name, Image.new("CMYK", (16, 16), ink), icc_profile=profile))
            assert np.abs(first(opened) - profiles.lab(meant)).max() < 4, (name, ink)


def test_a_profile_under_transparency_and_a_palette(folder):
    image = Image.new("RGBA", (8, 8), (172, 44, 44, 255))
    image.paste((172, 44, 44, 0), (4, 0, 8, 8))
    image.paste((172, 44, 44, 128), (0, 4, 4, 8))
    opened = open_picture(folder.save("a.png", image, icc_profile=ADOBE))
    red = profiles.adobe((172, 44, 44))
    assert np.abs(first(opened) - red).max() < 2 and opened.getpixel((6, 2)) == (255, 255, 255)
    assert np.abs(np.array(opened.getpixel((2, 6))) - (red + 255) / 2).max() < 3
    palette = Image.new("RGB", (8, 8), (172, 44, 44)).quantize(4)
    assert np.abs(first(open_picture(folder.save("b.png", palette, icc_profile=ADOBE))) - red).max() < 2


def test_a_profile_does_not_stop_the_rotation(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_picture(folder.save("a.jpg", gradient(), exif=exif, icc_profile=ADOBE))
    assert opened.size == (24, 40)


def broken_profiles() -> dict[str, bytes]:
    return {
        "noise": np.random.default_rng(1).bytes(500),
        "short": ADOBE[:150],
        "text": b"not a profile",
        "other": profiles.of_grey(2.2),
        "no tags": ADOBE[:128] + bytes(4),
    }


@pytest.mark.parametrize("name", broken_profiles())
def test_a_broken_profile_is_noted(folder, name):
    image = Image.new("RGB", (16, 16), (172, 44, 44))
    path = folder.save("odd.png", image, icc_profile=broken_profiles()[name])
    opened, note = open_with_note(path)
    assert content_key(opened) == content_key(image) and note == DAMAGED
    folder.picture("fine.png")
    index = build_index(Data(folders=(str(folder.path),), resolution=64, cache=False), "training", 32)
    (said,) = [one for one in index.notes if DAMAGED in one]
    assert "odd.png" in said and "fine.png" not in said and "1: " in said


def test_a_profile_that_cannot_be_unpacked(folder):
    whole = folder.save("a.png", Image.new("RGB", (8, 8), (172, 44, 44)), icc_profile=ADOBE).read_bytes()
    at = whole.index(b"iCCP")
    length = struct.unpack(">I", whole[at - 4 : at])[0]
    content = b"iCCP" + b"ICC Profile\0\0" + b"\xff" * 40
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    path = folder.write("a.png", whole[: at - 4] + chunk + whole[at + 8 + length :])
    opened, note = open_with_note(path)
    assert opened.getpixel((2, 2)) == (172, 44, 44) and note == DAMAGED


def with_chunk(path, name: bytes, content: bytes):
    """A PNG file with another chunk before its pixels."""
    whole, chunk = path.read_bytes(), name + content
    packed = struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(whole[:33] + packed + whole[33:])
    return path


@pytest.mark.parametrize("gamma, expected", [(1.0, 188), (0.45455, 128), (1 / 1.8, None)])
def test_the_gamma_of_a_png(folder, gamma, expected):
    """As browsers show it: light is the value to the power of 1/gamma; 188 is half of the light in sRGB."""
    if expected is None:
        light = (128 / 255) ** 1.8
        expected = round(255 * (1.055 * light ** (1 / 2.4) - 0.055))
    path = with_chunk(folder.save("a.png", Image.new("RGB", (8, 8), (128,) * 3)), b"gAMA",
                      struct.pack(">I", round(100_000 * gamma)))  # fmt: skip
    assert abs(first(open_picture(path))[0] - expected) <= 1
    with_chunk(path, b"sRGB", b"\0")
    assert open_picture(path).getpixel((2, 2)) == (128, 128, 128), "sRGB says more than a gamma"


# -- formats ----------------------------------------------------------------------------------------------------------


def test_avif(folder):
    assert ".avif" in formats.SUFFIXES
    path = folder.save("a.avif", gradient((64, 40)), quality=90)
    opened = open_picture(path)
    assert opened.size == read_size(path) == (64, 40)
    assert np.abs(np.asarray(opened).astype(int) - np.asarray(gradient((64, 40)))).mean() < 6
    (picture,) = build_index(Data(folders=(str(folder.path),), resolution=64, cache=False), "training", 8).pictures
    assert picture.name == "a.avif"
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = folder.save("b.avif", gradient((64, 40)), exif=exif)
    assert open_picture(turned).size == read_size(turned) == (40, 64)


@pytest.mark.skipif(".heic" in formats.SUFFIXES, reason="the plug-in is installed")
def test_what_a_plug_in_would_read_is_named_with_it(folder):
    folder.write("a.HEIC", "x")
    folder.write("b.jxl", "x")
    data = Data(folders=(str(folder.path),), resolution=64, cache=False)
    with pytest.raises(DataProblems) as raised:
        build_index(data, "training", 32)
    (problem,) = raised.value.problems
    assert "has no pictures" in problem and "pip install pillow-heif pillow-jxl-plugin" in problem
    folder.picture("c.png")
    folder.write("d.psd", "x")
    notes = build_index(data, "training", 32).notes
    assert len(notes) == 3
    for words in (("pip install pillow-heif", "a.HEIC"), ("pip install pillow-jxl-plugin", "b.jxl"),
                  ("other files are ignored", "d.psd")):  # fmt: skip
        assert sum(all(word in note for word in words) for note in notes) == 1


@pytest.mark.parametrize("name", ["a.heic", "a.jxl"])
def test_real_plug_ins(folder, name):
    plug_in = formats.PLUG_INS[f".{name[2:]}"]
    module = pytest.importorskip(plug_in.module)
    if plug_in.register:
        vars(module)[plug_in.register]()
    path = folder.save(name, gradient((64, 40)), quality=90)
    assert open_picture(path).size == read_size(path) == (64, 40)
    assert np.abs(np.asarray(open_picture(path)).astype(int) - np.asarray(gradient((64, 40)))).mean() < 12
    with pytest.raises(ValueError, match=r"cut.* is damaged"):
        open_picture(folder.write(f"cut.{name}", path.read_bytes()[: path.stat().st_size // 2]))


def test_a_plug_in_is_asked(folder, monkeypatch):
    """One that reads a format of our own: "NEW" and then a PNG file."""
    from PIL import PngImagePlugin

    class NewFile(PngImagePlugin.PngImageFile):
        format = "NEW"

        def _open(self):
            head = self.fp.read(3)
            if head != b"NEW":
                raise SyntaxError("not one")
            self.fp = io.BytesIO(self.fp.read())
            super()._open()

    module = types.ModuleType("pillow_new")
    module.register = lambda: Image.register_open("NEW", NewFile, lambda head: head.startswith(b"NEW"))
    module.__spec__ = types.SimpleNamespace(name="pillow_new")
    monkeypatch.setitem(sys.modules, "pillow_new", module)
    plug_in = formats.PlugIn("pillow_new", "pillow-new", "NEW", "register")
    assert plug_in.is_installed
    monkeypatch.setitem(formats.PLUG_INS, ".new", plug_in)
    buffer = io.BytesIO()
    gradient().save(buffer, "PNG")
    path = folder.write("a.new", b"NEW" + buffer.getvalue())
    try:
        assert open_picture(path).size == (40, 24)
        same = folder.write("a.png", path.read_bytes())
        with pytest.raises(ValueError, match="convert it"):
            open_picture(same)
    finally:
        Image.OPEN.pop("NEW", None)
        Image.ID.remove("NEW")


def test_a_plug_in_that_cannot_be_imported(folder, monkeypatch):
    monkeypatch.setitem(formats.PLUG_INS, ".new", formats.PlugIn("json.nothing", "pillow-new", "NEW"))
    monkeypatch.setattr(formats.PlugIn, "is_installed", True)
    path = folder.write("a.new", b"x")
    with pytest.raises(ValueError, match=r"a\.new: the package pillow-new cannot be imported .*pip install"):
        open_picture(path)


# -- too large, and links to nowhere ----------------------------------------------------------------------------------


@pytest.mark.full
def test_a_large_scan_is_read_and_a_larger_one_refused_with_its_size(folder):
    """182 megapixels were called broken."""
    path = folder.save("scan.png", Image.new("1", (14_000, 13_000), 1))
    assert read_size(path) == (14_000, 13_000)
    assert open_with_note(path, most=opening.LARGE).__class__ is opening.TooLarge
    opened = open_picture(path)
    assert opened.size == (14_000, 13_000) and opened.getpixel((13_999, 12_999)) == (255, 255, 255)
    too_large = folder.save("more.png", Image.new("1", (30_000, 15_000), 1))
    for read in (open_picture, read_size):
        with pytest.raises(ValueError, match=r"30,000 x 15,000 = 450,000,000 pixels, more than 400,000,000; make it"):
            read(too_large)


def test_an_opaque_picture_is_not_copied(folder, monkeypatch):
    """Of a large one each copy takes much memory."""
    monkeypatch.setattr(Image.Image, "copy", lambda self: pytest.fail("it is copied"))
    path = folder.save("a.png", gradient())
    assert open_picture(path).mode == "RGB"


def test_a_link_to_nowhere_is_called_one(folder):
    for name, target in (("a.png", "gone.png"), ("b.png", "a.png"), ("c.png", "../away/c.png")):
        (folder.path / name).symlink_to(target)
    for name, target in (("a.png", "gone.png"), ("b.png", "/gone.png"), ("c.png", "../away/c.png")):
        for read in (open_picture, read_size):
            with pytest.raises(ValueError, match="is a link to .*, which does not exist; restore that") as raised:
                read(folder.path / name)
            assert target in str(raised.value) and "damaged" not in str(raised.value)
    (folder.path / "a.png").rename(folder.path.parent / "link")
    data = Data(folders=(str(folder.path.parent / "link"),), resolution=64)
    with pytest.raises(DataProblems, match=r"link: is a link to gone\.png, which does not exist"):
        build_index(data, "training", 32)
