"""docs/exports.md: what each host makes of each method, from exports that are done while the page is written.

`python -m tests.export_matrix` writes it. Tests compare what does not depend on the machine; see `settled`.
"""

import math
import re
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules import hosts
from modules.adapters import methods
from modules.adapters.base import Adapted, adapted_layers, attach, detach
from modules.export import read_back
from modules.export.export import expected_size, export
from modules.files import distance
from modules.files.facts import Facts
from modules.hosts import How
from modules.hosts.comfyui import WAYS
from tests.export import every
from tests.export.setup import Model, preset, trained
from tests.hosts import demo_files
from tests.hosts import table as measured

PAGE = Path(__file__).parents[1] / "docs/exports.md"
PROGRAMS = {
    "comfyui": "ComfyUI", "comfyui_node": "ComfyUI with our node", "kohya": "A1111, Forge, sd-scripts",
    "lycoris": "LyCORIS", "diffusers": "diffusers",
}
T5 = {"SD 3": "text_encoder_3", "FLUX": "text_encoder_2"}
CHANGE = 0.05
"""Size of the change in the table about 16 bits, as a part of the weight."""
RANK = 64
WIDTH = 1280
"""Of the layer in that table."""
NUMBERS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
COLUMNS = {
    "fp16": ("comfyui", "float16", "float16"),
    "bf16": ("comfyui", "bfloat16", "bfloat16"),
    "bf16 model in fp16": ("comfyui", "float16", "a bfloat16 model in float16"),
    "fp16, file for fp32": ("comfyui", "float32", "float16"),
    "bf16, file for fp16": ("comfyui", "float16", "bfloat16"),
    "node, fp16": ("comfyui_node", "auto", "float16"),
    "node, bf16": ("comfyui_node", "auto", "bfloat16"),
}
"""Host, `export.computes_in`, and in which numbers the host computes."""
SHAPES = {
    "attention 1280 x 1280": lambda: nn.Linear(1280, 1280),
    "feed-forward 10240 x 1280": lambda: nn.Linear(1280, 10240),
    "convolution 640 x 640 x 3 x 3": lambda: nn.Conv2d(640, 640, 3),
}


class Wide(Model):
    """The parts of a family that exporting asks for, around one layer, whose weight bfloat16 can hold."""

    def __init__(self, layer: nn.Module):
        self.networks = {"unet": nn.ModuleDict({"layer": layer}).requires_grad_(False)}


# -- what is the same for all families --------------------------------------------------------------------------------


def heading() -> str:
    """What the page is, and of which versions."""
    return f"""# Exports

Which host (program) supports which method, in which form, and with which error. Written by
`python -m tests.export_matrix` from real exports: each method with random parameters far from their initial values,
on a tiny base of each family (all kinds of layers of `attention-mlp` with the CLIP text encoders, in UNets also the
convolutions), `export.form auto`, each file read back from disk and compared layer by layer with the trained weight.
Tests repeat all of it.

Hosts: diffusers {version("diffusers")}, peft {version("peft")} and lycoris-lora {version("lycoris-lora")}.

These three load such files in the tests themselves. ComfyUI, A1111, Forge and sd-scripts are not in a package
registry; for them the exporter checks a file with our copy of their arithmetic, on which all tables but those of the
last section are based. The last section has the results of their own code,
[measured](#measured-in-the-real-programs). For strengths other than 1 see [strength](strength.md); ComfyUI, for
example, squares the strength of OFT files of other trainers.
"""


def join(words: Iterable[str], last: str) -> str:
    """"a, b or c"."""
    found = list(words)
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} {last} {found[-1]}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [list(head), *map(list, rows)]]
    return "\n".join([lines[0], "|" + "---|" * (lines[0].count("|") - 1), *lines[1:]]) + "\n"


class Footnotes:
    """Reasons of refusals, numbered as they come."""

    def __init__(self):
        self.found: dict[tuple[str, str], int] = {}

    def mark(self, reasons: list[tuple[str, str]]) -> str:
        """The numbers of `every.reasons`."""
        return ", ".join(f"({self.found.setdefault(reason, len(self.found) + 1)})" for reason in reasons)

    def text(self) -> str:
        """All of them."""
        return "".join(f"{n}. {reason[0].upper()}{reason[1:]}: {advice}.\n"
                       for (reason, advice), n in self.found.items())


def form_cell(label: str, host: str, notes: Footnotes) -> str:
    """The forms in all families, and the families that are refused."""
    found = {family: every.outcomes(family, label)[host, "float32"] for family in every.FAMILIES}
    refused = [family for family, outcome in found.items() if outcome.refusal]
    taken = sorted({form for outcome in found.values() for form in outcome.forms})
    reasons = list(dict.fromkeys(reason for family in refused for reason in every.reasons(found[family])))
    if not refused:
        return join(taken, "or")
    cell = f"**refused** {notes.mark(reasons)}"
    return cell if len(refused) == len(found) else f"{join(taken, 'or')}; {join(refused, 'and')}: {cell}"


def forms_section() -> str:
    """Forms and refusals."""
    notes = Footnotes()
    rows = [[label, *(form_cell(label, host, notes) for host in PROGRAMS)] for label in every.VARIANTS]
    text = "## Forms\n\nAll families agree unless some are named. Each layer has the smaller of two forms; tiny "
    text += "layers of planes, MoRA, ABBA and SORA are stored in full only because they are tiny. Every form is "
    text += "exact; nothing is approximated unless you ask for it with `export.form compact` or `svd`.\n\n"
    text += table(["method", *(f"{title} (`{host}`)" for host, title in PROGRAMS.items())], rows)
    text += "\nUnsupported, and what to do instead, as in the error messages:\n\n" + notes.text()
    return text + "\n" + t5_words() + kohya_words()


def kohya_words() -> str:
    """Which program reads what of the files that several are for; the host's own notes."""
    notes = hosts.load("kohya").notes(["input magnitude", "output magnitude", "full difference"])
    text = "Files for `kohya` are for three programs. \"Exact\" means exact in A1111 (1.9 and newer; without FLUX and "
    text += "SD 3) and in Forge. sd-scripts reads only low-rank pairs: the export names the layers that it ignores."
    return "\n" + text + " By form: " + "; ".join(notes) + ".\n"


def t5_words() -> str:
    """Which hosts take layers of T5, by trying."""
    taken: dict[str, list[str]] = {host: [] for host in PROGRAMS}
    for family, network in T5.items():
        model = every.model_of(family)
        names = [n for n in every.layers_of(model, every.Kind("", every.FAMILIES[family].make)) if network in n]
        layers = trained(model, *every.VARIANTS["LoRA"], names)
        for host in PROGRAMS:
            outcome = every.attempt(model, layers, preset(*every.VARIANTS["LoRA"], host=host))
            taken[host] += [] if outcome.refusal else [family]
        for one in model.networks.values():
            detach(one)
    yes = [f"`{host}`" for host, families in taken.items() if len(families) == len(T5)]
    some = [f"`{host}` ({' and '.join(families)})" for host, families in taken.items() if 0 < len(families) < len(T5)]
    no = [f"`{host}`" for host, families in taken.items() if not families]
    return (f"T5's layers (SD 3, FLUX) are supported by {join(yes + some, 'and')}; not by "
            f"{join(no or ['none'], 'and')}: leave them out there (`targets.exclude`).\n\n{LATER}\n")


LATER = (
    "Qwen-Image 2.1 is known to later versions of ComfyUI than 0.28.0, the one that is run here: its files for "
    "`comfyui` have the names of ComfyUI's published files, where two matrices of the feed-forward are one "
    "(`gate_up`), and were not run with ComfyUI, as inspect says too; those for `diffusers` were run with diffusers."
)


# -- errors by family -------------------------------------------------------------------------------------------------


def limit(error: float) -> str:
    """An error rounded up to one digit."""
    if error == 0:
        return "0"
    power = math.floor(math.log10(error))
    digit = math.ceil(error / 10.0**power - 1e-9)
    return f"{digit}e{power}" if digit < 10 else f"1e{power + 1}"


def errors_section() -> str:
    """The largest error of each export."""
    text = "## Errors\n\nThe largest error of any layer, relative to the layer's largest weight, rounded up: in a "
    text += "float32 file / in a float16 file. The exporter rejects a file with more than 1e-5 / 2e-3.\n"
    for family in every.FAMILIES:
        rows = []
        for label in every.VARIANTS:
            found = every.outcomes(family, label)
            cells = []
            for host in PROGRAMS:
                both = [found[host, dtype] for dtype in every.DTYPES]
                cells.append("refused" if both[0].refusal else " / ".join(limit(one.error) for one in both))
            rows.append([label, *cells])
        text += f"\n### {family}\n\n" + table(["method", *(f"`{host}`" for host in PROGRAMS)], rows)
    return text


# -- sizes and 16 bits, on layers of real size ------------------------------------------------------------------------


def adapted_on(model: Any, label: str) -> dict[str, Adapted]:
    """An adapter with default options on the layer, where training starts."""
    method, options = every.CHOICES[label]
    network = nn.ModuleDict(model.networks)
    attach(network, "unet.layer", methods()[method].Config(method=method, **options), 0)
    return dict(adapted_layers(network))


def layer_size(make: Any, label: str, host: str) -> int | None:
    """Bytes of one layer in a float16 file; None if the host or the method refuses it."""
    try:
        with torch.device("meta"):
            model = Wide(make())
            layers = adapted_on(model, label)
        return expected_size(model, layers, preset(*every.CHOICES[label], host=host).export)[0]
    except ValueError:
        return None


def sizes_section() -> str:
    """Sizes of layers as multiples of a LoRA of rank 16."""
    text = "## Sizes\n\nOf one layer in a float16 file, as a multiple of a LoRA of rank 16. The methods have their "
    text += "options' defaults, such as rank 16, blocks of 32, 4 planes. "
    text += f"Layers: {' / '.join(SHAPES)}; -: the method does not support the layer.\n"
    text += "Whole files of the shipped presets: [families](families.md).\n\n"
    unit = [layer_size(make, "LoRA", "comfyui") or 1 for make in SHAPES.values()]
    rows = []
    for label in every.VARIANTS:
        cells = []
        for host in PROGRAMS:
            found = [layer_size(make, label, host) for make in SHAPES.values()]
            sizes = " / ".join("-" if n is None else f"{n / one:.1f}" for n, one in zip(found, unit, strict=True))
            cells.append(sizes if any(found) else "refused")
        rows.append([label, *cells])
    alone = " / ".join(f"{size / 1000:,.0f} kB" for size in unit)
    return text + table(["method", *(f"`{host}`" for host in PROGRAMS)], rows) + f"\nA LoRA itself: {alone}.\n"


def moved(adapted: Adapted) -> None:
    """Give the adapter random parameters whose change is `CHANGE` of the weight."""
    W, draw = adapted.layer.native(adapted.layer.dense()), torch.Generator().manual_seed(0)
    start = [(p, p.clone(), torch.randn(p.shape, generator=draw)) for p in adapted.adapter.parameters()]
    scale = 0.02
    for _ in range(8):
        for parameter, first, way in start:
            parameter.copy_(first + scale * way)
        scale *= CHANGE / ((adapted.adapted_weight() - W).norm() / W.norm()).item()


def half_errors(label: str, width: int) -> dict[str, float]:
    """Errors as parts of the change on a layer of `width` x `width`: by the columns of `COLUMNS`, of form svd, and of
    rounding the exact weight alone."""
    torch.manual_seed(0)
    layer = nn.Linear(width, width)
    with torch.no_grad():
        layer.weight.copy_((torch.randn(width, width) / width**0.5).bfloat16())
        model = Wide(layer)
        layers = adapted_on(model, label)
        (name, adapted), = layers.items()
        moved(adapted)
        W, wanted = adapted.layer.native(adapted.layer.dense()), adapted.adapted_weight()
    found: dict[str, float] = {}
    for column, (host, number, way) in COLUMNS.items():
        chosen = preset(*every.CHOICES[label], host=host, computes_in=number)
        tensors, _ = written(model, layers, chosen)
        with torch.no_grad():
            effect = hosts.load(host).effect(W, tensors[name], 1.0, WAYS[way].of(How()))
            found[column] = distance.compare(wanted, effect, W).change
    found["svd"] = written(model, layers, preset(*every.CHOICES[label], form="svd", rank=RANK))[1]
    for number, dtype in NUMBERS.items():
        found[f"rounding {number}"] = distance.compare(wanted, wanted.to(dtype).float(), W).change
    return found


def written(model: Any, layers: dict[str, Adapted], chosen: Any) -> tuple[dict[str, dict[str, Tensor]], float]:
    """The tensors of an exported file by layer and suffix, and the largest error as a part of the change."""
    with tempfile.TemporaryDirectory() as folder:
        report = export(model, layers, chosen, Facts(), Path(folder) / "test.safetensors")
        spelling = {name: model.export_key(name, chosen.export.host) for name in layers}
        found = read_back.read(report.path, spelling, hosts.load(chosen.export.host).NAMES)
    return found, max(error.change for error in report.errors.values())


def half_section(width: int) -> str:
    """Where ComfyUI computes in 16 bits, and form svd."""
    columns = [*COLUMNS, "svd"]
    found = {label: half_errors(label, width) for label in every.VARIANTS}
    rows = [[label, *("exact" if column == "svd" and errors[column] < 1e-3 else f"{errors[column]:.1%}"
                      for column in columns)] for label, errors in found.items()]
    least = {number: max(errors[f"rounding {number}"] for errors in found.values()) for number in NUMBERS}
    rows.append(["the exact weight, rounded",
                 *(f"{least[str(WAYS[way].model).removeprefix('torch.')]:.1%}" for _, _, way in COLUMNS.values()), ""])
    head = ["method", *COLUMNS, f"`--form svd --rank {RANK}`, any host"]
    return HALF + table(head, rows)


HALF = f"""## Where ComfyUI computes in 16 bits

On a GPU ComfyUI computes adapted weights in 16 bits (read and run in its version 0.28.0). With dynamic VRAM, the
default on NVIDIA cards, and when memory is short, it patches a weight when it is used, in the dtype of the layer's
input: float16, for FLUX bfloat16, for text encoders float32. Without dynamic VRAM it patches when the model is
loaded, in float16, for every dtype of the model. On a CPU it computes in float32.

The figures are errors relative to the trained change (Frobenius norm), of a layer of {WIDTH} x {WIDTH} with rows of
norm 1 whose change is {CHANGE:.0%} of its weight, in a float16 file. They are larger for smaller changes: five times as
large for a change of 1 %. The last line is the error of rounding the adapted weight. No method can do better, except
those that leave most values of a weight unchanged (SBoRA, MoRA's rope), which are not rounded again.

A plain LoRA, a rotation in planes without a magnitude (which is written as a plain LoRA), the products of LoHa and
LoKr, full differences and GLoRA have no error besides rounding, in all dtypes. A magnitude, of DoRA, WoRA, Pre-Diag,
SORA or of DOFT in planes, multiplies the whole weight by a ratio that is itself computed in 16 bits, by a norm with
the machine epsilon of the dtype added to it. The exporter compensates for both, by choosing for each row or column
the stored value from which ComfyUI computes the best ratio (`export.computes_in`); about twice the error of rounding
is left, which is that of three roundings for one: of the sum, of the ratio and of the product. This is possible for
one dtype only. By default a file is for float16, for FLUX for bfloat16, and a file with `--dtype fp32` for float32;
columns "file for" show the error of a file for another dtype. The export prints the errors in all of them, and writes
them into the file (`gimbal.computed`). A layer whose error would be more than a tenth of its change and twice that of
rounding is written as a full difference, as long as the file grows by a quarter at most. Stored rotations are not
read at all where updates are computed in 16 bits, so `export.form auto` never writes them for ComfyUI. Our node
(`comfyui_node/`) computes in float32 and has only the rounding error of the last line, for every method.

ComfyUI's loader "Load LoRA (Bypass)" ignores magnitudes without a warning: most of the trained change is then
missing. Load files with magnitudes with "Load LoRA"; the export prints this too.

Without the node, `--form svd` avoids these errors everywhere: it writes a plain LoRA that every host reads. Its
approximation error is in the last column and is printed for every layer. The weights here are random, which is the
worst case: their changes do not have a low rank. Trained layers of real models have smaller errors; the export prints
them.

"""


def page(width: int = WIDTH) -> str:
    """docs/exports.md; `width`: of the layer whose errors in 16 bits are shown."""
    sections = (heading(), forms_section(), errors_section(), sizes_section(), half_section(width),
                demo_files.section(), measured.section())
    return "\n".join(sections)


def settled(text: str) -> str:
    """The page without what depends on the machine or on versions: errors, and the hosts' line."""
    text = re.sub(r"^Hosts: .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"\b\de-\d+ / \de-\d+|\b\d+\.\d%", "#", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print("wrote docs/exports.md", file=sys.stderr)
