"""What all demo bases share: VAE, CLIP tokenizer and text encoder, captions, training with checkpoints, writing."""

# diffusers annotates tuples of any length as tuple[int], and outputs as their tuple form:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from pytorch_optimizer import Muon
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm import tqdm

from scripts import demo_augment, demo_data, demo_styles
from scripts.demo_data import SIZE

CLIP_TOKENS = 20
"""Tokens per caption that CLIP reads."""
CHUNK = 256
"""Pictures that are drawn at once."""


# -- captions ---------------------------------------------------------------------------------------------------------


@dataclass
class Ids:
    """Token ids: of each picture's captions `(captions, tokens)`, and of the empty caption `(tokens)`."""

    of: list[Tensor]
    empty: Tensor


class Captions:
    """Pictures and captions with their frequencies."""

    def __init__(self, pictures: list[demo_data.Picture]):
        options = demo_data.make_captions(pictures)
        self.texts = [[text for text, _ in choice] for choice in options]
        self.shares = [torch.tensor([share for _, share in choice]) for choice in options]
        self.chances = torch.tensor(demo_data.make_weights(pictures), dtype=torch.float32)

    @property
    def every_text(self) -> list[str]:
        """All captions, each once."""
        return sorted({text for texts in self.texts for text in texts})

    def choose(self, count: int, generator: torch.Generator) -> list[tuple[int, int]]:
        """Indices of `count` pictures, each with the index of one of its captions."""
        chosen = torch.multinomial(self.chances, count, replacement=True, generator=generator).tolist()
        return [(number, int(torch.multinomial(self.shares[number], 1, generator=generator))) for number in chosen]

    def encoded(self, encode: Callable[[list[str]], Tensor]) -> Ids:
        """Ids of all captions by `encode(texts)`, which gives `(texts, tokens)`."""
        return Ids([encode(texts) for texts in self.texts], encode([""])[0])


# -- parts ------------------------------------------------------------------------------------------------------------


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


def make_tokenizer(captions: list[str], folder: Path) -> transformers.CLIPTokenizer:
    """CLIP's kind of tokenizer with a small vocabulary learned from the captions."""
    if not (folder / "vocab.json").exists():  # ties are broken randomly, so a resumed run must not learn it again
        learn_vocabulary(captions, folder)
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CLIP_TOKENS, pad_token="<|endoftext|>"
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


def make_clip(tokenizer: Any, width: int, projected: bool = False) -> nn.Module:
    """A CLIP text model of three layers, with a projection of the pooled vector if it is to be the second of two."""
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": CLIP_TOKENS,
        "projection_dim": width,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if projected:
        return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config, hidden_act="gelu"))
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))


# -- training ---------------------------------------------------------------------------------------------------------

NO_MATRICES = ("embed", "shared", "relative_attention_bias", "conv_in", "conv_out")
"""Parts of the names of weights that are tables, or where pictures come in and go out."""


def made(modules: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Muon for matrices and convolutions, AdamW for the rest: after 750 steps the UNet's error was 0.35, and 0.47 with
    AdamW alone. The autoencoder has no such trouble."""
    if isinstance(modules, diffusers.AutoencoderKL):
        return torch.optim.AdamW(modules.parameters(), lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    named = list(modules.named_parameters())
    matrices = [p for name, p in named if p.ndim > 1 and not any(part in name for part in NO_MATRICES)]
    known = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in known]
    common = {"lr": lr, "weight_decay": 0.01}
    groups = [
        {**common, "params": matrices, "use_muon": True, "use_adjusted_lr": True},
        {**common, "params": rest, "use_muon": False, "betas": (0.9, 0.99), "eps": 1e-8},
    ]
    return Muon(groups)


class Stage:
    """A training with checkpoints: modules, optimizer, step. The same command resumes from the last checkpoint."""

    def __init__(self, name: str, modules: nn.Module, steps: int, lr: float, work: Path):
        self.name, self.modules, self.steps, self.lr = name, modules, steps, lr
        self.optimizer = made(modules, lr)
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
        state = {k: v for k, v in self.modules.state_dict().items() if v.is_floating_point()}
        averaged, current = [self.average[k] for k in state], [*state.values()]
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
            torch._foreach_lerp_(averaged, current, 1 - decay)
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


@torch.no_grad()
def latents_of(vae: Any, pictures: list[demo_data.Picture], work: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the scaled latents, each `(n, 4, 16, 16)` float16. Read from `work` where they
    have been made with the same VAE."""
    path, same = work / "latents.pt", [len(pictures), float(sum(p.double().sum() for p in vae.parameters()))]
    kept: dict[str, Any] = torch.load(path, weights_only=True) if path.exists() else {"of": None}
    if kept["of"] != same:
        bar = tqdm(drawings(pictures), desc="latents", total=-(-len(pictures) // CHUNK), mininterval=5)
        scale, means, stds = vae.config.scaling_factor, list[Tensor](), list[Tensor]()
        for given in (vae.encode(chunk).latent_dist for chunk in bar):
            means.append((given.mean * scale).half())
            stds.append((given.std * scale).half())
        kept = {"of": same, "mean": torch.cat(means), "std": torch.cat(stds)}
        part = path.with_suffix(".part")
        torch.save(kept, part)
        part.replace(path)
    return kept["mean"], kept["std"]


def sampled(mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
    """Latents of that mean and deviation, `(n, 4, 16, 16)` float32."""
    return mean.float() + std.float() * torch.randn(mean.shape, generator=generator)


def save_grid(pixels: Tensor, path: Path, columns: int = 8) -> None:
    """Pictures `(n, 3, h, w)` in [-1, 1] side by side."""
    from PIL import Image

    rows = pixels.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(((rows.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()).save(path)


# -- writing ----------------------------------------------------------------------------------------------------------


def drawings(pictures: list[demo_data.Picture]) -> Iterator[Tensor]:
    """CHUNK pictures at a time on white, each in its way: `(n, 3, 64, 64)` in [-1, 1]."""
    table, chance = demo_styles.ways(demo_data.WAYS), torch.Generator().manual_seed(5)
    for start in range(0, len(pictures), CHUNK):
        some = pictures[start : start + CHUNK]
        pixels = torch.from_numpy(np.stack([p.layers() for p in some])).permute(0, 3, 1, 2).float() / 255
        white = pixels[:, :3] * pixels[:, 3:] + 1 - pixels[:, 3:]
        other = [i for i, p in enumerate(some) if p.way is not None]
        numbers = torch.tensor([p.way for p in some if p.way is not None], dtype=torch.long)
        white[other] = demo_styles.varied(pixels[other], numbers, table, chance) if other else white[other]
        moved = [i for i, p in enumerate(some) if p.way is None and p.variant]
        white[moved] = demo_augment.moved(white[moved], demo_data.MOTION, chance).clamp(0, 1) if moved else white[moved]
        yield 2 * white - 1


def write_pipeline(pipeline: Any, out: Path) -> None:
    """The diffusers folder, in float16. Weights are written under another name and renamed: no reader sees a part."""
    part = out.with_name(out.name + ".part")
    pipeline.save_pretrained(part, safe_serialization=True)
    for weights in part.rglob("*.safetensors"):
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in load_file(weights).items()}
        save_file(tensors, weights, {"format": "pt"})
    for file in sorted(path for path in part.rglob("*") if path.is_file()):
        target = out / file.relative_to(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    shutil.rmtree(part)
