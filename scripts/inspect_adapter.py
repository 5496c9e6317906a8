"""Describe an adapter file: who wrote it, what it contains, what it was trained on, and which programs read it.

    python scripts/inspect_adapter.py FILE.safetensors [--json]

Needs no base; reads the file's header and the tensors of one layer of each kind. Exit codes: 0 done, 2 bad input.
"""

import argparse
import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import script


def main() -> int:
    """Read the file and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--early-scaling", action="store_true",
                        help="the file has OneTrainer's first scaled rotations: factor 1 / sqrt(elements per block)")
    arguments = parser.parse_args()
    try:
        gc.disable()  # while torch is imported it takes a tenth of the time, without effect
        from modules.files import opening
        from modules.files.writer import EARLY
        from modules.tools import inspect_file

        gc.freeze()  # imported objects are not scanned again
        gc.enable()
        file = opening.read(arguments.file, values=False)
        if arguments.early_scaling:
            file.metadata[EARLY] = "elements"
        found = inspect_file.inspect(file)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(found.json() if arguments.json else found.text())
    return 0


if __name__ == "__main__":
    sys.exit(script(main, prints=True))
