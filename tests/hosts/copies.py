"""Our copies of programs' arithmetic against the programs: `python -m tests.hosts.copies` prints where they differ.

A copy has to give the program's weight, and to refuse what the program refuses or leaves as it was.
"""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from modules import hosts
from modules.hosts import How, Unread
from tests.hosts import layers, programs

PROGRAM = {"comfyui": "comfyui", "comfyui_node": "comfyui_node", "kohya": "a1111", "a1111": "a1111", "forge": "forge",
           "lycoris": "lycoris"}
"""By copy: the program that it is of. Those of sd-scripts, OneTrainer and diffusers have no way to single layers; they
are compared by whole files."""
STRENGTHS = (1.0, 0.5, -0.7)
NEARLY = 2e-6
"""Of the weight's norm: what float32 may cost."""


def pairs() -> list[tuple[str, programs.Program]]:
    """Each copy that we have with the program that it is of, where that runs here."""
    found = [(name, program_of(name)) for name in hosts.programs() if name in PROGRAM]
    return [(name, program) for name, program in found if program is not None]


def program_of(copy: str) -> programs.Program | None:
    """The newest version that runs here of the program."""
    there = [one for one in programs.programs(PROGRAM[copy]) if one.starts()]
    return newest(there) if there else None


def newest(versions: list[programs.Program]) -> programs.Program:
    """By the numbers in its folder's name; one whose name has none counts as newest, as ComfyUI's has."""
    def order(one: programs.Program) -> tuple:
        number = one.folder.name.rpartition("-")[2] if one.folder else ""
        return tuple(int(part) for part in number.split(".")) if number.replace(".", "").isdigit() else (0,)
    return max(versions, key=order)


def copied(copy: str, case: layers.Case, strength: float) -> Tensor | str:
    """What the copy computes, or why the program would not."""
    try:
        found = hosts.load(copy).effect(case.weight, dict(case.tensors), strength, How())
    except Unread as error:
        return str(error)
    return found


def differences(copy: str, program: programs.Program, strength: float) -> Iterator[str]:
    """Cases in which copy and program differ, in words."""
    cases = layers.cases()
    names = [case.name.partition("|")[0] for case in cases]
    tensors = {name + suffix: tensor for name, case in zip(names, cases, strict=True)
               for suffix, tensor in case.tensors.items()}
    weights = {name: case.weight for name, case in zip(names, cases, strict=True)}
    moved, said = program.layers(weights, tensors, strength)
    for name, case in zip(names, cases, strict=True):
        ours, words = copied(copy, case, strength), case.name.partition("|")[2]
        theirs, reason = moved.get(name), said.get(name, "") or "nothing"
        if isinstance(ours, str):
            if theirs is not None:
                yield f"{words}: the copy refuses ({ours}), the program changes {distance(theirs, case.weight):.1e}"
            continue
        change = distance(ours, case.weight)
        if theirs is None and change > NEARLY:
            yield f"{words}: the copy changes {change:.1e}, the program leaves the layer as it was ({reason[:90]})"
        elif theirs is not None and not distance(ours, theirs) <= NEARLY:
            yield f"{words}: the copy is {distance(ours, theirs):.1e} away from the program, which changes " \
                  f"{distance(theirs, case.weight):.1e}"


def distance(one: Tensor, other: Tensor) -> float:
    """As a part of the norm; infinite for another shape."""
    if one.shape != other.shape:
        return float("inf")
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def main() -> int:
    """Print them all."""
    torch.set_grad_enabled(False)
    for copy, program in pairs():
        for strength in STRENGTHS:
            found = list(differences(copy, program, strength))
            print(f"{copy} and {program.name}, strength {strength:g}: {len(found)} of {len(layers.cases())} differ")
            for line in found:
                print(f"    {line}")
        program.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
