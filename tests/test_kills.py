"""The harness of killed runs: it kills where it says, models a disk, sees what is wrong; and a few runs are killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kills_cases import Cut
from benchmarks.kills_power import Disk, leave
from benchmarks.kills_runs import Combination
from benchmarks.kills_watch import Kill, Operation

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and watched as Linux does it")


SCRIPT = """
import json, shutil, sys
from pathlib import Path
from benchmarks.kills_cases import Bench, Cut
from benchmarks.kills_runs import Combination, Place
from benchmarks.kills_watch import Kill

bench, plain = Bench(Place(Path(sys.argv[1]))), Combination("lora", "adamw", "plain")
reference = bench.reference(plain)
second = next(number for number, one in enumerate(reference.record) if "state/step-000004" in one.path)
write = next(number for number in reference.during("state") if reference.record[number].kind == "write")

def old_state_goes_first():
    from modules.training import state
    save_state = state.save_state
    def broken(folder, *rest):
        for old in (folder / "state").glob("step-??????"):
            shutil.rmtree(old)
        return save_state(folder, *rest)
    state.save_state = broken

def averages_are_forgotten():
    from modules.training import state
    state.restore_optimizer = lambda optimizer, saved: None

def samples_are_left_out():
    from modules.training import loop
    sample = loop.sample
    loop.sample = lambda session: None if session.step == 4 else sample(session)

def nothing():
    pass

def tell(name, breaks, carry_out):
    bench.place.before = breaks
    result = carry_out()
    print(json.dumps([name, result.kills, result.cuts, result.repeat, [[f.kind, f.text] for f in result.wrong]]))

print(json.dumps(["reference", 0, 0, "", [[f.kind, f.text] for f in reference.wrong]]))
tell("killed", nothing, lambda: bench.killed(plain, [Kill(write, True), Kill(seconds=0.9)], cold=True))
tell("state cut", nothing, lambda: bench.cut(plain, [Cut(second + 20, "zeros")]))
tell("export cut", nothing, lambda: bench.cut(plain, [Cut(reference.during("export")[-1], "empty")]))
tell("lost", old_state_goes_first, lambda: bench.killed(plain, [Kill(second + 7)], cold=True))
tell("different", averages_are_forgotten, lambda: bench.killed(plain, [Kill(second + 7)], cold=True))
tell("missing", samples_are_left_out, lambda: bench.killed(plain, [Kill(1)]))
"""
"""Runs that are killed and lose their power, with the trainer as it is and with faults; a line for each."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, list]:
    """What `SCRIPT` tells, by name: kills, power cuts, the text for a repetition, findings. It has an interpreter of
    its own: a fork must not have this one's threads."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path_factory.mktemp("kills"))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {line[0]: line[1:] for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.full
def test_a_killed_run_is_the_whole_run(cases):
    """Killed in the middle of a state's file, then at another moment."""
    assert cases["reference"][-1] == []
    kills, _, repeat, wrong = cases["killed"]
    assert kills >= 1 and wrong == [], repeat


@pytest.mark.full
@pytest.mark.parametrize("name", ["state cut", "export cut"])
def test_a_power_cut_loses_nothing(name, cases):
    _, cuts, repeat, wrong = cases[name]
    assert cuts == 1 and wrong == [], repeat


@pytest.mark.full
@pytest.mark.parametrize(
    "kind, text",
    [
        ("lost", "none of them can be resumed from"),
        ("different", "adapter.safetensors"),
        ("missing", "samples/step-000004_00.png"),
        ("missing", "event sample 4 samples/step-000004_00.png"),
    ],
)
def test_a_fault_of_the_trainer_is_seen(kind, text, cases):
    """A save that deletes the old state first, a resume without the optimizer's averages, samples that are left out."""
    assert any(found == kind and text in said for found, said in cases[kind][-1]), cases[kind]


def test_texts_come_back():
    for kill in (Kill(57), Kill(57, True), Kill(3, seconds=0.0125), Kill(seconds=1.5), Kill(9, who="both")):
        assert Kill.parse(str(kill)) == kill
    for cut in (Cut(3, "zeros"), Cut(3, "mixed", 7)):
        assert Cut.parse(str(cut)) == cut
    for combination in (Combination("a", "b", "c-d"), Combination("a", "b", "c", 2)):
        assert Combination.parse(str(combination)) == combination


SAVED = [
    Operation("mkdir", "a"),
    Operation("open", "a/new", flags=os.O_CREAT | os.O_TRUNC),
    Operation("write", "a/new", data=b"1234"),
    Operation("fsync", "a/new"),
    Operation("rename", "a/new", "a/file"),
    Operation("fsync", "a"),
    Operation("fsync", ""),
    Operation("write", "a/file", offset=4, data=b"56"),
]


@pytest.mark.parametrize(
    "count, mode, left",
    [
        (3, "names", {}),
        (3, "zeros", {"a/new": b"\0\0\0\0"}),
        (3, "half", {"a/new": b"12"}),
        (3, "empty", {"a/new": b""}),
        (4, "zeros", {"a/new": b"1234"}),
        (5, "empty", {"a/file": b"1234"}),
        (6, "names", {}),
        (7, "names", {"a/file": b"1234"}),
        (8, "names", {"a/file": b"1234"}),
        (8, "zeros", {"a/file": b"1234\0\0"}),
        (8, "half", {"a/file": b"12345"}),
    ],
)
def test_a_disk_keeps_what_was_flushed(count, mode, left, tmp_path):
    (tmp_path / "before").mkdir()
    disk = Disk(tmp_path / "before")
    for operation in SAVED[:count]:
        disk.do(operation)
    leave(disk, tmp_path / "after", mode)
    found = {p.relative_to(tmp_path / "after").as_posix(): p.read_bytes() for p in tmp_path.glob("after/*/*")}
    assert found == left


def test_a_renamed_folder_may_keep_its_old_name(tmp_path):
    (tmp_path / "before" / "x").mkdir(parents=True)
    (tmp_path / "before" / "x" / "file").write_bytes(b"1")
    disk = Disk(tmp_path / "before")
    disk.do(Operation("rename", "x", "y"))
    left = set()
    for seed in range(20):
        leave(disk, tmp_path / f"after{seed}", "mixed", seed)
        left |= {"/".join(sorted(p.name for p in (tmp_path / f"after{seed}").iterdir()))}
    assert left == {"x", "y"}, "never both, never none"


WORK = """
import os, shutil, sys, numpy, torch
from pathlib import Path
from PIL import Image
from safetensors.torch import save_file
from benchmarks.kills_watch import Kill, Shared, Watch

def work(kill):
    os.chdir(sys.argv[1])
    shutil.rmtree("w", ignore_errors=True)
    Path("w").mkdir()
    watch = Watch(Path("w"), Shared(), kill, True)
    watch.start()
    Path("w/a").mkdir()
    Path("w/a").mkdir(exist_ok=True)
    Path("w/missing").unlink(missing_ok=True)
    with Path("w/a/text").open("a") as file:
        file.write("12")
        file.flush()
        file.write("34")
    handle = os.open("w/a/text", os.O_RDWR)
    os.fsync(handle)
    os.truncate("w/a/text", 3)
    save_file({"x": torch.zeros(2)}, "w/a/t.safetensors")
    Image.fromarray(numpy.zeros((2, 2, 3), numpy.uint8)).save("w/a/p.png")
    os.replace("w/a/text", "w/other")
    Path("elsewhere").write_text("not watched")
    shutil.rmtree("w/a")
    print([f"{one.kind} {one.path}" for one in watch.operations], flush=True)

for kill in (None, *map(Kill, range(4)), Kill(3, True), Kill(999)):
    pid = os.fork()
    if pid == 0:
        work(kill)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    text = Path(sys.argv[1], "w/a/text")
    print(kill, os.waitstatus_to_exitcode(status), text.read_text() if text.exists() else None, flush=True)
"""
"""What Python, safetensors and Pillow do to files, in processes that are killed at other operations each."""


def test_every_kind_of_operation_is_seen_and_killed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WORK, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen, *ends = done.stdout.splitlines()
    for operation in (
        "mkdir a",
        "open a/text",
        "write a/text",
        "fsync a/text",
        "truncate a/text",
        "write a/t.safetensors",
        "write a/p.png",
        "rename a/text",
        "unlink a/p.png",
        "unlink a/t.safetensors",
        "rmdir a",
    ):
        assert repr(operation) in seen, operation
    assert seen.count("write a/text") == 2 and seen.count("mkdir") == 1 and "missing" not in seen
    assert "elsewhere" not in seen
    # Before the folder, before the file, before its first bytes, before its last ones, in the middle of these.
    assert ends[1:6] == ["0 -9 None", "1 -9 None", "2 -9 ", "3 -9 12", "3/ -9 123"]
    assert ends[6].startswith("[") and ends[7] == "999 0 None"
