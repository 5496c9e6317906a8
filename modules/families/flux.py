"""FLUX.1 dev, schnell and Kontext: a CLIP text encoder (pooled), a T5 text encoder (sequence), a transformer, a VAE.

Encoding and sampling are diffusers' own `FluxPipeline`. Latents are packed: 2x2 of them are one token of the
transformer. dev is distilled: it has a guidance embedding instead of being run twice. Kontext is a dev that edits; with
reference pictures encoding and sampling are those of `FluxKontextPipeline`.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.documents import read_object
from modules.families import base as protocol
from modules.families.parts import double_single, files
from modules.families.parts.double_single import DOUBLE, SINGLE, DoubleSingleModel, original_place
from modules.families.parts.editing import EditModel
from modules.families.parts.names import DENOISER, Files, Place, clip, t5, t5_place, transformer
from modules.families.parts.split import CLIP_L, T5
from modules.preset.base_options import Base

DEV, SCHNELL = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"

KONTEXT = "FluxKontextPipeline"

TRAINED_GUIDANCE = 1.0
"""Input of the guidance embedding in training: 1 is no guidance, and pictures of a data set come from none. Other
trainers do the same; a larger value trains the adapter to undo the guidance."""

ATTENTION = [*double_single.ATTENTION, "text_encoder.*.self_attn.*", "text_encoder_2.*.SelfAttention.[qkvo]"]
MLP = [*double_single.MLP, "text_encoder.*.mlp.fc[12]", "text_encoder_2.*.DenseReluDense.w*"]
REST = [f"{DOUBLE}.norm1*.linear", f"{SINGLE}.norm.linear", "transformer.*_embedder*", "transformer.proj_out"]

# Modules of diffusers' transformer outside of its blocks in the naming of the original checkpoints.
OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}

PREFIX = DENOISER
"""Of the transformer in full checkpoints; transformer-only files have it or not."""

MARK = "double_blocks.0.img_attn.norm.key_norm.scale"
"""A tensor that every transformer of this family has, in the original naming."""

GUIDANCE = "guidance_in.in_layer.weight"
GUIDANCE_IN_DIFFUSERS = "time_text_embed.guidance_embedder.linear_1.weight"
"""A tensor that dev has and schnell has not."""


class Model(EditModel, DoubleSingleModel):
    """A loaded FLUX.1 base, dev where its transformer has a guidance embedding, else schnell.

    `Samples.guidance` is the input of dev's guidance embedding (3.5 is usual). With a negative prompt both variants
    are run twice per step: guidance is then the scale of true classifier-free guidance between the two prompts, and the
    embedding's input is 1, no guidance, because both together oversaturate the picture. As in every family, there is
    none at 1 or below. schnell has no embedding, so without a negative prompt guidance has no effect there.
    """

    EDITORS = {KONTEXT: 1}
    EXAMPLE = "black-forest-labs/FLUX.1-Kontext-dev"
    TITLE = "a FLUX.1 model"
    HUB_ID = DEV
    PIPELINE = "FluxPipeline"
    FILE = "flux1-dev.safetensors"
    TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
    TEXT_FILES = {"text_encoder": CLIP_L, "text_encoder_2": T5}
    PARTS = {
        PREFIX + MARK: "a FLUX.1 transformer",
        "text_encoders.clip_l.transformer.text_model.embeddings.position_embedding.weight": "the first text encoder",
        "text_encoders.t5xxl.transformer.shared.weight": "the second text encoder",
        "vae.encoder.conv_in.weight": "the VAE",
    }
    CONFIGS = (
        *(f"{part}/config.json" for part in ("transformer", "vae", "text_encoder", "text_encoder_2")),
        *(f"{part}/tokenizer_config.json" for part in ("tokenizer", "tokenizer_2")),
        "scheduler/scheduler_config.json",
    )
    CALLED = r"flux(?![-_. ]?2)(?!.*klein)"
    LIKE = (
        f"{double_single.LIKE}|(^|_)transformer_blocks_[0-9]+_norm1_|(vector|guidance)_in_|te[123]_|"
        "text_encoder(_2)?_|clip_l|t5xxl"
    )
    UNLIKE = f"{double_single.UNLIKE}|distilled_guidance_layer|te1_encoder_block|text_encoder_encoder_block"
    """With what a model of the same blocks has instead of modulations, and with a T5 as its only text encoder."""

    def __init__(self, pipeline: Any, device: torch.device):
        super().__init__(pipeline, device)
        self.guided: bool = pipeline.transformer.config.guidance_embeds
        # schnell's noise levels are those of its few steps; a model trained back from it has dev's growing shift.
        self.distilled = not self.guided and not pipeline.scheduler.config.get("use_dynamic_shifting", False)

    # -- single files -------------------------------------------------------------------------------------------------

    @classmethod
    def hub_id(cls, path: str) -> str:
        """dev where the file has a guidance embedding."""
        return DEV if _is_guided(files.tensor_names(path) or set()) else SCHNELL

    @classmethod
    def variant_problems(cls, base: Base, names: Collection[str]) -> list[str]:
        """dev's file with schnell's configuration, or the other way round."""
        path, guided = Path(base.config, "transformer", "config.json"), _is_guided(names)
        if not base.config or read_object(path).get("guidance_embeds", False) == guided:
            return []
        has = "has a guidance embedding, like dev" if guided else "has no guidance embedding, like schnell"
        return [f"base.config: {base.path} {has}, but {path} says the opposite; give the configuration of the same "
                "variant"]

    # -- reference pictures -------------------------------------------------------------------------------------------

    @classmethod
    def edit_pipeline(cls, base: Base) -> str:
        """Kontext's file has the tensors and the configuration of dev's, so that its name says what it is."""
        path = Path(base.path)
        return KONTEXT if path.is_file() and "kontext" in path.name.lower() else super().edit_pipeline(base)

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """Of the sizes that Kontext was trained at the one of the nearest shape."""
        from diffusers.pipelines.flux import pipeline_flux_kontext as pipeline

        step = self.editor.image_processor.config.vae_scale_factor
        if min(width, height) < step:
            raise ValueError(f"it has {width} x {height} px, and the model takes {step} px and more; remove it")
        shape = (width - width % step) / (height - height % step)
        _, *side = min((abs(shape - wide / high), wide, high) for wide, high in pipeline.PREFERRED_KONTEXT_RESOLUTIONS)
        return side[0] // step * step, side[1] // step * step

    def drawing(self, prompt: protocol.Caption, width: int, height: int) -> tuple[Any, dict[str, Any]]:
        """With the pixels of the sample, which would else be resized to a million."""
        pipeline, more = super().drawing(prompt, width, height)
        return pipeline, {**more, "max_area": width * height} if more else {}

    # -- layers -------------------------------------------------------------------------------------------------------

    def named_targets(self) -> dict[str, list[str]]:
        """Patterns of the named sets of layers.

        "double-blocks" and "single-blocks" are the attention and feed-forward layers of these blocks. None has
        `norm_out.linear`: hosts store its halves exchanged, and exchange a low-rank update but no magnitude.
        """
        both = ATTENTION + MLP
        return {
            "attention": ATTENTION,
            "attention-mlp": both,
            "double-blocks": [pattern for pattern in both if not pattern.startswith(SINGLE)],
            "single-blocks": [pattern for pattern in both if not pattern.startswith(DOUBLE)],
            "all": both + REST,
        }

    # -- texts --------------------------------------------------------------------------------------------------------

    @property
    def text_length(self) -> int:
        """Tokens of every caption for the transformer: as dev and schnell were trained, or fewer where the tokenizer
        has a lower limit."""
        return min(512 if self.guided else 256, self.tokenizer.model_max_length)

    @property
    def tokenizer(self) -> Any:
        """T5's: CLIP reads the first 77 tokens only, for the pooled text."""
        return self.pipeline.tokenizer_2

    @property
    def caption_tokens(self) -> int:
        """Tokens that T5 reads, without the end token."""
        return self.text_length - self.tokenizer.num_special_tokens_to_add()

    def encode_texts(self, captions: Sequence[protocol.Caption]) -> protocol.Texts:
        """`hidden (n, tokens, dim)` of T5; `pooled (n, dim)` of CLIP."""
        for name in self.text_encoders:
            self.present(name)
        hidden, pooled, _ = self.pipeline.encode_prompt(
            [*map(protocol.text_of, captions)], device=self.device, max_sequence_length=self.text_length
        )
        return {"hidden": hidden, "pooled": pooled}

    # -- denoising ----------------------------------------------------------------------------------------------------

    def predict(
        self, noisy: Tensor, times: Tensor, texts: protocol.Texts, sizes: Tensor, references: Sequence[Tensor] = ()
    ) -> Tensor:
        """The transformer on `noisy (n, c, h, w)`; it does not use `sizes`."""
        guidance = torch.full((len(noisy),), TRAINED_GUIDANCE, device=noisy.device) if self.guided else None
        more = {"guidance": guidance, "pooled_projections": texts["pooled"]}
        return self.call(noisy, times, texts["hidden"], more, references)

    def negative_prompt(self, given: str) -> str | None:
        """None by default: guidance is embedded."""
        return given or None

    def guidance_options(self, guidance: float, away: bool) -> dict[str, float]:
        """See the class."""
        if away:
            return {"true_cfg_scale": guidance, "guidance_scale": TRAINED_GUIDANCE}
        return {"true_cfg_scale": 1.0, "guidance_scale": guidance}

    # -- exporting ----------------------------------------------------------------------------------------------------

    def names_of(self, network: str) -> Files:
        """The network's names in files. kohya's names of the transformer are the original ones; of T5 it has `te3`, and
        OneTrainer `te2`."""
        names = {
            "transformer": transformer(),
            "text_encoder": clip(network, "lora_te1_", "clip_l", alone=True),
            "text_encoder_2": t5(network, "lora_te3_", "lora_te2_"),
        }
        return names[network]

    def original(self, network: str, path: str, kind: str) -> Place:
        """Where original checkpoints have a tensor."""
        if network == self.DENOISER:
            return transformer_place(path, kind, self.pipeline.transformer.inner_dim)
        return t5_place(path, kind) if network == "text_encoder_2" else Place(f"{path}.{kind}")

    def metadata(self) -> dict[str, str]:
        """What model managers read about the architecture."""
        return {
            "modelspec.architecture": "flux-1-dev/lora" if self.guided else "flux-1-schnell/lora",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux",
            "modelspec.prediction_type": self.process.prediction,
            "ss_base_model_version": "flux1",
            "ss_v2": "False",
        }


# -- the original transformer -----------------------------------------------------------------------------------------


def transformer_place(path: str, kind: str, width: int) -> Place:
    """Where the original checkpoints have a tensor of diffusers' transformer of this `width`, e.g. in
    `double_blocks.0.img_mlp.0.weight`."""
    return original_place(path, kind, width, OUTSIDE)


def _is_guided(names: Collection[str]) -> bool:
    """Whether a file's transformer has a guidance embedding, by the original name or diffusers'."""
    return any(name.endswith((GUIDANCE, GUIDANCE_IN_DIFFUSERS)) for name in names)
