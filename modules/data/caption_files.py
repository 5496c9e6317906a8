"""Where captions come from: the files beside the pictures, and what is done where there is none."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modules.data.captions import parse_metadata_line, read_text
from modules.data.names import listing, looked_at, shown
from modules.preset.data_options import Data

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Caption:
    """A picture's caption."""

    text: str
    source: str
    """Where it comes from: "txt", "metadata" or "filename"; "empty" or "missing" when there is none, depending on
    data.missing_captions."""
    file: Path
    """The .txt file beside the picture, whether there is one or not."""
    problem: str = ""
    """Why that file cannot be read."""


@dataclass
class Read:
    """The captions of a set, what is wrong with them, and what is worth knowing."""

    names: Mapping[Path, str]
    """Of every file."""
    captions: dict[Path, Caption] = field(default_factory=dict)
    """By picture."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, paths: Sequence[Path], sentence: str) -> None:
        """Add one note for all `paths`, none if there are none."""
        if paths:
            self.notes.append(f"{sentence} ({listing([self.names[path] for path in paths])})")


def read_captions(options: Data, paths: list[Path], files: list[Path], names: Mapping[Path, str]) -> Read:
    """The caption of each picture."""
    found = Read(names)
    texts = _text_files(paths, files, found)
    listed = _metadata(set(paths), files, found)
    differing = [path for path in listed if texts[path].text and listed[path] != texts[path].text]
    found.note(differing, f"the .txt file and {METADATA} disagree; the .txt file is used")
    captions = {path: _caption(options, path, texts[path], listed.get(path, "")) for path in paths}
    missing = [path for path in paths if captions[path].source in ("filename", "empty", "missing")]
    if missing and options.missing_captions == "error":
        names = listing([found.names[path] for path in missing], most=len(missing))
        found.problems.append(
            f"pictures without a caption ({names}); write one into a .txt file of the same name, or set "
            'data.missing_captions to "empty" or "filename"'
        )
    elif options.missing_captions == "filename":
        found.note(missing, "pictures without a caption use their file name as caption")
    else:
        found.note(missing, "pictures without a caption use the empty caption")
    several = [path for path in paths if "\n" in captions[path].text]
    found.note(several, "captions with several lines; all lines are used")
    found.captions = captions
    return found


def _caption(options: Data, path: Path, file: Caption, listed: str) -> Caption:
    """A picture's caption, from its .txt file and its line in metadata.jsonl."""
    if file.text or file.problem:
        return file
    if listed:
        return replace(file, text=listed, source="metadata")
    if options.missing_captions == "filename":
        # No tokenizer takes bytes that are not UTF-8.
        return replace(file, text=os.fsencode(path.stem).decode("utf-8", "replace"), source="filename")
    return replace(file, source="empty" if options.missing_captions == "empty" else "missing")


def _text_files(paths: list[Path], files: list[Path], found: Read) -> dict[Path, Caption]:
    """The text of the .txt file beside each picture, "" where there is none."""
    owners: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        owners[path.with_suffix("")].append(path)
    captions = {path: Caption("", "txt", path.with_suffix(".txt")) for path in paths}
    unowned = []
    for file in files:
        if file.suffix.lower() != ".txt":
            continue
        pictures = owners[file.with_suffix("")]
        if not pictures:
            unowned.append(file)
            continue
        if len(pictures) > 1:
            found.note(pictures, f"{found.names[file]} is the caption of several pictures")
        try:
            caption = Caption(read_text(file), "txt", file)
        except ValueError as error:
            found.problems.append(str(error))
            caption = Caption("", "txt", file, str(error))
        captions |= dict.fromkeys(pictures, caption)
    found.note(unowned, ".txt files without a picture of the same name are ignored")
    return captions


def _metadata(paths: set[Path], files: list[Path], found: Read) -> dict[Path, str]:
    """Captions from all metadata.jsonl files; file names in them are relative to their own folder."""
    captions: dict[Path, str] = {}
    for file in files:
        if file.name != METADATA:
            continue
        unused: set[str] = set()
        try:
            lines = read_text(file).split("\n")
        except ValueError as error:
            found.problems.append(str(error))
            continue
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                name, caption, others = parse_metadata_line(line)
                path = _picture_named(file.parent, name, paths)
                if captions.setdefault(path, caption) != caption:
                    raise ValueError(f"is a second caption of {shown(name)}; keep one of them")
                unused |= others
            except ValueError as error:
                found.problems.append(f"{shown(file)} line {number}: {error}")
        if unused:
            entries = shown(", ".join(sorted(unused)))
            found.notes.append(f"{found.names[file]}: ignored entries ({entries})")
    return captions


def _picture_named(folder: Path, name: str, paths: set[Path]) -> Path:
    """The picture a line of metadata.jsonl means. Raises ValueError when there is none."""
    path = folder / os.path.normpath(name)
    if path in paths:
        return path
    if isinstance(looked_at(path), OSError):
        raise ValueError(f"names a missing file, {shown(name)}; remove the line or restore the picture")
    raise ValueError(f"names {shown(name)}, which is not one of the pictures here; remove the line")
