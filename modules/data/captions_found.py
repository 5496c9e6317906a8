"""The captions of a set of pictures: where they come from, in words, and what is worth knowing about them."""

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modules.data import wildcards
from modules.data.captions import TRIGGER
from modules.data.names import listing, looked_at, shown
from modules.preset.data_options import Data

WORDS = {
    "txt": "from .txt files", "caption": "from .caption files", "json": "from .json files",
    "metadata": "from metadata files", "foldername": "from the folder's name", "filename": "from the pictures' names",
    "text": "data.caption_text", "none": "empty (data.captions is none)", "empty": "empty", "missing": "missing",
}  # fmt: skip
"""Where captions come from, in words."""

UNREAD: tuple[tuple[re.Pattern[str], Callable[[Data], object], str], ...] = (
    (re.compile(re.escape(TRIGGER)), lambda options: options.trigger,
     f"captions with {TRIGGER}, which is removed, because data.trigger is empty"),
    (re.compile(r"\{[^{}]*\|[^{}]*\}"), lambda options: options.wildcards,
     "captions with alternatives in braces, which are read as they are; data.wildcards true takes one of them"),
    (re.compile(re.escape("|||")), lambda options: options.keep_separator,
     "captions with |||, which is read as it is; data.keep_separator may be this mark"),
    (re.compile(r"(?<!\\)\([^()]*:\s*\d*\.?\d+\s*\)"), lambda options: options.emphasis,
     "captions with weights, as in (word:1.2), which are read as they are; for Stable Diffusion 1, 2 and XL, "
     "data.emphasis true reads them as weights"),
    (re.compile(r"\[name\]|(?!\[trigger\])(?i:\[trigger\])"), lambda options: False,
     f"captions with [name] or [Trigger], which are read as they are; only {TRIGGER} stands for data.trigger"),
)  # fmt: skip
"""What other trainers' captions have, whether the options use it, and what is said if not."""

SEVERAL = {
    "all": "all lines are used",
    "first": "the first line is used",
    "random": "each use takes one of them",
    "each": "each line is a sample of its own",
}
"""What is done with captions of several lines."""


@dataclass(frozen=True)
class Caption:
    """A picture's caption."""

    text: str
    """All of its lines."""
    source: str
    """Where it comes from: a value of data.captions; "filename", "empty" or "missing" when there is none, depending on
    data.missing_captions."""
    file: Path | None
    """The text file beside the picture that a caption can be written to, whether there is one or not; None if it would
    not be used."""
    problem: str = ""
    """Why a caption file cannot be read."""


@dataclass
class Read:
    """The captions of a set, what is wrong with them, and what is worth knowing."""

    options: Data
    names: Mapping[Path, str]
    """Of every file."""
    captions: dict[Path, Caption] = field(default_factory=dict)
    """By picture."""
    known: set[Path] = field(default_factory=set)
    """Caption files, used or not."""
    empty: set[Path] = field(default_factory=set)
    """Those that were read and have no caption."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """A sentence for each folder: where its captions come from."""
    lacks: Callable[[Container[Path]], str] = lambda left_out: ""
    """What is wrong where captions are missing, but for pictures that are left out; "" for nothing."""

    def note(self, paths: Iterable[Path], sentence: str) -> None:
        """Add one note for all `paths`, none if there are none."""
        if names := [self.names[path] for path in paths]:
            self.notes.append(f"{sentence} ({listing(names)})")

    def lacking(self, paths: Iterable[Path]) -> list[Path]:
        """The pictures that have no caption, and none that cannot be read."""
        return [path for path in paths if path not in self.captions]


def remark(paths: Sequence[Path], beside: Mapping[str, Mapping[Path, Path]], found: Read) -> None:
    """Notes on files that are not used, on several lines and on triggers."""
    for source, files in beside.items():
        unused = [path for path in files if found.captions[path].source != source and _has_text(files[path], found)]
        for used in dict.fromkeys(found.captions[path].source for path in unused):
            here = [files[path] for path in unused if found.captions[path].source == used]
            found.note(here, f".{source} files that are not used; the captions of these pictures are {WORDS[used]}")
    several = [path for path in paths if "\n" in found.captions[path].text]
    found.note(several, f"captions with several lines; {SEVERAL[found.options.caption_lines]}")
    for pattern, in_use, sentence in UNREAD:
        if not in_use(found.options):
            found.note([path for path in paths if pattern.search(found.captions[path].text)], sentence)
    if found.options.wildcards:
        lone = [path for path in paths if wildcards.has_lone_brace(found.captions[path].text)]
        found.note(lone, "captions with a brace that has no partner, and is read as it is; close or remove it")


def _has_text(file: Path, found: Read) -> bool:
    """Whether a file that is not used has a caption, as far as its size says."""
    there = looked_at(file)
    return not isinstance(there, OSError) and there.st_size > 0 and file not in found.empty


def sources(root: Path, own: Sequence[Path], found: Read) -> str:
    """Where the captions of a folder come from."""
    counts = Counter(found.captions[path].source for path in own)
    words = ", ".join(f"{count} {WORDS[source]}" for source, count in counts.most_common())
    return f"captions of {shown(root)}: {words or 'no pictures'}"
