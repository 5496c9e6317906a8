"""OneTrainer, which reads files to train on: it is not modelled, because what it loads depends on its settings."""

from collections.abc import Mapping

from torch import Tensor

from modules.hosts.key_maps.loading import Loading

TITLE = "OneTrainer"


def loading(tensors: Mapping[str, Tensor], family: str) -> Loading:  # noqa: ARG001 - asked as all programs are
    """Not modelled."""
    return Loading(unjudged="what it loads depends on its settings (kind, rank, layers), not only on the file")
