"""Compare the shipped demo presets side by side: trains each once, or uses finished runs.

    python scripts/compare.py                                                # trains what is not in runs/ yet
    python scripts/compare.py --runs /tmp/short --steps 20 --only lora_demo oft_demo
    python scripts/compare.py --timing lora_demo --write

All presets whose names end in `_demo` and that train on `--base` are compared: trainable parameters, exported file,
validation loss, and the sample pictures of the last step, in one picture `methods.png`. Runs are made one after another
by scripts/train.py in `--runs`; finished runs are reused, and a run of other options is an error.

`--spectrum` adds the spectral norm, the stable rank and the effective rank of the exported files' changes, as
`scripts/inspect_adapter.py --spectrum` shows them for each layer; here medians over the layers.

`--timing PRESET` also measures seconds per step, as multiples of that preset's: all presets take steps in turn in this
process, so that a busy machine slows all of them alike. The results are kept in `timing.json` beside the runs, for
later tables. `--write` puts table and picture into docs/methods.md.

Exit codes: 0 done, 1 a training failed (the table has the others), 2 bad input.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from modules.answer import put, script
from modules.documents import parse_json, read_object, read_text
from modules.preset import files
from modules.preset.schema import Preset
from modules.training.ended import finished_file
from modules.training.events import read_events
from modules.training.run import check_same
from modules.training.samples import draw_grid, pictures_of

PAGE, PICTURE = ROOT / "docs/methods.md", ROOT / "docs/images/methods.png"
BEGIN, END = "<!-- compare: begin -->", "<!-- compare: end -->"
ENDING = "_demo"
LABEL, CELL = 150, 128
"""Pixels for a row's label, and the least width of a picture."""

HEADS = ("preset", "trainable parameters", "file", "layers by form", "largest error", "learning rate", "s per step",
         "loss before", "after", "fall", "subject", "style")
SPECTRUM = ("spectral norm", "stable rank", "effective rank")


@dataclass(frozen=True)
class Row:
    """A finished run."""

    preset: Preset
    folder: Path
    step: int
    parameters: int
    bytes: int
    """Of the exported file."""
    forms: Counter[str]
    """Layers by their form in it."""
    error: float
    """The largest error of a layer, relative to its largest weight."""
    approximated: int
    """Layers in an approximate form."""
    before: float | None
    """Validation loss of the frozen base."""
    after: float | None
    prompts: tuple[str, ...]
    """Of the sample pictures of the last step."""
    judged: tuple[dict[str, Any], ...]
    """Events `judged`, in order."""
    medians: tuple[float, ...] = ()
    """`SPECTRUM` of the layers, where wanted."""

    @property
    def fall(self) -> str:
        """Reduction of the validation loss, in words."""
        return f"{100 * (1 - self.after / self.before):.1f} %" if self.before and self.after else "-"

    def shares(self, what: str) -> str:
        """Shares of the sample pictures, over the steps at which they were drawn."""
        return ", ".join(f"{event[what]:.0%}" for event in self.judged) or "-"


@dataclass(frozen=True)
class Timing:
    """Seconds per step, measured in turn."""

    reference: str
    ratios: dict[str, float]
    """By preset, as multiples of the reference's."""


def main() -> int:
    """Read the arguments, train, measure, print, and perhaps write the page."""
    arguments = parsed()
    try:
        text, failed = compare(arguments)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    return int(failed)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", metavar="PRESET", help="compare only these presets, whatever their names")
    parser.add_argument("--base", default="demo/base", help="the presets' base; losses on others are not comparable")
    parser.add_argument("--steps", type=int, help="number of steps; default: as in the presets")
    parser.add_argument("--timing", metavar="PRESET", help="measure seconds per step, as multiples of this preset's")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each preset that are timed")
    parser.add_argument("--spectrum", action="store_true", help="add spectral norm, stable rank and effective rank of "
                        "the changes: medians over the layers")
    parser.add_argument("--write", action="store_true", help="put table and picture into docs/methods.md")
    return parser.parse_args()


def compare(arguments: argparse.Namespace) -> tuple[str, bool]:
    """The table, and whether a training failed. Raises ValueError for bad input and OSError."""
    runs = arguments.runs.resolve()
    presets = [resolved(name, runs, arguments.steps) for name in arguments.only or demos(arguments.base)]
    for preset in presets:
        check_same(runs / preset.name, preset)
    rows = [read(runs / preset.name) for preset in presets if is_trained(preset, runs)]
    if not rows:
        raise ValueError("no finished run to compare")
    check_alike(rows)
    rows = with_spectrum(rows) if arguments.spectrum else rows
    timing = timed(presets, arguments, runs)
    picture = PICTURE if arguments.write else runs / PICTURE.name
    picture.parent.mkdir(parents=True, exist_ok=True)
    side_by_side(rows).save(picture)
    text = f"{described(rows, timing)}\n\n{table(rows, timing)}"
    if arguments.write:
        link = f"![The same prompts and noise for each preset]({picture.relative_to(PAGE.parent).as_posix()})"
        put(PAGE, f"{text}\n\n{link}", BEGIN, END)
    return f"{text}\n\n{picture}", len(rows) < len(presets)


# -- runs -------------------------------------------------------------------------------------------------------------


def demos(base: str) -> list[str]:
    """Names of the demo presets on `base`. Raises ValueError if there is none."""
    names = sorted({*files.named(), *(one.name for one in files.every())})
    found = [name for name in names if name.endswith(ENDING) and files.resolve(name).preset.base.path == base]
    if not found:
        raise ValueError(f"--base {base}: no preset that ends in {ENDING} trains on it")
    return found


def resolved(name: str, runs: Path, steps: int | None) -> Preset:
    """The preset as it is trained here. Raises ValueError."""
    overrides = [("saving.folder", str(runs)), *([("training.steps", str(steps))] if steps is not None else [])]
    return files.resolve(name, overrides).preset


def is_trained(preset: Preset, runs: Path) -> bool:
    """Whether there is a finished run; trains it if necessary. scripts/train.py prints why it failed."""
    folder = runs / preset.name
    if finished_file(folder, preset) is not None:
        print(f"{preset.name}: {folder} is finished", file=sys.stderr)
        return True
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"{preset.name}.json"
        files.write(preset, path)
        outcome = subprocess.run([sys.executable, ROOT / "scripts/train.py", "--preset", path], check=False)
    if outcome.returncode:
        print(f"{preset.name}: its training ended with exit code {outcome.returncode}; left out", file=sys.stderr)
    return not outcome.returncode


def read(folder: Path) -> Row:
    """The facts of a finished run. Raises ValueError and OSError for folders that were changed."""
    preset = files.resolve(str(folder)).preset
    file, events = finished_file(folder, preset), read_events(folder / "events.jsonl")
    assert file is not None
    metadata = metadata_of(file)
    forms, errors, approximations = (
        parse_json(metadata.get(f"gimbal.{name}", ""), f"{file}: gimbal.{name}")
        for name in ("form", "errors", "approximations")
    )
    losses = {event["step"]: event["loss"] for event in events if event["event"] == "validation"}
    step = next(event["step"] for event in reversed(events) if event["event"] == "finished")
    samples = {e["path"]: e["prompt"] for e in events if e["event"] == "sample" and e["step"] == step}
    return Row(
        preset=preset,
        folder=folder,
        step=step,
        parameters=parameters(folder / "layers.tsv"),
        bytes=file.stat().st_size,
        forms=Counter(forms.values()),
        error=max(errors.values()),
        approximated=len(approximations),
        before=losses.get(0),
        after=losses.get(step),
        prompts=tuple(samples[path] for path in sorted(samples)),
        judged=tuple(event for event in events if event["event"] == "judged"),
    )


def with_spectrum(rows: list[Row]) -> list[Row]:
    """The same with the medians of their exported files, all on one base. Raises ValueError for unreadable files."""
    from modules.files import opening
    from modules.tools import base_of_file, spectrum

    found, base = [], rows[0].preset.base
    files_of = [opening.read(file) for row in rows if (file := finished_file(row.folder, row.preset)) is not None]
    model = base_of_file.load(files_of[0], base.path, base.config, rows[0].preset.family)
    for row, file in zip(rows, files_of, strict=True):
        print(f"spectrum: {file.path}", file=sys.stderr)
        found.append(replace(row, medians=spectrum.measure([file], model).spectra[0].medians()))
    return found


def metadata_of(file: Path) -> dict[str, str]:
    """The metadata of a .safetensors file."""
    from modules.tensorfile import read_header

    return read_header(file).metadata


def parameters(path: Path) -> int:
    """Trainable parameters of all layers in a run's table of them."""
    head, *rows = [line.split("\t") for line in read_text(path).splitlines()]
    return sum(int(row[head.index("parameters")]) for row in rows)


def check_alike(rows: list[Row]) -> None:
    """Raise ValueError for runs whose pictures or losses are not comparable."""
    first = rows[0]
    for row in rows[1:]:
        for what, ours, theirs in (
            ("base", first.preset.base.path, row.preset.base.path),
            ("prompts", first.prompts, row.prompts),
            ("samples", looks(first.preset), looks(row.preset)),
            ("validation pictures", validation(first.preset), validation(row.preset)),
        ):
            if ours != theirs:
                raise ValueError(f"{row.folder} cannot be compared with {first.folder}: its {what} are {theirs}, not "
                                 f"{ours}; leave it out with --only")


def validation(preset: Preset) -> list[str]:
    """The folders of validation pictures."""
    from modules.data.folders import entries

    return [folder.path for _, folder in entries(preset.data, "validation")]


def looks(preset: Preset) -> dict[str, Any]:
    """How the sample pictures are made."""
    return preset.samples.model_dump(exclude={"every"})


# -- seconds per step -------------------------------------------------------------------------------------------------


def timed(presets: list[Preset], arguments: argparse.Namespace, runs: Path) -> Timing | None:
    """New measurements, if requested, with stored ones of the same reference; None if there is neither."""
    path = runs / "timing.json"
    kept = Timing(**read_object(path)) if path.is_file() else None
    if arguments.timing is None:
        return kept
    reference = resolved(arguments.timing, runs, arguments.steps)
    ratios = measured([reference, *(preset for preset in presets if preset.name != reference.name)], arguments.rounds)
    if kept is not None and kept.reference == reference.name:
        ratios = {**kept.ratios, **ratios}
    found = Timing(reference.name, ratios)
    path.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
    return found


def measured(presets: list[Preset], rounds: int) -> dict[str, float]:
    """Median over the rounds of a step's seconds, as a multiple of those of the first preset in the same round."""
    from modules.training import loop
    from modules.training.feed import Feed
    from modules.training.session import start_processes

    machine = start_processes()
    sessions = {preset.name: ready(preset, machine) for preset in presets}
    progress = {name: loop.Progress(Feed(session)) for name, session in sessions.items()}
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 1):
        seconds = {}
        for name, session in sessions.items():
            begun = time.perf_counter()
            loop.take_step(session, progress[name])  # waits for the device: it reads the loss
            seconds[name] = time.perf_counter() - begun
            session.step += 1
        print(f"timing: round {number} of {rounds}, {sum(seconds.values()):.1f} s", file=sys.stderr)
        for name, taken in seconds.items() if number else ():  # the first one allocates buffers
            found[name].append(taken / seconds[presets[0].name])
    return {name: round(statistics.median(ratios), 3) for name, ratios in found.items()}


def ready(preset: Preset, machine: Any) -> Any:
    """A session of the preset before its first step; nothing of it is kept on disk. Raises ValueError."""
    from modules.data.folders import without_validation
    from modules.training import check
    from modules.training.events import Events
    from modules.training.preparing import prepare
    from modules.training.probe import replace_sections
    from modules.training.run import Run
    from modules.training.session import Pictures, start_accelerator

    data = {"cache": False, "folders": without_validation(preset.data).folders}
    alone = replace_sections(preset, data=data, samples={"enabled": False})
    found = check.examine(alone, machine.device.type)
    if found.problems or found.training is None:
        raise ValueError(f"{preset.name}: " + "; ".join(found.problems))
    with tempfile.TemporaryDirectory() as place, Events(Path(place)) as events:
        run = Run(Path(place), preset.name)
        return prepare(alone, Pictures(found.training, None), run, events, start_accelerator(alone, machine))


# -- what is shown ----------------------------------------------------------------------------------------------------


def described(rows: list[Row], timing: Timing | None) -> str:
    """What the values mean, in sentences."""
    from importlib.metadata import version

    steps, base = " or ".join(str(step) for step in sorted({row.step for row in rows})), rows[0].preset.base.path
    said = (f"`python scripts/compare.py`, {time.strftime('%Y-%m-%d')}, torch {version('torch')}, Python "
            f"{platform.python_version()}: one run of {steps} steps with one seed each, on `{base}`. Differences of a "
            "few thousandths between losses mean nothing. Losses are of the validation pictures; the largest error is "
            "a layer's in the exported file, as a part of its largest weight.")
    said += " Spectral norm and ranks are medians over the layers' changes." if rows[0].medians else ""
    return f"{said} Seconds per step, measured in turn, are multiples of `{timing.reference}`'s." if timing else said


def table(rows: list[Row], timing: Timing | None) -> str:
    """Markdown, with aligned columns."""
    ratios = timing.ratios if timing else {}
    heads = (*HEADS, *(SPECTRUM if rows[0].medians else ()))
    lines = [heads, *(cells(row, ratios.get(row.preset.name)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in lines)


def cells(row: Row, ratio: float | None) -> tuple[str, ...]:
    """A line of the table; `ratio` is that of the seconds per step."""
    losses = [f"{x:.4f}" if x else "-" for x in (row.before, row.after)]
    forms = ", ".join(f"{count} {form}" for form, count in row.forms.most_common())
    return (
        f"`{row.preset.name}`", f"{row.parameters:,}", f"{row.bytes / 1e6:.1f} MB", forms,
        f"{row.error:.1e}{' (approximated)' if row.approximated else ''}", f"{row.preset.training.learning_rate:g}",
        f"{ratio:.2f}" if ratio else "-", *losses, row.fall, row.shares("subject"), row.shares("style"),
        *(f"{value:.3g}" for value in row.medians),
    )


def side_by_side(rows: list[Row]) -> Any:
    """The sample pictures: a row per run, a column per prompt, and first what the base draws without an adapter.

    Raises ValueError if there are no pictures.
    """
    prompts = rows[0].prompts
    if not prompts:
        raise ValueError(f"{rows[0].folder} has no sample pictures of its last step")
    before = f"without adapter\nloss {rows[0].before:.4f}" if rows[0].before else "without adapter"
    named = [row.preset.name + (f"\nloss {row.after:.4f}\nfall {row.fall}" if row.after else "") for row in rows]
    pictures = [pictures_of(row.folder, row.step, len(prompts)) for row in rows]
    return draw_grid([before, *named], [pictures_of(rows[0].folder, 0, len(prompts)), *pictures], prompts, LABEL, CELL)


if __name__ == "__main__":
    sys.exit(script(main, prints=True))
