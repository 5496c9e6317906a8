"""Options of the exported file."""

from typing import Literal

from modules.preset.section import Section, option


class Export(Section):
    """The exported file for other programs."""

    host: Literal["comfyui", "kohya", "diffusers", "lycoris", "comfyui_node"] = option(
        "comfyui", why="most people use it"
    )
    """Program that the file is written for. It decides the key names and the arithmetic."""

    dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float16", why="half the size of float32, and precise enough", title="Number format"
    )
    """Number format of the stored factors. Magnitudes are always float32."""

    form: Literal["auto", "compact", "full", "svd"] = option("auto", why="the smallest exact file", advanced=True)
    """How each layer is stored. auto: the smallest exact form, a full difference where no smaller form is exact.
    compact: never a full difference; layers without an exact compact form are approximated by a LoRA. full: the full
    difference of every layer (diffusers reads none, so it gets a LoRA of full rank). svd: a plain LoRA for every layer,
    which every program reads. The error of each approximated layer is printed and written into the file."""

    rank: int | None = option(None, ge=1, advanced=True, needs=("!.form compact|svd",))
    """Rank of LoRAs that approximate a layer (truncated SVD), with export.form compact or svd. null: 64."""

    comfyui_norm: Literal["original", "adapted"] = option(
        "original", why="what ComfyUI currently computes", group="Compatibility", advanced=True, title="ComfyUI norm",
        needs=(".host comfyui|comfyui_node", "@output_magnitudes"),
    )
    """For output-axis magnitudes: the norm that ComfyUI divides by. Currently it is the norm of the original weight;
    after ComfyUI's pull request 15458 it is the norm of the adapted weight."""

    computes_in: Literal["auto", "float32", "float16", "bfloat16"] = option(
        "auto", why="ComfyUI's default", group="Compatibility", advanced=True,
        needs=("!.host comfyui", "@magnitudes"),
    )
    """Number format in which ComfyUI computes magnitudes. ComfyUI adds this format's rounding unit to every norm (0.001
    in float16, 0.008 in bfloat16) and the file compensates for it. The file is therefore exact, up to rounding, in this
    format only; the errors in all others are printed and written into the file. auto: ComfyUI's default on a GPU, which
    is float16, or bfloat16 for FLUX; for a file with dtype float32 it is float32, which a CPU computes in. Text
    encoders are always written for float32, ComfyUI's default for them."""

    node_fallback: int | None = option(
        None, why="the file is for users with the node", ge=1, group="Compatibility", advanced=True,
        needs=("!.host comfyui_node", "!.form auto|compact"),
    )
    """With host comfyui_node: rank of a LoRA that is added to the file for users without the node. Its error is
    printed."""

    node_spelling: Literal["gimbal", "oftv2"] = option(
        "gimbal", why="exact", group="Compatibility", advanced=True,
        needs=("!.host comfyui_node", "!.form auto|compact"),
    )
    """With host comfyui_node: write for our own node, or for the public ComfyUI-OFTv2 (rotations of the input of
    linear layers, and of convolutions with adapter.rotation.conv kernel). With adapter.rotation.map neumann_5 and form
    compact OneTrainer reads the second kind too, as its scaled OFT."""

    ema: bool = option(True, advanced=True, title="EMA", needs="training.ema")
    """Write the moving average of the weights (training.ema) instead of the trained ones. Training states have both:
    `scripts/export.py --state STEP --ema false` writes the trained ones of a step."""

    dataset_names: bool = option(True, why="model managers show them", group="Metadata", advanced=True)
    """Write folder names and tag counts into the file. Turn this off to keep them private."""

    title: str = option("", why="the run's name is used", group="Metadata")
    """Title shown by model managers."""

    author: str = option("", group="Metadata")
    """Author shown by model managers."""

    license: str = option("", group="Metadata", advanced=True, title="Licence")
    """Licence shown by model managers."""
