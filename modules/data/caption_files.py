"""Where captions come from: files beside the pictures, metadata files, names; and what is done where there is none."""

import os
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from modules.data import caption_tables
from modules.data.captions import read_text
from modules.data.captions_found import Caption, Read, remark, sources
from modules.data.names import REPEATS, companions, listing, shown
from modules.preset.data_options import Data

BESIDE = (".txt", ".caption", ".json")
"""Endings of caption files beside pictures. Their source is the ending without the dot."""

FILES = ("txt", "caption", "json", "metadata")
"""Sources that are files, in the order in which data.captions auto takes them."""


def read_captions(
    options: Data, paths: Sequence[Path], files: Sequence[Path], names: Mapping[Path, str], roots: Sequence[Path]
) -> Read:
    """The caption of each picture. `options` hold for all of them, `files` are all files of the data folders `roots`,
    and `names` are those files' names for sentences."""
    found = Read(options, names)
    groups: dict[Path, list[Path]] = {root: [] for root in roots}
    for path in paths:
        groups[_root(path, groups)].append(path)
    beside = _beside(paths, files, found)
    if options.captions not in ("auto", *FILES):
        _by_name(paths, groups, found)
    for source, there in beside.items():
        if options.captions in ("auto", source):
            _read_beside(source, there, found)
    _read_tables(paths, files, found)
    _without(paths, groups, beside, found)
    remark(paths, beside, found)
    found.sources = [sources(root, own, found) for root, own in groups.items()]
    return found


def problems(options: Data) -> list[str]:
    """Why these options do not fit together; each sentence begins with the option's name."""
    found = []
    if not options.separator and (options.shuffle or options.part_dropout):
        found.append('data.separator is empty; give the separator between the parts of a caption, such as ","')
    if options.captions == "text" and not options.caption_text.strip():
        found.append("data.caption_text is empty; give the caption of all pictures, or change data.captions")
    if options.keep_separator and options.keep_separator.strip() == options.separator.strip():
        found.append(
            f"data.keep_separator is {options.keep_separator!r}, as data.separator is; give another text, such as |||"
        )
    return found


def folder_caption(path: Path, roots: Container[Path]) -> str:
    """The caption that the folder of a picture gives it: the name of the innermost one called `10_name`, without the
    number, or else of the folder that it is in."""
    names = _folders(path, roots)
    named = [name for name in names if REPEATS.match(name)]
    return _text_of(REPEATS.sub("", named[0], count=1) if named else names[0])


def _folders(path: Path, roots: Container[Path]) -> list[str]:
    """The names of the folders that a picture is in, from its own to the data folder."""
    root = _root(path, roots)
    inner = path.parents[: len(path.parents) - len(root.parents)]
    return [folder.name or Path(os.path.abspath(folder)).name for folder in inner]  # noqa: PTH100  of "."


def _text_of(name: str) -> str:
    """A name as a caption: no tokenizer takes bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace").strip()


def _root(path: Path, roots: Container[Path]) -> Path:
    """The data folder that a picture is in: the innermost."""
    return next(parent for parent in path.parents if parent in roots)


# -- files beside pictures --------------------------------------------------------------------------------------------


def _beside(paths: Sequence[Path], files: Sequence[Path], found: Read) -> dict[str, dict[Path, Path]]:
    """The caption file beside each picture, by the file's ending."""
    beside: dict[str, dict[Path, Path]] = {}
    by_ending: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_ending[file.suffix.lower()].append(file)
    for ending in BESIDE:
        those = by_ending[ending]
        beside[ending[1:]], unowned = {}, []
        for file, pictures in companions(those, paths).items():
            if not pictures:
                unowned.append(file)
                continue
            if len(pictures) > 1:
                found.note(pictures, f"{found.names[file]} is the caption of several pictures")
            beside[ending[1:]] |= dict.fromkeys(pictures, file)
            found.known.add(file)
        if ending != ".json":  # one that belongs to no picture is any other file
            found.note(unowned, f"{ending} files without a picture of the same name are ignored")
            found.known.update(unowned)
    return beside


def _read_beside(source: str, files: Mapping[Path, Path], found: Read) -> None:
    """Captions from the files beside the pictures that have none yet."""
    strict = found.options.captions == source or source != "json"  # other programs' .json files may say anything
    read: dict[Path, Caption] = {}
    useless: list[Path] = []
    for path in found.lacking(files):
        file = files[path]
        if file not in read:
            read[file] = _caption_in(file, source, found.options)
            if read[file].problem and strict:
                found.problems.append(read[file].problem)
            elif read[file].problem:
                useless.append(file)
        if read[file].text or read[file].problem and strict:
            found.captions[path] = read[file]
    found.empty |= {file for file, caption in read.items() if not caption.text}
    if useless:
        found.note(useless, f".json files without a caption are ignored; the first: {read[useless[0]].problem}")


def _caption_in(file: Path, source: str, options: Data) -> Caption:
    """The caption in a file beside a picture."""
    written = file if source != "json" else _written(file, options)
    try:
        text = caption_tables.sidecar(options, file).text(options) if source == "json" else read_text(file)
        return Caption(text, source, written)
    except ValueError as error:
        return Caption("", source, written, str(error))


def _written(path: Path, options: Data) -> Path | None:
    """The text file to which a caption of this picture can be written, where it has none."""
    endings = {"auto": ".txt", "txt": ".txt", "caption": ".caption"}
    ending = endings.get(options.captions)
    return path.with_suffix(ending) if ending else None


# -- metadata files ---------------------------------------------------------------------------------------------------


def _read_tables(paths: Sequence[Path], files: Sequence[Path], found: Read) -> None:
    """Captions from all metadata files; file names in them are relative to their own folder."""
    tables = [file for file in files if file.name in caption_tables.TABLES and file not in found.known]
    tables.sort(key=lambda file: caption_tables.TABLES.index(file.name))  # stable: folders keep their order
    found.known.update(tables)
    if found.options.captions not in ("auto", "metadata"):
        found.note(tables, f"metadata files are not used (data.captions is {found.options.captions})")
        return
    listed: dict[Path, tuple[Path, str]] = {}
    places = caption_tables.places(paths if tables else ())
    for file in tables:
        if file.suffix != ".parquet" or any(path not in listed for path in found.lacking(paths)):  # it needs a package
            _read_table(file, places, listed, found)
    read = {path: found.captions[path] for path in listed if path in found.captions}
    others = [path for path, caption in read.items() if caption.text and caption.text != listed[path][1]]
    for source in dict.fromkeys(found.captions[path].source for path in others):
        differing = [path for path in others if found.captions[path].source == source]
        files_there = " and ".join(dict.fromkeys(listed[path][0].name for path in differing))
        found.note(differing, f"the .{source} file and {files_there} disagree; the .{source} file is used")
    for path in found.lacking(listed):
        if listed[path][1]:
            found.captions[path] = Caption(listed[path][1], "metadata", _written(path, found.options))


def _read_table(
    file: Path, places: Mapping[str, list[Path]], listed: dict[Path, tuple[Path, str]], found: Read
) -> None:
    """Add the captions of one metadata file to those `listed`, unless an earlier file has them."""
    unused: set[str] = set()
    differing: list[Path] = []
    wrong: list[str] = []
    try:
        entries = caption_tables.rows(file)
    except ValueError as error:
        entries, wrong = (), [str(error)]
    for where, entry in entries:
        try:
            if isinstance(entry, ValueError):
                raise entry
            name, said = caption_tables.file_named(entry), caption_tables.said(found.options, entry)
            unused |= said.unused
            text = said.text(found.options)
            for path in caption_tables.named(file.parent, name, places):
                origin, known = listed.setdefault(path, (file, text))
                if text != known and origin == file:
                    raise ValueError(f"is a second caption of {shown(name)}; keep one of them")
                differing += [path] if text != known else []
        except ValueError as error:
            wrong.append(f"{shown(file)} {where}: {error}")
    if found.options.captions == "metadata" or file.suffix == ".jsonl":
        found.problems += wrong
    elif wrong:  # other programs' files of these names may say anything
        found.notes.append(f"entries of {found.names[file]} are not used ({len(wrong)}); the first: {wrong[0]}")
    found.note(differing, f"{file.name} disagrees with another metadata file, which is used")
    if unused:
        found.notes.append(f"{found.names[file]}: ignored entries ({shown(', '.join(sorted(unused)))})")


# -- names, and pictures without a caption ----------------------------------------------------------------------------


def _by_name(paths: Sequence[Path], roots: Container[Path], found: Read) -> None:
    """Captions that are in no file."""
    source, given = found.options.captions, found.options.caption_text.strip()
    for path in paths:
        text = given if source == "text" else ""
        if source == "foldername":
            text = folder_caption(path, roots)
        elif source == "filename":
            text = _text_of(path.stem)
        found.captions[path] = Caption(text, source, None)


def _without(
    paths: Sequence[Path], roots: Container[Path], beside: Mapping[str, Mapping[Path, Path]], found: Read
) -> None:
    """What is done with pictures that have no caption."""
    options, given = found.options, found.options.caption_text.strip()
    missing = found.lacking(paths)
    source = "text" if given else {"error": "missing"}.get(options.missing_captions, options.missing_captions)
    for path in missing:
        text = given or (_text_of(path.stem) if source == "filename" else "")
        found.captions[path] = Caption(text, source, _existing(path, beside, options))
    if given:
        found.note(missing, "pictures without a caption use data.caption_text")
    elif missing and options.missing_captions == "error":
        found.lacks = lambda left_out: _sentence([one for one in missing if one not in left_out], roots, beside, found)
    elif options.missing_captions == "filename":
        found.note(missing, "pictures without a caption use their file name as caption")
    else:
        found.note(missing, "pictures without a caption use the empty caption")


def _existing(path: Path, beside: Mapping[str, Mapping[Path, Path]], options: Data) -> Path | None:
    """The caption file of a picture without a caption: the one that is there, and empty, or would be."""
    written = _written(path, options)
    return written and beside[written.suffix[1:]].get(path, written)


def _sentence(
    missing: list[Path], roots: Container[Path], beside: Mapping[str, Mapping[Path, Path]], found: Read
) -> str:
    """What is wrong where captions are missing, and what can be done: a short sentence however many they are, "" if
    none is."""
    if not missing:
        return ""
    used = found.options.captions
    ways = []
    for source, files in beside.items():
        there = [path for path in missing if path in files]
        if there and used not in ("auto", source):
            ways.append(f"read the .{source} files beside {len(there)} of them with --data.captions {source}")
    ending = used if used in beside else "txt"
    ways.append(
        f"add them to {caption_tables.TABLES[0]}" if used == "metadata"
        else f"write one into a .{ending} file of the same name"
    )  # fmt: skip
    if any(map(REPEATS.match, _folders(missing[0], roots))) and (folder := folder_caption(missing[0], roots)):
        ways.append(f'use the folder\'s name ("{shown(folder)}") with --data.captions foldername')
    names = listing([found.names[path] for path in missing], most=3)
    return (
        f"pictures without a caption ({names}); {', '.join(ways)}, or train them with a trigger alone: "
        '--data.trigger "sks dog" --data.missing_captions empty (filename: their names as captions)'
    )
