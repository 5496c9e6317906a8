"""What scripts that make one file or table have in common: the text they print, or the sentence about bad input."""

import sys
from argparse import Namespace
from collections.abc import Callable


def answer(run: Callable[[Namespace], str], arguments: Namespace) -> int:
    """Print what `run` returns, or what is wrong with the input; the exit code, 0 or 2."""
    try:
        print(run(arguments))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0
