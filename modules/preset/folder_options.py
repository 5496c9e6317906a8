"""The options of pictures and captions that each folder may have of its own, and the entries of data.folders."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field, create_model, field_validator, model_serializer

from modules.preset import options, section
from modules.preset.section import Section, option

Resolution = Annotated[int, Field(ge=16, le=8192)]
Captions = Literal["auto", "txt", "caption", "json", "metadata", "foldername", "filename", "text", "none"]
Share = Annotated[float, Field(gt=0, le=1000)]


def anywhere(*wanted: str) -> str:
    """The condition that one of these options is on, or has the value behind its name, for all folders or for one."""
    return " or ".join(f"{place}{one}" for one in wanted for place in ("data.", "data.folders[]."))


class PictureOptions(Section):
    """Pictures and captions, as far as each folder may have an option of its own."""

    recursive: bool = option(True, group="Folders", advanced=True)
    """Also use the pictures in sub-folders. Off: only those in the folder itself and in its sub-folders named
    10_name."""

    resolution: int = option(1024, why="the resolution that most families were trained at", unit="px", ge=16, le=8192)
    """Pictures are resized to about this many pixels squared and keep their aspect ratio."""

    resolutions: tuple[Resolution, ...] = option((), why="data.resolution", unit="px", group="Resolutions")
    """Train each picture at each of these resolutions, such as 512, 768 and 1024. It replaces data.resolution."""

    resolution_shares: tuple[Share, ...] = option((), why="1 for each", group="Resolutions", advanced=True,
                                                  needs=anywhere("resolutions"))
    """How often an epoch has each picture at each of data.resolutions. Of 0.5, an epoch has half of the pictures at
    that resolution, and two epochs have all."""

    max_enlargement: float | None = option(None, group="Resolutions", advanced=True, gt=0, le=1000)
    """Leave a picture out at resolutions for which it would have to be enlarged by more than this factor, where it has
    a smaller one. null: no limit."""

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

    shuffle: bool = option(False, why="shuffling suits tags, but breaks sentences", group="Captions")
    """Shuffle the parts of a caption each time it is used."""

    keep_tokens: int = option(
        1, why="the first part usually names the subject", group="Captions", advanced=True, ge=0, le=1000,
        needs=anywhere("shuffle", "part_dropout"),
    )
    """Number of parts at the front of a caption that are never shuffled or dropped."""

    keep_separator: str = option("", group="Captions", advanced=True)
    """Text that ends the parts of a caption that are never shuffled or dropped, such as |||; a second one begins the
    parts at the end that are not either. In captions that have it, data.keep_tokens has no effect."""

    part_dropout: float = option(0.0, group="Captions", advanced=True, ge=0, lt=1)
    """Probability that a part of a caption is dropped."""

    drop_never: tuple[str, ...] = option((), group="Captions", advanced=True, needs=anywhere("part_dropout"))
    """Parts (tags) that are never dropped, wherever they stand."""

    drop_only: tuple[str, ...] = option((), group="Captions", advanced=True, needs=anywhere("part_dropout"))
    """Parts (tags) that may be dropped; empty: all may."""

    caption_dropout: float = option(0.05, why="keeps classifier-free guidance working", group="Captions", ge=0, le=1)
    """Probability that a whole caption is replaced by the empty one."""

    flip: bool = option(False, why="mirroring spoils text, logos and faces", group="Pictures")
    """Mirror pictures horizontally half of the time."""

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

    variants: int = option(4, why="some variety for four times the encoding", group="Augmentation", ge=0, le=1000,
                           needs=anywhere("crop random", "rotation", "brightness", "contrast", "saturation", "hue"))
    """Number of versions of each picture that are encoded and cached, where random crops, rotation or colours are on.
    Each use of the picture takes one of them. 0: another version at each use, encoded in the training step; the image
    encoder then stays on the device."""

    masks: str = option("none", why="the whole picture is trained", group="Masks")
    """Masks say which part of a picture is trained: white and opaque parts are, black and transparent ones are not.
    none. alpha: the picture's own transparency. files: a file NAME-masklabel.png beside the picture. Or the path of a
    folder that has masks of the pictures' names."""

    prior_prediction: bool = option(
        False, why="needs a second forward pass for these pictures", group="Regularisation",
        needs="data.folders[].role regularisation"
    )
    """Pictures of regularisation folders are trained towards what the frozen base itself predicts for them, instead of
    towards the pictures: the adapter learns to leave them as they are."""


def _of_one_folder(model: type[Section]) -> type[Section]:
    """The same options for one folder: null, the default, is the value in `data`."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        bounds = {key: value for bound in field.metadata for key, value in asdict(bound).items()}
        needs = tuple(one.replace("data.folders[].", ".") for one in section.needs(field))
        info = option(
            None, unit=options.hint(field, "unit"), kind=options.hint(field, "kind"), needs=needs,
            description=f"As data.{name}.", **bounds,
        )
        fields[name] = (field.annotation | None, info)  # pyright: ignore
    return create_model("OfOneFolder", __base__=Section, **fields)


class _Entry(Section):
    """What only a folder has."""

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

    references: tuple[str, ...] = option((), kind="folders")
    """Folder with the pictures that these are made from, for a model that edits: each picture has one of its own name
    there, whatever its ending, and its caption is the instruction. Several folders: a reference picture from each, in
    their order. A reference of its picture's shape is cropped as the picture is, and resized as the model's own
    pipeline does. These pictures are cropped to their middle, and never mirrored, rotated or recoloured, since
    instructions may speak of left and right or of colours."""

    @field_validator("references", mode="before")
    @classmethod
    def one_folder_is_a_list_of_one(cls, given: object) -> object:
        """A single text is one folder; the empty text is none."""
        if isinstance(given, str):
            return (given,) if given else ()
        return given

    @model_serializer
    def given(self) -> dict[str, Any]:
        """What differs from the defaults, and the path."""
        fields = type(self).model_fields
        return {name: value for name, value in self if fields[name].is_required() or value != fields[name].default}


class Folder(_of_one_folder(PictureOptions), _Entry):  # pyright: ignore
    """A folder of pictures with settings of its own. Those that are null are as in `data`; `resolution` replaces
    data.resolutions too."""
