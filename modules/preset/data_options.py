"""The options of pictures and captions."""

from typing import Literal

from pydantic import field_validator

from modules.preset.section import Section, option


class Data(Section):
    """Pictures and captions."""

    folders: tuple[str, ...] = option((), why="required", kind="folders")
    """Folders with the training pictures; together they are the data set. Each picture has its caption in a .txt file
    of the same name, or in metadata.jsonl. Sub-folders named 10_name repeat their pictures 10 times per epoch (kohya's
    layout)."""

    validation_folder: str = option("", kind="folder")
    """Folder with held-out pictures, which are never trained on. The validation loss is the loss on them, with fixed
    noise."""

    resolution: int = option(1024, why="the resolution that most families were trained at", unit="px", ge=16, le=8192)
    """Pictures are resized to about this many pixels squared and keep their aspect ratio."""

    buckets: bool = option(True, why="keeps the aspect ratio of pictures", group="Buckets")
    """Group pictures by aspect ratio and crop each to the nearest bucket. Off: every picture is cropped to a square."""

    max_aspect: float = option(2.0, why="covers 9:16 to 2:1", group="Buckets", advanced=True, ge=1, le=8)
    """Longest side divided by shortest side of the most extreme bucket."""

    missing_captions: Literal["error", "empty", "filename"] = option(
        "error", why="a missing caption is usually a mistake", group="Captions"
    )
    """What to do with a picture that has no caption: stop with an error, use the empty caption, or use its file name as
    caption."""

    trigger: str = option("", group="Captions")
    """Word or phrase that is added in front of every caption. It is also written into the exported file, for model
    managers."""

    separator: str = option(",", why="tags are usually separated by commas", group="Captions", advanced=True)
    """Separator between the parts of a caption (tags) that can be shuffled or dropped."""

    shuffle: bool = option(False, why="shuffling suits tags, but breaks sentences", group="Captions")
    """Shuffle the parts of a caption each time it is used."""

    keep_tokens: int = option(
        1, why="the first part usually names the subject", group="Captions", advanced=True, ge=0, le=1000
    )
    """Number of parts at the front of a caption that are never shuffled or dropped."""

    part_dropout: float = option(0.0, group="Captions", advanced=True, ge=0, lt=1)
    """Probability that a part of a caption is dropped."""

    caption_dropout: float = option(0.05, why="keeps classifier-free guidance working", group="Captions", ge=0, le=1)
    """Probability that a whole caption is replaced by the empty one."""

    flip: bool = option(False, why="mirroring spoils text, logos and faces", group="Pictures")
    """Mirror pictures horizontally half of the time."""

    broken: Literal["error", "skip"] = option(
        "error", why="a damaged file is usually a failed copy", group="Pictures", advanced=True
    )
    """What to do with a picture file that cannot be read: stop with an error, or train without it. The run folder's
    broken.tsv lists what was skipped, with the reasons."""

    cache: bool = option(True, why="encoding only once saves half of the time", group="Cache", advanced=True)
    """Cache encoded pictures and captions on disk. Entries are looked up by content."""

    cache_folder: str = option("cache", why="shared by all runs", group="Cache", advanced=True, kind="folder")
    """Folder of the cache."""

    @field_validator("folders", mode="before")
    @classmethod
    def one_folder_is_a_list_of_one(cls, given: object) -> object:
        """A single text is one folder, as it was before there could be several; the empty text is none."""
        if isinstance(given, str):
            return (given,) if given else ()
        return given
