"""Train an adapter: `python scripts/train.py --preset wora_demo`. `--help` lists every option."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules import screen
from modules.training import stopping


def train() -> int:
    """The command. Its imports take seconds; it can already be stopped meanwhile."""
    from modules.training.command import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    screen.begin()
    stopping.begin()
    sys.exit(stopping.run(train))
