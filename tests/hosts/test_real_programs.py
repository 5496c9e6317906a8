"""The real programs do what tests/data/hosts.json says: diffusers and LyCORIS always, others if GIMBAL_HOSTS has them.

A few files of each; `python -m tests.hosts.run` gives them all.
"""

import os

import pytest

from tests.hosts import bases, files, measuring, programs, table

PACKAGES = [kind for kind, driver in programs.DRIVER.items() if not driver.checkouts]
THERE = [one for kind in programs.DRIVER for one in programs.programs(kind)]
METHODS = ["LoRA", "DoRA, output axis", "WoRA, input axis", "OFT in blocks", "LoKr"]
needs_hosts = pytest.mark.skipif(not os.environ.get("GIMBAL_HOSTS"), reason=(
    "GIMBAL_HOSTS is not set: ComfyUI, A1111, Forge, sd-scripts, OneTrainer are not run (see tests/hosts/programs.py)"
))


@needs_hosts
def test_the_real_programs_are_there():
    assert programs.checkouts().is_dir(), "GIMBAL_HOSTS is no folder"
    assert {one.kind for one in THERE} > set(PACKAGES), "GIMBAL_HOSTS has none of the programs"


@pytest.mark.full
@pytest.mark.parametrize("program", THERE, ids=lambda program: program.name)
def test_the_program_does_what_is_recorded(program):
    recorded = table.record()["programs"][program.name]
    if "not run" in recorded:
        pytest.skip(f"{program.name}: {recorded['not run']}")
    for number, family in enumerate(bases.MAKE):
        for label in METHODS[number % 3 :: 3]:
            cell = measuring.Cell(family, label, "float32", 1.0, file="float32")
            got, was = measuring.measure(program, cell), recorded["cells"][family][label][cell.key]
            where = f"{program.name}, {family}, {label}"
            if got.reason:
                assert isinstance(was, str) and was.split(":")[0] == got.reason.split(":")[0], (where, got.reason, was)
                continue
            assert not isinstance(was, str), (where, was)
            assert (got.worst <= measuring.EXACT) == (was[1] <= measuring.EXACT), (where, got.worst, was)
            if got.error > measuring.EXACT:
                assert got.error == pytest.approx(was[0], rel=0.2), where
    program.close()


@pytest.mark.full
@pytest.mark.parametrize("kind", PACKAGES)
@pytest.mark.parametrize("family", bases.MAKE)
def test_packages_read_all_of_what_is_for_them(kind, family):
    """What diffusers and LyCORIS are given is exact there, and they use every tensor of it."""
    program = programs.program(kind)
    for label in METHODS:
        if not files.written(family, label, program.driver.file, "float32").path:
            continue
        got = measuring.measure(program, measuring.Cell(family, label, "float32", 1.0, file="float32"))
        assert not got.reason and got.worst <= measuring.EXACT, (label, got.reason, got.worst, got.layer)
        assert not got.unread and not got.stray, (label, got.unread, got.stray)
