"""Describe an adapter file: who wrote it, what it contains, what it was trained on, and which programs read it.

    python scripts/inspect_adapter.py FILE.safetensors [--json]
    python scripts/inspect_adapter.py FILE.safetensors --spectrum [--with OTHER.safetensors] [--base MODEL]

Needs no base; reads the file's header and the tensors of one layer of each kind. `--spectrum` reads all of it and adds
the spectral norm, stable rank and effective rank of each layer's change, and with `--with` what a second file does to
them when both are loaded. Exit codes: 0 done, 2 bad input.
"""

import argparse
import gc
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import script

WITH_SPECTRUM = ("with", "base", "config", "family", "skip_unknown", "device")
"""Options that need --spectrum."""


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--early-scaling", action="store_true",
                        help="the file has OneTrainer's first scaled rotations: factor 1 / sqrt(elements per block)")
    parser.add_argument("--spectrum", action="store_true", help="singular values of each layer's change")
    parser.add_argument("--with", type=Path, metavar="OTHER", help="a second file, stacked on the first")
    parser.add_argument("--base", help="the model: a folder, a file or a hub id; without it only plain low-rank pairs "
                        "are measured")
    parser.add_argument("--config", help="configuration of a single-file base; as base.config")
    parser.add_argument("--family", help="the model family, if the file's names are ambiguous")
    parser.add_argument("--skip-unknown", action="store_true", help="skip what the base has no layer for")
    parser.add_argument("--device", help="device to compute on; default: cpu")
    return parser.parse_args()


def main() -> int:
    """Read the file and print."""
    arguments = parsed()
    try:
        gc.disable()  # while torch is imported it takes a tenth of the time, without effect
        from modules.files import opening
        from modules.files.writer import EARLY
        from modules.tools import inspect_file

        check(arguments)
        gc.freeze()  # imported objects are not scanned again
        gc.enable()
        file = opening.read(arguments.file, values=arguments.spectrum)
        if arguments.early_scaling:
            file.metadata[EARLY] = "elements"
        found = inspect_file.inspect(file)
        spectra = measured(file, arguments) if arguments.spectrum else None
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        print(found.json() if spectra is None else found.json(spectrum=spectra.values()))
    else:
        print(found.text() if spectra is None else f"{found.text()}\n\n{spectra.text()}")
    return 0


def check(arguments: argparse.Namespace) -> None:
    """ValueError for an option without effect."""
    given = [name for name in WITH_SPECTRUM if vars(arguments)[name]]
    if given and not arguments.spectrum:
        raise ValueError(f"--{given[0].replace('_', '-')} has no effect without --spectrum; add it")
    needs = [name for name in ("config", "family", "skip_unknown", "device") if vars(arguments)[name]]
    if needs and not arguments.base:
        raise ValueError(f"--{needs[0].replace('_', '-')} has no effect without --base; add it")


def measured(file: Any, arguments: argparse.Namespace) -> Any:
    """The spectra of the file, and of the one in --with."""
    from modules.files import opening
    from modules.files.writer import EARLY
    from modules.tools import base_of_file, spectrum
    from modules.training.command import quiet_libraries

    files, model, other = [file], None, vars(arguments)["with"]
    if other:
        files.append(opening.read(other))
    if other and arguments.early_scaling:
        files[1].metadata[EARLY] = "elements"
    if arguments.base:
        quiet_libraries()
        places = (arguments.base, arguments.config or "", arguments.family or "", arguments.device or "cpu")
        model = base_of_file.load(file, *places)
    return spectrum.measure(files, model, arguments.skip_unknown)


if __name__ == "__main__":
    sys.exit(script(main, prints=True))
