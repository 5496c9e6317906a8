"""Train the demo bases: small real pipelines, from scratch on Twemoji at 64x64.

    python scripts/make_demo_base.py --kind sdxl  # demo/base, like SDXL
    python scripts/make_demo_base.py --kind flux  # demo/flux_base, like FLUX; its VAE is demo/base's

Stages, each resumed by the same command: the VAE (Twemoji and Noto), then the denoiser and the text encoders together
(Twemoji only), for FLUX also guidance; then the export in float16. demo/README.md has times and losses.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import torch

from modules.answer import script
from scripts import demo_data, demo_training
from scripts.demo_bases import kinds

VAE_REPEATS = 3
"""How much more often the VAE is trained on the subjects that the bases draw."""


def main() -> None:
    """Read the packages, train, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    demo_data.package_arguments(parser)
    parser.add_argument("--kind", choices=kinds(), required=True)
    parser.add_argument("--work", type=Path, help="folder for checkpoints (default: in runs/)")
    parser.add_argument("--out", type=Path, help="the pipeline's folder (default: in demo/)")
    parser.add_argument("--vae", type=Path, help="use this VAE instead of training one (default: depends on --kind)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=6000)
    parser.add_argument("--steps", type=int, help="steps of denoiser and text encoders (default: depends on --kind)")
    parser.add_argument("--guidance-steps", type=int, default=800, help="steps of guidance distillation, if any")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, help="default: depends on --kind")
    arguments = parser.parse_args()
    kind = kinds()[arguments.kind]
    for name, default in kind.OPTIONS.items():
        vars(arguments)[name] = vars(arguments)[name] or default
    arguments.work = arguments.work or Path("runs", f"demo_{arguments.out.name}")
    arguments.work.mkdir(parents=True, exist_ok=True)

    twitter = demo_data.read_pictures("twitter", arguments.twitter or demo_data.pack("twitter", arguments.work))
    learned = demo_data.to_draw(twitter)
    if arguments.vae is None:
        google = demo_data.read_pictures("google", arguments.google or demo_data.pack("google", arguments.work))
        print(f"{len(twitter)} Twemoji and {len(google)} Noto pictures for the VAE")
        first = [p for p in learned if not p.variant]
        often = VAE_REPEATS * (first + [p for p in google if p.names[0] in demo_data.SUBJECTS])
        drawn = torch.cat([*demo_training.drawings(twitter + google + often)])
        vae = demo_training.train_vae(drawn, arguments)
    else:
        vae = diffusers.AutoencoderKL.from_pretrained(arguments.vae, use_safetensors=True).requires_grad_(False).eval()
    print(f"{len(demo_data.SUBJECTS)} subjects in {1 + demo_data.WAYS} ways for the denoiser")
    captions = demo_training.Captions(learned)
    tokenizer = demo_training.make_tokenizer(captions.every_text, arguments.work / "tokenizer")
    kind.train(vae, learned, captions, tokenizer, arguments)


if __name__ == "__main__":
    sys.exit(script(main))
