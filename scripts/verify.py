"""Compute what a program makes of an adapter file, and compare it with the file's intended weights.

    python scripts/verify.py FILE.safetensors --base MODEL --host comfyui [--run runs/NAME] [--strength 0.8]

The intended weights are those of the file's run (--run, or the folder that the file is in), else those that its own
trainer computes from it. Compares in float32 and in the program's 16 bits. Exit codes: 0 they match, 1 they do not,
2 bad input.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import script


def main() -> int:
    """Read the arguments, compare, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--base", required=True, help="the model to apply it to: a folder, a file or a hub id")
    parser.add_argument("--config", default="", help="configuration of a single-file base; as base.config")
    parser.add_argument("--host", required=True, help="the program, as in export.host")
    parser.add_argument("--run", type=Path, help="the run that trained it: a folder with preset.json")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--half", help="the program's 16-bit format, fp16 or bf16; default: the model's usual one")
    parser.add_argument("--comfyui-norm", default="original", help="original or adapted, as in export.comfyui_norm")
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="compute with this installed ComfyUI")
    parser.add_argument("--comfyui-python", type=Path, metavar="FILE", help="the Python of this ComfyUI")
    parser.add_argument("--family", default="", help="the model family, if the file's names are ambiguous")
    parser.add_argument("--early-scaling", action="store_true",
                        help="the file has OneTrainer's first scaled rotations: factor 1 / sqrt(elements per block)")
    parser.add_argument("--device", default="cpu", help="device to compute on; cuda is faster for large models")
    arguments = parser.parse_args()
    try:
        is_right, text = run(arguments)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    return 0 if is_right else 1


def run(arguments: argparse.Namespace) -> tuple[bool, str]:
    """Whether the program's weights match, and the table."""
    import torch

    from modules import hosts
    from modules.files import opening, reading
    from modules.files.writer import EARLY
    from modules.preset.section import long_form
    from modules.tools import base_of_file, verify
    from modules.training.command import quiet_libraries

    quiet_libraries()
    if arguments.host not in hosts.names():
        raise ValueError(f"--host {arguments.host}: unknown; available: {', '.join(hosts.names())}")
    if arguments.comfyui and not arguments.host.startswith("comfyui"):
        raise ValueError(f"--comfyui: works only with --host comfyui, but --host is {arguments.host}")
    if arguments.comfyui_norm not in ("original", "adapted"):
        raise ValueError(f"--comfyui-norm {arguments.comfyui_norm}: give original or adapted")
    halves = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if arguments.half and long_form(arguments.half) not in halves:
        raise ValueError(f"--half {arguments.half}: give fp16 or bf16")
    file = opening.read(arguments.file)
    if arguments.early_scaling:
        file.metadata[EARLY] = "elements"
    folder: Path | None = arguments.run or own_run(arguments.file)
    model, meanings = trained(folder, arguments) if folder else (
        base_of_file.load(file, arguments.base, arguments.config, arguments.family, arguments.device), None
    )
    found = reading.place(file, model)
    usual = torch.bfloat16 if "transformer" in model.networks else torch.float16
    half = halves[long_form(arguments.half)] if arguments.half else usual
    if arguments.comfyui:
        judge = verify.by_comfyui(found, arguments.comfyui, arguments.comfyui_python, arguments.strength, half)
    else:
        judge = verify.by_arithmetic(found, arguments.host, arguments.strength, arguments.comfyui_norm, half)
    rows = verify.check(found, judge, arguments.strength, meanings)
    tolerance, judged = verify.tolerance(found, meanings is not None), arguments.strength == 1
    lines = [verify.text(rows, arguments.host, half, judged, tolerance, advice(arguments))]
    lines += [f"not read: {sentence}" for sentence in found.left_out()]
    lines += name_notes(arguments.host, found)
    if meanings is not None:
        there = {layer for row in rows for layer in row.layers}
        lacking = [name for name in meanings if name not in there]
        if lacking:
            lines.append(f"the file lacks {len(lacking)} of the run's layers: {reading.listed(lacking)}")
            return False, "\n".join(lines)
    wrong = judged and any(row.misses(tolerance) for row in rows)
    return not wrong, "\n".join(lines)


def advice(arguments: argparse.Namespace) -> str:
    """What to do about a file that does not match."""
    again = f"scripts/convert.py {arguments.file} --base {arguments.base} --host {arguments.host}"
    folder = arguments.run or own_run(arguments.file)
    again = f"scripts/export.py {folder} --host {arguments.host}" if folder else again
    return f"; to write a correct file: python {again}"


def own_run(path: Path) -> Path | None:
    """The run folder that a file is in, if any."""
    folder = path.parent
    return folder if (folder / "preset.json").is_file() and (folder / "adapter.safetensors").is_file() else None


def trained(folder: Path, arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The run's base without its adapters, and the adapted weights. Raises ValueError if it is not a run."""
    import torch

    from modules.adapters.base import detach
    from modules.files import run_file
    from modules.preset.files import resolve
    from modules.training.setup import load_and_attach

    overrides = [("base.path", arguments.base)] + ([("base.config", arguments.config)] if arguments.config else [])
    preset = resolve(str(folder / "preset.json"), overrides).preset
    model, layers = load_and_attach(preset, torch.device(arguments.device))
    run_file.load(folder / "adapter.safetensors", layers)
    for network in model.networks.values():
        detach(network)
    return model, {name: adapted.adapted_weight for name, adapted in layers.items()}


def name_notes(host: str, found: Any) -> list[str]:
    """Names that the program does not find."""
    from modules.files import reading
    from modules.hosts.parts import effect_of_file

    family = reading.family_of(found.file.tensors)
    troubles = effect_of_file.name_troubles(host, family, [placed.name for placed in found.placed])
    return [f"note: {effect_of_file.counted(len(names))} with {reason}" for reason, names in troubles.items()]


if __name__ == "__main__":
    sys.exit(script(main, prints=True))
