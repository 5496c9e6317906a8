"""Atomic writes: files are written under another name, flushed to the disk, renamed, and the folder is flushed.

Every file of a run, a cache or an export is written through here.
"""

import contextlib
import errno
import hashlib
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PARTIAL = ".partial"
"""End of the names of files and folders that are being written or deleted. Left-overs of a crash have it too."""

MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
"""Part of partial names: whether a process runs is only known on its own machine, and folders may be shared."""

CLOCK = 2.0
"""Seconds by which the reported start of a process may change later, when the system's clock is set."""

LEFT_OVER = 24 * 3600.0
"""Age in seconds from which a partial file of an unknown process is a left-over."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk."""


ELSEWHERE = "give a file in another folder, or make this one writable"
"""What to do where a file cannot be written."""


class DiskFull(OSError):
    """The disk is full. The sentence names the file, and how many bytes are free."""


@contextmanager
def whole(path: Path, flush: bool = True) -> Iterator[Path]:
    """The name under which the file `path` is to be written. On leaving it is flushed and gets its own name, so that
    a crash or a power cut leaves the old file or the new one.

    Without `flush` a killed process still leaves one of them, but a power cut may leave anything: for files that have a
    checksum and can be recreated. Flushing takes about 10 ms per file, more on hard disks.

    Raises DiskFull where the disk is full, OSError with a sentence about `path` where it cannot be written, and
    whatever else the writer raises; what it wrote is removed at once.
    """
    if path.is_dir():
        said = "is a folder; give a file name, or move the folder away"
        raise IsADirectoryError(errno.EISDIR, said, str(path))
    writer = f"{MACHINE}-{os.getpid()}-{own_start(os.getpid())}-{uuid.uuid4().hex[:8]}"
    partial = path.with_name(f"{path.name}.{writer}{PARTIAL}")
    try:
        yield partial
        if flush:
            to_disk(partial)
        partial.replace(path)
        if flush:
            to_disk(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error is reported
            partial.unlink(missing_ok=True)
        if is_full(error):
            raise DiskFull(full_sentence(path)) from error
        if isinstance(error, OSError) and str(partial) in (error.filename, *map(str, error.args)):
            raise OSError(error.errno, f"cannot be written ({error.strerror}); {ELSEWHERE}", str(path)) from error
        if isinstance(error, OSError) and str(partial) in str(error):
            raise OSError(f"{str(error).replace(str(partial), str(path))}; {ELSEWHERE}") from error
        raise


def check_writable(folder: Path) -> None:
    """Raise OSError that names the folder, or DiskFull, unless a file can be made in it. By
    trying: access rights do not tell for the administrator and on network drives."""
    try:
        probe = folder / f"{uuid.uuid4().hex}{PARTIAL}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        if is_full(error):
            raise DiskFull(full_sentence(folder / "x")) from error
        raise OSError(error.errno, f"cannot be written ({error.strerror})", str(folder)) from error


@cache
def own_start(process: int) -> int:
    """`started` of this process, cached: every file that is written has it in its partial name."""
    return started(process)


def started(process: int) -> int:
    """When a process was started, in 1/100 s of Unix time; 0 if there is none. Process ids are reused, in a container
    even by the next start of the same program."""
    import psutil

    try:
        return round(100 * psutil.Process(process).create_time())
    except psutil.Error:
        return 0


def writer_lives(partial: Path) -> bool | None:
    """Whether the process that gave a partial name (see `whole`) still runs; None if unknown: for other machines and
    other kinds of names."""
    machine, *process = partial.name.removesuffix(PARTIAL).rpartition(".")[2].split("-")
    if machine != MACHINE or len(process) != 3 or not all(part.isdecimal() and len(part) < 16 for part in process[:2]):
        return None
    return abs(started(int(process[0])) - int(process[1])) <= 100 * CLOCK


def remove_left_overs(folder: Path, pattern: str) -> None:
    """Delete the partial files below `folder` that match `pattern` without their end and that killed processes have
    left, but nothing that another process may be writing now."""
    for path in folder.glob(pattern + PARTIAL):
        with contextlib.suppress(OSError):  # another process was faster, or has it open
            lives = writer_lives(path)
            old = lives is None and time.time() - path.stat().st_mtime > LEFT_OVER
            if path.is_file() and (lives is False or old):
                path.unlink()


def make_folder(path: Path) -> None:
    """Create a folder, and those above it, so that they survive a power cut. An existing one is left alone. Raises
    OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        to_disk(folder.parent)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file atomically; text in UTF-8, with escapes for lone surrogates, which stand for bytes of file names
    that are not UTF-8. Raises as `whole` does."""
    with whole(path) as partial:
        partial.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk is full. safetensors and Pillow wrap the system's own error in theirs."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return any(f"os error {number}" in str(error) or os.strerror(number) in str(error) for number in FULL)


def full_sentence(path: Path) -> str:
    """The message for a file for which the disk has no room."""
    place = next(folder for folder in path.absolute().parents if folder.exists())
    return f"{path}: the disk is full ({shutil.disk_usage(place).free:,} bytes are free); free some and start again"


def to_disk(path: Path) -> None:
    """Make sure a file, or the names in a folder, survive a power cut. Windows has no such thing for folders."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
