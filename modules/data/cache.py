"""Encoded pictures and captions, looked up by content: a renamed file is a hit, a changed pixel or word a miss.

Every item is encoded by itself: encoders round differently when other items are in the batch, and a cached picture or
caption must not depend on what else was missing. So a run with a warm cache, a cold one, none, or one that another run
has filled is the same run, bit for bit.

One .safetensors file per item, written under a temporary name and renamed, so that several processes and runs can
share the folder. It has a checksum: a damaged file is encoded again, with a warning, and never trained on.
"""

import hashlib
import json
import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from modules import tensorfile
from modules.data.augment import View, is_encoded_in_steps, key_of, placing_of, still, variants
from modules.data.augment import pixels as seen
from modules.data.index import Picture
from modules.data.looking import Progress
from modules.data.masks import placed, read
from modules.data.names import shown
from modules.data.opening import content_key, open_picture
from modules.data.references import Reference
from modules.disk import DiskFull, remove_left_overs, whole
from modules.families.base import Caption, Instruction, Model, Texts, text_of, together
from modules.preset.data_options import Data
from modules.printable import short

log = logging.getLogger(__name__)

FORMAT = 2
"""Part of every key. Raise it when resizing, cropping, encoding or the meaning of the tensors changes."""

MEMORY_BYTES = 2 * 2**30
"""Bytes of items on disk that each cache also keeps in memory, the most recently used ones."""

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Shapes and dtypes of an item's tensors."""

CHECKSUM = "sha256"
"""Name of the checksum in a file's metadata, see `checksum`."""


class LatentCache:
    """The image encoder's distributions of pictures.

    Fill it with all pictures while the encoder is loaded. With several processes each fills a part
    (`pictures[rank::processes]`); after that the others find the files. Do not modify the tensors that it returns.
    """

    def __init__(self, options: Data, model: Model):
        self.model = model
        self.fingerprint = model.fingerprint("images")
        self.store = Store(Path(options.cache_folder, "latents") if options.cache else None)

    def get(self, picture: Picture, flip: bool, view: View | None = None) -> Tensor:
        """`(2 * channels, h, w)` float32 on the CPU: mean and standard deviation of the picture's latents. They are not
        kept where each use of the picture is another version of it."""
        return self._get(picture, flip, view)

    def _get(self, picture: Picture, flip: bool, view: View | None) -> Tensor:
        if view is not None and is_encoded_in_steps(picture.options):
            return self._encode(picture, flip, view)
        key = self.key(picture, flip, view)
        stored = self.store.get(key, {"latents": (torch.float32, self._shape(picture))})
        if stored is None:
            stored = self.store.put(key, {"latents": self._encode(picture, flip, view)})
        return stored["latents"]

    def fill(
        self, pictures: Iterable[Picture], progress: Progress | None = None, validation: Iterable[Picture] = ()
    ) -> None:
        """Read and check what is there, and encode what is missing; with the option `flip`, mirrored too, and every
        variant. Pictures for validation are always seen the same way. Raises ValueError for pictures that the encoder
        cannot encode or that have changed since the index was made."""
        needed = [
            (picture, flip, view)
            for picture in pictures
            for flip in ((False, True) if picture.options.flip else (False,))
            for view in variants(picture.options, picture)
        ]
        needed += [(picture, False, still(picture.options, picture)) for picture in validation]
        items = {self.key(*item): item for item in needed}
        for done, item in enumerate(items.values()):
            _report(progress, done, len(items))
            self._get(*item)
        _report(progress, len(items), len(items))

    def key(self, picture: Picture, flip: bool, view: View | None = None) -> str:
        """The name of an item: everything its latents depend on."""
        seen = () if view is None else (key_of(view),)
        return _key("latents", self.fingerprint, PIL.__version__, picture.key, picture.bucket, flip, *seen)

    def _shape(self, picture: Picture) -> tuple[int, ...]:
        width, height = (side // self.model.latent_factor for side in picture.bucket)
        return 2 * self.model.latent_channels, height, width

    def _encode(self, picture: Picture, flip: bool, view: View | None) -> Tensor:
        with torch.no_grad():
            latents = self.model.encode_images(_pixels(picture, flip, view)[None])[0].float().cpu()
        assert latents.shape == self._shape(picture), f"{picture.path}: {latents.shape} is not {self._shape(picture)}"
        return _finite(latents, picture.path)


class MaskCache:
    """Where the latents of pictures are trained: their masks on the latents' grid."""

    def __init__(self, options: Data, model: Model):
        self.cell = model.latent_factor
        self.store = Store(Path(options.cache_folder, "masks") if options.cache else None)

    def get(self, picture: Picture, flip: bool, view: View | None = None) -> Tensor:
        """`(1, h, w)` float64 from 0 to 1, for a picture that has a mask."""
        mask = picture.mask
        assert mask is not None
        size = picture.width, picture.height
        key = _key("mask", mask.key, size, picture.bucket, self.cell, *(() if view is None else (placing_of(view),)))
        kept = view is None or not is_encoded_in_steps(picture.options)
        stored = self.store.get(key, {"mask": (torch.float64, self._shape(picture))}) if kept else None
        if stored is None:
            shares = placed(read(mask), size, picture.bucket, view, self.cell)[None] / 255
            stored = {"mask": torch.from_numpy(np.ascontiguousarray(shares))}
            stored = self.store.put(key, stored) if kept else stored
        return stored["mask"].flip(-1) if flip else stored["mask"]

    def fill(self, pictures: Iterable[Picture], validation: Iterable[Picture] = ()) -> None:
        """Compute what is missing. Raises ValueError for masks that have changed since the index was made."""
        for picture in pictures:
            for view in variants(picture.options, picture) if picture.mask else ():
                self.get(picture, False, view)
        for picture in validation:
            if picture.mask:
                self.get(picture, False, still(picture.options, picture))

    def _shape(self, picture: Picture) -> tuple[int, ...]:
        width, height = (side // self.cell for side in picture.bucket)
        return 1, height, width


class ReferenceCache:
    """The image encoder's latents of reference pictures."""

    def __init__(self, options: Data, model: Model):
        self.model = model
        self.fingerprint = model.fingerprint("images")
        self.store = Store(Path(options.cache_folder, "references") if options.cache else None)

    def get(self, reference: Reference) -> Tensor:
        """`(channels, h, w)` float32 on the CPU."""
        key = _key("reference", self.fingerprint, PIL.__version__, reference.content)
        width, height = (side // self.model.latent_factor for side in reference.size)
        shape = self.model.latent_channels, height, width
        stored = self.store.get(key, {"latents": (torch.float32, shape)})
        if stored is None:
            latents = self.model.encode_reference(reference.image())
            assert latents.shape == shape, f"{reference.path}: {latents.shape} is not {shape}"
            stored = self.store.put(key, {"latents": _finite(latents, reference.path)})
        return stored["latents"]

    def of(self, pictures: Sequence[Picture]) -> tuple[Tensor, ...]:
        """Those of pictures of one shape: `(n, channels, h, w)` for each of their references."""
        each = zip(*(one.references for one in pictures), strict=True)
        return tuple(torch.stack([*map(self.get, shown)]) for shown in each)

    def fill(self, pictures: Iterable[Picture]) -> None:
        """Encode what is missing. Raises ValueError for references that have changed since the index was made."""
        for reference in dict.fromkeys(one for picture in pictures for one in picture.references):
            self.get(reference)


class TextCache:
    """The text encoders' features of captions, each in the dtype the encoders give."""

    def __init__(self, options: Data, model: Model):
        self.model = model
        self.fingerprint = model.fingerprint("texts")
        self.store = Store(Path(options.cache_folder, "texts") if options.cache else None)

    def get(self, captions: Sequence[Caption]) -> Texts:
        """The captions' features on the CPU, as those of one batch."""
        return together([self._get(caption) for caption in captions])

    def fill(self, captions: Iterable[Caption], progress: Progress | None = None) -> None:
        """Read and check what is there, and encode what is missing."""
        unique = list(dict.fromkeys(captions))
        for done, caption in enumerate(unique):
            _report(progress, done, len(unique))
            self._get(caption)
        _report(progress, len(unique), len(unique))

    def key(self, caption: Caption) -> str:
        """The name of an item: everything its features depend on."""
        if isinstance(caption, Instruction) and self.model.reads_references:
            seen = tuple(one.content for one in caption.references)
            return _key("instruction", self.instructions, PIL.__version__, caption.text, seen)
        return _key("texts", self.fingerprint, text_of(caption))

    @cached_property
    def instructions(self) -> str:
        """The fingerprint of what reads captions about pictures."""
        return self.model.fingerprint("instructions")

    def find(self, caption: Caption) -> Texts | None:
        """One caption's features, if they are there."""
        return self.store.get(self.key(caption))

    def _get(self, caption: Caption) -> Texts:
        found = self.find(caption)
        return self.store.put(self.key(caption), self.encode(caption)) if found is None else found

    def encode(self, caption: Caption) -> Texts:
        """One caption's features, encoded anew and not kept. Raises ValueError where they are non-finite."""
        # In a training step, where a damaged file may be noticed, autocast is on; while the cache is filled it is not.
        with torch.no_grad(), torch.autocast(self.model.device.type, enabled=False):
            encoded = {name: features.cpu() for name, features in self.model.encode_texts([caption]).items()}
        if not all(torch.isfinite(features).all() for features in encoded.values()):
            raise ValueError(
                f"non-finite features from the text encoders for the caption {short(text_of(caption))!r}, as some give "
                "in float16; set training.precision to bfloat16 or float32"
            )
        return encoded


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
            remove_left_overs(folder, "*/*")

    def get(self, key: str, layout: Layout | None = None) -> dict[str, Tensor] | None:
        """The tensors, on the CPU; None when they are missing, or their file is damaged or has another layout."""
        if key in self.recent:
            self.recent.move_to_end(key)
            return self.recent[key]
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            tensors = read_entry(path, key)
            _check(tensors, layout)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s: damaged cache file (%s); encoding it again", shown(path), error)
            return None
        self._remember(key, tensors)
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Store copies of tensors; returns the copies. Raises ValueError if the folder cannot be written."""
        tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        self._remember(key, tensors)
        if self.folder is None:
            return tensors
        path = self._path(self.folder, key)
        content = safetensors.torch.save(tensors, {CHECKSUM: checksum(key, tensors)})
        try:
            _make_room(path)
            # Not flushed: that takes longer than encoding, and the checksum detects what a power cut damages.
            with whole(path, flush=False) as partial:
                partial.write_bytes(content)
        except OSError as error:
            # On Windows a file that another process is reading cannot be replaced; it holds the same tensors.
            if not (isinstance(error, PermissionError) and path.is_file()):
                raise ValueError(_unwritable(self.folder, error)) from error
        return tensors

    def _remember(self, key: str, tensors: dict[str, Tensor]) -> None:
        self.size += _bytes(tensors) - _bytes(self.recent.pop(key, {}))
        self.recent[key] = tensors
        while self.folder is not None and self.size > self.memory and len(self.recent) > 1:
            _, oldest = self.recent.popitem(last=False)
            self.size -= _bytes(oldest)

    def _path(self, folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.safetensors"


# -- files ------------------------------------------------------------------------------------------------------------


def read_entry(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of the item `key`. Raises FileNotFoundError if there is no file, OSError if it cannot be read, and
    ValueError if it is damaged."""
    if not path.is_file() and os.path.lexists(path):  # reading a FIFO would block
        raise ValueError("it is not a regular file")
    # Not load_file: it maps the file, and a mapped file cannot be replaced on Windows.
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, KeyError, RuntimeError, TypeError) as error:  # torch's own for unknown dtypes
        raise ValueError(str(error)) from error
    end = 8 + int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8:end]).get("__metadata__") or {}
    if metadata.get(CHECKSUM) != checksum(key, tensors):
        raise ValueError("checksum mismatch")
    return tensors


def checksum(key: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of an item, hex: its key, and the names, dtypes, shapes and bytes of its tensors."""
    return tensorfile.checksum(sorted(tensors.items()), key)


def _make_room(path: Path) -> None:
    """Make writing an item possible: something else with the name of its folder or file is moved away."""
    for place, fits in ((path.parent, path.parent.is_dir()), (path, path.is_file())):
        if not fits and os.path.lexists(place):
            place.rename(place.with_name(f"{place.name}.{uuid.uuid4().hex[:12]}.aside"))
    path.parent.mkdir(parents=True, exist_ok=True)


def _check(tensors: Mapping[str, Tensor], layout: Layout | None) -> None:
    """Raise ValueError for tensors that cannot be trained on."""
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if layout is not None and found != dict(layout):
        raise ValueError(f"it has {found} instead of {dict(layout)}")
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError("it has non-finite values")


def _key(*parts: object) -> str:
    return hashlib.sha256(repr((FORMAT, *parts)).encode()).hexdigest()


def _pixels(picture: Picture, flip: bool, view: View | None) -> Tensor:
    """`(3, h, w)` float32 in [-1, 1], mirrored if `flip`."""
    opened = open_picture(picture.path)
    if content_key(opened) != picture.key:
        path = shown(picture.path)
        raise ValueError(f"{path}: has changed since training started; start again, and do not edit pictures meanwhile")
    pixels = seen(opened, picture.bucket, view)
    return pixels.flip(-1) if flip else pixels


def _finite(latents: Tensor, path: Path) -> Tensor:
    """The latents of the picture at `path`. Raises ValueError where they are non-finite."""
    if not torch.isfinite(latents).all():
        raise ValueError(
            f"{shown(path)}: non-finite latents from the image encoder, as some give in float16; set "
            "training.precision to bfloat16 or float32"
        )
    return latents


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _unwritable(folder: Path, error: OSError) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    why = error if isinstance(error, DiskFull) else cause.strerror or cause
    return (
        f"data.cache_folder {folder.parent}: cannot be written ({why}), and it lacks entries that this run needs; give "
        "another folder with --data.cache_folder, or make this one writable"
    )


def has_entries(folder: Path) -> bool:
    """Whether a cache folder has anything in it."""
    return any(next(folder.glob(f"{kind}/*/*.safetensors"), None) for kind in ("latents", "texts"))
