"""Names of files as text, and what they name. On most systems a name is any bytes without a slash, so not all of them
can be written or shown as they are."""

import errno
import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from modules.printable import IN_LINE

REPEATS = re.compile(r"(\d+)_")
"""Beginning of a folder's name that says how often its pictures are repeated (kohya's layout)."""


def shown(name: str | PurePath) -> str:
    """A name or path as one line of valid UTF-8: invisible characters are escaped as in Python's texts, bytes that are
    not UTF-8 as `\\xe9`.

    Different names stay different: a backslash in a name becomes two (on Windows no name has one).
    """
    text = str(name)
    return IN_LINE.sub(_escaped, text if os.name == "nt" else text.replace("\\", 2 * "\\"))


def companions(files: Iterable[Path], pictures: Iterable[Path]) -> dict[Path, list[Path]]:
    """The pictures that each of `files` belongs to: those with its name but for the suffix. Where there are none, those
    whose names are the same text in another Unicode normal form, which file systems and archives change, and that have
    no file of exactly their name."""
    files = list(files)
    if not files:
        return {}
    exact: dict[Path, list[Path]] = defaultdict(list)
    for picture in pictures:
        exact[picture.with_suffix("")].append(picture)
    stems = {file: file.with_suffix("") for file in files}
    found = {file: exact.get(stem, []) for file, stem in stems.items()}
    if all(found.values()):
        return found
    left: dict[str, list[Path]] = defaultdict(list)
    for stem in exact.keys() - set(stems.values()):
        left[composed(stem)] += exact[stem]
    return {file: own or sorted(left.get(composed(stems[file]), [])) for file, own in found.items()}


def composed(path: PurePath) -> str:
    """The same text for a name in whichever Unicode normal form."""
    return unicodedata.normalize("NFC", str(path))


def kind_of(entry: os.DirEntry) -> tuple[bool, bool]:
    """Whether this is a folder, and whether it is a pipe, socket or device; neither for links to nowhere."""
    try:
        if entry.is_file() or entry.is_dir():
            return entry.is_dir(), False
        return False, stat.S_IFMT(entry.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR)
    except OSError:
        return False, False


def broken_link(path: Path) -> str:
    """What is wrong with a link that leads nowhere, as the end of a sentence about it; "" if it is none."""
    try:
        target = os.readlink(path)  # noqa: PTH115  the link's own text, as it was written
    except (OSError, ValueError):
        return ""
    try:
        path.stat()
    except FileNotFoundError:
        if os.path.lexists(path.parent / target):  # a link to a link
            target = os.path.realpath(path)
        return f"is a link to {shown(target)}, which does not exist"
    except OSError as error:
        return "is a link that leads back to itself" if error.errno == errno.ELOOP else ""
    return ""


PASSED_OVER = {
    *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "@recently-snapshot"),  # Synology, QNAP
    *("__macosx", "icon\r", "$recycle.bin", "system volume information", "lost+found"),
    *("thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "zbthumbnail.info"),
    *("picasa.ini", "folder.jpg.db", "thumbnails.db"),
}
"""Files and folders, in lower case, that systems and file managers make beside pictures: thumbnails, recycle bins,
settings of a folder's view. Others have a dot in front."""


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's."""
    return name.startswith((".", "SYNOFILE_THUMB_")) or name.lower() in PASSED_OVER


def listing(names: Sequence[str], most: int = 10, separator: str = ", ") -> str:
    """The number of names, and the first `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)}: {separator.join(names[:most])}{more}"


def looked_at(path: Path) -> os.stat_result | OSError:
    """The status of the path, links followed; or why it cannot be read."""
    try:
        return path.stat()
    except OSError as error:
        return error
    except ValueError:  # a zero byte, which no name has, or half a character
        return FileNotFoundError(0, "No such file or directory")


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python has a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return ascii(found[0])[1:-1]
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
