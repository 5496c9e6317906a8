"""What LyCORIS' loader (4.1.3) reads of a file: `create_lycoris_from_weights` on a denoiser of diffusers."""

from collections.abc import Mapping
from functools import cache

from torch import Tensor

from modules.families.parts import published
from modules.families.parts.names import joined
from modules.files import keys
from modules.hosts.key_maps.loading import Loading

TITLE = "LyCORIS"


def loading(tensors: Mapping[str, Tensor], family: str) -> Loading:
    """What it reads of the file in a model of the family."""
    known, suffixes = names(family), keys.KOHYA.all() - keys.PEFT.all()
    split = ((key, *key.partition(".")) for key in tensors)
    return Loading(frozenset(key for key, name, dot, suffix in split if name in known and dot + suffix in suffixes))


@cache
def names(family: str) -> frozenset[str]:
    """The names, without suffixes, that it finds in a denoiser of the family with its usual prefix."""
    return frozenset(f"lycoris_{joined(layer.path)}" for layer in published.layers(family) if not layer.is_text)
