"""Texts of files on a terminal: control characters, which could move its cursor or change what it shows, are printed as
escapes."""

import json
import re

UNSEEN = (
    "\u0000-\u001f\u007f-\u009f"  # control characters; ESC and CSI begin a terminal's commands
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # change the direction of what follows
    "\u00ad\u180e\u200b\u2028\u2029\u2060-\u2065\ufeff\ufff9-\ufffb"  # end a line, or cannot be seen
    "\ud800-\udfff"  # half a character, as bytes of file names that are not UTF-8 are read; no terminal takes them
    "\U000e0000-\U000e007f"  # tags, which cannot be seen
)
"""Characters, as a range of a regular expression. Not among them: those that join and part letters in words."""

LONGEST = 4000
"""Characters of a sentence on the screen, with all that it lists."""

IN_LINE = re.compile(f"[{UNSEEN}]")
IN_TEXT = re.compile(f"(?![\n\t])[{UNSEEN}]")


def shown(text: str) -> str:
    """A name or value in a line: whatever does not print, line ends and tabs too, as JSON escapes it (`\\u001b`)."""
    return IN_LINE.sub(_escape, text)


def printed(text: str) -> str:
    """A text of several lines: as `shown`, but for its own line ends and tabs."""
    return IN_TEXT.sub(_escape, text)


def short(text: str, most: int = 200) -> str:
    """A text of any length, shortened for a sentence: its beginning and its end, about `most` characters, and how many
    it has."""
    if len(text) <= most:
        return text
    return f"{text[: 2 * most // 3]} [... {len(text):,} characters ...] {text[-(most // 3) :]}"


def _escape(found: re.Match[str]) -> str:
    escaped = json.dumps(found[0])[1:-1]
    return escaped if escaped != found[0] else f"\\u{ord(found[0]):04x}"  # JSON leaves DEL as it is
