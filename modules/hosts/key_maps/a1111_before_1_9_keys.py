"""A1111 before 1.9, whose extension reads fewer kinds. It is not modelled: it was not compared with its loader."""

from collections.abc import Mapping

from torch import Tensor

from modules.hosts.key_maps.loading import Loading

TITLE = "A1111 before 1.9"


def loading(tensors: Mapping[str, Tensor], family: str) -> Loading:  # noqa: ARG001 - asked as all programs are
    """Not modelled."""
    return Loading(unjudged="only its newest version is modelled")
