"""Our copies of the programs' arithmetic give what the programs give, and refuse what they refuse, layer by layer."""

import pytest
import torch

from tests.hosts import copies, programs

THERE = [copy for copy, program in copies.PROGRAM.items() if programs.programs(program)]


@pytest.mark.short("0.5-lycoris")
@pytest.mark.parametrize("copy", THERE)
@pytest.mark.parametrize("strength", copies.STRENGTHS)
def test_the_copy_is_the_program(copy, strength):
    """ComfyUI's, A1111's and Forge's where GIMBAL_HOSTS has them; LyCORIS' always."""
    program = copies.program_of(copy)
    if program is None:
        pytest.skip(f"no version of {copies.PROGRAM[copy]} starts here")
    with torch.no_grad():
        found = list(copies.differences(copy, program, strength))
    assert not found, f"{len(found)} cases differ:\n" + "\n".join(found[:40])
