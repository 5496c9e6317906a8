"""The list of options: a preset and its sections. Form, command line, JSON schema and manual are made from this file.

Adapter and optimizer options stand beside the code that reads them (`modules/adapters/<method>.py`,
`modules/training/optimizers.py`) and are joined in here as tagged unions.
"""

from typing import Annotated, Literal, Union

from pydantic import Field, field_validator

from modules import adapters, families
from modules.preset.base_options import Base
from modules.preset.export_options import Export
from modules.preset.section import Section, option
from modules.training.optimizers import DEFAULT, OptimizerOptions

AdapterOptions = Annotated[
    Union[tuple(module.Config for module in adapters.methods().values())],  # noqa: UP007  # pyright: ignore
    Field(discriminator="method"),
]


class Rule(Section):
    """What some of the adapted layers have of their own."""

    match: str = option(why="has to be given")
    """The layers that this rule is for: a pattern over full layer names, e.g. unet.mid_block.*, or the name of a set of
    layers of the family, e.g. attention."""

    rank: int | None = option(None, why="not every rule is about it", ge=1, le=4096)
    """Rank of these layers' adapters. null: what an earlier rule says, or adapter.rank. Where adapter.alpha is null it
    follows this rank; where it is a number it stays, so the layer's update is multiplied by alpha / its own rank."""

    lr_scale: float | None = option(None, why="not every rule is about it", title="LR scale", gt=0, le=100)
    """Learning rate of these layers' adapters, as a multiple of training.learning_rate. null: what an earlier rule
    says, or 1. In text encoders it multiplies with targets.text_encoder_lr_scale."""


class Targets(Section):
    """Which layers get an adapter."""

    layers: str = option("attention-mlp", why="attention and feed-forward layers carry style and subject best")
    """A named set of layers of the family, e.g. attention, attention-mlp, attention-mlp-conv or all."""

    include: tuple[str, ...] = option((), why="none", group="Patterns", advanced=True)
    """Further layers, as patterns over their full names, e.g. unet.conv_in or unet.*.proj_out. A pattern that
    matches nothing is an error."""

    exclude: tuple[str, ...] = option((), why="none", group="Patterns", advanced=True)
    """Layers to leave out again, as patterns over their full names. A pattern that matches nothing is an error."""

    text_encoders: bool = option(False, why="costs memory and rarely helps a style", group="Text encoders")
    """Adapt the text encoders too."""

    text_encoder_lr_scale: float = option(
        0.5,
        why="text encoders overfit sooner",
        group="Text encoders",
        advanced=True,
        title="Text encoder LR scale",
        gt=0,
        le=10,
    )
    """Learning rate of the text encoders' adapters, as a multiple of training.learning_rate."""

    rules: tuple[Rule, ...] = option((), why="all layers alike", group="Rules", advanced=True)
    """Ranks and learning rates for some of the layers chosen above. All rules that match a layer apply to it; where two
    give the same, the later one wins. A rule that matches no adapted layer is an error."""


class Data(Section):
    """Pictures and captions."""

    folders: tuple[str, ...] = option((), why="have to be given", kind="folders")
    """Folders with the training pictures; all together are the data set. Each picture has its caption in a .txt file
    of the same name, or in metadata.jsonl. Sub-folders named 10_name repeat their pictures 10 times per epoch
    (kohya's layout)."""

    validation_folder: str = option("", why="optional", kind="folder")
    """Folder with pictures that are never trained on; the loss on them with fixed noise is the validation loss."""

    resolution: int = option(1024, why="the resolution the family was trained at", unit="px", ge=16, le=8192)
    """Pictures are resized to about this many pixels squared, keeping their shape."""

    buckets: bool = option(True, why="keeps the shape of pictures", group="Buckets")
    """Group pictures by aspect ratio and crop each to the nearest bucket. Off: every picture is cropped square."""

    max_aspect: float = option(2.0, why="covers 9:16 to 2:1", group="Buckets", advanced=True, ge=1, le=8)
    """Longest side divided by shortest side of the most extreme bucket."""

    missing_captions: Literal["error", "empty", "filename"] = option(
        "error", why="a forgotten caption is usually a mistake", group="Captions"
    )
    """What a picture without a caption means: an error, the empty caption, or its file name as caption."""

    trigger: str = option("", why="none", group="Captions")
    """Word or phrase put in front of every caption, and written into the file for model managers."""

    separator: str = option(",", why="tags are usually separated by commas", group="Captions", advanced=True)
    """What separates the parts of a caption for shuffling and dropping."""

    shuffle: bool = option(False, why="right for tags, wrong for sentences", group="Captions")
    """Shuffle the parts of a caption anew each time it is seen."""

    keep_tokens: int = option(1, why="the first part is the subject", group="Captions", advanced=True, ge=0, le=1000)
    """This many parts at the front of a caption are neither shuffled nor dropped."""

    part_dropout: float = option(0.0, why="off", group="Captions", advanced=True, ge=0, lt=1)
    """Probability with which each part of a caption is left out."""

    caption_dropout: float = option(0.05, why="keeps guidance working", group="Captions", ge=0, le=1)
    """Probability with which a whole caption is replaced by the empty one."""

    flip: bool = option(False, why="wrong for text, logos and faces", group="Pictures")
    """Show pictures mirrored half of the time."""

    cache: bool = option(True, why="encoding once saves half of the time", group="Cache", advanced=True)
    """Keep encoded pictures and captions on disk, found again by their content."""

    cache_folder: str = option("cache", why="shared by all runs", group="Cache", advanced=True, kind="folder")
    """Where encoded pictures and captions are kept."""

    @field_validator("folders", mode="before")
    @classmethod
    def one_folder_is_a_list_of_one(cls, given: object) -> object:
        """A single text is one folder, as it was before there could be several; the empty text is none."""
        if isinstance(given, str):
            return (given,) if given else ()
        return given


class Training(Section):
    """The training itself."""

    steps: int = option(2000, why="enough for a style with 20 to 100 pictures", unit="steps", ge=1)
    """Number of optimizer steps. A run with more of them goes on from its last state."""

    epochs: int | None = option(None, why="steps are easier to compare between data sets", ge=1)
    """Passes over all pictures. If given, it takes the place of steps, also when a run is made longer."""

    batch_size: int = option(1, why="fits small cards; raise it first when memory is left", unit="pictures", ge=1)
    """Pictures per forward pass and process."""

    accumulation: int = option(1, why="off", group="Batches", unit="batches", ge=1)
    """Batches whose gradients are added up for one step."""

    learning_rate: float = option(1e-4, why="the usual value for the method", gt=0, le=10)
    """Step size of the optimizer."""

    schedule: Literal["constant", "linear", "cosine"] = option("cosine", why="ends on a settled adapter")
    """How the learning rate falls after the warm-up."""

    warmup: int = option(50, why="gives the optimizer's averages time to form", unit="steps", ge=0)
    """Steps over which the learning rate rises from zero."""

    final_lr: float = option(
        0.05, why="zero wastes the last steps", group="Schedule", advanced=True, title="Final LR", ge=0, le=1
    )
    """Learning rate at the end as a part of training.learning_rate (linear and cosine)."""

    max_grad_norm: float = option(1.0, why="stops rare large gradients", group="Stability", ge=0)
    """Gradients are scaled down to this norm. 0 turns it off."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", why="bfloat16 where the device has it, float32 on a CPU", group="Memory"
    )
    """Number format of the forward and backward pass. Adapters and optimizer always keep float32."""

    gradient_checkpointing: bool = option(True, why="a third slower for half of the memory", group="Memory")
    """Compute activations a second time in the backward pass instead of keeping them."""

    compile: bool = option(
        False, why="its first steps take minutes; worth it for long runs", group="Speed", advanced=True
    )
    """Compile the denoiser's repeated blocks (torch.compile). Results differ in the last bits."""

    seed: int = option(0, why="any number; the same seed gives the same run", ge=0, lt=2**32)
    """Order of pictures, noise, time steps and initial weights all follow from this number."""


class Objective(Section):
    """What is learned from a noised picture."""

    prediction: Literal["auto", "epsilon", "v_prediction", "flow"] = option("auto", why="as the base model was trained")
    """What the network predicts."""

    density: Literal["auto", "uniform", "logit_normal", "mode", "cosmap"] = option(
        "auto", why="as the family was trained: uniform for diffusion, logit_normal for rectified flow"
    )
    """How often which noise level is trained on (Esser et al. 2024, section 3.1)."""

    density_mean: float = option(0.0, why="the middle", group="Noise levels", advanced=True, ge=-10, le=10)
    """Of the logit-normal density: below 0 favours little noise (detail), above 0 much noise (composition)."""

    density_spread: float = option(1.0, why="the published value", group="Noise levels", advanced=True, gt=0, le=10)
    """Of the logit-normal density: its standard deviation."""

    mode_scale: float = option(1.29, why="the published value", group="Noise levels", advanced=True, ge=-1, le=1.75)
    """Of the mode density: how much it favours the middle (above 0) or the ends (below 0)."""

    shift: float | None = option(
        None, why="as the base samples; some shift large pictures more", group="Noise levels", gt=0, le=100
    )
    """Rectified flow: a fixed shift of the noise levels towards noise. null: the base's own."""

    zero_terminal_snr: bool = option(False, why="most bases are not trained so", group="Noise levels", advanced=True)
    """Diffusion: train and sample with pure noise in the last step (Lin et al. 2024), so that very dark and bright
    pictures can be learned. Wants a base that predicts v."""

    loss: Literal["mse", "huber", "smooth_l1"] = option("mse", why="what the bases were trained with", group="Loss")
    """What is made small: the squared error, or one that grows only linearly for large errors, such as those of
    pictures that do not fit the others."""

    loss_delta: float = option(0.1, why="a tenth of the noise", group="Loss", advanced=True, gt=0, le=10)
    """Of huber and smooth_l1: the error from which on they are linear."""

    min_snr_gamma: float | None = option(
        5.0, why="evens out the time steps; the published value", group="Loss", title="Min SNR gamma", gt=0
    )
    """Min-SNR loss weight (Hang et al. 2023) of diffusion families. null turns it off."""

    debiased: bool = option(False, why="min-SNR is the usual weight", group="Loss", advanced=True)
    """Debiased loss weight (Yu et al. 2023), instead of min-SNR."""

    noise_offset: float = option(0.0, why="off", group="Loss", ge=0, le=1)
    """Adds this much noise that is constant over a picture, so that very dark and bright pictures can be learned."""


class Validation(Section):
    """Loss on pictures that are never trained on, always with the same noise."""

    every: int = option(0, why="before and after only", unit="steps", ge=0)
    """Steps between validations. 0: before and after training only."""

    draws: int = option(4, why="four time steps per picture give a steady figure", advanced=True, ge=1, le=1000)
    """Noise draws per picture, at evenly spread time steps."""


class Samples(Section):
    """Pictures made during training, always from the same noise."""

    prompts: tuple[str, ...] = option((), why="none: captions of the first four pictures are used")
    """What to draw."""

    negative: str = option("", why="none", advanced=True)
    """Negative prompt."""

    every: int = option(500, why="often enough to see it go wrong", unit="steps", ge=0)
    """Steps between sample pictures. 0: before and after training only."""

    enabled: bool = option(True, why="a picture says more than the loss")
    """Make sample pictures at all."""

    width: int | None = option(None, why="data.resolution", unit="px", ge=16, advanced=True)
    """Width of sample pictures."""

    height: int | None = option(None, why="data.resolution", unit="px", ge=16, advanced=True)
    """Height of sample pictures."""

    steps: int = option(25, why="enough for the usual schedulers", ge=1, le=1000)
    """Denoising steps."""

    guidance: float = option(5.0, why="the usual strength", ge=0, le=50)
    """Classifier-free guidance scale."""

    seed: int = option(0, why="any number", ge=0, lt=2**32)
    """Noise of the sample pictures."""


class Saving(Section):
    """Run folder and training states."""

    folder: str = option("runs", why="one folder for all runs", kind="folder")
    """Each run gets a folder of its name in here."""

    state_every: int = option(250, why="at most some minutes are lost", unit="steps", ge=0)
    """Steps between training states, from which the same command resumes. 0: only with exported files, when stopped,
    and at the end."""

    keep_states: int = option(2, why="one to resume from, one in reserve", ge=1, le=1000)
    """Older states are deleted."""

    resume_changed: bool = option(
        False, why="its first steps were trained on other files", group="Resuming", advanced=True
    )
    """Go on with a run although files that decide what is learned have other contents than when it began: the base,
    or adapter.start_from. Changes of pictures, captions and program versions are said and do not need it."""

    export_every: int = option(0, why="off", unit="steps", ge=0)
    """Steps between exported files along the way. 0: only at the end."""


class Preset(Section):
    """One training, completely described. A preset runs on another machine unchanged."""

    description: str = option("", why="none")
    """One line about this preset."""

    name: str = option("", why="the preset's file name")
    """Name of the run: its folder and its exported file."""

    family: str = option(why="has to be given")
    """The kind of model."""

    base: Base = Base()
    targets: Targets = Targets()
    adapter: AdapterOptions  # pyright: ignore
    optimizer: OptimizerOptions = DEFAULT
    data: Data = Data()
    training: Training = Training()
    objective: Objective = Objective()
    validation: Validation = Validation()
    samples: Samples = Samples()
    saving: Saving = Saving()
    export: Export = Export()

    @field_validator("family")
    @classmethod
    def known_family(cls, name: str) -> str:
        """Refuse a family that has no file in modules/families."""
        if name not in families.names():
            raise ValueError(f"no such family; there is {', '.join(families.names())}")
        return name
