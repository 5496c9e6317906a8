"""The parts of a pipeline in a folder's index, such as model_index.json. It names classes of installed packages to
import, so only networks, schedulers, tokenizers and processors of diffusers and transformers are allowed."""

import inspect
from collections.abc import Collection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from modules.documents import is_folder, read_object
from modules.families.parts.index import INDEX, index_of
from modules.printable import shown
from modules.tensorfile import A_PICKLE, PICKLES

LIBRARIES = ("diffusers", "transformers")

DENOISERS = ("unet", "transformer")
"""What pipelines call theirs."""

HOW_TO_CONVERT = "load it in diffusers and save it with save_pretrained(FOLDER, safe_serialization=True)"


class AnotherKind(ValueError):
    """An index of another kind of model."""


def read_index(pipeline: Any, source: str, given: Collection[str] = (), file: str = INDEX) -> dict[str, Any]:
    """The index of the folder, or of the hub's model, `source`, where it is called `file`. Raises ValueError, naming
    the index and the entry, unless all parts that diffusers' class `pipeline` needs are there and allowed, and
    AnotherKind for a model that is not one of this pipeline's. `given`: parts that the caller passes and that are not
    read from the index."""
    here = index_of(Path(source)) if is_folder(Path(source)) else None
    where = f"{here or Path(source) / file}"
    index = read_object(here) if here else pipeline.load_config(source)
    index = {name: _two(entry) for name, entry in index.items()}
    kind = index.get("_class_name", pipeline.__name__)
    if not isinstance(kind, str):
        raise ValueError(f"{where}: _class_name is {_short(kind)}, not the name of a diffusers pipeline")
    _refuse_another(pipeline, index, where)
    for name, entry in index.items():
        if is_part(entry) and name not in given:
            component_class(entry, name, where)
    needed = [name for name, one in inspect.signature(pipeline.__init__).parameters.items()
              if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD and name not in ("self", *given)]
    for name in needed:
        if not isinstance(index.get(name), list | tuple):
            said = f"is {_short(index[name])}" if name in index else "is missing"
            raise ValueError(f"{where}: {name} {said}; a {pipeline.__name__} has it as a list of library and class")
    return index


def is_part(entry: Any) -> bool:
    """Whether an entry is a part's; a list of numbers is none."""
    return isinstance(entry, list | tuple) and not (entry and all(isinstance(one, int | float) for one in entry))


def _two(entry: Any) -> Any:
    """A part's library and class, also of a modular pipeline, which has where the part came from as a third, with its
    class for parts that were not loaded."""
    match entry:
        case [None, None, {"type_hint": [str(library), str(word)]}] | [library, word, dict()]:
            return [library, word]
    return entry


def _refuse_another(pipeline: Any, index: dict[str, Any], where: str) -> None:
    """Raise AnotherKind for another denoiser, and for text encoders that the pipeline does not read: diffusers loads
    both without an error."""
    taken = inspect.signature(pipeline.__init__).parameters
    denoiser = next((name for name in DENOISERS if name in taken), None)
    if denoiser is None:
        return  # any pipeline's: diffusers' own base class
    ours = taken[denoiser].annotation.__name__
    found = next((name for name in (denoiser, *DENOISERS) if name in index), denoiser)
    theirs = index[found][1] if isinstance(index.get(found), list | tuple) and len(index[found]) == 2 else None
    further = [name for name, one in index.items() if name.startswith("text_encoder") and name not in taken
               and isinstance(one, list | tuple) and any(one)]
    said = f"its {found} is a {shown(theirs)}, not a {ours}" if isinstance(theirs, str) and theirs != ours else (
        f"it has {shown(further[0])}, which a {pipeline.__name__} has not" if further else "")
    if said:
        raise AnotherKind(f"{where} is of another kind of model: {said}; give a model of this preset's family, or take "
                          "the preset of the model's own family")


def component_class(entry: Any, name: str, where: str) -> Any:
    """The class of part `name`, None where the index has none. Raises ValueError for everything but parts of pipelines
    in diffusers or transformers; nothing else is imported."""
    match entry:
        case [None, None]:
            return None
        case [str(library), str(word)] if library in LIBRARIES and word.isidentifier():
            try:
                found = resolve_name(f"{library}:{word}")
            except (AttributeError, ImportError):  # ImportError: of a package that the class needs
                raise ValueError(f"{where}: {name} is {_short(entry)}, not in the installed {library}") from None
            if isinstance(found, type) and issubclass(found, _kinds()):
                return found
    raise ValueError(f"{where}: {name} is {_short(entry)}; only networks, schedulers, tokenizers and processors of "
                     'diffusers and transformers are loaded, as in ["diffusers", "AutoencoderKL"]')


def pickle_problems(folder: Path, parts: Collection[str]) -> list[str]:
    """A sentence for each part of a folder that has its weights as pickles only."""
    found = []
    for part in parts:
        names = sorted(path.name for path in (folder / part).glob("*"))
        pickles = [name for name in names if name.endswith(PICKLES)]
        if pickles and not any(name.endswith(".safetensors") for name in names):
            found.append(f"base.path: {folder / part} has its weights only in {shown(pickles[0])}, {A_PICKLE}; "
                         f"convert it in a sandbox: {HOW_TO_CONVERT}")
    return found


def _kinds() -> tuple[type, ...]:
    """The allowed classes of a pipeline's parts."""
    from diffusers import ModelMixin, SchedulerMixin
    from transformers import (
        FeatureExtractionMixin,
        ImageProcessingMixin,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )

    return (ModelMixin, SchedulerMixin, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin,
            FeatureExtractionMixin, ImageProcessingMixin)


def _short(value: Any) -> str:
    text = shown(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."
