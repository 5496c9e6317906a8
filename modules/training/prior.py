"""Prior prediction: for some pictures the target is what the frozen base predicts, so that the adapter learns to leave
them as they are. The base is the same network with its adapters switched off for one forward pass."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from modules.adapters.base import Adapted
from modules.training.microbatch import Prepared
from modules.training.session import Session


@contextmanager
def base_alone(adapted: Iterable[Adapted]) -> Iterator[None]:
    """The networks as they are without adapters, text encoders too."""
    layers = list(adapted)
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


@torch.no_grad()
def targets(session: Session, given: Prepared) -> Tensor:
    """What the samples are to predict, with the base's predictions for those of `given.prior`.

    Call it before the pass with a graph, which may compute its layers again in the backward pass: adapters must be on
    then. With a sharded base all processes have to call it together; one without such samples computes for nothing.
    """
    places = list(given.prior) or [0]
    with base_alone(session.adapted.values()):
        if given.texts is None:
            texts = session.encode([given.captions[place] for place in places])
        else:
            texts = {name: tensor[places] for name, tensor in given.texts.items()}
        more = ([one[places] for one in given.references],) if given.references else ()
        predicted = session.model.predict(given.noisy[places], given.times[places], texts, given.sizes[places], *more)
    if not given.prior:
        return given.wanted
    wanted = given.wanted.to(torch.promote_types(given.wanted.dtype, predicted.dtype), copy=True)
    wanted[places] = predicted.to(wanted.dtype)
    return wanted
