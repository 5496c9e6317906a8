"""Files that are whole or not there, and folders that a power cut does not take away again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modules import disk
from modules.disk import (
    LEFT_OVER,
    MACHINE,
    PARTIAL,
    make_folder,
    remove_left_overs,
    started,
    whole,
    write_whole,
    writer_lives,
)


def partial_name(process: int, machine: str = MACHINE, begun: int | None = None) -> Path:
    return Path(f"a.txt.{machine}-{process}-{started(process) if begun is None else begun}-01234567{PARTIAL}")


def test_a_writer_that_is_gone_is_told_from_one_that_lives():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        name = partial_name(other.pid)
        assert writer_lives(name) is True
    assert writer_lives(name) is False
    assert writer_lives(partial_name(os.getpid())) is True
    assert writer_lives(partial_name(os.getpid(), begun=12345)) is False  # of another process that had this number


@pytest.mark.parametrize("name", ["step-000001.partial", "a.txt.partial", f"a.{MACHINE}-x-0-0{PARTIAL}", MACHINE])
def test_of_other_names_nothing_is_known(name):
    assert writer_lives(Path(name)) is None
    assert writer_lives(partial_name(os.getppid(), "other")) is None


def test_the_name_that_is_written_to_is_known(tmp_path):
    with whole(tmp_path / "a.txt") as partial:
        partial.write_text("x")
        assert writer_lives(partial) and partial.name.endswith(PARTIAL)
    assert (tmp_path / "a.txt").read_text() == "x"


def test_new_folders_are_flushed_into_those_above(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(disk, "to_disk", flushed.append)
    make_folder(tmp_path / "runs" / "name" / "state")
    assert set(flushed) == {tmp_path, tmp_path / "runs", tmp_path / "runs" / "name"}
    flushed.clear()
    make_folder(tmp_path / "runs" / "name" / "state")
    assert not flushed


@pytest.mark.parametrize("old", [None, "old"])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path, old):
    path = tmp_path / "a.txt"
    if old is not None:
        write_whole(path, old)
    with pytest.raises(KeyboardInterrupt), whole(path) as partial:
        partial.write_text("new")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == (["a.txt"] if old else [])
    assert old is None or path.read_text() == old


def test_left_overs_go_and_what_is_being_written_stays(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as gone:
        pass
    stays = [partial_name(os.getppid()), partial_name(gone.pid, "other"), Path("a.txt"), Path("b.partial")]
    goes = [partial_name(gone.pid, begun=12345), partial_name(os.getppid(), "old")]
    for name in [*stays, *goes]:
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / goes[1], (0, (tmp_path / goes[1]).stat().st_mtime - LEFT_OVER - 1))
    remove_left_overs(tmp_path, "*")
    assert {Path(path.name) for path in tmp_path.iterdir()} == set(stays)
