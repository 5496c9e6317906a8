"""The list of options: a preset and its sections. Form, command line, JSON schema and manual are made from this file.

Adapter and optimizer options are beside the code that reads them (`modules/adapters/<method>.py`,
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
    """Rank and learning rate of some of the adapted layers."""

    match: str = option()
    """Layers that this rule applies to: a pattern over full layer names, e.g. unet.mid_block.*, or the name of a layer
    set of the family, e.g. attention."""

    rank: int | None = option(None, ge=1, le=4096)
    """Rank of these layers' adapters. null: as an earlier rule says, otherwise adapter.rank. If adapter.alpha is null,
    alpha follows this rank; if it is a number, it stays and the update is multiplied by alpha / this rank."""

    lr_scale: float | None = option(None, title="LR scale", gt=0, le=100)
    """Learning rate of these layers' adapters, as a multiple of training.learning_rate. null: as an earlier rule says,
    otherwise 1. In text encoders it is multiplied by targets.text_encoder_lr_scale."""


class Targets(Section):
    """The layers that are adapted."""

    layers: str = option("attention-mlp", why="attention and feed-forward layers learn style and subject best")
    """A named layer set of the family, e.g. attention, attention-mlp, attention-mlp-conv or all."""

    include: tuple[str, ...] = option((), group="Patterns", advanced=True)
    """Additional layers, as patterns over full layer names, e.g. unet.conv_in or unet.*.proj_out. A pattern that
    matches no layer is an error."""

    exclude: tuple[str, ...] = option((), group="Patterns", advanced=True)
    """Layers to leave out, as patterns over full layer names. A pattern that matches no layer is an error."""

    text_encoders: bool = option(False, why="needs more memory and rarely helps with a style", group="Text encoders")
    """Also adapt the text encoders."""

    text_encoder_lr_scale: float = option(
        0.5,
        why="text encoders overfit faster",
        group="Text encoders",
        advanced=True,
        title="Text encoder LR scale",
        gt=0,
        le=10,
    )
    """Learning rate of the text encoders' adapters, as a multiple of training.learning_rate."""

    rules: tuple[Rule, ...] = option((), group="Rules", advanced=True)
    """Ranks and learning rates for some of the layers chosen above. All rules that match a layer apply to it; if two
    set the same value, the later one wins. A rule that matches no adapted layer is an error."""


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


class Training(Section):
    """Training length, batch size, learning rate and precision."""

    steps: int = option(2000, why="enough for a style with 20 to 100 pictures", unit="steps", ge=1)
    """Number of optimizer steps. A run that is started again with more steps continues from its last state."""

    epochs: int | None = option(None, why="steps are easier to compare between data sets", ge=1)
    """Number of epochs (passes over all pictures). If given, it replaces training.steps, also when a run is made
    longer."""

    batch_size: int = option(1, why="fits small GPUs; raise it first when memory is left", unit="pictures", ge=1)
    """Pictures per forward pass and process."""

    accumulation: int = option(1, group="Batches", unit="batches", ge=1)
    """Gradient accumulation: number of batches whose gradients are averaged for one optimizer step."""

    learning_rate: float = option(1e-4, why="a common value for low-rank adapters", gt=0, le=10)
    """Learning rate of the optimizer, after the warm-up."""

    schedule: Literal["constant", "linear", "cosine"] = option(
        "cosine", why="a low learning rate at the end lets the adapter settle"
    )
    """Learning-rate schedule after the warm-up."""

    warmup: int = option(50, why="gives the optimizer's moments time to form", unit="steps", ge=0)
    """Warm-up: number of steps over which the learning rate rises linearly from zero."""

    final_lr: float = option(
        0.05, why="zero would waste the last steps", group="Schedule", advanced=True, title="Final LR", ge=0, le=1
    )
    """Learning rate of the last step, as a fraction of training.learning_rate (schedules linear and cosine)."""

    max_grad_norm: float = option(1.0, why="limits rare large gradients", group="Stability", ge=0)
    """Gradient clipping: a larger gradient norm is scaled down to this value. 0 turns clipping off."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", why="bfloat16 where the GPU supports it, otherwise float16; float32 on a CPU", group="Memory"
    )
    """Number format of the forward and backward pass (mixed precision). Adapter weights are always kept and updated in
    float32."""

    gradient_checkpointing: bool = option(True, why="halves the memory and takes a third more time", group="Memory")
    """Recompute activations in the backward pass instead of keeping them in memory."""

    compile: bool = option(
        False, why="the first steps take minutes; worth it for long runs", group="Speed", advanced=True
    )
    """Compile the denoiser's repeated blocks with torch.compile. Results differ in the last bits."""

    seed: int = option(0, why="any number; the same seed repeats the same run", ge=0, lt=2**32)
    """Seed of the picture order, noise, timesteps and initial weights."""


class Objective(Section):
    """Prediction type, timestep distribution and loss."""

    prediction: Literal["auto", "epsilon", "v_prediction", "flow"] = option("auto", why="as the base model was trained")
    """Prediction type of the denoiser."""

    density: Literal["auto", "uniform", "logit_normal", "mode", "cosmap"] = option(
        "auto",
        why="as the family was trained: uniform for diffusion, logit_normal for rectified flow",
        title="Timestep distribution",
    )
    """Timestep distribution: how often each noise level is drawn (Esser et al. 2024, section 3.1)."""

    density_mean: float = option(
        0.0, why="favours medium noise", group="Timesteps", advanced=True, ge=-10, le=10, title="Logit-normal mean"
    )
    """Mean of the logit_normal distribution. Below 0 favours little noise (detail), above 0 much noise
    (composition)."""

    density_spread: float = option(
        1.0, why="the published value", group="Timesteps", advanced=True, gt=0, le=10, title="Logit-normal spread"
    )
    """Standard deviation of the logit_normal distribution."""

    mode_scale: float = option(1.29, why="the published value", group="Timesteps", advanced=True, ge=-1, le=1.75)
    """Shape of the mode distribution. Above 0 favours medium noise, below 0 very little and very much noise."""

    shift: float | None = option(
        None,
        why="as the base model samples; some models shift more for large pictures",
        group="Timesteps",
        gt=0,
        le=100,
    )
    """Flow shift, for rectified flow: a fixed shift of the timesteps towards noise. null: the base model's own."""

    zero_terminal_snr: bool = option(
        False, why="most base models are not trained this way", group="Timesteps", advanced=True
    )
    """Rescale the noise schedule to zero terminal SNR in training and sampling (Lin et al. 2024), so that very dark and
    very bright pictures can be learned. For diffusion families; needs a base with v-prediction."""

    loss: Literal["mse", "huber", "smooth_l1"] = option(
        "mse", why="what the base models were trained with", group="Loss"
    )
    """Loss function. mse: squared error. huber, smooth_l1: linear for large errors, so that pictures that do not fit
    the others count less."""

    loss_delta: float = option(
        0.1, why="a tenth of the noise's standard deviation", group="Loss", advanced=True, gt=0, le=10
    )
    """Error above which huber and smooth_l1 are linear."""

    min_snr_gamma: float | None = option(
        5.0, why="the published value; balances the timesteps", group="Loss", title="Min SNR gamma", gt=0
    )
    """Gamma of the min-SNR loss weighting (Hang et al. 2023), for diffusion families. null turns it off."""

    debiased: bool = option(False, why="min-SNR is more common", group="Loss", advanced=True)
    """Use debiased loss weighting (Yu et al. 2023) instead of min-SNR."""

    noise_offset: float = option(0.0, group="Loss", ge=0, le=1)
    """Noise offset: strength of additional noise that is constant over a picture, so that very dark and very bright
    pictures can be learned."""


class Validation(Section):
    """Validation loss: the loss on held-out pictures, always with the same noise."""

    every: int = option(0, unit="steps", ge=0, title="Validate every")
    """Steps between validations. 0: only before and after training."""

    draws: int = option(4, why="four timesteps per picture give a stable value", advanced=True, ge=1, le=1000)
    """Noise samples per picture, at evenly spaced timesteps."""


class Samples(Section):
    """Pictures drawn during training, always from the same noise."""

    prompts: tuple[str, ...] = option((), why="captions of the first four pictures are used")
    """Prompts of the sample pictures."""

    negative: str = option("", advanced=True)
    """Negative prompt."""

    every: int = option(
        500, why="often enough to notice a failing training early", unit="steps", ge=0, title="Sample every"
    )
    """Steps between sample pictures. 0: only before and after training."""

    enabled: bool = option(True)
    """Draw sample pictures."""

    width: int | None = option(None, unit="px", ge=16, advanced=True)
    """Width of sample pictures. null: data.resolution."""

    height: int | None = option(None, unit="px", ge=16, advanced=True)
    """Height of sample pictures. null: data.resolution."""

    steps: int = option(25, why="enough for common schedulers", ge=1, le=1000)
    """Number of denoising steps."""

    guidance: float = option(5.0, why="a common value", ge=0, le=50)
    """Classifier-free guidance scale."""

    seed: int = option(0, ge=0, lt=2**32)
    """Seed of the noise of the sample pictures."""

    judges: str = option("", why="a file of your own is needed", kind="file", advanced=True)
    """File of classifiers for the sample pictures, as demo/judges.safetensors. The share of pictures that show their
    subject (the prompt up to its first comma) and the share in the new style go into the events and TensorBoard."""


class Saving(Section):
    """Run folder and training states."""

    folder: str = option("runs", kind="folder")
    """Folder of all runs. Each run has a sub-folder of its name."""

    state_every: int = option(250, why="at most a few minutes are lost", unit="steps", ge=0, title="Save state every")
    """Steps between training states, from which the same command resumes. 0: only with each exported file, when
    stopped, and at the end."""

    keep_states: int = option(2, why="one to resume from and one as a backup", ge=1, le=1000)
    """Number of training states that are kept. Older ones are deleted."""

    resume_changed: bool = option(
        False, why="the steps so far were trained on other files", group="Resuming", advanced=True
    )
    """Resume a run although files that affect training have changed since it began: the base model, or
    adapter.start_from. Changed pictures, captions and program versions are only reported and do not need this
    option."""

    export_every: int = option(0, unit="steps", ge=0)
    """Steps between exported files during training. 0: only at the end."""


class Preset(Section):
    """Name, description and model family."""

    description: str = option("")
    """One-line description of this preset."""

    name: str = option("", why="the preset's file name is used")
    """Name of the run, its folder and its exported file."""

    family: str = option()
    """Model family."""

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
        """Reject a family that has no file in modules/families."""
        if name not in families.names():
            raise ValueError(f"no such family; available: {', '.join(families.names())}")
        return name
