"""Default answers of programs: no own encodings, no other conditions, and unknown dtypes."""

from torch import Tensor

from modules.files.forms import Encoding
from modules.hosts import How, Way
from modules.preset.export_options import Export

WAYS: dict[str, Way] = {}


def others(how: How) -> dict[str, How]:
    """None."""
    return {}


def fitted(W: Tensor, tensors: dict[str, Tensor], how: How) -> dict[str, Tensor]:
    """Unchanged."""
    return tensors


def own(options: Export) -> tuple[Encoding, ...]:
    """None."""
    return ()
