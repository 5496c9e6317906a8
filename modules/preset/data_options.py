"""The options of pictures and captions."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, field_validator

from modules.preset.folder_options import Folder, PictureOptions, anywhere
from modules.preset.section import Section, option

CHUNK = 75
"""Tokens of a caption, without start and end, that CLIP reads at once."""

MOST_TOKENS = 30 * CHUNK
"""A longer caption is a mistake; every layer's attention reads all of it in every step."""


def _kind_of_entry(given: Any) -> str:
    return "entry" if isinstance(given, Mapping | Folder) else "text"


FolderOrText = Annotated[
    Annotated[str, Tag("text")] | Annotated[Folder, Tag("entry")],
    Discriminator(_kind_of_entry),
]


class _Folders(Section):
    """The folders; first of all options."""

    folders: tuple[FolderOrText, ...] = option((), why="required", kind="folders")
    """Folders with the pictures; together they are the data set. A folder with settings of its own, such as one for
    regularisation or validation, is given in braces. Each picture has its caption in a .txt file of the same name, or
    elsewhere (see data.captions). Sub-folders named 10_name repeat their pictures 10 times per epoch (kohya's
    layout)."""


class Data(PictureOptions, _Folders):
    """Pictures and captions."""

    regularisation_ratio: float | None = option(
        1.0, why="as many as training pictures", group="Folders", advanced=True, gt=0, le=1000,
        needs="data.folders[].role regularisation"
    )
    """Regularisation pictures per training picture in an epoch, for folders of that role. Each epoch takes others of
    them, or repeats them, as needed. null: as often as their repeats say."""

    buckets: bool = option(True, why="keeps the aspect ratio of pictures", group="Buckets")
    """Group pictures by aspect ratio and crop each to the nearest bucket. Off: every picture is cropped to a square."""

    max_aspect: float = option(
        2.0, why="covers 9:16 to 2:1", group="Buckets", advanced=True, ge=1, le=8, needs="data.buckets"
    )
    """Longest side divided by shortest side of the most extreme bucket."""

    separator: str = option(
        ",", why="tags are usually separated by commas", group="Captions", advanced=True,
        needs=anywhere("shuffle", "part_dropout", "trigger"),
    )
    """Separator between the parts of a caption (tags) that can be shuffled or dropped."""

    caption_tokens: int = option(
        CHUNK,
        why="what CLIP reads at once; more makes every step slower",
        unit="tokens",
        group="Captions",
        advanced=True,
        ge=CHUNK,
        le=MOST_TOKENS,
        multiple_of=CHUNK,
    )
    """Number of a caption's tokens that are read, a multiple of 75. CLIP text encoders (Stable Diffusion 1, 2 and XL)
    read more than 75 in chunks, as sd-scripts does with max_token_length; what is longer is cut. Prompts of samples are
    read alike. Other models have a length of their own, and --check says so."""

    emphasis: bool = option(False, why="brackets are usually part of a tag's name", group="Captions", advanced=True)
    """Read (word), [word] and (word:1.2) in captions and prompts as weights, as Stable Diffusion's web interfaces do; a
    bracket that is meant as such has a backslash in front of it. The features of a word's tokens are multiplied by its
    weight, as sd-scripts does with weighted_captions. For Stable Diffusion 1, 2 and XL."""

    encode_ahead: int = option(
        100,
        why="the denoiser is moved rarely, and the conditions of a group fit into main memory",
        unit="steps",
        group="Captions",
        advanced=True,
        ge=1,
        needs=(anywhere("shuffle", "part_dropout", "wildcards", "caption_lines random"), "not targets.text_encoders"),
    )
    """Captions that change from use to use (shuffled, dropped in part, drawn at random) are encoded for this many
    coming steps at once: the denoiser is moved to main memory meanwhile, so that it is never on the device together
    with the text encoders. Changes nothing in the result. A larger value needs more main memory, a smaller one more
    time."""

    broken: Literal["error", "skip"] = option(
        "error", why="a damaged file is usually a failed copy", group="Pictures", advanced=True
    )
    """What to do with a picture file that cannot be read: stop with an error, or train without it. The run folder's
    broken.tsv lists what was skipped, with the reasons."""

    unmasked_weight: float = option(
        0.1, why="keeps the rest from falling apart", group="Masks", ge=0, le=1, title="Weight outside of masks",
        needs=anywhere("masks")
    )
    """Least weight of any part of a picture in the loss, and so the weight of the parts that the mask excludes. 0: they
    do not count."""

    unmasked_probability: float = option(0.0, group="Masks", advanced=True, ge=0, le=1, title="Masks ignored",
                                         needs=anywhere("masks"))
    """Probability that a picture's mask is ignored when it is used."""

    normalize_mask: bool = option(
        False, why="small subjects would get large gradients", group="Masks", advanced=True, title="Normalize by area",
        needs=anywhere("masks")
    )
    """Divide the loss of a picture by the mean of its mask's weights, so that a small trained part counts as much as a
    whole picture."""

    cache: bool = option(True, why="encoding only once saves half of the time", group="Cache", advanced=True)
    """Cache encoded pictures and captions on disk. Entries are looked up by content."""

    cache_folder: str = option(
        "cache", why="shared by all runs", group="Cache", advanced=True, kind="folder", needs="data.cache"
    )
    """Folder of the cache."""

    @property
    def largest(self) -> int:
        """The largest resolution, in pixels, without those that only some folders have."""
        return max(self.resolutions, default=self.resolution)

    @field_validator("folders", mode="before")
    @classmethod
    def one_folder_is_a_list_of_one(cls, given: object) -> object:
        """A single text is one folder, as it was before there could be several; the empty text is none."""
        if isinstance(given, str):
            return (given,) if given else ()
        return given

    @field_validator("folders")
    @classmethod
    def without_settings_it_is_a_text(cls, given: tuple[str | Folder, ...]) -> tuple[str | Folder, ...]:
        """An entry that only has a path is that text."""
        return tuple(one.path if isinstance(one, Folder) and one == Folder(path=one.path) else one for one in given)
