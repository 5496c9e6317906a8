"""Our copies of the programs' arithmetic give what the programs give, and refuse what they refuse, layer by layer."""

import pytest
import torch

from tests.hosts import copies

PAIRS = copies.pairs()


@pytest.mark.parametrize("copy, program", PAIRS, ids=[f"{copy} and {program.name}" for copy, program in PAIRS])
@pytest.mark.parametrize("strength", copies.STRENGTHS)
def test_the_copy_is_the_program(copy, program, strength):
    """ComfyUI's, A1111's and Forge's where GIMBAL_HOSTS has them; LyCORIS' always."""
    with torch.no_grad():
        found = list(copies.differences(copy, program, strength))
    assert not found, f"{len(found)} cases differ:\n" + "\n".join(found[:40])
