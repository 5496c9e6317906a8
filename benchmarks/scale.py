"""CPU time per layer of everything that goes through all layers of a model, at a quarter, half and all of its blocks.

    python benchmarks/scale.py                                  # SDXL and FLUX.1-dev with LoRA, WoRA and DOFT
    python benchmarks/scale.py --models sdxl --methods lora --rounds 5 --write

Models are built from their published configurations (tests/data/full_size): real layers with real names, tensors of a
sixteenth of the width, all that can be adapted in denoiser and text encoders. What `--check` does is measured at full
width, without weights. Every method is attached; the rest is done with those that are asked for. The three sizes take
turns, so that a busy machine slows all of them alike; one thread is used, and Python's garbage collector waits. A
growth is the median over the rounds of the time per layer in the largest model, as a multiple of that in the smallest.
Work that seems to grow by more than LIMIT is measured once more, with twice as many rounds. Exit code 1 if it still
does. --write puts the table into docs/performance.md.
"""

import argparse
import gc
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks import full_size
from modules import adapters, families
from modules.adapters.base import Adapted, detach
from modules.export import export
from modules.export.report import Report
from modules.files import opening, reading, run_file
from modules.files.facts import Facts
from modules.hosts.parts import effect_of_file
from modules.preset.schema import Base, Export, Preset
from modules.tools import convert, inspect_file, resize, verify
from modules.tools.merge import into_base, sources
from modules.tools.merge.checkpoint import Checkpoint
from modules.training import check, layer_options, setup
from tests.full_size import MODELS, make_folder

BEGIN, END = "<!-- scale: begin -->", "<!-- scale: end -->"
SHARES = (0.25, 0.5, 1.0)
"""Of the blocks."""
NARROW = 16
"""Widths are divided by this."""
LIMIT, UNSEEN = 1.5, 5e-5
"""A time per layer has grown if it is so many times what it was, and more than so many seconds above it."""

BLOCKS = ("transformer_layers_per_block", "num_layers", "num_single_layers", "num_hidden_layers")
WIDTHS = ("block_out_channels", "cross_attention_dim", "joint_attention_dim", "pooled_projection_dim", "hidden_size",
          "intermediate_size", "projection_dim", "d_model", "d_kv", "d_ff", "vocab_size", "norm_num_groups")
HEAD = ("| model | method | work | a quarter of the blocks | half | all |", "|---|---|---|---|---|---|")
HEADS = "attention_head_dim"
"""Of a transformer; a UNet's configuration has the number of heads under this name."""

SMALL = {"rank": 2, "block_size": 4, "planes": 2, "factor": 4}
"""Options that only say how much is learned, small enough for narrow layers."""
EVERYTHING = {"layers": "all", "text_encoders": True}


@dataclass
class Case:
    """A model of one size, with a method."""

    preset: Preset
    model: Any
    skeleton: Preset
    """The same preset for the model at full width, of which there is a configuration only."""
    folder: Path
    """For what is written."""
    adapted: dict[str, Adapted] = field(default_factory=dict)
    report: Report | None = None
    """Of the last export."""

    @property
    def file(self) -> opening.AdapterFile:
        """The exported file."""
        return opening.read(self.folder / "file.safetensors")


# -- what is measured -------------------------------------------------------------------------------------------------


def checks(case: Case) -> None:
    """What `scripts/train.py --check` does, without pictures."""
    check.text(check.report(case.skeleton, check.examine(case.skeleton, "cpu")))


def matches(case: Case) -> None:
    """Choosing layers with two patterns and a rule for each."""
    names = setup.layer_names(case.model)
    rules = [{"match": name, "rank": 1 + place % 3} for place, name in enumerate(names)]
    patterns = [name.replace(".", "?", 1) for name in names]
    values = {"layers": "all", "include": names, "exclude": patterns[1:], "rules": rules}
    targets = Preset.model_validate({**case.preset.model_dump(mode="json"), "targets": values}).targets
    setup.match_layers(case.model, targets)
    setup.unmatched_rules(case.model, targets, names)
    layer_options.own_settings(case.model, targets, names)


def misses(case: Case) -> None:
    """Patterns of a model of another family: one for each layer, and none has a layer."""
    rules = [{"match": f"x{name}", "rank": 1} for name in setup.layer_names(case.model)]
    values = {"layers": "all", "include": [rule["match"] for rule in rules], "rules": rules}
    targets = Preset.model_validate({**case.preset.model_dump(mode="json"), "targets": values}).targets
    assert len(setup.match_layers(case.model, targets)[1]) == len(rules)
    assert len(setup.unmatched_rules(case.model, targets, [])) == len(rules)


def attaches(case: Case) -> None:
    """Adapters onto all layers, in place of those that were there."""
    case.adapted, problems = setup.attach_all(case.model, case.preset)
    assert case.adapted and all("exclude" in problem for problem in problems), problems[:1]


def lists(case: Case) -> None:
    """The optimizer's groups, and the table of layers."""
    setup.parameter_groups(case.adapted, case.model, case.preset.targets)
    setup.layer_table(case.adapted, case.model, case.preset)


def saves(case: Case) -> None:
    """The adapters into a run's own file, and back."""
    run_file.save(case.folder / "adapter.safetensors", case.adapted, Facts())
    run_file.load(case.folder / "adapter.safetensors", case.adapted)


def exports(case: Case) -> None:
    """The file for ComfyUI."""
    case.report = export.export(case.model, case.adapted, case.preset, Facts(), case.folder / "file.safetensors")


def reports(case: Case) -> None:
    """What the export says, on screen and in the file."""
    assert case.report is not None
    assert case.report.text() and case.report.table() and case.report.outcome()


def inspects(case: Case) -> None:
    """`scripts/inspect_adapter.py`."""
    inspect_file.inspect(case.file).text()


def resizes(case: Case) -> None:
    """`scripts/resize.py`; of a file without pairs, what it refuses it for."""
    try:
        resize.resized(case.file, resize.to_rank(1))
    except ValueError as error:
        assert "no low-rank layers" in str(error), error


def converts(case: Case) -> None:
    """`scripts/convert.py` into full differences, in names that have query, key and value as one."""
    file, options = case.file, Export(host="kohya", form="full")
    found = reading.place(file, case.model)

    def about(written: export.Written) -> dict[str, str]:
        return convert.about(file, found.writer, options, written, case.model)

    changes = reading.changes(file, case.model)
    export.write(case.folder / "converted.safetensors", case.model, changes, options, about)


def verifies(case: Case) -> None:
    """`scripts/verify.py`."""
    found = reading.place(case.file, case.model)
    rows = verify.check(found, verify.by_arithmetic(found, "comfyui"))
    verify.text(rows, "comfyui", torch.float16, True, verify.tolerance(found, False))
    effect_of_file.name_troubles("comfyui", "", [placed.name for placed in found.placed])


def merges(case: Case) -> None:
    """`scripts/merge.py` into a folder in diffusers' layout."""
    place = Path(case.preset.base.path)
    base = Checkpoint(families.load_class(case.preset.family).skeleton(Base(path=str(place))), place)
    source, _ = sources.of_file(case.folder / "file.safetensors", base)
    with tempfile.TemporaryDirectory() as folder:
        into_base.merge_into(base, Path(folder) / "merged", source, into_base.Options()).text()


# -- what has to be there before, and takes no part in the time -------------------------------------------------------


def as_it_is(case: Case) -> None:
    """Nothing."""


def bare(case: Case) -> None:
    """The model without adapters."""
    for network in case.model.networks.values():
        detach(network)


def trained(case: Case) -> None:
    """Adapters that are away from their start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for adapted in case.adapted.values():
            for parameter in adapted.adapter.parameters():
                parameter.normal_(std=0.1)


Work = tuple[str, Callable[[Case], None], Callable[[Case], None]]
"""What it is called, what is done before, what is measured."""

ATTACHED: tuple[Work, ...] = (("attach", bare, attaches), ("groups, table of layers", as_it_is, lists))
"""Done with every method."""
WORKS: tuple[Work, ...] = (
    ("check, full width", as_it_is, checks),
    ("a pattern and a rule for each layer", bare, matches),
    ("patterns without layers", bare, misses),
    *ATTACHED,
    ("save and load", trained, saves),
    ("export", as_it_is, exports),
    ("report", as_it_is, reports),
    ("inspect", as_it_is, inspects),
    ("resize", as_it_is, resizes),
    ("convert", bare, converts),
    ("verify", bare, verifies),
    ("merge", bare, merges),
)
"""In this order: most need what was made before."""


# -- models -----------------------------------------------------------------------------------------------------------


def scaled(value: Any, factor: float) -> Any:
    """A number or a list of numbers, at least 1 each."""
    return [scaled(one, factor) for one in value] if isinstance(value, list) else max(1, math.ceil(value * factor))


def configured(name: str, share: float, narrow: int, folder: Path) -> Path:
    """The folder of model `name` with a share of its blocks, its widths divided by `narrow`, without weights."""
    place = make_folder(name, folder)
    for path in place.glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        widths = (*WIDTHS, HEADS) if "num_single_layers" in config else WIDTHS
        config |= {key: scaled(config[key], share) for key in BLOCKS if key in config}
        if not path.parent.name.startswith("vae"):
            config |= {key: scaled(config[key], 1 / narrow) for key in widths if key in config}
        if "norm_num_groups" in config and narrow > 1:
            config["norm_num_groups"] = math.gcd(*config["block_out_channels"])
        path.write_text(json.dumps(config), encoding="utf-8")
    return place


def with_weights(family: str, place: Path) -> Any:
    """The model of a folder without weights, with random ones in all networks, which are also written to the folder."""
    kind = families.load_class(family)
    model = kind(kind.skeleton_pipeline(str(place)), torch.device("cpu"))
    torch.manual_seed(0)
    for name, network in model.networks.items():
        network.to_empty(device="cpu").requires_grad_(False).eval()
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                nn.init.normal_(tensor, std=0.02)
        stem = "diffusion_pytorch_model" if name == model.DENOISER else "model"
        save_file({key: value.clone() for key, value in network.state_dict().items()},
                  place / name / f"{stem}.safetensors")
    return model


def configuration(method: str) -> dict[str, Any]:
    """The method with small numbers; rotations in blocks."""
    fields = adapters.methods()[method].Config.model_fields
    rotation = {"rotation": {"kind": "blocks", "block_size": SMALL["block_size"]}} if "rotation" in fields else {}
    return {"method": method, **{key: value for key, value in SMALL.items() if key in fields}, **rotation}


def make(name: str, method: str, share: float, folder: Path) -> Case:
    """A case, in an empty folder."""
    family = MODELS[name].family
    places = [configured(name, share, narrow, folder / str(narrow)) for narrow in (NARROW, 1)]
    narrow, wide = (
        Preset.model_validate({
            "name": "scale", "family": family, "base": {"path": str(place)}, "adapter": configuration(method),
            "targets": EVERYTHING, "saving": {"folder": str(folder)}, "data": {"cache": False},
        })
        for place in places
    )
    return Case(narrow, with_weights(family, places[0]), wide, folder)


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One sort of work, with one method on one model."""

    model: str
    method: str
    work: str
    layers: list[int]
    seconds: list[list[float]]
    """CPU seconds per layer, of each round, by size."""

    @property
    def name(self) -> str:
        """For sentences."""
        return f"{self.work} ({self.model}, {self.method})"

    @property
    def growth(self) -> float:
        """Time per layer in the largest model, as a multiple of that in the smallest."""
        return statistics.median(last / first for first, last in zip(self.seconds[0], self.seconds[-1], strict=True))

    @property
    def grows(self) -> bool:
        """Whether that is more than noise."""
        above = statistics.median(last - first for first, last in zip(self.seconds[0], self.seconds[-1], strict=True))
        return self.growth > LIMIT and above > UNSEEN

    def line(self) -> str:
        """Of the table: time per layer as multiples of that in the smallest model."""
        first = statistics.median(self.seconds[0])
        times = " | ".join(f"{statistics.median(found) / first:.2f}" for found in self.seconds)
        return f"| {self.model} | {self.method} | {self.work} | {times} |{' **grows**' if self.grows else ''}"


def rows(name: str, method: str, works: tuple[Work, ...], rounds: int) -> Iterator[Row]:
    """Measure each sort of work with a method on a model."""
    with tempfile.TemporaryDirectory() as folder:
        cases = [make(name, method, share, Path(folder) / str(share)) for share in SHARES]
        gc.freeze()  # what is there by now need not be looked through each time
        layers = [len(setup.match_layers(case.model, case.preset.targets)[0]) for case in cases]
        for work, before, do in works:
            for again in (1, 2):
                seconds = [[one / count for one in found]
                           for found, count in zip(measured(cases, before, do, again * rounds), layers, strict=True)]
                row = Row(name, method, work, layers, seconds)
                if not row.grows:
                    break
            yield row


def measured(
    cases: list[Case], before: Callable[[Case], None], do: Callable[[Case], None], rounds: int
) -> list[list[float]]:
    """CPU seconds of each round, by case; all cases in turn, and once before the first round."""
    seconds: list[list[float]] = [[] for _ in cases]
    for number in range(rounds + 1):
        for case, found in zip(cases, seconds, strict=True):
            before(case)
            gc.collect()
            gc.disable()
            start = time.process_time()
            do(case)
            taken = time.process_time() - start
            gc.enable()
            found += [taken] if number else []
    return seconds


def main() -> int:
    """Read the arguments, measure, print, and perhaps write the page; 1 if anything grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["sdxl", "flux_dev"])
    parser.add_argument("--methods", nargs="+", choices=list(adapters.methods()), default=["lora", "wora", "doft"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines, grown = [], []
    for name in arguments.models:
        for method in dict.fromkeys([*arguments.methods, *adapters.methods()]):
            for row in rows(name, method, WORKS if method in arguments.methods else ATTACHED, arguments.rounds):
                if not lines:
                    lines += list(HEAD)
                    print("\n".join(lines), flush=True)
                lines.append(row.line())
                grown += [row] if row.grows else []
                print(f"{lines[-1]} {row.layers[-1]} layers, {1000 * statistics.median(row.seconds[-1]):.3f} ms each",
                      flush=True)
    print(f"\ngrows faster than the number of layers: {', '.join(row.name for row in grown) or 'nothing'}")
    if arguments.write:
        full_size.write("\n".join(lines), BEGIN, END)
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
