"""Write an adapter file of any program for another one.

    python scripts/convert.py FILE.safetensors --base MODEL --host diffusers [--dtype fp16] [--form svd --rank 32]

The file's change of the weights is computed as its own trainer does, written in the smallest form that is exact in the
other program, read back and compared. Exit codes: 0 done, 2 bad input.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import answer, script


def main() -> int:
    """Read the arguments, convert, print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--base", required=True, help="the model the file was trained on: a folder, a file or a hub id")
    parser.add_argument("--config", default="", help="configuration of a single-file base; as base.config")
    parser.add_argument("--host", required=True, help="the program to write for, as in export.host")
    parser.add_argument("--dtype", default="fp16", help="fp16, bf16 or fp32")
    parser.add_argument("--form", default="auto", help="auto, compact, full or svd, as in export.form")
    parser.add_argument("--rank", type=int, help="rank of approximations, with --form compact or svd")
    parser.add_argument("--comfyui-norm", default="original", help="original or adapted, as in export.comfyui_norm")
    parser.add_argument("--computes-in", help="for ComfyUI: float16, bfloat16 or float32, as in export.computes_in")
    parser.add_argument("--family", default="", help="the model family, if the file's names are ambiguous")
    parser.add_argument("--skip-unknown", action="store_true", help="skip what cannot be read, with a note")
    parser.add_argument("--early-scaling", action="store_true",
                        help="the file has OneTrainer's first scaled rotations: factor 1 / sqrt(elements per block)")
    parser.add_argument("--out", type=Path, help="the file to write; default: FILE_HOST.safetensors")
    parser.add_argument("--device", default="cpu", help="device to compute on; cuda is faster for large models")
    return answer(run, parser.parse_args())


def run(arguments: argparse.Namespace) -> str:
    """Convert and return the report's text."""
    from modules.tools import convert
    from modules.training.command import quiet_libraries

    quiet_libraries()
    options = convert.options_of({
        name: vars(arguments)[name] for name in ("host", "dtype", "form", "rank", "comfyui_norm", "computes_in")
    })
    source = convert.Source(
        arguments.file, arguments.base, config=arguments.config, family=arguments.family, device=arguments.device,
        skip_unknown=arguments.skip_unknown, early_scaling=arguments.early_scaling,
    )
    return convert.convert(source, options, arguments.out)


if __name__ == "__main__":
    sys.exit(script(main))
