"""Settings of other trainers as presets. A trainer is one file here with `NAME`, `recognises` and `convert`.

`defaults/<file>.json` holds a trainer's keys with what they are where a file leaves them out (null: nothing, or it
depends), and reasons for dropping keys. This folder is the registry: a new trainer is a new file and its table.
"""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from modules.importing.base import Wishes
from modules.importing.documents import Document, read
from modules.importing.ledger import Imported


def trainers() -> dict[str, ModuleType]:
    """All trainers by file name: the modules of this folder that define a `NAME`."""
    found = {info.name: import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__)}
    return {name: module for name, module in found.items() if "NAME" in vars(module)}


def import_file(path: Path, wishes: Wishes | None = None) -> Imported:
    """The settings in a file of any known trainer. Raises ValueError with one sentence for what cannot be imported."""
    document = read(path)
    trainer = trainer_of(document)
    try:
        return trainer.convert(document, wishes or Wishes())
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        reason = f"{path}: a setting of {trainer.NAME} has a value of an unexpected kind ({error}); save the file anew"
        raise ValueError(reason) from error
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def trainer_of(document: Document) -> ModuleType:
    """The trainer whose file this is."""
    for module in trainers().values():
        if module.recognises(document):
            return module
    known = ", ".join(module.NAME for module in trainers().values())
    raise ValueError(f"{document.path}: these are no settings of a trainer that is known here ({known})")
