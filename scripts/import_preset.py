"""Convert another trainer's settings to a preset, with a report on each of them.

    python scripts/import_preset.py FILE [--name NAME] [--out FILE.json] [--method METHOD] [--family FAMILY] [--json]

FILE is a saved configuration of OneTrainer (JSON), of kohya's sd-scripts (TOML, or a text file with the command line)
or its windows kohya_ss (JSON) and LoRA_Easy_Training_Scripts (TOML), or of ai-toolkit (YAML). The
preset goes into training_presets/own/, where --preset finds it.

Exit codes: 0 done, 2 bad input.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import script


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, import, print the lists and write the preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the other trainer's settings")
    parser.add_argument("--name", default="", help="name of the preset; default: the output name in the file")
    parser.add_argument("--out", type=Path, help="the preset's file; default: training_presets/own/NAME.json")
    parser.add_argument("--method", default="", help="train this method instead of the one in the file")
    parser.add_argument("--family", default="", help="the model family, if the file does not have it")
    parser.add_argument("--json", action="store_true", help="print the lists and the preset as JSON")
    arguments = parser.parse_args(argv)
    try:
        print(run(arguments))
    except ValueError as error:
        print(
            json.dumps({"problems": [str(error)]}) if arguments.json else error,
            file=sys.stdout if arguments.json else sys.stderr,
        )
        return 2
    return 0


def run(arguments: argparse.Namespace) -> str:
    """Import and write; the text to print."""
    from modules import adapters, families
    from modules.importing import import_file, report
    from modules.importing.base import Wishes
    from modules.preset import files

    for flag, value, known in (
        ("method", arguments.method, list(adapters.methods())),
        ("family", arguments.family, families.names()),
    ):
        if value and value not in known:
            raise ValueError(f"--{flag}: {value} is unknown; available: {', '.join(known)}")
    if arguments.name and Path(arguments.name).name != arguments.name:
        raise ValueError(f"--name: {arguments.name} is not a file name; remove the slashes, or give --out")
    imported = import_file(arguments.file, Wishes(arguments.method, arguments.family))
    imported.name = arguments.name or imported.name
    if arguments.name and "name" in imported.values:
        imported.values["name"] = arguments.name
        for entry in imported.mapped:
            entry.ours.update({"name": arguments.name} if "name" in entry.ours else {})
    path = arguments.out or files.FOLDER / "own" / f"{imported.name}.json"
    if path.suffix != ".json":
        raise ValueError(f"--out: {path} does not end in .json, as presets do")
    report.write(imported, path)
    if arguments.json:
        return json.dumps({**report.facts(imported), "written": str(path)}, indent=2, ensure_ascii=False)
    preset = path.stem if path.stem in files.named() and files.named()[path.stem] == path else str(path)
    look = f"check it with: python scripts/train.py --preset {preset} --check"
    return f"{report.text(imported)}\n\nwritten: {path}\n{look}"


if __name__ == "__main__":
    sys.exit(script(main, prints=True))
