"""Merge adapters into a base: a folder in diffusers layout, or a single checkpoint.

    python scripts/merge.py BASE --adapter FILE[:STRENGTH] [--adapter FILE[:STRENGTH] ...] --out OUT

OUT is a folder or a file as BASE is, and must not exist. With several adapters each one's change is made to the
original weight, times its strength (default: 1), and all are added: W + s1 (W1 - W) + s2 (W2 - W), in float32, rounded
once to the base's dtype. BASE is read and OUT written tensor by tensor; everything that no adapter changes is copied
byte by byte.

Exit codes: 0 done, 2 bad input.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import answer, script


def main() -> int:
    """Read the arguments, merge, print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a folder in diffusers layout, or a .safetensors checkpoint")
    parser.add_argument("--adapter", action="append", required=True, metavar="FILE[:STRENGTH]",
                        help="an adapter of any program, as .safetensors; may be given several times")
    parser.add_argument("--out", type=Path, required=True, help="folder or file to write")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16 (or fp32, fp16, bf16): dtype of the denoiser and "
                        "all text encoders; default: as in BASE")
    parser.add_argument("--family", help="the model family; default: detected")
    parser.add_argument("--config", default="", help="for a checkpoint: a folder in diffusers layout with its "
                        "configuration (no weights needed); default: from the hub's cache")
    parser.add_argument("--skip-absent", action="store_true", help="skip layers that BASE has no weights of, such as "
                        "those of text encoders that are not in the file")
    parser.add_argument("--skip-unknown", action="store_true", help="skip unknown keys of the adapters")
    parser.add_argument("--device", default="cpu", help="device to compute on; cuda is faster for large models")
    return answer(run, parser.parse_args())


def run(arguments: argparse.Namespace) -> str:
    """Merge and return the report's text."""
    from modules.tools.merge import command
    from modules.training.command import quiet_libraries

    quiet_libraries()
    adapters = [command.parse(text) for text in arguments.adapter]
    choice = command.Choice(
        dtype=arguments.dtype, family=arguments.family, config=arguments.config, device=arguments.device,
        skip_absent=arguments.skip_absent, skip_unknown=arguments.skip_unknown,
    )
    return command.merge(arguments.base, adapters, arguments.out, choice).text()


if __name__ == "__main__":
    sys.exit(script(main))
