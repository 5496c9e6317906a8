"""Names of files as text, and what they name. On most systems a name is any bytes without a slash, so not all of them
can be written or shown as they are."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from modules.printable import IN_LINE


def shown(name: str | PurePath) -> str:
    """A name or path as one line of valid UTF-8: invisible characters are escaped as in Python's texts, bytes that are
    not UTF-8 as `\\xe9`.

    Different names stay different: a backslash in a name becomes two (on Windows no name has one).
    """
    text = str(name)
    return IN_LINE.sub(_escaped, text if os.name == "nt" else text.replace("\\", 2 * "\\"))


def listing(names: Sequence[str], most: int = 10) -> str:
    """The number of names, and the first `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)}: {', '.join(names[:most])}{more}"


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
