"""Whether the folders that a training writes to are writable, and whether their disk has room for it."""

import os
import shutil
from pathlib import Path
from typing import Any

from modules.data.batches import Batches
from modules.data.cache import has_entries
from modules.data.index import Index
from modules.data.names import shown
from modules.preset.schema import Preset
from modules.training import due


def look(preset: Preset, found: Any) -> None:
    """Whether the folders that a training writes to are writable. Adds to the problems and notes of `found`, a
    `check.Findings`, whose pictures and layers have been looked at."""
    folders = {"saving.folder": preset.saving.folder}
    if preset.data.cache:
        folders["data.cache_folder"] = preset.data.cache_folder
    for option, folder in folders.items():
        try:
            Path(folder).stat()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:  # a name that is too long, a loop of links; a zero byte
            why = error.strerror if isinstance(error, OSError) else error
            found.problems.append(f"{option} {shown(folder)}: {why}; give another folder with --{option}")
            continue
        exists = next(place for place in (Path(folder).absolute(), *Path(folder).absolute().parents) if place.exists())
        writable = exists.is_dir() and os.access(exists, os.W_OK)
        if not writable and option == "data.cache_folder" and has_entries(Path(folder)):
            found.notes.append(f"{option} {folder}: read-only; this works only if it already holds all that is needed")
        elif not writable:
            what = "cannot be written" if exists.is_dir() else "is a file, not a folder"
            found.problems.append(f"{option} {folder}: {exists} {what}; give another folder with --{option}")
        elif option == "saving.folder" and found.adapted:
            _look_at_room(preset, exists, found)


def _look_at_room(preset: Preset, place: Path, found: Any) -> None:
    """Whether the disk of the run folder has room for what will be written. A problem where not even one state and
    the exported file fit; a note where all together do not, since sizes of pictures are estimated."""
    begun = (Path(preset.saving.folder) / preset.name).exists()  # it has some of these files already
    free, (least, most) = shutil.disk_usage(place).free, expected_bytes(preset, found)
    where = f"saving.folder {preset.saving.folder}: {free:,} bytes are free on its disk"
    if free < least and not begun:
        found.problems.append(
            f"{where}, and one training state and the exported file need about {least:,}; free some space, or "
            "give another folder with --saving.folder"
        )
    elif free < most:
        found.notes.append(
            f"{where}, and the whole run may need {most:,} (states, exported files, sample pictures): free some space, "
            "or lower saving.keep_states or saving.keep_exports, or raise samples.every and saving.export_every"
        )


def expected_bytes(preset: Preset, found: Any) -> tuple[int, int]:
    """Bytes that a run writes into its folder: for one state and the exported file; and in all, estimated."""
    saving, samples, steps = preset.saving, preset.samples, found.steps
    tensors = (tensor for layer in found.adapted.values() for tensor in layer.adapter.state_dict().values())
    adapter = sum(tensor.nbytes for tensor in tensors)
    state = (3 if preset.training.ema == "none" else 4) * adapter  # two averages per parameter, as Adam has them
    plans, batches = due.plans(preset), found.training and planned(preset, found.training, 1)
    per_epoch = batches.steps(1) if batches else steps
    files = due.times(plans["export"], steps, per_epoch)
    files = 1 + min(files, saving.keep_exports or files)
    side = preset.data.largest
    picture = 2 * (samples.width or side) * (samples.height or side)  # PNG of a photograph: 2 of 3 bytes per pixel
    times = 2 + due.times(plans["sample"], steps, per_epoch)
    pictures = times * (len(samples.prompts) or 4) * picture if samples.enabled else 0
    lines = 2000 * steps  # of events, log and curves
    best = 2 * (state + found.file_bytes) if saving.keep_best else 0  # the new one before the old one is deleted
    most = (saving.keep_states + 1) * state + adapter + files * found.file_bytes + best + pictures + lines
    return state + adapter + found.file_bytes, most


def planned(preset: Preset, index: Index, processes: int) -> Batches:
    """The batches of a training with so many processes, as the first of them sees them."""
    training = preset.training
    return Batches(index, training.batch_size, training.accumulation, processes, rank=0, seed=training.seed)
