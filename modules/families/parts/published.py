"""The layers of the published models, by family, without a model: what names in a file can mean.

`layers/<family>.txt` in modules/families, written by `python -m tests.full_size` from the configurations of all models
of a family. A line is a layer with a weight: its class, network, path in diffusers and name in the original checkpoint;
`{0-9}` stands for each of these numbers in turn, the same one in both names.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "layers"

RANGE = re.compile(r"\{(\d+)-(\d+)\}")


@dataclass(frozen=True)
class Published:
    """A layer of a family's models."""

    kind: str
    """The module's class."""
    network: str
    path: str
    """In diffusers or transformers, where CLIP has its `text_model` level."""
    original: str
    """The tensor's name in the original checkpoint's part for this network."""

    @property
    def is_text(self) -> bool:
        """Whether it is a text encoder's."""
        return self.network.startswith("text_encoder")


@cache
def layers(family: str) -> tuple[Published, ...]:
    """The layers that any of the family's published models has."""
    lines = (FOLDER / f"{family}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(layer for line in lines for layer in _expanded(line))


def table(found: list[Published]) -> str:
    """The text that `layers` reads."""
    places: dict[Published, list[int]] = {}
    for layer in dict.fromkeys(found):
        pattern, number = _without_last_number(layer)
        places.setdefault(pattern, []).extend(() if number is None else [number])
    lines = (line for pattern, numbers in places.items() for line in _lines(pattern, sorted(numbers)))
    return "\n".join(lines) + "\n"


def _expanded(line: str) -> list[Published]:
    found = RANGE.search(line)
    texts = [line] if found is None else [
        RANGE.sub(str(number), line) for number in range(int(found[1]), int(found[2]) + 1)
    ]
    return [Published(*text.split(" ")) for text in texts]


def _without_last_number(layer: Published) -> tuple[Published, int | None]:
    """The layer with `{}` for the number of a block that both of its names have, and that number."""
    for block in (r"transformer_blocks\.(\d+)", r"layers\.(\d+)", r"block\.(\d+)", r"^blocks\.(\d+)"):
        found = re.search(rf"(?<![a-z]){block}|single_{block}", layer.path)
        number = found and (found[1] or found[2])
        texts = [re.sub(rf"(blocks|block|layers)\.{number}\.(?!.*(blocks|block|layers)\.{number}\.)", r"\1.{}.", text)
                 for text in (layer.path, layer.original)] if found else []
        if number and all(text.count("{}") == 1 for text in texts):
            return Published(layer.kind, layer.network, *texts), int(number)
    return layer, None


def _lines(pattern: Published, numbers: list[int]) -> list[str]:
    """One line for each run of numbers."""
    text = f"{pattern.kind} {pattern.network} {pattern.path} {pattern.original}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [text.replace("{}", f"{{{first}-{last}}}") for first, last in runs] or [text]
