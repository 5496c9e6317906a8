"""Options of the model that is adapted."""

import re
from pathlib import Path
from typing import Literal

from modules.preset.section import Section, option


class Base(Section):
    """The base model. Its weights stay frozen."""

    path: str = option("", why="set by the shipped presets", kind="model", title="Model")
    """A folder in diffusers layout, a model id on the Hugging Face hub, or a single .safetensors checkpoint."""

    config: str = option(
        "", why="only needed offline", group="Loading", advanced=True, kind="folder", needs="@single_file"
    )
    """Only for a single-file checkpoint on a machine without network: a folder in diffusers layout with the
    configuration, the tokenizers, and the weights of parts that neither the file nor base.texts and base.vae have."""

    texts: tuple[str, ...] = option((), group="Loading", advanced=True, kind="files", title="Text encoder files")
    """Files with one text encoder each, as for ComfyUI (`clip_l.safetensors`, `t5xxl_fp16.safetensors`), in any order:
    which encoder a file has is found from its tensors. They replace those of the model; with a file of the denoiser
    alone nothing is downloaded for them but configurations and tokenizers."""

    vae: str = option("", group="Loading", advanced=True, kind="file", title="VAE file")
    """A file with a VAE (`ae.safetensors`, `sdxl_vae.safetensors`), in the original naming or diffusers'. It replaces
    that of the model."""

    training_adapter: str = option(
        "", why="needed for distilled bases only (turbo and other few-step models)", group="Loading", kind="file"
    )
    """A LoRA file of any trainer that belongs to the base while it is trained: active in training, validation and prior
    prediction, off in sample pictures, and never exported or merged. For a distilled base, which would lose its few
    steps in training: such a LoRA takes the distillation back for that time."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", why="avoids conversions during training", group="Loading", advanced=True, title="Number format"
    )
    """Number format in which the frozen weights are kept. auto: as training.precision."""

    clip_skip: int | None = option(
        None,
        why="bases are trained with the last layer unless their description says otherwise",
        group="Text encoder",
        advanced=True,
        ge=1,
        le=48,
        title="CLIP skip",
    )
    """Which layer of the text encoder is read, counted from the last one: 1 is the last, 2 the last but one, which many
    anime models are trained with. The final layer norm is applied to it, as in sd-scripts and A1111. null: the last.
    For Stable Diffusion 1 and 2; others have a fixed layer, and --check says so."""

    quantization: Literal["none", "fp8", "int8", "nf4"] = option(
        "none", why="no rounding; use fp8, then nf4, when the model does not fit in memory", group="Memory"
    )
    """Quantize the denoiser's frozen linear layers to 8 bits (int8, or fp8 with a scale per row) or to 4 bits (nf4).
    The adapter is then trained on the quantized weights."""

    offload_blocks: int = option(
        0,
        why="offloading is slow; use it when the model does not fit even in 4 bits",
        unit="blocks",
        group="Memory",
        advanced=True,
        ge=0,
    )
    """Number of the denoiser's blocks, counted from the last one, whose weights stay in main memory. They are copied to
    the device for each use."""


def is_hub_id(path: str) -> bool:
    """Whether a base path is a model id on the hub: `owner/name`, and no folder or file here."""
    return re.fullmatch(r"[\w.-]*\w[\w.-]*/[\w.-]+", path) is not None and not Path(path).exists()
