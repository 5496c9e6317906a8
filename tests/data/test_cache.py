"""Caches: found again by content, exact, and safe against broken files and other processes."""

import dataclasses
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from modules.data.cache import LatentCache, Store, TextCache
from modules.data.opening import open_picture
from modules.data.pictures import fit
from tests.data.encoder import Encoder, pictures_of


def expected(picture, flip):
    pixels, _ = fit(open_picture(picture.path), picture.bucket)
    return Encoder().encode_images((pixels.flip(-1) if flip else pixels)[None])[0]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("flip", [True, False])
def test_latents(options, cache, flip):
    options = options.model_copy(update={"cache": cache, "flip": flip})
    pictures, model, seen = pictures_of(options), Encoder(), []
    latents = LatentCache(options, model)
    latents.fill([*pictures, *pictures], lambda done, total: seen.append((done, total)))
    count = len(pictures) * (2 if flip else 1)
    assert model.images == count and seen[0] == (0, count) and seen[-1] == (count, count)
    for picture in pictures:
        for mirrored in (False, True) if flip else (False,):
            got = latents.get(picture, mirrored)
            assert got.dtype == torch.float32 and got.shape == (6, picture.bucket[1] // 8, picture.bucket[0] // 8)
            assert torch.allclose(got, expected(picture, mirrored))
    assert model.images == count
    again = Encoder()
    second = LatentCache(options, again)
    second.fill(pictures)
    assert again.images == (0 if cache else count)
    for picture in pictures:
        assert torch.equal(second.get(picture, False), latents.get(picture, False))
    assert Path(options.cache_folder).exists() == cache


def test_every_picture_is_encoded_by_itself(options):
    model = Encoder()
    LatentCache(options, model).fill(pictures_of(options))
    assert sorted(model.batches) == [(1, 3, 96, 160), (1, 3, 128, 128), (1, 3, 128, 128), (1, 3, 160, 96)]


def test_found_by_content(options, folder):
    def encoded(scale=1.0, **changes):
        model = Encoder(scale)
        changed = options.model_copy(update=changes)
        LatentCache(changed, model).fill(pictures_of(changed))
        return model.images

    assert encoded() == 4
    (folder.path / "a.png").rename(folder.path / "z.png")
    (folder.path / "a.txt").rename(folder.path / "z.txt")
    (folder.path / "b.txt").write_text("another caption")
    assert encoded() == 0
    image = Image.open(folder.path / "z.png")
    image.putpixel((3, 3), (1, 2, 3))
    image.save(folder.path / "z.png")
    assert encoded() == 1
    assert encoded(resolution=256) == 4
    assert encoded(buckets=False) == 2
    assert encoded(flip=True) == 4
    assert encoded(scale=2.0) == 4


@pytest.mark.parametrize("cache", [True, False])
def test_texts(options, cache):
    captions = ["cat", "", "a dog", "cat", "ünï"]
    model, seen = Encoder(), []
    texts = TextCache(options.model_copy(update={"cache": cache}), model)
    texts.fill(iter(captions), lambda done, total: seen.append((done, total)))
    assert model.texts == 4 and seen[-1] == (4, 4)
    got = texts.get(captions)
    each = [Encoder().encode_texts([caption]) for caption in captions]
    reference = {name: torch.cat([one[name] for one in each]) for name in each[0]}
    assert got.keys() == reference.keys()
    for name in reference:
        assert got[name].dtype == reference[name].dtype and torch.equal(got[name], reference[name])
    assert model.texts == 4
    assert texts.get(["new"])["pooled"].shape == (1, 5) and model.texts == 5


def test_texts_are_found_by_content(options):
    def encoded(captions, scale=1.0):
        model = Encoder(scale)
        TextCache(options, model).fill(captions)
        return model.texts

    assert [encoded(["cat"]), encoded(["cat", "cats"]), encoded(["cat"]), encoded(["cat"], 2.0)] == [1, 1, 0, 1]


def test_undefined_values(options):
    pictures = pictures_of(options)
    with pytest.raises(ValueError, match=r"a\.png.*training\.precision"):
        LatentCache(options, Encoder(scale=float("nan"))).fill(pictures)
    with pytest.raises(ValueError, match=r"'cat'.*training\.precision"):
        TextCache(options, Encoder(scale=float("inf"))).fill(["cat"])
    assert not list(Path(options.cache_folder).rglob("*.safetensors"))


def test_picture_that_changed_since(options, folder):
    pictures = pictures_of(options)
    folder.picture("a.png", (64, 64))
    with pytest.raises(ValueError, match=r"a\.png: has changed"):
        LatentCache(options, Encoder()).fill(pictures)


def test_several_writers(tmp_path):
    """Writers of the same key never show a half-written file, and leave nothing behind."""
    value = torch.arange(50_000.0)

    def work(_):
        store = Store(tmp_path)
        for _ in range(10):
            store.put("key", {"x": value})
            read = Store(tmp_path).get("key")
            assert read is not None and torch.equal(read["x"], value)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"]


def test_memory_is_bounded(tmp_path):
    store = Store(tmp_path, memory=1000)
    for number in range(10):
        store.put(str(number), {"x": torch.full((100,), float(number))})
    assert store.size <= 1000 and list(store.recent) == ["8", "9"]
    for number in range(10):
        read = store.get(str(number))
        assert read is not None and read["x"][0] == number and store.size <= 1000
    kept = Store(None, memory=1000)
    for number in range(10):
        kept.put(str(number), {"x": torch.zeros(100)})
    assert all(kept.get(str(number)) is not None for number in range(10))


class Wide(Encoder):
    """Conditions of 4 MiB per caption, as those of a large text encoder."""

    def encode_texts(self, captions):
        self.texts += len(captions)
        return {"hidden": torch.stack([torch.full((1024, 1024), float(len(caption))) for caption in captions])}


@pytest.mark.full
def test_captions_larger_than_the_memory_for_them_stream_from_disk(options):
    """Measured: the process' own memory grows by a part of what all conditions take, in filling and in use."""
    captions, encoder = ["x" * number for number in range(1, 49)], Wide()
    texts = TextCache(options, encoder)
    texts.store.memory = 4 * 2**22
    process, order = psutil.Process(), random.Random(0)
    texts.get(captions[:8])  # what the libraries need is there now
    before, most = process.memory_info().rss, 0
    texts.fill(captions)
    for _ in range(40):
        few = order.sample(captions, 2)
        found = texts.get(few)["hidden"]
        assert found.shape == (2, 1024, 1024) and found[:, 7, 9].tolist() == [len(caption) for caption in few]
        most = max(most, process.memory_info().rss)
    assert encoder.texts == len(captions), "each caption is encoded once"
    assert most - before < len(captions) * 2**22 / 2, (most - before) / 2**20


def test_folder_that_cannot_be_written(tmp_path, options):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data\.cache_folder .*file"):
        LatentCache(options.model_copy(update={"cache_folder": str(tmp_path / "file")}), Encoder())
    texts = TextCache(options, Encoder())
    Path(options.cache_folder, "texts").rmdir()
    Path(options.cache_folder, "texts").write_text("a file in its place")
    with pytest.raises(ValueError, match=r"data\.cache_folder .*cannot be written"):
        texts.fill(["cat"])


def test_key_takes_all_of_the_picture_that_matters(options):
    latents, (first, *_) = LatentCache(options, Encoder()), pictures_of(options)
    same = dataclasses.replace(first, name="x", path=Path("y"), caption="z", repeats=9)
    assert latents.key(first, False) == latents.key(same, False)
    others = [dataclasses.replace(first, key="0"), dataclasses.replace(first, bucket=(64, 64))]
    assert len({latents.key(first, False), latents.key(first, True), *(latents.key(o, False) for o in others)}) == 4


@pytest.mark.parametrize("error", [OSError("disk full"), PermissionError("in use")])
def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch, error):
    def fail(self, target):
        raise error

    store, value = Store(tmp_path), {"x": torch.ones(3)}
    store.put("held", value)
    monkeypatch.setattr(Path, "replace", fail)
    if isinstance(error, PermissionError):  # Windows: another process reads the same content
        store.put("held", value)
    for key in ("new", "other"):
        with pytest.raises(ValueError, match="cannot be written"):
            store.put(key, value)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["held.safetensors"]
