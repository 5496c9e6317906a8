"""The list of options: a preset and its sections. Form, command line, JSON schema and manual are made from this file.

Adapter and optimizer options are beside the code that reads them (`modules/adapters/<method>.py`,
`modules/training/optimizers.py`) and are joined in here as tagged unions.
"""

from typing import Annotated, Union

from pydantic import Field, field_validator

from modules import adapters, families
from modules.preset.base_options import Base
from modules.preset.data_options import Data
from modules.preset.export_options import Export
from modules.preset.output_options import Samples, Saving, Validation
from modules.preset.section import Section, option
from modules.preset.training_options import Objective, Training
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
    otherwise 1. In text encoders it is multiplied by their own (targets.text_encoder_lr_scale, targets.encoders)."""


class Encoder(Section):
    """Learning rate and end of the training of one text encoder."""

    name: str = option()
    """Name of the text encoder, as layer names begin with it: text_encoder, text_encoder_2 or text_encoder_3."""

    lr_scale: float | None = option(None, title="LR scale", gt=0, le=10)
    """Learning rate of its adapters, as a multiple of training.learning_rate. null: targets.text_encoder_lr_scale."""

    stop: float | None = option(None, gt=0, le=1)
    """Share of all steps after which its adapters are no longer trained; 1: trained to the end. null:
    targets.text_encoder_stop."""


class Targets(Section):
    """The layers that are adapted."""

    layers: str = option("attention-mlp", why="attention and feed-forward layers learn style and subject best")
    """A named layer set of the family, e.g. attention, attention-mlp, attention-mlp-conv or all; or patterns over full
    layer names, separated by commas, e.g. "transformer.single_transformer_blocks.7.*,
    transformer.single_transformer_blocks.20.*" for these two blocks only; or none: only those of targets.include."""

    include: tuple[str, ...] = option((), group="Patterns", advanced=True)
    """Additional layers, as patterns over full layer names, e.g. unet.conv_in or unet.*.proj_out. A pattern that
    matches no layer is an error."""

    exclude: tuple[str, ...] = option((), group="Patterns", advanced=True)
    """Layers to leave out, as patterns over full layer names. A pattern that matches no layer is an error."""

    text_encoders: bool = option(
        False, why="needs more memory and rarely helps with a style", group="Text encoders",
        needs="@text_layers",
    )
    """Also adapt the text encoders."""

    text_encoder_lr_scale: float = option(
        0.5, why="text encoders overfit faster", group="Text encoders", advanced=True, title="Text encoder LR scale",
        gt=0, le=10, needs=("targets.text_encoders or targets.include", "@text_layers"),
    )
    """Learning rate of the text encoders' adapters, as a multiple of training.learning_rate."""

    text_encoder_stop: float = option(
        1.0, why="they are trained to the end", group="Text encoders", advanced=True, gt=0, le=1,
        needs=("targets.text_encoders or targets.include", "@text_layers"),
    )
    """Share of all steps after which the text encoders' adapters are no longer trained. From there on nothing changes
    them, and their steps cost no backward pass."""

    encoders: tuple[Encoder, ...] = option(
        (), group="Text encoders", advanced=True, needs=("targets.text_encoders or targets.include", "@text_layers")
    )
    """Learning rate and end of the training of single text encoders, instead of the values for all of them."""

    rules: tuple[Rule, ...] = option((), group="Rules", advanced=True)
    """Ranks and learning rates for some of the layers chosen above. All rules that match a layer apply to it; if two
    set the same value, the later one wins. A rule that matches no adapted layer is an error."""


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
