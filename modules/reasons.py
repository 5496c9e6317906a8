"""What went wrong, in a sentence. Nothing heavy is imported here: it has to report failed imports too."""

import traceback
from pathlib import Path

from modules.disk import DiskFull, full_sentence, is_full

ROOT = Path(__file__).parents[1]


def sentence(error: BaseException, folder: Path | None = None) -> str:
    """`error` for a user. `folder`: where files are written, if that is known."""
    if isinstance(error, DiskFull):
        return str(error)
    if is_full(error):
        return full_sentence(path_of(error) or folder or Path.cwd())
    if isinstance(error, ImportError):
        return f"{first_line(error)}; run pip install -r requirements.txt with this Python{place(error)}"
    if isinstance(error, RecursionError):
        return f"a file is nested too deeply{place(error)}"
    if isinstance(error, OSError) and error.strerror:
        name = path_of(error)
        return f"{name}: {error.strerror}" if name else f"{error.strerror}{place(error)}"
    if isinstance(error, (ValueError, FloatingPointError, OSError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}{place(error)}"


def path_of(error: BaseException) -> Path | None:
    """The file named in a system error."""
    if not isinstance(error, OSError) or not isinstance(error.filename, (str, bytes)):
        return None
    name = error.filename
    return Path(name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))


def first_line(error: BaseException) -> str:
    """The first line of the error's message, shortened."""
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def place(error: BaseException) -> str:
    """Where in this program it happened, for a report; empty if nowhere."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(ROOT)]
    if not frames:
        return ""
    return f" ({Path(frames[-1].filename).relative_to(ROOT).as_posix()}, line {frames[-1].lineno})"
