"""Write a finished run's adapter for another program.

    python scripts/export.py runs/NAME --host diffusers [--form compact --rank 64] [--dtype fp32] [--out FILE]

Exit codes: 0 done, 2 bad input.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def main() -> int:
    """Read the arguments, then load, attach, export and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, or its adapter.safetensors or preset.json")
    parser.add_argument("--host", help="comfyui, kohya, diffusers, lycoris ...; as in the run's preset if not given")
    parser.add_argument("--form", help="auto (exact), compact, full or svd; see docs/preset-reference.md")
    parser.add_argument("--rank", type=int, help="rank of approximations, with --form compact or svd; 64 if not given")
    parser.add_argument("--dtype", help="fp32, fp16 or bf16 (or float32, float16, bfloat16)")
    parser.add_argument("--comfyui-norm", help="original or adapted")
    parser.add_argument("--out", type=Path, help="the file to write; runs/NAME/NAME_HOST.safetensors if not given")
    parser.add_argument("--device", default="cpu", help="where to compute; cuda is faster for large models")
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

    from modules.export import native
    from modules.export.export import export
    from modules.preset.files import resolve
    from modules.training.command import quiet_libraries
    from modules.training.setup import load_and_attach

    quiet_libraries()
    folder = run_folder(arguments.run)
    preset = resolve(str(folder / "preset.json"), chosen(arguments)).preset
    model, layers = load_and_attach(preset, torch.device(arguments.device))
    facts = native.load(folder / "adapter.safetensors", layers)
    path = arguments.out or folder / f"{preset.name}_{preset.export.host}.safetensors"
    report = export(model, layers, preset, facts, path)
    return report.table() + report.text()


def run_folder(path: Path) -> Path:
    """The folder of the run that `path` names. Raises ValueError for a file of another kind."""
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; give a run's folder, such as runs/NAME")
    if path.is_file() and path.name not in ("adapter.safetensors", "preset.json"):
        raise ValueError(f"{path}: not a run, whose files are adapter.safetensors and preset.json; finished adapter "
                         "files are converted by scripts/convert.py")
    missing = [name for name in ("adapter.safetensors", "preset.json") if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: there is no {' and no '.join(missing)}, so it is not the folder of a finished run")
    return folder


def chosen(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """The options of the preset's section `export` that are given, by dotted name."""
    values = {name: vars(arguments)[name] for name in ("host", "form", "rank", "dtype", "comfyui_norm")}
    values["dtype"] = DTYPES.get(values["dtype"], values["dtype"])
    return [(f"export.{name}", str(value)) for name, value in values.items() if value is not None]


if __name__ == "__main__":
    sys.exit(main())
