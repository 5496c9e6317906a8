"""Encoded pictures and captions, found again by content: a renamed file is a hit, a changed pixel or word a miss.

One .safetensors file per item, written under a temporary name and renamed, so that several processes and runs can
share the folder. A broken file is encoded anew, with a warning.
"""

import contextlib
import hashlib
import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from modules.data.index import Picture, Progress, by_bucket
from modules.data.pictures import content_key, fit, open_picture
from modules.families.base import Model, Texts
from modules.preset.schema import Data

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key. Raise it when resizing, cropping or the meaning of the tensors changes."""

MEMORY_BYTES = 2 * 2**30
"""What each cache keeps in memory of the items that are on disk, the most recently used ones."""

ENCODED_PIXELS = 1024 * 1024
"""Pictures are encoded together up to this many pixels, one picture at least: encoders need much memory for each."""

ENCODED_AT_ONCE = 32
"""At most so many pictures or captions are encoded together."""


class LatentCache:
    """The image encoder's distributions of pictures.

    Fill it with all pictures while the encoder is at hand. With several processes each fills a part
    (`pictures[rank::processes]`); after that the others find the files. Tensors belong to the cache: don't change them.
    """

    def __init__(self, options: Data, model: Model):
        self.model = model
        self.flips = (False, True) if options.flip else (False,)
        self.fingerprint = model.fingerprint("images")
        self.store = Store(Path(options.cache_folder, "latents") if options.cache else None)

    def get(self, picture: Picture, flip: bool) -> Tensor:
        """`(2 * channels, h, w)` float32 on the CPU: mean and standard deviation of the picture's latents."""
        key = self.key(picture, flip)
        stored = self.store.get(key)
        return self._encode([picture], flip)[0] if stored is None else stored["latents"]

    def fill(self, pictures: Iterable[Picture], progress: Progress | None = None) -> None:
        """Encode what is missing; with the option `flip`, mirrored too. Raises ValueError for pictures that the
        encoder cannot encode or that have changed since the index was made."""
        items = {self.key(picture, flip): (picture, flip) for picture in pictures for flip in self.flips}
        missing = [item for key, item in items.items() if not self.store.has(key)]
        done = len(items) - len(missing)
        for flip in self.flips:
            for bucket, group in by_bucket(picture for picture, its_flip in missing if its_flip == flip).items():
                together = max(1, min(ENCODED_AT_ONCE, ENCODED_PIXELS // (bucket[0] * bucket[1])))
                for chunk in _chunks(group, together):
                    _report(progress, done, len(items))
                    self._encode(chunk, flip)
                    done += len(chunk)
        _report(progress, done, len(items))

    def key(self, picture: Picture, flip: bool) -> str:
        """The name of an item: everything its latents depend on."""
        return _key("latents", self.fingerprint, picture.key, picture.bucket, flip)

    def _encode(self, pictures: Sequence[Picture], flip: bool) -> list[Tensor]:
        """Encode pictures of one bucket and keep them."""
        pixels = torch.stack([_pixels(picture, flip) for picture in pictures])
        with torch.no_grad():
            encoded = self.model.encode_images(pixels).float().cpu()
        for picture, latents in zip(pictures, encoded, strict=True):
            if not torch.isfinite(latents).all():
                raise ValueError(
                    f"{picture.path}: the image encoder gives infinite or undefined latents for it, as some do in "
                    "float16; set training.precision to bfloat16 or float32"
                )
            self.store.put(self.key(picture, flip), {"latents": latents})
        return [latents.clone() for latents in encoded]


class TextCache:
    """The text encoders' features of captions, each in the dtype the encoders give."""

    def __init__(self, options: Data, model: Model):
        self.model = model
        self.fingerprint = model.fingerprint("texts")
        self.store = Store(Path(options.cache_folder, "texts") if options.cache else None)

    def get(self, captions: Sequence[str]) -> Texts:
        """The captions' features on the CPU, each tensor with the captions along dimension 0."""
        self.fill(captions)
        items = [self.store.get(self.key(caption)) for caption in captions]
        items = [self._encode([c])[0] if item is None else item for c, item in zip(captions, items, strict=True)]
        return {name: torch.cat([item[name] for item in items]) for name in items[0]}

    def fill(self, captions: Iterable[str], progress: Progress | None = None) -> None:
        """Encode what is missing."""
        # Sorted: which captions are encoded together may change last bits, and has to be the same in every run.
        unique = sorted(set(captions))
        missing = [caption for caption in unique if not self.store.has(self.key(caption))]
        done = len(unique) - len(missing)
        for chunk in _chunks(missing, ENCODED_AT_ONCE):
            _report(progress, done, len(unique))
            self._encode(chunk)
            done += len(chunk)
        _report(progress, done, len(unique))

    def key(self, caption: str) -> str:
        """The name of an item: everything its features depend on."""
        return _key("texts", self.fingerprint, caption)

    def _encode(self, captions: Sequence[str]) -> list[Texts]:
        """Encode captions and keep them."""
        with torch.no_grad():
            encoded = {name: features.cpu() for name, features in self.model.encode_texts(captions).items()}
        items = [{name: f[at : at + 1].clone() for name, f in encoded.items()} for at in range(len(captions))]
        for caption, item in zip(captions, items, strict=True):
            if not all(torch.isfinite(features).all() for features in item.values()):
                raise ValueError(
                    f"the text encoders give infinite or undefined features for the caption {caption!r}, as some do "
                    "in float16; set training.precision to bfloat16 or float32"
                )
            self.store.put(self.key(caption), item)
        return items


class Store:
    """Named tensors by key: in `folder` with the last used in memory, or without a folder all in memory."""

    def __init__(self, folder: Path | None, memory: int = MEMORY_BYTES):
        self.folder, self.memory = folder, memory
        self.recent: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self.size = 0
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(_unwritable(folder, error)) from error

    def has(self, key: str) -> bool:
        """Whether `get` will find it. Reads no tensors; a file that was cut off counts as missing."""
        if key in self.recent or self.folder is None:
            return key in self.recent
        path = self._path(self.folder, key)
        if not path.exists():
            return False
        try:
            with safetensors.safe_open(path, "pt"):
                return True
        except (SafetensorError, OSError) as error:
            _warn(path, error)
            return False

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors, on the CPU; None when they are missing or their file is broken."""
        if key in self.recent:
            self.recent.move_to_end(key)
            return self.recent[key]
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            # Not load_file: it maps the file, and a mapped file cannot be replaced on Windows.
            tensors = safetensors.torch.load(path.read_bytes())
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            _warn(path, error)
            return None
        self._remember(key, tensors)
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep copies of tensors. Raises ValueError if the folder cannot be written."""
        tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        self._remember(key, tensors)
        if self.folder is None:
            return
        path = self._path(self.folder, key)
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(safetensors.torch.save(tensors))
            temporary.replace(path)
        except OSError as error:
            # On Windows a file that another process is reading cannot be replaced; it holds the same tensors.
            if not (isinstance(error, PermissionError) and path.exists()):
                raise ValueError(_unwritable(self.folder, error)) from error
        finally:
            with contextlib.suppress(OSError):  # it is there only after an error, and a left-over does no harm
                temporary.unlink()

    def _remember(self, key: str, tensors: dict[str, Tensor]) -> None:
        self.size += _bytes(tensors) - _bytes(self.recent.pop(key, {}))
        self.recent[key] = tensors
        while self.folder is not None and self.size > self.memory and len(self.recent) > 1:
            _, oldest = self.recent.popitem(last=False)
            self.size -= _bytes(oldest)

    def _path(self, folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.safetensors"


def _key(*parts: object) -> str:
    return hashlib.sha256(repr((FORMAT, *parts)).encode()).hexdigest()


def _pixels(picture: Picture, flip: bool) -> Tensor:
    """`(3, h, w)` float32 in [-1, 1], mirrored if `flip`."""
    opened = open_picture(picture.path)
    if content_key(opened) != picture.key:
        raise ValueError(f"{picture.path}: has changed since training started; start again with pictures that stay")
    pixels, _ = fit(opened, picture.bucket)
    return pixels.flip(-1) if flip else pixels


def _chunks(items: Sequence, size: int) -> list[Sequence]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _warn(path: Path, error: Exception) -> None:
    log.warning("%s: the cache file is broken (%s); it is encoded again", path, error)


def _unwritable(folder: Path, error: OSError) -> str:
    return f"data.cache_folder {folder.parent}: cannot be written ({error}); give another folder, or make space there"
