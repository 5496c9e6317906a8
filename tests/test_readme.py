"""The commands of the README and of docs/ are real: files exist, presets and options resolve."""

import re
import shlex
from pathlib import Path

import pytest

from modules.preset.cli import parse_overrides
from modules.preset.files import resolve
from modules.training.command import make_parser

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "demo/README.md", ROOT / "comfyui_node/README.md"]
COMMAND = re.compile(r"([A-Z_]+=\S+ )*(python|pip|accelerate|ruff|pyright|tensorboard)\b")


def commands(page: Path) -> list[str]:
    """What a page tells to type."""
    blocks = re.findall(r"^ *```\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line.strip() for block in blocks for line in block.splitlines() if COMMAND.match(line.strip())]


COMMANDS = list(dict.fromkeys(line for page in PAGES for line in commands(page)))


def test_there_are_commands():
    assert len(commands(README)) >= 5


def test_the_readme_is_short_enough_to_be_read():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_index_has_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index]
    assert missing == ["README.md"]


@pytest.mark.parametrize("command", COMMANDS)
def test_files_of_a_command_exist(command):
    for word in shlex.split(command):
        if word.endswith((".py", ".txt", ".yaml")):
            assert (ROOT / word).is_file() or word.isupper(), word


@pytest.mark.parametrize("command", [c for c in COMMANDS if "scripts/train.py" in c])
def test_train_commands_resolve(command):
    words = shlex.split(command)
    known, rest = make_parser().parse_known_args(words[words.index("scripts/train.py") + 1 :])
    assert resolve(known.preset, parse_overrides(rest)).preset.family


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target
