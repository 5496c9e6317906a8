"""Write a finished run's adapter for another program.

    python scripts/export.py runs/NAME --host diffusers [--rank 64] [--dtype float32] [--out FILE]

Exit codes: 0 done, 2 bad input.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    """Read the arguments, then load, attach, export and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, with preset.json and adapter.safetensors")
    parser.add_argument("--host", help="comfyui, kohya or diffusers; as in the run's preset if not given")
    parser.add_argument("--rank", type=int, help="approximate what has no compact exact form by a LoRA of this rank")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16")
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
    folder: Path = arguments.run
    preset = resolve(str(folder / "preset.json")).preset
    names = ("host", "rank", "dtype", "comfyui_norm")
    chosen = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    options = type(preset.export).model_validate({**preset.export.model_dump(), **chosen})
    preset = preset.model_copy(update={"export": options})
    model, layers = load_and_attach(preset, torch.device(arguments.device))
    facts = native.load(folder / "adapter.safetensors", layers)
    path = arguments.out or folder / f"{preset.name}_{options.host}.safetensors"
    report = export(model, layers, preset, facts, path)
    return report.table() + report.text()


if __name__ == "__main__":
    sys.exit(main())
