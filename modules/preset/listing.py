"""What `train.py --list` prints: the families and their recommended presets on one screen, or all presets, or some."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.preset import files
from modules.preset.problems import PresetProblems, enumerated
from modules.printable import shown
from training_presets.composing import Composed
from training_presets.sentences import nearest

LINES, WIDTH = 40, 120
"""Size of the screen that the short list has to fit."""

MOST_OWN = 8
"""Presets of the user's own on the short list."""

ALL, OWN = "all", "own"


@dataclass(frozen=True)
class Group:
    """Presets that are listed below one title."""

    title: str
    rows: list[tuple[str, str]]
    """Name and sentence of each; the recommended ones first."""
    first: int
    """How many are recommended."""

    def lines(self, most: int) -> list[str]:
        """The title and the first rows."""
        rows = self.rows[:most]
        width = max((len(name) for name, _ in rows), default=0)
        return [self.title, *(f"  {name:{width}}  {about}".rstrip() for name, about in rows)]


def text(word: str = "") -> str:
    """The short list; or all presets (`all`), one's own (`own`), those of a family, a method or a purpose.

    Raises PresetProblems for another word.
    """
    presets, own = files.every(), Group("Your own, in training_presets/own:", _own(), len(_own()))
    if not word:
        return _short(presets, own)
    chosen = presets if word == ALL else [one for one in presets if word in _words(one)]
    found = [*_groups(chosen), *([own] if own.rows and word in (ALL, OWN) else [])]
    if not found and word not in (ALL, OWN):
        known = [ALL, OWN, *dict.fromkeys(known for one in presets for known in _words(one) if known)]
        near = nearest(word, known)
        meant = f"did you mean {enumerated(near, 'or')}?" if near else f"available: {', '.join(known)}"
        raise PresetProblems([f"--list {word}: no such family, method or purpose; {meant}"])
    return "\n\n".join("\n".join(group.lines(len(group.rows))) for group in found) or "You have no presets of your own."


def _short(presets: Sequence[Composed], own: Group) -> str:
    """As many of the recommended presets as fit on the screen."""
    groups = _groups(presets)
    end = [f"All {len(presets)} presets, METHOD_FAMILY each: --list {ALL}."]
    purposes = [one.purpose for one in presets if one.purpose]
    words = [*(word for one in presets[:1] for word in (one.family, one.method)), *purposes[:1]]
    if words:
        end = [f"{end[0]} By family, method or purpose: {', '.join(f'--list {word}' for word in words)}."]
    left = LINES - len(end)
    mine = _first_own(own, left - 2 * len(groups))
    each, further = divmod(max(0, left - sum(map(len, mine))), max(1, len(groups)))
    rows = [max(0, each - 1 + (number < further)) for number in range(len(groups))]  # below a title
    blocks = [*(group.lines(min(most, group.first)) for group, most in zip(groups, rows, strict=True)), *mine, end]
    fits = sum(map(len, blocks)) + len(blocks) - 1 <= LINES
    lines = [line for block in blocks for line in (*block, *([""] if fits else []))]
    return "\n".join(line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in lines).rstrip()


def _first_own(own: Group, left: int) -> list[list[str]]:
    """The lines about one's own presets, about as many as are left; none if there are none."""
    if not own.rows:
        return []
    lines = own.lines(max(0, min(MOST_OWN, left - 2)))
    more = len(own.rows) + 1 - len(lines)
    return [[*lines, *([f"  and {more} more: --list {OWN}"] if more else [])]]


def _words(preset: Composed) -> tuple[str, ...]:
    """What a preset is chosen by on the command line."""
    return preset.family, preset.method, f"{preset.method}_{preset.variant}".rstrip("_"), preset.purpose


def _groups(presets: Sequence[Composed]) -> list[Group]:
    """A group for each family and purpose. A preset whose name an own file has is given by its path."""
    by_words: dict[tuple[str, str], list[Composed]] = {}
    for one in presets:
        by_words.setdefault((one.family, one.purpose), []).append(one)
    taken = files.named()
    return [
        Group(
            f"{' '.join(filter(None, words))}: {same[0].group}",
            [(str(files.FOLDER / f"{one.name}.json") if one.name in taken else one.name, one.about) for one in same],
            sum(one.place is not None for one in same),
        )
        for words, same in by_words.items()
    ]


def _own() -> list[tuple[str, str]]:
    """Name and description of each preset file. One that a built-in file's name hides is given by its path."""
    named = files.named()
    hidden = sorted(set((files.FOLDER / "own").glob("*.json")) - set(named.values()))
    return [(shown(name), _description(path)) for name, path in [*named.items(), *((str(one), one) for one in hidden)]]


def _description(path: Path) -> str:
    try:
        return shown(str(files.read(path).get("description", "")))
    except PresetProblems as error:
        return shown(f"cannot be read: {str(error).removeprefix(f'{path}: ')}")  # its name precedes it
