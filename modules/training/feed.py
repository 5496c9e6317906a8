"""Micro-batches with their noise, prepared while the device still computes the previous ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from modules import losses, objectives
from modules.data import masks
from modules.data.augment import View
from modules.data.batches import Batch
from modules.data.index import Picture
from modules.families.base import Caption
from modules.training import prior, sharding
from modules.training.active_ranks import ActiveRanks
from modules.training.dropping import Dropping
from modules.training.microbatch import Prepared
from modules.training.noise import drawn_levels, times_of
from modules.training.session import Session


class Feed:
    """The micro-batches of a training in their order, one of them prefetched."""

    def __init__(self, session: Session):
        self.session = session
        denoiser = next(iter(session.model.networks))
        self.dropping = Dropping(session.adapted, denoiser, session.preset.training.seed)
        self.ranks = ActiveRanks(session.adapted, denoiser, session.model.process.count)
        self.ahead: tuple[tuple[int, int], Prepared] | None = None

    def reach(self, step: int) -> None:
        """Make ready for a step, between two steps: captions of a group of coming steps may be encoded, and the
        denoiser be off the device meanwhile."""
        if self.session.texts is not None:
            self.session.texts.reach(step, self.session.steps)

    @contextmanager
    def masking(self, step: int, prepared: Prepared) -> Iterator[None]:
        """What adapters drop, and which of their components are active, in passes on this micro-batch inside. Around
        the backward pass too, in which layers may be computed again."""
        device = self.session.accelerator.device
        with self.dropping.at(step, prepared.positions, device), self.ranks.at(prepared.times, device):
            yield

    def at(self, step: int, micro: int) -> Prepared:
        """The micro-batch, on the CPU."""
        held, self.ahead = self.ahead, None
        if held is not None and held[0] == (step, micro):
            return held[1]
        return prepare(self.session, self.session.batches.at(step, micro))

    def look_ahead(self, step: int, micro: int) -> None:
        """Prefetch the one after this, if its captions are encoded. Call it when the device's work is queued, before
        waiting for it."""
        accumulation = self.session.preset.training.accumulation
        step, micro = divmod(step * accumulation + micro + 1, accumulation)
        texts = self.session.texts
        if step < self.session.steps and (texts is None or step in texts.steps):
            self.ahead = (step, micro), prepare(self.session, self.session.batches.at(step, micro))


def prepare(session: Session, batch: Batch) -> Prepared:
    """A micro-batch with each sample's own noise and noise level: functions of seed and position alone."""
    seed, objective, process = session.preset.training.seed, session.preset.objective, session.model.process
    seen = list(zip(batch.pictures, batch.flips, batch.views, strict=True))
    moments = [session.latents.get(*one) for one in seen]
    pairs = zip(moments, batch.positions, strict=True)
    latents = torch.stack([objectives.draw_latents(moment, seed, position) for moment, position in pairs])
    kind, area = session.noise, latents.shape[2] * latents.shape[3]
    placed = list(zip(batch.positions, latents, strict=True))
    noise = torch.stack([objectives.sample_noise(seed, n, one, kind) for n, one in placed])
    times = times_of(process, objective, drawn_levels(process, objective, seed, batch.positions), area)
    given = None
    if kind.perturbation:
        pairs = zip(batch.positions, noise, strict=True)
        given = torch.stack([objectives.perturbed(one, seed, n, kind.perturbation) for n, one in pairs])

    weights = _weights_of_pictures(batch)
    if objective.min_snr_gamma is not None:
        snr = objectives.min_snr_weight(session.prediction, process.snr(times), objective.min_snr_gamma)
    elif objective.debiased:  # never both, see `noise.problems`
        snr = objectives.debiased_weight(process.snr(times))
    else:
        snr = None
    if snr is not None:
        weights = snr if weights is None else snr * weights
    ready = replace(
        noised(session, latents, noise, times, batch.captions, batch.sizes, given),
        weights=weights,
        positions=batch.positions,
        parts=weights_inside(session, [one if used else None for one, used in zip(seen, batch.masked, strict=True)]),
        prior=tuple(place for place, picture in enumerate(batch.pictures) if picture.is_prior),
        references=references_of(session, batch.pictures),
        base_too=sharding.is_wanted() and any(picture.is_prior for picture in session.batches.together(batch)),
    )
    return ready.pinned() if session.accelerator.device.type == "cuda" else ready


def _weights_of_pictures(batch: Batch) -> Tensor | None:
    """`(n)` float32: the loss weights of the pictures' folders; None where all are 1."""
    weights = [picture.loss_weight for picture in batch.pictures]
    return None if all(weight == 1 for weight in weights) else torch.tensor(weights, dtype=torch.float32)


def weights_inside(session: Session, seen: Sequence[tuple[Picture, bool, View | None] | None]) -> Tensor | None:
    """`(n, 1, h, w)` float64: the weights that masks give to parts of pictures, each with its flip and view, or None
    where its mask is not used. None if no mask is."""
    found = [
        None if one is None or one[0].mask is None else masks.weights(one[0].options, session.masks.get(*one))
        for one in seen
    ]
    whole = next((torch.ones_like(one) for one in found if one is not None), None)
    return None if whole is None else torch.stack([whole if one is None else one for one in found])


def references_of(session: Session, pictures: Sequence[Picture]) -> tuple[Tensor, ...]:
    """Latents `(n, c, h, w)` of each reference of the pictures, which have one shape."""
    return () if session.references is None else session.references.of(pictures)


def noised(
    session: Session,
    latents: Tensor,
    noise: Tensor,
    times: Tensor,
    captions: tuple[Caption, ...],
    sizes: Tensor,
    given: Tensor | None = None,
) -> Prepared:
    """Samples at the given noise, all of equal weight. `given`: the noise of their inputs, where it is another."""
    parts = session.model.process.parts(times)
    noisy = objectives.add_noise(latents, noise if given is None else given, parts)
    wanted = objectives.target(session.prediction, latents, noise, parts)
    texts = None if session.texts is None else session.texts.get(captions)
    deltas = losses.thresholds(session.loss, session.model.process, times)
    return Prepared(noisy, wanted, times, sizes, captions, texts, deltas=deltas)


def errors(session: Session, prepared: Prepared) -> Tensor:
    """Weighted error of each sample `(n)`."""
    given = prepared.to(session.accelerator.device)
    texts = session.encode(list(given.captions)) if given.texts is None else given.texts
    wanted = prior.targets(session, given) if given.prior or given.base_too else given.wanted
    more = (given.references,) if given.references else ()
    predicted = session.model.predict(given.noisy, given.times, texts, given.sizes, *more)
    found = losses.errors(session.loss, predicted, wanted, given.parts, given.deltas)
    return found if given.weights is None else found * given.weights
