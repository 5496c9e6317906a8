"""Export a run's adapter, or an adapter file of any trainer, for another program.

    python scripts/export.py runs/NAME --host diffusers [--form compact --rank 64] [--dtype fp32] [--out FILE]
    python scripts/export.py runs/NAME --state 1000
    python scripts/export.py FILE.safetensors --base MODEL --host diffusers

A run that was stopped, has failed or is still training is exported from its last training state.
A file is converted as in scripts/convert.py, which has more options.
Exit codes: 0 done, 2 bad input.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import script


def main() -> int:
    """Read the arguments, then load, attach, export and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder, its adapter.safetensors or preset.json; or any adapter "
                        "file, with --base")
    parser.add_argument("--state", type=int, metavar="STEP", help="the run's training state after this step; default: "
                        "the finished adapter, or the last state")
    parser.add_argument("--base", help="for a file of another trainer: the model it was trained on")
    parser.add_argument("--host", help="comfyui, kohya, diffusers, lycoris ...; default: as in the run's preset")
    parser.add_argument("--form", help="auto (exact), compact, full or svd; see docs/preset-reference.md")
    parser.add_argument("--rank", type=int, help="rank of approximations, with --form compact or svd; default: 64")
    parser.add_argument("--dtype", help="fp32, fp16 or bf16 (or float32, float16, bfloat16)")
    parser.add_argument("--comfyui-norm", help="original or adapted")
    parser.add_argument("--computes-in", help="for ComfyUI: float16, bfloat16 or float32; see docs/preset-reference.md")
    parser.add_argument("--ema", choices=("true", "false"), help="of a run with a moving average (training.ema): write "
                        "that, or the trained weights; default: as in its preset. The other needs --state")
    parser.add_argument("--out", type=Path, help="the file to write; default: runs/NAME/NAME_HOST.safetensors, or "
                        "runs/NAME/NAME-step-STEP_HOST.safetensors from a state")
    parser.add_argument("--device", default="cpu", help="device to compute on; cuda is faster for large models")
    arguments = parser.parse_args()
    try:
        print(run(arguments))
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> str:
    """Export and return the report's text."""
    import torch

    from modules.export.export import export
    from modules.training import new_tokens, stored
    from modules.training.command import quiet_libraries

    quiet_libraries()
    if arguments.out is not None and os.path.lexists(arguments.out):
        how = "is a folder; give a file in it" if arguments.out.is_dir() else "already exists; delete it first"
        raise ValueError(f"--out {arguments.out}: {how}, or give another name")
    if is_file_of_others(arguments.run):
        return converted(arguments)
    if arguments.base:
        raise ValueError(f"--base {arguments.base}: {arguments.run} is a run, and its preset has the base; remove "
                         "--base")
    folder, step = run_folder(arguments.run, arguments.state)
    found, notes = stored.source(folder, step)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    preset = stored.preset_of(folder, found, chosen(arguments))
    with stored.loaded(found, preset, torch.device(arguments.device)) as (model, layers, facts):
        of_step = "" if isinstance(found, Path) else f"-step-{found.step:06d}"
        path = arguments.out or folder / f"{preset.name}{of_step}_{preset.export.host}.safetensors"
        report = export(model, layers, preset, facts, path, new_tokens.vectors(model, preset.targets))
    origin = found if isinstance(found, Path) else found.folder
    return f"{report.table()}from {origin}, after step {facts.step}\n{report.text()}"


def converted(arguments: argparse.Namespace) -> str:
    """The report on another program's file made from a file."""
    from modules.tensorfile import read_header
    from modules.tools import convert

    for name in ("state", "ema"):
        if vars(arguments)[name] is not None:
            raise ValueError(f"--{name} {vars(arguments)[name]}: {arguments.run} is not a run; remove --{name}")
    lacking = [f"--{name}, {what}" for name, what in (
        ("base", "the model it was trained on"), ("host", "the program to write for")) if not vars(arguments)[name]]
    if lacking:
        read_header(arguments.run)  # for a file of another kind, report what is wrong with it
        raise ValueError(f"{arguments.run} is an adapter file, not a run; to export it for another program, also give "
                         f"{' and '.join(lacking)}")
    source = convert.Source(arguments.run, arguments.base, device=arguments.device)
    return convert.convert(source, convert.options_of(given(arguments)), arguments.out)


def is_file_of_others(path: Path) -> bool:
    """Whether `path` is a file that is not a run's own."""
    return path.is_file() and path.name not in ("adapter.safetensors", "preset.json")


def run_folder(path: Path, step: int | None) -> tuple[Path, int | None]:
    """The folder of the run that `path` is, or is a file or a state of, and the state's step. Raises ValueError for
    what is not a run."""
    from modules.training import state

    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; give a run folder, such as runs/NAME, or an adapter file")
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    if folder.parent.name == state.FOLDER and state.NAME.fullmatch(folder.name):
        return folder.parents[1], state.steps_of(folder) if step is None else step
    folder = path if path.is_dir() else path.parent
    if not state.states(folder):
        missing = [name for name in ("adapter.safetensors", "preset.json") if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder}: has no {' and no '.join(missing)}, and no training state, so there is no "
                             "adapter to export yet")
    return folder, step


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the preset's section `export`, None where they are not given."""
    return {name: vars(arguments)[name] for name in ("host", "form", "rank", "dtype", "comfyui_norm", "computes_in")}


def chosen(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Those that are given, by dotted name. They unset what the run's preset has for another host or form."""
    values = given(arguments)
    found = {f"export.{name}": str(value) for name, value in values.items() if value is not None}
    if arguments.ema is not None:
        found["export.ema"] = arguments.ema
    if values["form"] in ("auto", "full") and values["rank"] is None:
        found["export.rank"] = "null"
    if values["host"] not in (None, "comfyui_node") or values["form"] in ("full", "svd"):
        found |= {"export.node_fallback": "null", "export.node_spelling": "gimbal"}
    if values["host"] not in (None, "comfyui") and values["computes_in"] is None:
        found["export.computes_in"] = "auto"
    return list(found.items())


if __name__ == "__main__":
    sys.exit(script(main))
