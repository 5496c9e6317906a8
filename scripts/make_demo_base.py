"""Make demo/base: a small real SDXL pipeline, trained from scratch on Twemoji at 64x64.

    python scripts/make_demo_base.py

Three stages, each resumed by the same command: the VAE (Twemoji and Noto), then UNet and both text encoders together
(Twemoji only), then the export in float16. demo/README.md has times and losses.
"""

# diffusers annotates tuples of any length as tuple[int], and outputs as their tuple form:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import transformers

from scripts import demo_data
from scripts.demo_data import SIZE

TOKENS, WIDTH = 20, 96
"""Tokens per caption, and width of each text encoder."""

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


# -- networks ---------------------------------------------------------------------------------------------------------


def make_vae() -> diffusers.AutoencoderKL:
    """0.6 M parameters, 4 times smaller along each side, 4 channels."""
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIZE,
        force_upcast=False,
    )


def make_unet() -> diffusers.UNet2DConditionModel:
    """SDXL's layout with two blocks, attention in the lower one."""
    return diffusers.UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(64, 128),
        layers_per_block=2,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )


def make_tokenizer(captions: list[str], folder: Path) -> transformers.CLIPTokenizer:
    """CLIP's kind of tokenizer with a small vocabulary learned from the captions."""
    if not (folder / "vocab.json").exists():  # ties are broken by chance, so that a resumed run must not learn it again
        learn_vocabulary(captions, folder)
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS, pad_token="<|endoftext|>"
    )


def learn_vocabulary(captions: list[str], folder: Path) -> None:
    """Write `vocab.json` and `merges.txt`."""
    learned = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    words = [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False, False)]
    learned.pre_tokenizer = pre_tokenizers.Sequence(words)
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1600,
        initial_alphabet=sorted([*letters, *(letter + "</w>" for letter in letters)]),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learned.train_from_iterator(captions, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    learned.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    for letter in sorted(letters):  # CLIP's own files list every byte, at the end of a word too
        for token in (letter, letter + "</w>"):
            vocabulary.setdefault(token, len(vocabulary))
    for token in special:
        vocabulary[token] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")


def make_text_encoders(tokenizer: Any) -> tuple[nn.Module, nn.Module]:
    """Two CLIP text models; the second one also gives the pooled vector."""
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "projection_dim": WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    first = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    second = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config, hidden_act="gelu"))
    return first, second


# -- stages -----------------------------------------------------------------------------------------------------------


class Stage:
    """A training with checkpoints: modules, optimizer, step. The same command goes on from the last checkpoint."""

    def __init__(self, name: str, modules: nn.Module, steps: int, lr: float, work: Path):
        self.name, self.modules, self.steps, self.lr = name, modules, steps, lr
        self.optimizer = torch.optim.AdamW(modules.parameters(), lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.path, self.step, self.seconds, self.loss = work / f"{name}.pt", 0, 0.0, math.nan
        self.average = {k: v.detach().clone() for k, v in modules.state_dict().items()}
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            modules.load_state_dict(saved["modules"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.seconds = saved["step"], saved["seconds"]
            self.loss, self.average = saved["loss"], saved["average"]

    def save(self) -> None:
        """Write the checkpoint under a temporary name and rename it."""
        part = self.path.with_suffix(".part")
        kept = ("step", "seconds", "loss", "average")
        state = {"modules": self.modules.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, **{name: vars(self)[name] for name in kept}}, part)
        part.replace(self.path)

    def run(self, loss_of, every: int = 250, look=None) -> None:
        """Train to the last step; `loss_of(step)` gives the loss of a batch, `look(step)` is called at checkpoints."""
        bar = tqdm(total=self.steps, initial=self.step, desc=self.name, unit="step", mininterval=5)
        since = time.monotonic()
        while self.step < self.steps:
            progress = self.step / self.steps
            rate = self.lr * min(1, (self.step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            decay = min(0.999, (1 + self.step) / (10 + self.step))
            for name, value in self.modules.state_dict().items():
                self.average[name].lerp_(value, 1 - decay) if value.is_floating_point() else None
            value = float(loss.detach())
            self.loss = value if math.isnan(self.loss) else 0.995 * self.loss + 0.005 * value
            bar.update()
            bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
            if self.step % every == 0 or self.step == self.steps:
                self.seconds, since = self.seconds + time.monotonic() - since, time.monotonic()
                self.save()
                if look is not None:
                    look(self.step)
        self.modules.load_state_dict(self.average)


def fast() -> torch.autocast:
    """bfloat16 products; weights and optimizer stay in float32."""
    return torch.autocast("cpu", torch.bfloat16)


def draw(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step, the same in a resumed run."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def train_vae(pictures: Tensor, arguments: argparse.Namespace) -> diffusers.AutoencoderKL:
    """VAE on `pictures (n, 3, 64, 64)` in [-1, 1]: absolute and edge error, and a small KL term."""
    torch.manual_seed(arguments.seed)
    vae = make_vae()
    stage = Stage("vae", vae, arguments.vae_steps, 2e-3, arguments.work)

    def loss_of(step: int) -> Tensor:
        generator = draw(arguments.seed, step)
        batch = pictures[torch.randint(len(pictures), (8,), generator=generator)]
        batch = batch.flip(3) if step % 2 else batch
        noise = torch.randn(8, 4, SIZE // 4, SIZE // 4, generator=generator)
        with fast():
            latents = vae.encode(batch).latent_dist
            decoded = vae.decode(latents.mean + latents.std * noise).sample.float()
        edges = sum((decoded.diff(dim=d) - batch.diff(dim=d)).abs().mean() for d in (2, 3))
        error = (decoded - batch).abs().mean() + 0.5 * (decoded - batch).square().mean()
        return error + edges + 2e-4 * latents.kl().float().mean() / 1024

    def look(step: int) -> None:
        with torch.no_grad():
            shown = pictures[:: len(pictures) // 16][:16]
            rows = [shown[:8], vae(shown[:8]).sample, shown[8:], vae(shown[8:]).sample]
        save_grid(torch.cat(rows), arguments.work / "vae.png")

    stage.run(loss_of, look=look)
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in pictures.split(64)])
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 4))
    return vae


def save_grid(pixels: Tensor, path: Path, columns: int = 8) -> None:
    """Pictures `(n, 3, h, w)` in [-1, 1] side by side."""
    from PIL import Image

    rows = pixels.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(((rows.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()).save(path)


class Generator(nn.Module):
    """UNet and text encoders, trained together."""

    unet: Any
    first: Any
    second: Any

    def __init__(self, unet: nn.Module, first: nn.Module, second: nn.Module):
        super().__init__()
        self.unet, self.first, self.second = unet, first, second

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """The predicted noise, conditioned as `StableDiffusionXLPipeline` does."""
        one, two = (e(tokens, output_hidden_states=True) for e in (self.first, self.second))
        hidden = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1)
        sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=noisy.dtype).expand(len(noisy), -1)
        added = {"text_embeds": two.text_embeds, "time_ids": sizes}
        return self.unet(noisy, timesteps, hidden, added_cond_kwargs=added).sample


def error_by_scale(error: Tensor) -> Tensor:
    """Mean square of `error (n, c, 16, 16)` at five scales from single latents to the whole picture: `(n,)`.

    Not the plain mean square: even the noisiest time step shows the mean colour of a picture, so the plain loss gains
    next to nothing from colour words, but sampling starts from noise that shows a random colour. Every octave counts
    the same here. The best prediction, the conditional mean of the noise, is the same for any such weighting.
    """
    scales = (1, 2, 4, 8, 16)
    errors = [size**2 * F.avg_pool2d(error, size).square().mean((1, 2, 3)) for size in scales]
    return torch.stack(errors).mean(0)


def train_generator(vae, pictures: Tensor, captions, weights: list[float], tokenizer, arguments) -> Generator:
    """Noise prediction on the latents; the caption is left out one time in ten, for guidance."""
    torch.manual_seed(arguments.seed + 1)
    model = Generator(make_unet(), *make_text_encoders(tokenizer))
    stage = Stage("generator", model, arguments.steps, arguments.learning_rate, arguments.work)
    alphas = diffusers.DDPMScheduler(**SCHEDULE).alphas_cumprod
    with torch.no_grad():
        distributions = [vae.encode(batch).latent_dist for batch in pictures.split(64)]
    mean, std = (torch.cat([getattr(d, k) for d in distributions]) * vae.config.scaling_factor for k in ("mean", "std"))
    texts = [[text for text, _ in options] for options in captions]
    shares = [torch.tensor([share for _, share in options]) for options in captions]
    padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = [tokenizer(options, **padded).input_ids for options in texts]
    empty = tokenizer("", **padded).input_ids[0]
    chances = torch.tensor(weights, dtype=torch.float32)

    def loss_of(step: int) -> Tensor:
        generator = draw(arguments.seed + 1, step)
        chosen = torch.multinomial(chances, arguments.batch, replacement=True, generator=generator)
        tokens = []
        for number in chosen.tolist():
            caption = int(torch.multinomial(shares[number], 1, generator=generator))
            tokens.append(empty if torch.rand((), generator=generator) < 0.1 else ids[number][caption])
        latents = mean[chosen] + std[chosen] * torch.randn(mean[chosen].shape, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = (1000 * torch.rand(arguments.batch, generator=generator).sqrt()).long()  # noisy ones oftener
        signal = alphas[timesteps].view(-1, 1, 1, 1)
        with fast():
            predicted = model(signal.sqrt() * latents + (1 - signal).sqrt() * noise, timesteps, torch.stack(tokens))
        error = predicted.float() - noise
        snr = signal.flatten() / (1 - signal.flatten())
        losses.append(float(error.detach().square().mean()))
        errors = error_by_scale(error)
        return (errors * snr.clamp(max=5) / snr).mean()

    losses: list[float] = []

    def look(step: int) -> None:
        print(f"\nstep {step}: noise error {np.mean(losses[-250:]):.4f}", flush=True)
        if step % 1000 == 0 or step == arguments.steps:
            kept = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(stage.average)
            write_pipeline(vae, model, tokenizer, arguments.out, torch.float16)
            model.load_state_dict(kept)

    stage.run(loss_of, look=look)
    return model


# -- export -----------------------------------------------------------------------------------------------------------


def write_pipeline(vae, model: Generator, tokenizer, out: Path, dtype: torch.dtype) -> None:
    """The diffusers folder, in float16. Weights are written beside and renamed, so that a reader never sees half."""
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=model.first,
        text_encoder_2=model.second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=model.unet,
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"),
        add_watermarker=False,
    )
    part = out.with_name(out.name + ".part")
    pipeline.save_pretrained(part, safe_serialization=True)
    for weights in part.rglob("*.safetensors"):
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(weights).items()}
        save_file(tensors, weights, {"format": "pt"})
    for file in sorted(path for path in part.rglob("*") if path.is_file()):
        target = out / file.relative_to(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def main() -> None:
    """Read the packages, train, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    demo_data.package_arguments(parser)
    parser.add_argument("--work", type=Path, default=Path("runs/demo_base"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=Path("demo/base"), help="the pipeline's folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=6500, help="of UNet and text encoders")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)

    twitter = demo_data.read_pictures("twitter", arguments.twitter or demo_data.pack("twitter", arguments.work))
    google = demo_data.read_pictures("google", arguments.google or demo_data.pack("google", arguments.work))
    learned = [picture for picture in twitter if demo_data.worth_learning(picture)]
    print(f"{len(twitter)} Twemoji and {len(google)} Noto pictures for the VAE, {len(learned)} Twemoji for the UNet")
    vae = train_vae(as_tensor(twitter + google), arguments)
    captions, weights = demo_data.make_captions(learned), demo_data.make_weights(learned)
    every_text = sorted({text for options in captions for text, _ in options})
    tokenizer = make_tokenizer(every_text, arguments.work / "tokenizer")
    model = train_generator(vae, as_tensor(learned), captions, weights, tokenizer, arguments)
    write_pipeline(vae, model, tokenizer, arguments.out, torch.float16)


def as_tensor(pictures) -> Tensor:
    """`(n, 3, 64, 64)` in [-1, 1]."""
    return torch.from_numpy(np.stack([p.pixels() for p in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    main()
