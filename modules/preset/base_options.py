"""Options of the model that is adapted."""

from typing import Literal

from modules.preset.section import Section, option


class Base(Section):
    """The model that is adapted. It is never changed."""

    path: str = option("", why="the family's usual model where a preset names one", kind="model", title="Model")
    """A folder in diffusers layout, a model id on the Hugging Face hub, or a single .safetensors checkpoint."""

    config: str = option("", why="only needed offline", group="Loading", advanced=True, kind="folder")
    """For a single-file checkpoint on a machine without network: a folder in diffusers layout that gives the
    configuration, the tokenizers, and the weights of parts that the file may lack (text encoders, VAE)."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        why="follows training.precision, so nothing is cast twice",
        group="Loading",
        advanced=True,
        title="Number format",
    )
    """The number format the frozen weights are kept in."""

    quantization: Literal["none", "fp8", "int8", "nf4"] = option(
        "none", why="exact; choose fp8, then nf4, when the model does not fit", group="Memory"
    )
    """Keep the denoiser's frozen linear layers in 8 bits (fp8 with a scale per row, or int8) or in 4 bits (nf4).
    Training then adapts the rounded weights."""

    offload_blocks: int = option(
        0, why="off: slow; for models that do not fit in 4 bits", unit="blocks", group="Memory", advanced=True, ge=0
    )
    """Keep the weights of this many of the denoiser's blocks, the last ones, in main memory. They come to the device
    for each use."""
