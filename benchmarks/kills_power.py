"""Power cuts: what may be left on a disk after the first operations of a recorded run.

The model is what POSIX promises and no more. What was written to a file is safe once the file was flushed (fsync)
afterwards; before that it may be there, or be gone, or have its length and hold zeros, or be there in part. A name
(created, renamed, deleted, of files and folders) is safe once the folder that has it was flushed; before that, the
changes of one folder survive in their order up to some point. So a file that was flushed and renamed in a folder that
was not can still have its old name, and a renamed file that was not flushed can be all zeros.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.kills_watch import Operation

MODES = ("names", "empty", "zeros", "half", "mixed")
"""`names`: no change of names and no bytes survive without a flush. The others keep all names: `empty` without the
bytes that were not flushed, `zeros` with zeros in their place, `half` with the first half of them. `mixed`: any of
these per file, and any number of changes per folder, as drawn."""


@dataclass
class File:
    """A file: what the system shows, and what is safe."""

    data: bytes = b""
    safe: bytes | None = None


@dataclass
class Folder:
    """A folder: its names as the system shows them, the safe ones, and the changes between the two, in order."""

    now: dict[str, "File | Folder"] = field(default_factory=dict)
    safe: dict[str, "File | Folder"] = field(default_factory=dict)
    changes: list[tuple[str, str, "File | Folder | None"]] = field(default_factory=list)
    """(name that goes, name that comes, what it names)."""

    def change(self, goes: str, comes: str = "", node: "File | Folder | None" = None) -> None:
        """Change a name."""
        self.changes.append((goes, comes, node))
        apply(self.now, self.changes[-1])

    def flush(self) -> None:
        """Make all names safe."""
        self.safe, self.changes = dict(self.now), []


def apply(names: dict[str, "File | Folder"], change: tuple[str, str, "File | Folder | None"]) -> None:
    """One change of names."""
    goes, comes, node = change
    names.pop(goes, None)
    if comes and node is not None:
        names[comes] = node


class Disk:
    """The watched folder while a recorded run goes on. What is there before it is safe."""

    def __init__(self, folder: Path):
        self.root = read(folder)

    def find(self, path: str) -> "File | Folder | None":
        """What is under a name now."""
        node: File | Folder | None = self.root
        for part in path.split("/") if path else ():
            node = node.now.get(part) if isinstance(node, Folder) else None
        return node

    def parent(self, path: str) -> tuple[Folder | None, str]:
        """The folder of a name, if there is one, and the name in it."""
        place, _, name = path.rpartition("/")
        folder = self.find(place)
        return (folder if isinstance(folder, Folder) else None), name

    def do(self, operation: Operation) -> None:
        """One operation. Those that failed in the run (a name that was there already or not at all) fail here too."""
        node, (folder, name) = self.find(operation.path), self.parent(operation.path)
        if folder is None:
            return
        match operation.kind:
            case "open":
                if node is None and operation.flags & os.O_CREAT:
                    folder.change("", name, File())
                elif isinstance(node, File) and operation.flags & os.O_TRUNC:
                    node.data = b""
            case "write" if isinstance(node, File):
                before = node.data[: operation.offset].ljust(operation.offset, b"\0")
                node.data = before + operation.data + node.data[operation.offset + len(operation.data) :]
            case "truncate" if isinstance(node, File):
                node.data = node.data[: operation.offset].ljust(operation.offset, b"\0")
            case "fsync" if isinstance(node, File):
                node.safe = node.data
            case "fsync" if isinstance(node, Folder):
                node.flush()
            case "mkdir" if node is None:
                folder.change("", name, Folder())
            case "unlink" | "rmdir" if node is not None:
                folder.change(name)
            case "rename" if node is not None:
                target, new = self.parent(operation.other)
                if target is folder:
                    folder.change(name, new, node)
                elif target is not None:
                    target.change("", new, node)
                    folder.change(name)


def read(path: Path) -> Folder:
    """A folder on the disk, all of it safe."""
    folder = Folder()
    for child in sorted(path.iterdir()):
        folder.now[child.name] = read(child) if child.is_dir() else whole(child.read_bytes())
    folder.flush()
    return folder


def whole(data: bytes) -> File:
    """A file that is safe."""
    return File(data, data)


def leave(disk: Disk, path: Path, mode: str, seed: int = 0) -> None:
    """Write what a power cut leaves into the empty folder `path`."""
    draw = random.Random(seed)

    def names(count: int) -> int:
        return {"names": 0, "mixed": draw.randint(0, count)}.get(mode, count)

    def bytes_of(file: File) -> bytes:
        return damaged(file, draw.choice(["whole", "empty", "zeros", "half"]) if mode == "mixed" else mode)

    write(disk.root, path, names, bytes_of)


def damaged(file: File, mode: str) -> bytes:
    """What is left of a file's bytes."""
    safe = file.safe or b""
    if file.data == safe or mode == "whole":
        return file.data
    if mode in ("names", "empty"):
        return safe
    kept = len(os.path.commonprefix([safe, file.data]))
    rest = len(file.data) - kept
    return file.data[:kept] + bytes(rest) if mode == "zeros" else file.data[: kept + rest // 2]


def write(folder: Folder, path: Path, names: Callable[[int], int], bytes_of: Callable[[File], bytes]) -> None:
    """Write a folder with so many of its changes, and so much of its files."""
    entries = dict(folder.safe)
    for change in folder.changes[: names(len(folder.changes))]:
        apply(entries, change)
    path.mkdir(exist_ok=True)
    for name, node in entries.items():
        if isinstance(node, Folder):
            write(node, path / name, names, bytes_of)
        else:
            (path / name).write_bytes(bytes_of(node))
