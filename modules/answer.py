"""What scripts that make one file or table have in common: the text they print, or the sentence about bad input, and
its place in a page of docs/."""

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path


def answer(run: Callable[[Namespace], str], arguments: Namespace) -> int:
    """Print what `run` returns, or what is wrong with the input; the exit code, 0 or 2."""
    try:
        print(run(arguments))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def put(page: Path, text: str, begin: str, end: str) -> None:
    """Put `text` between two marks of a page. Raises ValueError if it does not have them."""
    before, first, rest = page.read_text(encoding="utf-8").partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"{page} has no {begin} with {end} behind it: there is no place for the table")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
