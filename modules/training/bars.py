"""Progress bars of what is done before the first step."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from modules.data.looking import Progress

BAR = "{desc}: {n_fmt} of {total_fmt} |{bar}| {remaining} left"
"""How a progress bar looks."""


@contextmanager
def progress_bar(title: str, shown: bool) -> Iterator[Progress]:
    """A progress bar. It only appears for what takes a second or more, and is removed afterwards."""
    with tqdm(desc=title, total=1, delay=1, leave=False, disable=not shown, bar_format=BAR) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move
