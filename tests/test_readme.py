"""The README's commands are real: files exist, presets and options resolve."""

import re
import shlex
from pathlib import Path

import pytest

from modules.preset.cli import parse_overrides
from modules.preset.files import resolve
from modules.training.command import make_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for block in re.findall(r"```\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def test_there_are_commands():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_files_of_a_command_exist(command):
    for word in shlex.split(command):
        if word.endswith((".py", ".txt", ".yaml")):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("command", [c for c in COMMANDS if "scripts/train.py" in c])
def test_train_commands_resolve(command):
    words = shlex.split(command)
    known, rest = make_parser().parse_known_args(words[words.index("scripts/train.py") + 1 :])
    assert resolve(known.preset, parse_overrides(rest)).preset.family


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("http") or (ROOT / target).is_file(), target
