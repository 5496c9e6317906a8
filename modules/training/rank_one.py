"""What the singular values of low-rank updates say during a training, and a warning at its end where they are nearly of
rank 1: such adapters add up badly when several are loaded (ai-toolkit issue 964)."""

from collections.abc import Iterator
from statistics import median

import torch

from modules.files import forms, singular_values
from modules.files.singular_values import Spectrum
from modules.training.session import Session


@torch.no_grad()
def look(session: Session) -> None:
    """Warn if the low-rank updates of most layers are nearly of rank 1. With a sharded base all processes read it."""
    if not session.takes_part:
        return
    with session.shown(session.preset.export.ema):
        message = singular_values.note([*spectra(session)])
    if message:
        session.events.warn_once("rank 1", f"{message}; scripts/inspect_adapter.py with --spectrum shows each layer")


@torch.no_grad()
def record(session: Session) -> None:
    """Write the medians over the layers, of the weights that are validated. All processes read a sharded base."""
    with session.shown(session.preset.validation.ema):
        found = [*spectra(session)]
    if not found:
        session.events.warn_once("spectrum", "validation.spectrum: no layer has a low-rank update; nothing is recorded")
        return
    values = {name: float(median(vars(one)[name] for one in found))
              for name in ("spectral_norm", "stable_rank", "effective_rank")}
    session.events.write("spectrum", {"step": session.step, **values})


def spectra(session: Session) -> Iterator[Spectrum]:
    """Of the low-rank update of each layer that has one, without its magnitude or rotation."""
    for adapted in session.adapted.values():
        terms = forms.expanded(adapted.adapter.export_terms(adapted.layer.dense()))
        if terms.up is not None and terms.down is not None:
            yield singular_values.spectrum(singular_values.of_pair(terms))
