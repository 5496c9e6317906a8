"""Training that starts from a foreign file: its changes as the initial values of a run's adapters."""

import torch

from modules.adapters.base import Adapted
from modules.files import forms
from modules.files.change import Change
from modules.files.distance import compare
from modules.files.reading import listed

EXACT = 1e-5
"""Largest error of a layer that starts exactly, relative to its largest weight."""


def start(changes: dict[str, Change], layers: dict[str, Adapted]) -> list[str]:
    """Set the freshly attached adapters of `layers` (by full name) to `changes`; returns sentences about differences.

    `changes`: from `reading.changes`, on the same base without adapters. Raises ValueError, naming the layer, where an
    adapter's method or options cannot represent its change, and where the file changes layers that the run does not
    train. Adapters may have been set by then.
    """
    strangers = [name for name in changes if name not in layers]
    if strangers:
        raise ValueError(f"the file also changes layers that the run does not train ({listed(strangers)}); add them to "
                         "targets")
    notes, lossy = [], {}
    for name, change in changes.items():
        adapted = layers[name]
        try:
            adapted.adapter.start_from(forms.expanded(change.terms), adapted.layer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        with torch.no_grad():
            W = adapted.layer.dense()
            meant = forms.applied(change.terms, adapted.layer, W)
            error = compare(meant, adapted.adapter.weight(W), W)
        if error.weight > EXACT:
            lossy[name] = error.change
    if lossy:
        worst = max(lossy, key=lambda name: lossy[name])
        notes.append(f"{len(lossy)} layers do not start exactly as in the file, because its rotations are not exactly "
                     f"orthogonal; the largest difference is {lossy[worst]:.2%} of the change ({worst})")
    fresh = [name for name in layers if name not in changes]
    if fresh:
        notes.append(f"{len(fresh)} layers are not in the file and start from scratch ({listed(fresh)})")
    return notes
