"""Pictures and captions of the demo base, from two emoji packages, which are downloaded unless given.

    python scripts/demo_data.py --google emoji-datasource-google-16.0.0.tgz

writes demo/dataset (32 Noto pictures to train a LoRA on) and demo/validation (16 others). make_demo_base.py imports the
rest: `read_pictures` for both sets, `to_draw`, `make_captions` and `make_weights` for the training of a base.
"""
import argparse
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import script

VERSION = "16.0.0"
SIZE = 64
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")

# Unicode names in which "black" and "white" mean filled and hollow would teach wrong colours.
RENAMED = {
    "heavy black heart": "red heart", "black heart suit": "heart suit", "black spade suit": "spade suit",
    "black club suit": "club suit", "black diamond suit": "diamond suit", "white medium star": "star",
    "black sun with rays": "sun", "black telephone": "telephone", "black scissors": "scissors", "black nib": "nib",
    "black large square": "black square", "white large square": "white square", "medium white circle": "white circle",
    "medium black circle": "black circle", "white smiling face": "smiling face", "white flower": "flower stamp",
    "white up pointing index": "pointing up", "white heavy check mark": "check mark button",
    "black universal recycling symbol": "recycling symbol", "white question mark ornament": "grey question mark",
    "white exclamation mark ornament": "grey exclamation mark", "black question mark ornament": "red question mark",
    "heavy exclamation mark symbol": "red exclamation mark", "heavy large circle": "hollow red circle",
    "black right-pointing triangle": "play button", "black left-pointing triangle": "reverse button",
    "black right-pointing double triangle": "fast forward button", "eight pointed black star": "eight pointed star",
    "black left-pointing double triangle": "rewind button", "black up-pointing double triangle": "fast up button",
    "black down-pointing double triangle": "fast down button", "black rightwards arrow": "right arrow",
    "leftwards black arrow": "left arrow", "upwards black arrow": "up arrow", "downwards black arrow": "down arrow",
}

DATASET = (
    "red apple", "banana", "watermelon", "lemon", "cherries", "carrot", "doughnut", "hamburger", "birthday cake",
    "soft ice cream", "grinning face", "smiling face with sunglasses", "crying face", "thinking face", "robot face",
    "ghost", "cat face", "fox face", "panda face", "frog face", "penguin", "octopus", "butterfly", "turtle",
    "cactus", "rose", "automobile", "sailboat", "balloon", "guitar", "crown", "hot beverage",
)
"""Subjects of the training pictures, in Noto's style."""
VALIDATION = (
    "strawberry", "pear", "avocado", "slice of pizza", "cupcake", "winking face", "angry face", "dog face",
    "pig face", "lion face", "owl", "tropical fish", "sunflower", "rocket", "bus", "trophy",
)
"""Subjects of the validation pictures."""
UNTOUCHED = (
    "red heart", "green apple", "mushroom", "rainbow", "snail", "crab", "bear face", "rabbit face", "skull", "tomato",
    "pretzel", "umbrella", "key", "airplane", "tulip", "snowman",
)
"""Subjects in neither set, for which the style has to generalize."""
PROMPTS = DATASET + VALIDATION + UNTOUCHED
"""Prompts for a base, before and after."""
OTHERS = (
    "face with tears of joy", "smiling face with heart-shaped eyes", "sleeping face", "nerd face",
    "face with medical mask", "extraterrestrial alien", "clown face", "jack-o-lantern", "tiger face", "mouse face",
    "koala", "wolf face", "honeybee", "lady beetle", "whale", "baby chick", "elephant", "snake", "shark", "flamingo",
    "spider", "zebra face", "pineapple", "grapes", "kiwifruit", "aubergine", "ear of maize", "broccoli", "hot pepper",
    "french fries", "hot dog", "popcorn", "croissant", "cookie", "lollipop", "cheese wedge", "wine glass",
    "cocktail glass", "tropical drink", "beer mug", "bubble tea", "palm tree", "evergreen tree", "deciduous tree",
    "christmas tree", "four leaf clover", "maple leaf", "ambulance", "tractor", "helicopter", "flying saucer",
    "anchor", "bell", "lock", "electric light bulb", "camera", "television", "alarm clock", "hourglass", "scissors",
    "pencil", "paintbrush", "artist palette", "wrapped present", "teddy bear", "violin", "saxophone",
    "drum with drumsticks", "soccer ball", "basketball and hoop", "hammer", "magnet", "bomb", "graduation cap",
    "high-heeled shoe", "money bag", "star", "fire", "droplet", "snowflake", "high voltage sign", "volcano",
    "house building", "tent", "european castle",
)
SUBJECTS = PROMPTS + OTHERS
"""All that the bases can draw: chosen by eye, on sheets of both sets side by side, where they draw the same thing."""
PROMPT_WEIGHT = 2.0
"""How much more often the subjects of PROMPTS are used than the others."""


WAYS = 40
"""Ways in which a base draws its subjects beside the plain one (`demo_styles.py`), each with a word of its own:
"<subject>, <word> style". With many ways a network learns to separate style and subject, which an adapter can
use."""

WAYS_SHARE = 0.4
"""Share of pictures in one of the ways."""

MOTION = 0.35
"""Strength of `demo_augment.moved` for variants. With 0.9, a network of this size has not learned after hours what a
caption's picture is: most of its error is where the picture lies."""

MOVED, MOVED_SHARE = 40, 0.6
"""Variants of a plain picture that are moved, stretched and bent, and their share of its plain appearances."""

VARIANTS = 6
"""Variants of each subject in each way, in proportions of their own. With few of these and of those a base learns its
pictures by heart, not their parts, and another set's proportions break it."""


@dataclass
class Picture:
    """One emoji: its names (the first is the usual caption), its category, its PNG bytes, its style."""
    names: list[str]
    category: str
    subcategory: str
    png: bytes = field(repr=False)
    way: int | None = None
    """None is as it is."""
    variant: int = 0
    """Number of the variant: of a way, each in proportions of its own; of a plain picture, moved but for 0."""

    def pixels(self) -> np.ndarray:
        """As it is, on white: (SIZE, SIZE, 3) uint8."""
        values = self.layers() / 255.0
        return (255 * (values[..., :3] * values[..., 3:] + 1 - values[..., 3:])).round().astype(np.uint8)

    def layers(self) -> np.ndarray:
        """Red, green, blue and opacity: (SIZE, SIZE, 4) uint8."""
        picture = Image.open(io.BytesIO(self.png)).convert("RGBA")
        if picture.size != (SIZE, SIZE):
            picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        return np.asarray(picture)


def pack(vendor: str, folder: Path) -> Path:
    """Download one package's tarball with npm, unless it is already in the folder."""
    name = f"emoji-datasource-{vendor}"
    tarball = folder / f"{name}-{VERSION}.tgz"
    if tarball.exists():
        return tarball
    if shutil.which("npm") is None:
        raise SystemExit(f"npm is not installed. Install it, or pass --{vendor} with {tarball.name} or its unpacked "
                         "folder.")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["npm", "pack", f"{name}@{VERSION}"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"npm pack {name}@{VERSION} failed:\n{done.stderr.strip()}")
    return tarball


def read_pictures(vendor: str, source: Path) -> list[Picture]:
    """Every base emoji of one vendor ("twitter" or "google"), from its tarball or its unpacked folder."""
    if not source.exists():
        raise SystemExit(f"--{vendor} {source}: no such file or folder")
    if source.is_dir():
        root = source / "package" if (source / "package").is_dir() else source
        return pictures_in(vendor, root)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(source) as tarball:
        wanted = (f"package/img/{vendor}/64/", "package/emoji.json")
        members = [m for m in tqdm(tarball, desc=f"reading {source.name}", unit=" files") if m.name.startswith(wanted)]
        tarball.extractall(folder, members=members, filter="data")
        return pictures_in(vendor, Path(folder) / "package")


def pictures_in(vendor: str, root: Path) -> list[Picture]:
    """The pictures of an unpacked package, in the order of its emoji.json."""
    table = root / "emoji.json"
    if not table.exists():
        raise SystemExit(f"{root} has no emoji.json: it is not an emoji-datasource-{vendor} package")
    return [Picture(names_of(row), row["category"], row["subcategory"],
                    (root / "img" / vendor / "64" / row["image"]).read_bytes())
            for row in json.loads(table.read_text()) if row[f"has_img_{vendor}"]]


def names_of(row: dict) -> list[str]:
    """The official name in lower case, a plainer form of it, and the readable short names."""
    official: str = row["name"].lower()
    name = RENAMED.get(official, official).replace("’", "'")
    names = [name]
    words = name.split()
    if words[0] == "large" and words[1] in COLOURS:  # "large red circle" is also "red circle", and mostly so
        names = [" ".join(words[1:]), name]
    if words[-1] in ("face", "symbol", "sign") and len(words) > 1 and "with" not in words:
        names.append(" ".join(words[:-1]))
    for short in row["short_names"]:
        plain = " ".join(short.replace("_", " ").split())
        if len(plain) > 2 and plain.isascii() and not (set(plain.split()) & set(COLOURS)) and plain not in names:
            names.append(plain)
    return names


def to_draw(pictures: list[Picture]) -> list[Picture]:
    """The subjects of SUBJECTS, each as it is, moved, and in every way and variant."""
    by_name = {picture.names[0]: picture for picture in pictures}
    kinds = [*((None, number) for number in range(1 + MOVED)), *product(range(WAYS), range(VARIANTS))]
    return [replace(by_name[name], way=way, variant=number) for way, number in kinds for name in SUBJECTS]


def made_up_words() -> tuple[list[str], list[str]]:
    """A word for each of the ways, and words without a meaning, which are used with plain pictures, so that a word
    which a base does not know does no harm. `noto` is one of them: its meaning is left to the adapter."""
    chance = random.Random(7)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 7))) for _ in range(WAYS + 20)]
    return words[:WAYS], [*words[WAYS:], *4 * ["noto"]]


def make_captions(pictures: list[Picture]) -> list[list[tuple[str, float]]]:
    """For each picture its possible captions with their probabilities.

    A plain picture's name in three of five; with its category, or with a style that means nothing, in one of five each.
    That of a picture in another way always has the way's word.
    """
    chance, (ways, idle), captions = random.Random(3), made_up_words(), []
    for picture in pictures:
        first, others = picture.names[0], picture.names[1:3]
        plain = [(first, 0.7 if others else 1.0)] + [(other, 0.3 / len(others)) for other in others]
        if picture.way is not None:
            captions.append([(f"{text}, {ways[picture.way]} style", share) for text, share in plain])
            continue
        category = picture.category.lower().replace("&", "and")
        captions.append([(text, 0.6 * share) for text, share in plain]
                        + [(f"{text}, {category}", 0.2 * share) for text, share in plain]
                        + [(f"{first}, {word} style", 0.2 / 8) for word in chance.sample(idle, 8)])
    return captions


def make_weights(pictures: list[Picture]) -> list[float]:
    """How often each picture is drawn, relative to an ordinary one."""
    way, moved = WAYS_SHARE / (1 - WAYS_SHARE) / WAYS / VARIANTS, MOVED_SHARE / MOVED
    kinds = [way if picture.way is not None else moved if picture.variant else 1 - MOVED_SHARE for picture in pictures]
    return [kind * (PROMPT_WEIGHT if picture.names[0] in PROMPTS else 1.0)
            for kind, picture in zip(kinds, pictures, strict=True)]


def write_folder(pictures: list[Picture], names: tuple[str, ...], folder: Path) -> None:
    """One untouched PNG and one caption file per name."""
    by_name = {picture.names[0]: picture for picture in pictures}
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        stem = folder / name.replace(" ", "_")
        stem.with_suffix(".png").write_bytes(by_name[name].png)
        stem.with_suffix(".txt").write_text(f"{name}, noto style\n")


def package_arguments(parser: argparse.ArgumentParser) -> None:
    for vendor in ("twitter", "google"):
        parser.add_argument(f"--{vendor}", type=Path, metavar="PATH",
                            help=f"emoji-datasource-{vendor}-{VERSION}.tgz or its unpacked folder (default: npm pack)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write demo/dataset and demo/validation from the Noto pictures.")
    package_arguments(parser)
    parser.add_argument("--packages", type=Path, default=Path("runs/demo_base"), help="folder for npm pack's tarballs")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for dataset/ and validation/")
    arguments = parser.parse_args()
    noto = read_pictures("google", arguments.google or pack("google", arguments.packages))
    write_folder(noto, DATASET, arguments.out / "dataset")
    write_folder(noto, VALIDATION, arguments.out / "validation")
    print(f"{len(DATASET)} pictures in dataset/, {len(VALIDATION)} in validation/, both in {arguments.out}")


if __name__ == "__main__":
    sys.exit(script(main))
