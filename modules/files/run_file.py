"""The run's internal adapter file: the trained parameters. Any export can be made from it."""

from pathlib import Path

from modules import tensorfile
from modules.adapters.base import Adapted, adapter_state, load_adapter_state
from modules.disk import whole
from modules.files.facts import Facts


def save(path: Path, layers: dict[str, Adapted], facts: Facts) -> None:
    """Write all adapters' state, `<full layer name>.<tensor>`, with the run's facts and a checksum in the metadata.

    Raises DiskFull as `whole` does.
    """
    with whole(path) as partial:
        tensorfile.save(adapter_state(layers), partial, {"facts": facts.json()})


def load(path: Path, layers: dict[str, Adapted]) -> Facts:
    """Set all adapters from a file of `save`; the facts of its run.

    Raises ValueError if the file is damaged, or if a tensor is missing, extra or misshapen: then it is of another
    preset.
    """
    tensorfile.check_content(path)
    with tensorfile.opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        written = (file.metadata() or {}).get("facts")
    try:
        load_adapter_state(layers, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        return Facts.from_json(written) if written else Facts()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
