"""The FLUX kind of demo base: a transformer of double and single blocks, CLIP (pooled) and T5 (sequence).

Two stages: rectified flow with both text encoders, the caption left out one time in ten; then guidance is distilled
into the guidance embedding, as FLUX.1-dev's was (Meng et al. 2023, section 3.1).
"""

# diffusers annotates tuples of any length as tuple[int], and outputs as their tuple form:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scripts.demo_data import Picture
from scripts.demo_training import Captions, Stage, draw, fast, latents_of, make_clip, sampled, write_pipeline

OPTIONS = {"steps": 8000, "learning_rate": 2e-3, "out": Path("demo/flux_base"), "vae": Path("demo/base/vae")}
"""Defaults of make_demo_base.py for this kind."""

WIDTH, TOKENS = 96, 24
"""Of both text encoders; tokens per caption that T5 reads."""

STRONGEST = 6.0
"""Guidance up to this is distilled."""

GENTLE = 0.4
"""Noise level below which errors count less and less."""

SCHEDULE = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
            "base_image_seq_len": 256, "max_image_seq_len": 4096}  # fmt: skip
"""FLUX.1-dev's."""


def make_transformer() -> diffusers.FluxTransformer2DModel:
    """FLUX.1-dev's layout with 3 double and 6 single blocks."""
    return diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=3,
        num_single_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 14, 14),
    )


def make_t5(tokenizer: Any) -> transformers.T5EncoderModel:
    """A T5 encoder of three layers. No dropout: it is small for its task."""
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=24,
        d_ff=2 * WIDTH,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return transformers.T5EncoderModel(config)


def make_t5_tokenizer(captions: list[str], folder: Path) -> transformers.T5TokenizerFast:
    """T5's kind of tokenizer with a small vocabulary learned from the captions."""
    file = folder / "unigrams.json"
    if not file.exists():
        learned = Tokenizer(models.Unigram())
        learned.normalizer = normalizers.Lowercase()
        learned.pre_tokenizer = pre_tokenizers.Metaspace()
        alphabet = [chr(code) for code in range(33, 127)]
        trainer = trainers.UnigramTrainer(
            vocab_size=1500, initial_alphabet=alphabet, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
        learned.train_from_iterator(captions, trainer)
        vocabulary = json.loads(learned.to_str())["model"]["vocab"]
        vocabulary = [(token, score) for token, score in vocabulary if token != "<unk>"]
        known = {token for token, _ in vocabulary}
        vocabulary += [(letter, -20.0) for letter in ["▁", *alphabet] if letter not in known]
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = special + [tuple(entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
    return transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=TOKENS)


class Generator(nn.Module):
    """Transformer and text encoders, trained together."""

    transformer: Any
    clip: Any
    t5: Any

    def __init__(self, transformer: nn.Module, clip: nn.Module, t5: nn.Module):
        super().__init__()
        self.transformer, self.clip, self.t5 = transformer, clip, t5

    def texts(self, tokens: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """`hidden (n, tokens, dim)` of T5 and `pooled (n, dim)` of CLIP, as `FluxPipeline` has them."""
        return self.t5(tokens[1]).last_hidden_state, self.clip(tokens[0]).pooler_output

    def forward(self, noisy: Tensor, levels: Tensor, texts: tuple[Tensor, Tensor], guidance: Tensor) -> Tensor:
        """The predicted flow of `noisy (n, c, h, w)` at noise `levels (n)`; `guidance (n)`."""
        n, channels, height, width = noisy.shape
        pipeline, hidden = diffusers.FluxPipeline, texts[0]
        flow = self.transformer(
            hidden_states=pipeline._pack_latents(noisy, n, channels, height, width),
            timestep=levels,
            guidance=guidance,
            pooled_projections=texts[1],
            encoder_hidden_states=hidden,
            txt_ids=torch.zeros(hidden.shape[1], 3),
            img_ids=pipeline._prepare_latent_image_ids(n, height // 2, width // 2, noisy.device, torch.float32),
            return_dict=False,
        )[0]
        return pipeline._unpack_latents(flow, height, width, 1)


class Training:
    """What all stages draw their batches from."""

    def __init__(self, vae: Any, pictures: list[Picture], captions: Captions, tokenizers: tuple, arguments: Any):
        self.vae, self.arguments, self.captions, self.tokenizers = vae, arguments, captions, tokenizers
        self.mean, self.std = latents_of(vae, pictures, arguments.work)

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor, list[tuple[int, int]], torch.Generator]:
        """Latents, noise, noise levels, and for each picture its number and its caption's."""
        generator, size = draw(seed, step), self.arguments.batch
        chosen = self.captions.choose(size, generator)
        numbers = torch.tensor([number for number, _ in chosen])
        latents = sampled(self.mean[numbers], self.std[numbers], generator)
        noise = torch.randn(latents.shape, generator=generator)
        even = torch.rand(size, generator=generator)
        levels = 2 * even / (1 + even)  # noisy ones oftener
        return latents, noise, levels, chosen, generator

    def texts(self, chosen: list[tuple[int, int]], left_out: list[bool]) -> list[str]:
        """The captions; empty where they are left out."""
        captions = self.captions.texts
        return ["" if out else captions[n][c] for (n, c), out in zip(chosen, left_out, strict=True)]

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids for CLIP and for T5."""
        padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        first, second = (tokenizer(texts, **padded).input_ids for tokenizer in self.tokenizers)
        return first, second

    def look(self, model: Generator, stage: Stage, losses: list[float]) -> Callable[[int], None]:
        """Prints the error, and writes the pipeline now and then."""

        def look(step: int) -> None:
            print(f"\n{stage.name} step {step}: error {np.mean(losses[-250:]):.4f}", flush=True)
            if step % 1000 == 0 or step == stage.steps:
                kept = {k: v.clone() for k, v in stage.modules.state_dict().items()}
                stage.modules.load_state_dict(stage.average)
                self.write(model)
                stage.modules.load_state_dict(kept)

        return look

    def write(self, model: Generator) -> None:
        """The diffusers folder."""
        self.vae.register_to_config(shift_factor=0.0)  # this pipeline requires a number
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULE)
        clip_tokens, t5_tokens = self.tokenizers
        pipeline = diffusers.FluxPipeline(
            scheduler, self.vae, model.clip, clip_tokens, model.t5, t5_tokens, model.transformer
        )
        write_pipeline(pipeline, self.arguments.out)

    def flow(self, model: Generator) -> None:
        """Rectified flow without guidance (1)."""
        seed = self.arguments.seed + 1
        stage = Stage("flow", model, self.arguments.steps, self.arguments.learning_rate, self.arguments.work)
        losses: list[float] = []

        def loss_of(step: int) -> Tensor:
            latents, noise, levels, chosen, generator = self.batch(seed, step)
            left_out = (torch.rand(len(chosen), generator=generator) < 0.1).tolist()
            at = levels.view(-1, 1, 1, 1)
            with fast(), sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward pass is slow in bfloat16
                texts = model.texts(self.tokens(self.texts(chosen, left_out)))
                flow = model((1 - at) * latents + at * noise, levels, texts, torch.ones(len(chosen)))
            error = flow.float() - (noise - latents)
            losses.append(float(error.detach().square().mean()))
            return weighted(error, levels)

        stage.run(loss_of, look=self.look(model, stage, losses))

    def guidance(self, model: Generator) -> None:
        """Told a guidance, the model predicts what the one before gives with that guidance."""
        teacher = copy.deepcopy(model).requires_grad_(False)
        stage = Stage("guidance", model, self.arguments.guidance_steps, 6e-4, self.arguments.work)
        losses: list[float] = []

        def loss_of(step: int) -> Tensor:
            latents, noise, levels, chosen, generator = self.batch(self.arguments.seed + 2, step)
            strength = 1 + (STRONGEST - 1) * torch.rand(len(chosen), generator=generator)
            at, by, ones = levels.view(-1, 1, 1, 1), strength.view(-1, 1, 1, 1), torch.ones(len(chosen))
            noisy = (1 - at) * latents + at * noise
            named, nothing = self.texts(chosen, [False] * len(chosen)), [""] * len(chosen)
            with fast(), sdpa_kernel(SDPBackend.MATH):
                with torch.no_grad():
                    plain = teacher(noisy, levels, teacher.texts(self.tokens(named)), ones)
                    empty = teacher(noisy, levels, teacher.texts(self.tokens(nothing)), ones)
                flow = model(noisy, levels, model.texts(self.tokens(named)), strength)
            error = flow.float() - torch.lerp(empty.float(), plain.float(), by)
            losses.append(float(error.detach().square().mean()))
            return weighted(error, levels)

        stage.run(loss_of, look=self.look(model, stage, losses))


def weighted(error: Tensor, levels: Tensor) -> Tensor:
    """Mean square of a flow's `error (n, c, h, w)` at noise `levels (n)`.

    The flow's error is the picture's over the level: below `GENTLE` that would ask for more than the latents hold.
    """
    return (error.square().mean((1, 2, 3)) * (levels / GENTLE).square().clamp(max=1)).mean()


def train(
    vae: Any, pictures: list[Picture], captions: Captions, clip_tokens: Any, arguments: argparse.Namespace
) -> None:
    """All stages, and the diffusers folder."""
    torch.manual_seed(arguments.seed + 1)
    t5_tokens = make_t5_tokenizer(captions.every_text, arguments.work / "tokenizer_2")
    model = Generator(make_transformer(), make_clip(clip_tokens, WIDTH), make_t5(t5_tokens))
    training = Training(vae, pictures, captions, (clip_tokens, t5_tokens), arguments)
    training.flow(model)
    training.guidance(model)
    training.write(model)
