"""The window: `python scripts/train_ui.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import script
from ui.app import main

if __name__ == "__main__":
    sys.exit(script(lambda: main(sys.argv[1:])))
