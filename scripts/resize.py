"""Make a LoRA or DoRA file smaller, without its base.

    python scripts/resize.py FILE.safetensors (--rank 16 | --energy 0.95 | --error 0.05) [--out FILE]

Each layer's pair is replaced by the best one of a smaller rank (truncated SVD). Names and dtypes are kept, but new
factors of a file in eight bits are float16. Errors include the rounding of the written values.
Exit codes: 0 done, 2 bad input.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.answer import answer, script

MAGNITUDES = (
    "the magnitudes are kept: the norm of each output or input channel is unchanged, and only directions are "
    "approximated, so the error of the adapted weights differs a little from that of the pairs below"
)
COMPENSATED = (
    "the file's magnitudes were written for ComfyUI's norm of the base with the old pairs; export or convert it "
    "again with its base for an exact file"
)


def main() -> int:
    """Read the arguments, resize, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--rank", type=int, help="the rank of every layer")
    how.add_argument("--energy", type=float, help="the fraction of each pair's squared norm to keep, between 0 and 1")
    how.add_argument("--error", type=float, help="the largest relative error of each pair, between 0 and 1")
    parser.add_argument("--out", type=Path, help="the file to write; default: FILE_resized.safetensors")
    return answer(run, parser.parse_args())


def run(arguments: argparse.Namespace) -> str:
    """Resize and return the table."""
    from modules import disk
    from modules.export import metadata
    from modules.files import opening
    from modules.tools import resize

    choose = chosen(arguments)
    path: Path = arguments.file
    out = arguments.out or path.with_name(f"{path.stem}_resized.safetensors")
    file = opening.read(path)
    if out.exists() and out.samefile(path):
        raise ValueError(f"--out {out} is the input file; give another name")
    found = resize.resized(file, choose)
    out.parent.mkdir(parents=True, exist_ok=True)
    with disk.whole(out) as partial:
        if "sshs_model_hash" in found.metadata:
            opening.save_for_hashes(found.tensors, partial, found.metadata)
            found.metadata |= metadata.file_hashes(partial)
        opening.save(found.tensors, partial, found.metadata)
    return table(path, out, found)


def chosen(arguments: argparse.Namespace) -> Any:
    """How many singular values to keep. Raises ValueError for arguments out of range."""
    from modules.tools import resize

    if arguments.rank is not None:
        if arguments.rank < 1:
            raise ValueError(f"--rank {arguments.rank}: is too small; at least 1")
        return resize.to_rank(arguments.rank)
    for name, value in (("energy", arguments.energy), ("error", arguments.error)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"--{name} {value}: give a fraction between 0 and 1, such as 0.95 for energy or 0.05 for "
                             "error")
    if arguments.energy is not None:
        return resize.to_energy(arguments.energy)
    return resize.to_error(arguments.error)


def percent(part: float) -> str:
    """Two decimals, and below one percent three digits, for what rounding alone does."""
    return f"{part:.2%}" if part >= 0.01 or part < 1e-7 else f"{100 * part:.3g}%"


def table(path: Path, out: Path, found: Any) -> str:
    """Worst layers first."""
    lines = ["layer\trank before\trank after\terror of the pair"]
    lines += [f"{row.name}\t{row.before}\t{row.after}\t{percent(row.error)}"
              for row in sorted(found.rows, key=lambda row: -row.error)]
    axes = {row.axis for row in found.rows} - {""}
    if axes:
        lines.append(f"note: {MAGNITUDES}")
        if "output" in axes and found.metadata.get("gimbal.comfyui_norm") == "original":
            lines.append(f"note: {COMPENSATED}")
    lines += [f"note: {count} layers of another kind are unchanged ({what})"
              for what, count in found.kept.items()]
    before, after = (file.stat().st_size / 1e6 for file in (path, out))
    middle = sorted(row.error for row in found.rows)[len(found.rows) // 2]
    lines.append(f"{out}: {after:.1f} MB of {before:.1f} MB; error of the pairs: median {percent(middle)}, largest "
                 f"{percent(max(row.error for row in found.rows))}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(script(main))
