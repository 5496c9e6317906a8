"""The options of pictures and captions."""

from typing import Literal

from pydantic import field_validator

from modules.preset.section import Section, option


class Data(Section):
    """Pictures and captions."""

    folders: tuple[str, ...] = option((), why="required", kind="folders")
    """Folders with the training pictures; together they are the data set. Each picture has its caption in a .txt file
    of the same name, or elsewhere (see data.captions). Sub-folders named 10_name repeat their pictures 10 times per
    epoch (kohya's layout)."""

    validation_folder: str = option("", kind="folder")
    """Folder with held-out pictures, which are never trained on. The validation loss is the loss on them, with fixed
    noise."""

    resolution: int = option(1024, why="the resolution that most families were trained at", unit="px", ge=16, le=8192)
    """Pictures are resized to about this many pixels squared and keep their aspect ratio."""

    buckets: bool = option(True, why="keeps the aspect ratio of pictures", group="Buckets")
    """Group pictures by aspect ratio and crop each to the nearest bucket. Off: every picture is cropped to a square."""

    max_aspect: float = option(
        2.0, why="covers 9:16 to 2:1", group="Buckets", advanced=True, ge=1, le=8, needs="data.buckets"
    )
    """Longest side divided by shortest side of the most extreme bucket."""

    captions: Literal["auto", "txt", "caption", "json", "metadata", "foldername", "filename", "text", "none"] = option(
        "auto", why="finds the files that are there", group="Captions"
    )
    """Where captions are. txt, caption, json: in a file of that ending beside each picture, with the same name.
    metadata: in metadata.jsonl, metadata.json, metadata.csv or metadata.parquet of the picture's folder. foldername:
    the name of the folder, of 10_sks dog the part after the number. filename: the picture's own name. text:
    data.caption_text for all. none: all captions are empty. auto: for each picture the first of txt, caption, json and
    metadata that has one; --check says which are used, and which are there and not used."""

    caption_text: str = option("", group="Captions", advanced=True)
    """Caption of pictures that have none of their own; with data.captions text, of all pictures."""

    caption_lines: Literal["all", "first", "random", "each"] = option(
        "all", why="a caption may have several lines", group="Captions", advanced=True
    )
    """What the lines of a caption are. all: one caption. first: the first line is the caption. random: each use of the
    picture takes one of them. each: every line is a sample of its own with the same picture."""

    missing_captions: Literal["error", "empty", "filename"] = option(
        "error", why="a missing caption is usually a mistake", group="Captions"
    )
    """What to do with a picture that has no caption: stop with an error, use the empty caption, or use its file name as
    caption."""

    trigger: str = option("", group="Captions")
    """Word or phrase that is added in front of every caption, or that replaces [trigger] in captions that have it. It
    is also written into the exported file, for model managers."""

    prefix: str = option("", group="Captions", advanced=True)
    """Text in front of every caption, behind the trigger. A space follows it."""

    suffix: str = option("", group="Captions", advanced=True)
    """Text at the end of every caption. A space comes before it."""

    wildcards: bool = option(False, why="braces may be part of a caption", group="Captions")
    """Each use of a caption takes one of the alternatives in braces: {red|blue} car. They may be inside each other, and
    have weights: {3::red|blue}. Doubled braces {{ }} stay as braces."""

    underscores: bool = option(False, why="some tags are written with them", group="Captions", advanced=True)
    """Replace underscores in captions by spaces, except in parts of up to three characters such as ^_^."""

    separator: str = option(
        ",", why="tags are usually separated by commas", group="Captions", advanced=True,
        needs="data.shuffle or data.part_dropout",
    )
    """Separator between the parts of a caption (tags) that can be shuffled or dropped."""

    shuffle: bool = option(False, why="shuffling suits tags, but breaks sentences", group="Captions")
    """Shuffle the parts of a caption each time it is used."""

    keep_tokens: int = option(
        1, why="the first part usually names the subject", group="Captions", advanced=True, ge=0, le=1000,
        needs="data.shuffle or data.part_dropout",
    )
    """Number of parts at the front of a caption that are never shuffled or dropped."""

    keep_separator: str = option("", group="Captions", advanced=True)
    """Text that ends the parts of a caption that are never shuffled or dropped, such as |||; a second one begins the
    parts at the end that are not either. In captions that have it, data.keep_tokens has no effect."""

    part_dropout: float = option(0.0, group="Captions", advanced=True, ge=0, lt=1)
    """Probability that a part of a caption is dropped."""

    drop_never: tuple[str, ...] = option((), group="Captions", advanced=True)
    """Parts (tags) that are never dropped, wherever they stand."""

    drop_only: tuple[str, ...] = option((), group="Captions", advanced=True)
    """Parts (tags) that may be dropped; empty: all may."""

    caption_dropout: float = option(0.05, why="keeps classifier-free guidance working", group="Captions", ge=0, le=1)
    """Probability that a whole caption is replaced by the empty one."""

    flip: bool = option(False, why="mirroring spoils text, logos and faces", group="Pictures")
    """Mirror pictures horizontally half of the time."""

    cache: bool = option(True, why="encoding only once saves half of the time", group="Cache", advanced=True)
    """Cache encoded pictures and captions on disk. Entries are looked up by content."""

    cache_folder: str = option(
        "cache", why="shared by all runs", group="Cache", advanced=True, kind="folder", needs="data.cache"
    )
    """Folder of the cache."""

    @field_validator("folders", mode="before")
    @classmethod
    def one_folder_is_a_list_of_one(cls, given: object) -> object:
        """A single text is one folder, as it was before there could be several; the empty text is none."""
        if isinstance(given, str):
            return (given,) if given else ()
        return given
