"""The options of what a run writes: validation, sample pictures, states and exported files."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, field_validator

from modules.preset.section import Section, option

Unit = Literal["steps", "epochs", "minutes"]
"""Of how often something is due."""


class Validation(Section):
    """Validation loss: the loss on held-out pictures, always with the same noise."""

    every: int = option(0, ge=0, title="Validate every", needs="@validation")
    """Steps (see validation.every_unit) between validations. 0: only before and after training."""

    every_unit: Unit = option("steps", advanced=True, title="Unit", needs=("validation.every", "@validation"))
    """Unit of validation.every. minutes: of training, resumed runs included."""

    draws: int = option(
        4, why="four timesteps per picture give a stable value", advanced=True, ge=1, le=1000, needs="@validation"
    )
    """Noise samples per picture, at evenly spaced timesteps."""

    spectrum: bool = option(False, why="it reads all layers once more", advanced=True, needs="@validation")
    """Record with each validation what the singular values of low-rank updates are: medians of spectral norm, stable
    rank and effective rank. An update of low stable rank adds up badly with other adapters."""

    ema: bool = option(True, advanced=True, title="EMA", needs=("training.ema", "@validation"))
    """Measure the moving average of the weights (training.ema) instead of the trained ones."""


class Prompt(Section):
    """A prompt with settings of its own."""

    prompt: str = option()
    """The prompt; for a model that edits, the instruction."""

    references: tuple[str, ...] = option((), kind="files")
    """The picture files that are edited, for a model that edits; as many as data.folders[].references has folders."""

    @field_validator("references", mode="before")
    @classmethod
    def one_file_is_a_list_of_one(cls, given: object) -> object:
        """A single text is one file; the empty text is none."""
        if isinstance(given, str):
            return (given,) if given else ()
        return given


def _kind_of_prompt(given: Any) -> str:
    return "entry" if isinstance(given, Mapping | Prompt) else "text"


PromptOrText = Annotated[
    Annotated[str, Tag("text")] | Annotated[Prompt, Tag("entry")],
    Discriminator(_kind_of_prompt),
]


class Samples(Section):
    """Pictures drawn during training, always from the same noise."""

    prompts: tuple[PromptOrText, ...] = option(
        (), why="captions of the first four pictures are used", kind="prompts", needs="samples.enabled"
    )
    """Prompts of the sample pictures. One with reference pictures, for a model that edits, is given in braces."""

    negative: str = option("", advanced=True, needs=("samples.enabled", "samples.guidance >1"))
    """Negative prompt."""

    every: int = option(
        500, why="often enough to notice a failing training early", ge=0, title="Sample every", needs="samples.enabled"
    )
    """Steps (see samples.every_unit) between sample pictures. 0: only before and after training."""

    every_unit: Unit = option("steps", advanced=True, title="Unit", needs=("samples.enabled", "samples.every"))
    """Unit of samples.every. minutes: of training, resumed runs included."""

    enabled: bool = option(True)
    """Draw sample pictures."""

    width: int | None = option(None, unit="px", ge=16, advanced=True, needs="samples.enabled")
    """Width of sample pictures. null: data.resolution, or the largest of data.resolutions."""

    height: int | None = option(None, unit="px", ge=16, advanced=True, needs="samples.enabled")
    """Height of sample pictures. null: data.resolution, or the largest of data.resolutions."""

    steps: int = option(25, why="enough for common schedulers", ge=1, le=1000, needs="samples.enabled")
    """Number of denoising steps."""

    guidance: float = option(5.0, why="a common value", ge=0, le=50, needs="samples.enabled")
    """Classifier-free guidance scale."""

    seed: int = option(0, ge=0, lt=2**32, needs="samples.enabled")
    """Seed of the noise of the sample pictures."""

    ema: bool = option(True, advanced=True, title="EMA", needs=("samples.enabled", "training.ema"))
    """Draw with the moving average of the weights (training.ema) instead of the trained ones."""

    base: str = option(
        "", why="the base that is trained draws them", kind="model", title="Drawn with another base",
        needs="samples.enabled",
    )
    """Draw the sample pictures with the denoiser of this base, such as the distilled one that the adapter is meant for:
    a folder in diffusers layout, a hub id, or a file with the denoiser, of the same family and sizes as base.path. It
    is loaded each time, takes the place of the trained one on the device, and has the adapters on it as they are then.
    samples.steps and samples.guidance are those that it needs."""

    judges: str = option("", why="a file of your own is needed", kind="file", advanced=True, needs="samples.enabled")
    """File of classifiers for the sample pictures, as demo/judges.safetensors. The share of pictures that show their
    subject (the prompt up to its first comma) and the share in the new style go into the events and TensorBoard."""

    @property
    def texts(self) -> list[str]:
        """The prompts alone."""
        return [one if isinstance(one, str) else one.prompt for one in self.prompts]

    @field_validator("prompts")
    @classmethod
    def without_references_it_is_a_text(cls, given: tuple[str | Prompt, ...]) -> tuple[str | Prompt, ...]:
        """An entry that only has a prompt is that text."""
        return tuple(one.prompt if isinstance(one, Prompt) and not one.references else one for one in given)


class Saving(Section):
    """Run folder and training states."""

    folder: str = option("runs", kind="folder")
    """Folder of all runs. Each run has a sub-folder of its name."""

    state_every: int = option(250, why="at most a few minutes are lost", ge=0, title="Save state every")
    """Steps (see saving.state_every_unit) between training states, from which the same command resumes. 0: only with
    each exported file, when stopped, and at the end."""

    state_every_unit: Unit = option("steps", advanced=True, title="Unit of states", needs="saving.state_every")
    """Unit of saving.state_every. minutes: of training, resumed runs included."""

    keep_states: int = option(2, why="one to resume from and one as a backup", ge=1, le=1000)
    """Number of training states that are kept. Older ones are deleted."""

    resume_changed: bool = option(
        False, why="the steps so far were trained on other files", group="Resuming", advanced=True
    )
    """Resume a run although files that affect training have changed since it began: the base model, or
    adapter.start_from. Changed pictures, captions and program versions are only reported and do not need this
    option."""

    export_every: int = option(0, ge=0)
    """Steps (see saving.export_every_unit) between exported files during training. 0: only at the end."""

    export_every_unit: Unit = option("steps", advanced=True, title="Unit of exports", needs="saving.export_every")
    """Unit of saving.export_every. minutes: of training, resumed runs included."""

    keep_exports: int | None = option(None, why="nothing is deleted", ge=1, needs="saving.export_every")
    """Number of files exported during training that are kept; older ones are deleted. null: all. The file that is
    exported at the end is always kept."""

    keep_best: bool = option(False, needs=("@validation", "validation.every"))
    """Keep the adapter with the lowest validation loss: its exported file, whose name ends with -best, and its training
    state, in the run's folder best. They are replaced whenever a validation finds a lower loss."""
