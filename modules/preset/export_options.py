"""Options of the exported file."""

from typing import Literal

from pydantic import model_validator

from modules.preset.section import Section, option


class Export(Section):
    """The file that is written for other programs."""

    host: Literal["comfyui", "kohya", "diffusers", "lycoris", "comfyui_node"] = option(
        "comfyui", why="where most people use it"
    )
    """Program whose names and arithmetic the file follows."""

    dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float16", why="half the size, still exact enough", title="Number format"
    )
    """Number format of the factors. Magnitudes are always float32."""

    form: Literal["auto", "compact", "full", "svd"] = option(
        "auto", why="exact, and as small as exact can be", advanced=True
    )
    """How each layer is stored. auto: the smallest exact form, a full difference where there is no smaller one.
    compact: never a full difference; where no compact form is exact, a LoRA approximates the layer. full: the full
    difference of every layer (for diffusers, which reads none, a LoRA of full rank). svd: a plain LoRA for every layer,
    which every program reads. The error of each approximated layer is printed and written into the file."""

    rank: int | None = option(None, why="64 for forms that approximate", ge=1, advanced=True)
    """Rank of the LoRAs that approximate (truncated SVD), with export.form compact or svd."""

    comfyui_norm: Literal["original", "adapted"] = option(
        "original", why="what ComfyUI computes today", group="Compatibility", advanced=True, title="ComfyUI norm"
    )
    """For output-axis magnitudes: the norm ComfyUI divides by. Today it is the norm of the original weight; after
    ComfyUI's pull request 15458 it is the norm of the adapted weight."""

    computes_in: Literal["auto", "float32", "float16", "bfloat16"] = option(
        "auto", why="what the program does by default", group="Compatibility", advanced=True
    )
    """For ComfyUI: the numbers it computes magnitudes in. It adds their rounding unit to every norm (0.001 in float16,
    0.008 in bfloat16), and the file makes up for that, so it is exact to rounding in these numbers only; the errors in
    all others are printed and written into the file. auto: what ComfyUI does by default on a GPU, float16, for FLUX
    bfloat16; and float32, which is what a CPU computes in, for a file with dtype float32. Text encoders are always
    written for float32, in which ComfyUI computes them by default."""

    node_fallback: int | None = option(None, why="the file is for the node", ge=1, group="Compatibility", advanced=True)
    """With host comfyui_node: rank of a LoRA in the same file for those who have not the node; its error is printed."""

    node_spelling: Literal["gimbal", "oftv2"] = option("gimbal", why="exact", group="Compatibility", advanced=True)
    """With host comfyui_node: for our own node, or for the public ComfyUI-OFTv2 (rotations of linear layers)."""

    dataset_names: bool = option(True, why="model managers show them", group="Metadata", advanced=True)
    """Write folder names and tag counts into the file. Turn it off to keep them private."""

    title: str = option("", why="the run's name", group="Metadata")
    """Title shown by model managers."""

    author: str = option("", why="none", group="Metadata")
    """Author shown by model managers."""

    license: str = option("", why="none", group="Metadata", advanced=True, title="Licence")
    """Licence shown by model managers."""

    @model_validator(mode="after")
    def nothing_is_ignored(self) -> "Export":
        """Refuse options that would do nothing."""
        node = self.node_fallback is not None or self.node_spelling != "gimbal"
        if node and (self.host != "comfyui_node" or self.form in ("full", "svd")):
            raise ValueError("node_fallback and node_spelling need host comfyui_node and form auto or compact")
        if self.computes_in != "auto" and self.host != "comfyui":
            raise ValueError(f"computes_in {self.computes_in} does nothing with host {self.host}; leave it out")
        if self.rank is not None and self.form not in ("compact", "svd"):
            raise ValueError(f"rank {self.rank} does nothing with form {self.form}; use export.form compact for a LoRA "
                             "of this rank where no compact form is exact")
        return self
