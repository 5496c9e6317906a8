"""The options of pictures and captions."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_serializer

from modules.preset.section import Section, option

CHUNK = 75
"""Tokens of a caption, without start and end, that CLIP reads at once."""

MOST_TOKENS = 30 * CHUNK
"""A longer caption is a mistake; every layer's attention reads all of it in every step."""

Resolution = Annotated[int, Field(ge=16, le=8192)]
Captions = Literal["auto", "txt", "caption", "json", "metadata", "foldername", "filename", "text", "none"]
Share = Annotated[float, Field(gt=0, le=1000)]


class Folder(Section):
    """A folder of pictures with settings of its own. Those that are null are as in `data`."""

    path: str = option(kind="folder")
    """The folder."""

    role: Literal["train", "regularisation", "validation"] = option("train")
    """What its pictures are for. train: they are learned. regularisation: pictures of the same class without the
    subject, which are trained along at data.regularisation_ratio. validation: held out and never trained on; the
    validation loss is the loss on them, with fixed noise."""

    repeats: float = option(1.0, gt=0, le=100000)
    """How often an epoch has each picture, besides the number in a name such as 10_name. Of 0.5, an epoch has half of
    the pictures, and two epochs have all."""

    loss_weight: float = option(1.0, ge=0, le=1000)
    """Weight of these pictures' loss."""

    resolution: int | None = option(None, unit="px", ge=16, le=8192)
    """As data.resolution. It also replaces data.resolutions."""

    resolutions: tuple[Resolution, ...] | None = option(None, unit="px")
    """As data.resolutions."""

    resolution_shares: tuple[Share, ...] | None = option(None)
    """As data.resolution_shares."""

    max_enlargement: float | None = option(None, gt=0, le=1000)
    """As data.max_enlargement."""

    recursive: bool | None = option(None)
    """As data.recursive."""

    captions: Captions | None = option(None)
    """As data.captions."""

    caption_text: str | None = option(None)
    """As data.caption_text."""

    caption_lines: Literal["all", "first", "random", "each"] | None = option(None)
    """As data.caption_lines."""

    missing_captions: Literal["error", "empty", "filename"] | None = option(None)
    """As data.missing_captions."""

    trigger: str | None = option(None)
    """As data.trigger."""

    prefix: str | None = option(None)
    """As data.prefix."""

    suffix: str | None = option(None)
    """As data.suffix."""

    wildcards: bool | None = option(None)
    """As data.wildcards."""

    underscores: bool | None = option(None)
    """As data.underscores."""

    shuffle: bool | None = option(None)
    """As data.shuffle."""

    keep_tokens: int | None = option(None, ge=0, le=1000)
    """As data.keep_tokens."""

    keep_separator: str | None = option(None)
    """As data.keep_separator."""

    drop_never: tuple[str, ...] | None = option(None)
    """As data.drop_never."""

    drop_only: tuple[str, ...] | None = option(None)
    """As data.drop_only."""

    part_dropout: float | None = option(None, ge=0, lt=1)
    """As data.part_dropout."""

    caption_dropout: float | None = option(None, ge=0, le=1)
    """As data.caption_dropout."""

    flip: bool | None = option(None)
    """As data.flip."""

    crop: Literal["centre", "random", "focus"] | None = option(None)
    """As data.crop."""

    rotation: float | None = option(None, unit="degrees", ge=0, le=45)
    """As data.rotation."""

    brightness: float | None = option(None, ge=0, le=1)
    """As data.brightness."""

    contrast: float | None = option(None, ge=0, le=1)
    """As data.contrast."""

    saturation: float | None = option(None, ge=0, le=1)
    """As data.saturation."""

    hue: float | None = option(None, ge=0, le=0.5)
    """As data.hue."""

    variants: int | None = option(None, ge=0, le=1000)
    """As data.variants."""

    masks: str | None = option(None)
    """As data.masks."""

    prior_prediction: bool | None = option(None)
    """As data.prior_prediction, for a folder of the role regularisation."""

    @model_serializer
    def given(self) -> dict[str, Any]:
        """What differs from the defaults, and the path."""
        fields = type(self).model_fields
        return {name: value for name, value in self if fields[name].is_required() or value != fields[name].default}


def _kind_of_entry(given: Any) -> str:
    return "entry" if isinstance(given, Mapping | Folder) else "text"


FolderOrText = Annotated[
    Annotated[str, Tag("text")] | Annotated[Folder, Tag("entry")],
    Discriminator(_kind_of_entry),
]


class Data(Section):
    """Pictures and captions."""

    folders: tuple[FolderOrText, ...] = option((), why="required", kind="folders")
    """Folders with the pictures; together they are the data set. A folder with settings of its own, such as one for
    regularisation or validation, is given in braces. Each picture has its caption in a .txt file of the same name, or
    elsewhere (see data.captions). Sub-folders named 10_name repeat their pictures 10 times per epoch (kohya's
    layout)."""

    recursive: bool = option(True, group="Folders", advanced=True)
    """Also use the pictures in sub-folders. Off: only those in the folder itself and in its sub-folders named
    10_name."""

    regularisation_ratio: float | None = option(
        1.0, why="as many as training pictures", group="Folders", advanced=True, gt=0, le=1000
    )
    """Regularisation pictures per training picture in an epoch, for folders of that role. Each epoch takes others of
    them, or repeats them, as needed. null: as often as their repeats say."""

    resolution: int = option(1024, why="the resolution that most families were trained at", unit="px", ge=16, le=8192)
    """Pictures are resized to about this many pixels squared and keep their aspect ratio."""

    resolutions: tuple[Resolution, ...] = option((), why="data.resolution", unit="px", group="Resolutions")
    """Train each picture at each of these resolutions, such as 512, 768 and 1024. It replaces data.resolution."""

    resolution_shares: tuple[Share, ...] = option((), why="1 for each", group="Resolutions", advanced=True)
    """How often an epoch has each picture at each of data.resolutions. Of 0.5, an epoch has half of the pictures at
    that resolution, and two epochs have all."""

    max_enlargement: float | None = option(None, group="Resolutions", advanced=True, gt=0, le=1000)
    """Leave a picture out at resolutions for which it would have to be enlarged by more than this factor, where it has
    a smaller one. null: no limit."""

    buckets: bool = option(True, why="keeps the aspect ratio of pictures", group="Buckets")
    """Group pictures by aspect ratio and crop each to the nearest bucket. Off: every picture is cropped to a square."""

    max_aspect: float = option(
        2.0, why="covers 9:16 to 2:1", group="Buckets", advanced=True, ge=1, le=8, needs="data.buckets"
    )
    """Longest side divided by shortest side of the most extreme bucket."""

    captions: Captions = option("auto", why="finds the files that are there", group="Captions")
    """Where captions are. txt, caption, json: in a file of that ending beside each picture, with the same name.
    metadata: in metadata.jsonl, metadata.json, metadata.csv or metadata.parquet of its folder or one above. foldername:
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
    )
    """Captions that change from use to use (shuffled, dropped in part, drawn at random) are encoded for this many
    coming steps at once: the denoiser is moved to main memory meanwhile, so that it is never on the device together
    with the text encoders. Changes nothing in the result. A larger value needs more main memory, a smaller one more
    time."""

    flip: bool = option(False, why="mirroring spoils text, logos and faces", group="Pictures")
    """Mirror pictures horizontally half of the time."""

    broken: Literal["error", "skip"] = option(
        "error", why="a damaged file is usually a failed copy", group="Pictures", advanced=True
    )
    """What to do with a picture file that cannot be read: stop with an error, or train without it. The run folder's
    broken.tsv lists what was skipped, with the reasons."""

    crop: Literal["centre", "random", "focus"] = option(
        "centre", why="the subject is usually in the middle", group="Pictures"
    )
    """Which part of a picture is kept where its shape is not exactly the bucket's. random: another one at each use.
    focus: around the middle of its mask, or around "focus": [x, y] in its entry of metadata.jsonl, as fractions of
    width and height."""

    rotation: float = option(0.0, group="Augmentation", unit="degrees", ge=0, le=45)
    """Rotate pictures at random by up to this angle, in either direction. They are enlarged as far as needed, so that
    no empty corners appear."""

    brightness: float = option(0.0, group="Augmentation", advanced=True, ge=0, le=1)
    """Change the brightness at random by a factor of 1 minus this to 1 plus this."""

    contrast: float = option(0.0, group="Augmentation", advanced=True, ge=0, le=1)
    """Change the contrast at random by a factor of 1 minus this to 1 plus this."""

    saturation: float = option(0.0, group="Augmentation", advanced=True, ge=0, le=1)
    """Change the saturation at random by a factor of 1 minus this to 1 plus this."""

    hue: float = option(0.0, group="Augmentation", advanced=True, ge=0, le=0.5)
    """Turn all colours at random by up to this part of the colour circle, in either direction. 0.5: any colour."""

    variants: int = option(4, why="some variety for four times the encoding", group="Augmentation", ge=0, le=1000)
    """Number of versions of each picture that are encoded and cached, where random crops, rotation or colours are on.
    Each use of the picture takes one of them. 0: another version at each use, encoded in the training step; the image
    encoder then stays on the device."""

    masks: str = option("none", why="the whole picture is trained", group="Masks")
    """Masks say which part of a picture is trained: white and opaque parts are, black and transparent ones are not.
    none. alpha: the picture's own transparency. files: a file NAME-masklabel.png beside the picture. Or the path of a
    folder that has masks of the pictures' names."""

    unmasked_weight: float = option(
        0.1, why="keeps the rest from falling apart", group="Masks", ge=0, le=1, title="Weight outside of masks"
    )
    """Least weight of any part of a picture in the loss, and so the weight of the parts that the mask excludes. 0: they
    do not count."""

    unmasked_probability: float = option(0.0, group="Masks", advanced=True, ge=0, le=1, title="Masks ignored")
    """Probability that a picture's mask is ignored when it is used."""

    normalize_mask: bool = option(
        False, why="small subjects would get large gradients", group="Masks", advanced=True, title="Normalize by area"
    )
    """Divide the loss of a picture by the mean of its mask's weights, so that a small trained part counts as much as a
    whole picture."""

    prior_prediction: bool = option(
        False, why="needs a second forward pass for these pictures", group="Regularisation"
    )
    """Pictures of regularisation folders are trained towards what the frozen base itself predicts for them, instead of
    towards the pictures: the adapter learns to leave them as they are."""

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
