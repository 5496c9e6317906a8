"""Our copies of the programs' arithmetic give what the programs give, and refuse what they refuse, layer by layer."""

from collections import Counter

import pytest
import torch

from tests.hosts import copies
from tests.hosts.known_differences import KNOWN

PAIRS = copies.pairs()


@pytest.mark.parametrize("copy, program", PAIRS, ids=[f"{copy} and {program.name}" for copy, program in PAIRS])
@pytest.mark.parametrize("strength", copies.STRENGTHS)
def test_the_copy_is_the_program(copy, program, strength):
    """ComfyUI's, A1111's and Forge's where GIMBAL_HOSTS has them; LyCORIS' always."""
    with torch.no_grad():
        found = list(copies.differences(copy, program, strength))
    counted = Counter(line.partition(":")[0].partition(",")[0] for line in found)
    known = {kind: count for kind, (count, _) in KNOWN.get(copy, {}).items()}
    other = [line for line in found if line.partition(":")[0].partition(",")[0] not in known]
    assert counted == known, f"{len(found)} cases differ, of kinds that are not known:\n" + "\n".join(other[:40])
