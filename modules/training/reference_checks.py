"""What can be said about reference pictures before a training: whether the base takes them, and those of samples."""

from typing import Any

from modules.data import folders, references
from modules.preset.data_options import Data
from modules.preset.schema import Preset
from modules.training import setup
from training_presets.sentences import enumerated


def look(preset: Preset, model: Any) -> tuple[bool, list[str], list[str]]:
    """Whether there are any and the base takes them, and problems and notes, in sentences."""
    counts = setup.reference_counts(preset)
    try:
        notes = model.use_references(preset.base, counts)
    except (ValueError, OSError) as error:  # OSError: of the hub, where the index is not in its cache
        return False, [str(error)], []
    return any(counts.values()), [], notes + idle(preset.data)


def idle(options: Data) -> list[str]:
    """Notes on references that the training, or a part of it, has none of."""
    learned = [folder for _, folder in folders.entries(options, "training")]
    bare = [folder.path for folder in learned if not folder.references]
    if not bare or not references.most(options):
        return []
    if len(bare) == len(learned):
        return ["data.folders[].references: only validation folders have references, so none are learned from; give "
                "them for the training folders too"]
    return [f"data.folders[].references: {enumerated(bare, 'and')} {'has' if len(bare) == 1 else 'have'} none, and "
            "other training folders have some; these pictures are learned as made from text alone"]


def of_samples(preset: Preset, model: Any) -> list[str]:
    """What is wrong with the reference pictures of prompts, in sentences."""
    found = []
    for number, one in enumerate(preset.samples.prompts if preset.samples.enabled else ()):
        try:
            references.read(() if isinstance(one, str) else one.references, model.reference_size)
        except ValueError as error:
            found.append(f"samples.prompts[{number}].references: {error}")
    return found
