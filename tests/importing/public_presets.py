"""Imports every preset that other trainers ship: `python -m tests.importing.public_presets --write`.

`GIMBAL_TRAINERS` names a folder with checkouts of OneTrainer, kohya_ss and ai-toolkit (or `owner+name`). Nothing of
them is copied; docs/public-presets.md has the counts and our sentences. With --check each preset that is imported is
checked with a small base of its family, and with pictures, captions and masks in place of its folders. Without --write
the lists are printed.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from modules.answer import put
from modules.importing import import_file, report
from modules.importing.base import Wishes
from modules.importing.ledger import Imported
from modules.preset import files
from tests import tiny_edit
from tests.families.rows import FAMILIES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/public-presets.md"
BEGIN, END = "<!-- public_presets: begin -->", "<!-- public_presets: end -->"

SHIPPED = {
    "OneTrainer": ("training_presets/**/*.json",),
    "kohya_ss": ("presets/**/*.json",),
    "ai-toolkit": ("config/examples/**/*.y*ml",),
}
"""Trainers, and where their presets are."""

REASONS = {
    "none of Gimbal's families": "a model of another family",
    "its other pages train no adapters": "DreamBooth or fine-tuning: all weights are trained",
    "training_method is FINE_TUNE": "all weights are trained (--method trains an adapter with these settings)",
    "training_method is EMBEDDING": "an embedding (textual inversion)",
    "all weights were trained": "all weights are trained (--method trains an adapter with these settings)",
    "is no training of an adapter": "no training: extraction, generation, sliders",
    "not one of Gimbal's; choose": "a method that Gimbal does not have (--method takes the nearest)",
    "is not YAML": "the file is not valid YAML",
    "reads pictures": "an adapter of another kind, which reads pictures",
}
"""Parts of the sentences that refuse, and what they say in short."""


@dataclass
class Row:
    """What became of a file."""

    trainer: str
    name: str
    imported: Imported | None = None
    refused: str = ""
    problems: list[str] = field(default_factory=list)
    """Of --check."""


def checkout(name: str) -> Path:
    """The folder of a trainer. Raises ValueError if it is not there."""
    given = os.environ.get("GIMBAL_TRAINERS", "")
    found = [place for place in Path(given).glob("*") if place.name.rpartition("+")[2] == name] if given else []
    if not found:
        raise ValueError(f"GIMBAL_TRAINERS: there is no folder {name} in {given or 'it, since it is not set'}")
    return found[0]


def shipped() -> Iterator[tuple[str, Path]]:
    """All files, by trainer."""
    for trainer, patterns in SHIPPED.items():
        place = checkout(trainer)
        yield from ((trainer, path) for pattern in patterns for path in sorted(place.glob(pattern)))


EDITORS = {"flux": ("FluxKontextPipeline",) * 2, "qwenimage": ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")}
"""The pipelines that edit with one reference picture, and with several."""

FEW_POSITIONS = ("sd3", "anima", "zimage")
"""Families whose small bases take small pictures alone."""


def base_of(family: str, folder: Path, references: int) -> Path:
    """A small base of a family that takes as many reference pictures."""
    if references:
        kind = EDITORS[family][references > 1]
        place = folder / kind
        return place / "base" if place.exists() else tiny_edit.make_folder(place, kind)
    own = {"sdxl": ROOT / "demo/base", "flux": ROOT / "demo/flux_base"}
    if family in own:
        return own[family]
    place = folder / family
    if not place.exists():
        row = next(row for row in FAMILIES.values() if row.family == family)
        row.make_pair(place)[0].rename(place / "base")
    return place / "base"


def moved(entry: str | dict, place: Path) -> dict:
    """A folder of the preset with all its settings, at a place with small pictures. Each has a caption in a file of
    every kind, a mask beside it, and lies in a folder called `10_name`."""
    inner = place / "10_sks thing"
    if not inner.exists():
        inner.mkdir(parents=True)
        for number, path in enumerate(sorted((ROOT / "demo/dataset").glob("*.png"))[:8]):
            with Image.open(path) as picture:
                picture.convert("RGB").resize((96, 64 + 8 * number)).save(inner / path.name)
            Image.new("L", (96, 64 + 8 * number), 255).save(inner / f"{path.stem}-masklabel.png")
            for ending in (".txt", ".caption"):
                (inner / path.name).with_suffix(ending).write_text(f"sks thing, {path.stem}", encoding="utf-8")
    settings = {"path": entry} if isinstance(entry, str) else entry
    given = [str(place.with_name(f"{place.name}_{number}")) for number, _ in enumerate(settings.get("references", ()))]
    for references in map(Path, given):
        references.mkdir(exist_ok=True)
        for path in inner.glob("*.png"):
            if "masklabel" not in path.name:
                shutil.copy(path, references)
    return {**settings, "path": str(place)} | ({"references": given} if given else {})


def checked(imported: Imported, folder: Path) -> list[str]:
    """The problems that --check finds with a small base and small pictures, captions and masks where the preset has its
    folders, without quantization and without files that are on the author's machine."""
    from modules.training import check

    target = folder / "preset.json"
    target.unlink(missing_ok=True)
    report.write(imported, target)
    family = imported.values["family"]
    entries = imported.values.get("data", {}).get("folders") or ["images"]
    places = [moved(entry, folder / f"pictures{number}") for number, entry in enumerate(entries)]
    references = max(len(place.get("references", ())) for place in places)
    ours = {"base.path": str(base_of(family, folder, references)), "data.folders": json.dumps(places), "name": "public"}
    plain = {"base.quantization": "none", "training.compile": "false"}
    prompts = imported.values.get("samples", {}).get("prompts", ())
    if any(isinstance(one, dict) for one in prompts):
        shown = [str(next(Path(places[0]["references"][0]).glob("*.png")))]
        plain["samples.prompts"] = json.dumps([{**one, "references": shown} if isinstance(one, dict) else one
                                               for one in prompts])
    if family in FEW_POSITIONS:
        plain |= {"data.resolution": "48", "samples.width": "64", "samples.height": "64"}
    if "start_from" in imported.values["adapter"]:
        plain["adapter.start_from"] = ""
    if "training_adapter" in imported.values["base"]:
        plain["base.training_adapter"] = ""
    resolved = files.resolve(str(target), [*ours.items(), *plain.items()])
    return check.examine(resolved.preset, "cuda").problems


def rows(check: bool) -> list[Row]:
    """What becomes of each file."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for trainer, path in shipped():
            row = Row(trainer, path.stem)
            try:
                row.imported = import_file(path, Wishes())
                report.preset_values(row.imported)
            except ValueError as error:
                row.imported, row.refused = None, str(error).removeprefix(f"{path}: ")
            if check and row.imported is not None:
                row.problems = checked(row.imported, Path(folder))
            found.append(row)
    return found


def why(refused: str) -> str:
    """A refusal in short; the sentence itself where it is of no known kind."""
    return next((short for part, short in REASONS.items() if part in refused), refused)


def summary(found: list[Row]) -> str:
    """The tables of the page."""
    lines = ["| trainer | files | imported | refused |", "|---|---|---|---|"]
    for trainer in SHIPPED:
        own = [row for row in found if row.trainer == trainer]
        taken = sum(row.imported is not None for row in own)
        lines.append(f"| {trainer} | {len(own)} | {taken} | {len(own) - taken} |")
    lines += ["", "| trainer | refused because of | files |", "|---|---|---|"]
    refusals = Counter((row.trainer, why(row.refused)) for row in found if row.refused)
    lines += [f"| {trainer} | {reason} | {count} |" for (trainer, reason), count in refusals.items()]
    lines += ["", "| trainer | preset | family | method | mapped | changed | dropped | defaults |", "|" + "---|" * 8]
    for row in found:
        if row.imported is None:
            continue
        one = row.imported
        counts = (len(one.mapped), len(one.changed), len(one.dropped), one.defaults)
        method = one.values["adapter"]["method"]
        cells = (row.trainer, row.name.replace("#", ""), one.values["family"], method, *counts)
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join([*lines, "", *_said(found, "changed"), "", *_said(found, "dropped")])


def _said(found: list[Row], part: str) -> list[str]:
    """The settings that were changed or dropped in most files, with what is said."""
    sentences: dict[tuple[str, str], list[str]] = {}
    for row in found:
        for entry in getattr(row.imported, part) if row.imported else ():
            key = re.sub(r"\[\d+\]", "[]", entry.key)
            sentences.setdefault((row.trainer, key), []).append(entry.sentence)
    lines = [f"| trainer | {part} setting | files | for example |", "|---|---|---|---|"]
    often = sorted(sentences.items(), key=lambda one: (-len(one[1]), one[0]))
    for (trainer, key), said in often[:25]:
        lines.append(f"| {trainer} | `{key}` | {len(said)} | {said[0].replace('|', '/')} |")
    return lines


def main() -> int:
    """Print or write; the number of presets with problems, or refused for a reason that is not known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/public-presets.md")
    parser.add_argument("--check", action="store_true", help="check each preset, which takes minutes")
    arguments = parser.parse_args()
    try:
        found = rows(arguments.check)
    except ValueError as error:
        parser.error(str(error))
    strange = 0
    for row in found:
        if row.imported is not None and not arguments.write:
            print(report.text(row.imported), end="\n\n")
        elif row.refused:
            print(f"{row.trainer} {row.name}: refused: {row.refused}")
            strange += why(row.refused) == row.refused
        for problem in row.problems:
            strange += 1
            print(f"{row.trainer} {row.name}: {problem}")
    if arguments.write:
        put(PAGE, summary(found), BEGIN, END)
        print(f"wrote {PAGE}")
    return strange


if __name__ == "__main__":
    sys.exit(main())
