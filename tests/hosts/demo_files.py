"""The default files of all demo presets in 16 bits, measured by ComfyUI's own code.

    GIMBAL_HOSTS=... python -m tests.hosts.demo_files --runs /tmp/demo_files --write

trains every shipped preset whose name ends in `_demo` for a few steps (runs that are there are taken as they are),
gives ComfyUI the exported file and the base's weights, and writes tests/data/demo_files.json; `--table` writes the part
of docs/exports.md that is made from it. The learning rate makes up for the steps that are left out, so that changes are
of the size of a whole training's.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from modules import families
from modules.adapters.base import detach
from modules.documents import parse_json
from modules.export.rounding import Squares, together
from modules.files import opening, reading, run_file
from modules.hosts.parts import effect_of_file, installed_comfyui
from modules.preset import files
from modules.preset.schema import Preset
from modules.tools import verify
from modules.training.setup import load_and_attach
from scripts import compare
from tests import export_matrix
from tests.hosts import programs, table

RECORD = Path(__file__).parents[1] / "data/demo_files.json"
HEAD = "## Default files of the demo presets"
STEPS = 40
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def demos() -> list[str]:
    """Names of the presets on `demo/base`, and of those that are recommended on other demo bases; files for ComfyUI."""
    made = [one for one in files.every() if one.name.endswith(compare.ENDING)]
    names = sorted(one.name for one in made if one.name != one.full_name or one.place is not None)
    return [name for name in names if files.resolve(name).preset.export.host == "comfyui"]


def short(name: str, runs: Path) -> Preset:
    """The preset for a few steps of one picture, with as large a sum of learning rates."""
    whole = files.resolve(name).preset.training
    changed = {
        "saving.folder": str(runs), "training.steps": str(STEPS), "training.batch_size": "1", "training.warmup": "4",
        "training.learning_rate": str(whole.learning_rate * whole.steps / STEPS), "data.validation_folder": "",
        "validation.every": "0", "samples.enabled": "false", "saving.state_every": "0",
    }
    return files.resolve(name, list(changed.items())).preset


def squares(preset: Preset, folder: Path, program: programs.Program) -> dict[str, dict[str, Squares]]:
    """By number format and layer of the denoiser: what ComfyUI's weights are away from the trained ones."""
    model, layers = load_and_attach(preset, torch.device("cpu"))
    run_file.load(folder / "adapter.safetensors", layers)
    for network in model.networks.values():
        detach(network)
    found = reading.place(opening.read(file_of(folder)), model)
    weights = {placed.name: placed.layer.native(placed.dense()) for placed in found.placed}
    denoiser, measured = next(iter(model.networks)), {number: {} for number in DTYPES}
    assert program.folder
    effects = {number: installed_comfyui.run(program.folder, found.file.path, weights, 1.0, dtype).weights
               for number, dtype in DTYPES.items()}

    def judge(placed: reading.Placed, blocks: verify.Blocks) -> tuple[effect_of_file.Verdict, effect_of_file.Verdict]:
        whole = next(blocks(True))
        for number, dtype in DTYPES.items():
            given = effects[number].get(placed.name, whole.W.to(dtype)).to(whole.W)
            parts = (given - whole.meant, whole.meant.to(dtype).to(whole.W) - whole.meant, whole.meant - whole.W,
                     whole.W)
            if placed.members[0][0].name.partition(".")[0] == denoiser:
                measured[number][placed.name] = Squares(*(one.double().square().sum().item() for one in parts))
        return effect_of_file.Verdict(None), effect_of_file.Verdict(None)

    verify.check(found, judge, meanings={name: adapted.adapted_weight for name, adapted in layers.items()})
    return measured


def file_of(folder: Path) -> Path:
    """The run's exported file."""
    return folder / f"{folder.name}.safetensors"


def row(name: str, runs: Path, program: programs.Program) -> dict[str, Any]:
    """What is recorded of a preset."""
    preset = short(name, runs)
    with torch.no_grad():
        measured = squares(preset, runs / preset.name, program)
    metadata = opening.read(file_of(runs / preset.name)).metadata
    told = parse_json(metadata["gimbal.computed"], f"{name}: gimbal.computed")
    usual = families.load_class(preset.family).computed_in
    found: dict[str, Any] = {"for": usual}
    for number, layers in measured.items():
        one = together(layers)
        figures = {key: float(f"{vars(one)[key]:.3g}") for key in ("error", "rounding", "worst")}
        # What the file and the export's last lines say of these numbers, by our copy of ComfyUI's arithmetic.
        found[number] = {**figures, "beyond": one.beyond, "within": one.is_good, "told": told[number]["error"],
                         "told beyond": told[number]["beyond"]}
    return found


def is_told(one: dict[str, Any]) -> bool:
    """Whether the file's metadata has the error that ComfyUI makes, to a tenth of it."""
    return abs(one["told"] - one["error"]) <= 0.1 * one["error"] and (one["told beyond"] > 0) == (one["beyond"] > 0)


def cells(found: dict[str, Any]) -> Iterator[str]:
    """Of a preset's row."""
    yield found["for"]
    for number in DTYPES:
        one = found[number]
        mark = "" if one["within"] else "**"
        yield f"{mark}{one['error']:.2%}{mark} ({one['worst']:.1%})"
        yield f"{one['rounding']:.2%}"
        yield "within" if one["within"] else "beyond, reported" if is_told(one) else "beyond, not reported"


def record() -> dict[str, Any]:
    """What was measured."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def section() -> str:
    """The part of docs/exports.md, from the record."""
    found = record()
    head = ["preset", "file for"]
    for number in DTYPES:
        head += [f"{number}: error (worst layer)", "rounding alone", "bound"]
    rows = [[name, *cells(one)] for name, one in found["presets"].items()]
    return (
        f"{HEAD}\n\n"
        f"Each demo preset was trained for {STEPS} steps, and its exported file given to ComfyUI {found['version']}, "
        "whose own code patched the base's weights in 16 bits, as it does by default on NVIDIA cards. Errors of the "
        "denoiser are relative to the trained change, next to those of rounding the trained weights. \"within\" is at "
        "most twice rounding, and in each layer at most twice rounding or a tenth of its change; \"reported\": larger "
        "errors are in the file (`gimbal.computed`) and in the last lines of the export, with this value.\n\n"
        f"{export_matrix.table(head, rows)}"
    )


def page(text: str) -> str:
    """docs/exports.md with the section of today; it stands before the one of all programs, which is the last."""
    before, _, last = text.partition(table.HEAD)
    return f"{before.partition(HEAD)[0].rstrip()}\n\n{section()}\n{table.HEAD}{last}"


def main() -> int:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/demo_files"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", metavar="PRESET")
    parser.add_argument("--write", action="store_true", help="put what was measured into the record, and the page")
    parser.add_argument("--table", action="store_true", help="write the page from the record alone")
    options = parser.parse_args()
    if not options.table:
        measure(options.only or demos(), options.runs.resolve(), options.write)
    if options.table or options.write:
        path = export_matrix.PAGE
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def measure(names: list[str], runs: Path, write: bool) -> None:
    """Train, measure, print; and record after each."""
    program, = programs.programs("comfyui")
    for name in names:
        if not compare.is_trained(short(name, runs), runs):
            continue
        found = row(name, runs, program)
        print(name, *cells(found), sep="\t", flush=True)
        if write:
            known = record()["presets"] if RECORD.exists() else {}
            all_of_them = {"version": version(program), "presets": dict(sorted({**known, name: found}.items()))}
            RECORD.write_text(json.dumps(all_of_them, indent=1) + "\n", encoding="utf-8")


def version(program: programs.Program) -> str:
    """ComfyUI's own word for it."""
    assert program.folder
    text = (program.folder / "comfyui_version.py").read_text(encoding="utf-8")
    return text.partition('__version__ = "')[2].partition('"')[0]


if __name__ == "__main__":
    sys.exit(main())
