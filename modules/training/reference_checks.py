"""What can be said about reference pictures before a training: whether the base takes them, and those of samples."""

from typing import Any

from modules.data import references
from modules.preset.schema import Preset
from modules.training import setup


def look(preset: Preset, model: Any) -> tuple[bool, list[str], list[str]]:
    """Whether there are any and the base takes them, and problems and notes, in sentences."""
    counts = setup.reference_counts(preset)
    try:
        notes = model.use_references(preset.base, counts)
    except (ValueError, OSError) as error:  # OSError: of the hub, where the index is not in its cache
        return False, [str(error)], []
    return any(counts.values()), [], notes


def of_samples(preset: Preset, model: Any) -> list[str]:
    """What is wrong with the reference pictures of prompts, in sentences."""
    found = []
    for number, one in enumerate(preset.samples.prompts if preset.samples.enabled else ()):
        try:
            references.read(() if isinstance(one, str) else one.references, model.reference_size)
        except ValueError as error:
            found.append(f"samples.prompts[{number}].references: {error}")
    return found
