"""Names of files as text. On most systems a name is any bytes without a slash, so not all of them can be written or
shown as they are."""

import os
from pathlib import PurePath
from unicodedata import category

UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that break a line, steer a terminal, are invisible, or stand for bytes that are
not UTF-8."""


def shown(name: str | PurePath) -> str:
    """A name or path on one line of text that any file in UTF-8 can hold: what cannot be seen is escaped as in Python's
    texts, bytes that are not UTF-8 as `\\xe9`.

    Two names are never shown alike: a backslash in a name becomes two (on Windows no name has one).
    """
    text = str(name)
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return character if os.name == "nt" else 2 * character
    if category(character) not in UNSEEN:
        return character
    if 0xDC80 <= code <= 0xDCFF:  # how Python has a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80 and (known := ascii(character)[1:-1]) != character:
        return known
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
