"""Prior prediction: the target of regularisation pictures is what the frozen base predicts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from modules import adapters, losses
from modules.adapters.base import attach, detach
from modules.adapters.derived import Derived
from modules.data.augment import sizes_at
from modules.data.batches import Batches
from modules.data.index import Index, Picture
from modules.training import feed, loop, prior
from tests.adapters.cases import label, randomise, variants
from tests.training.runs import OPTIONS, draw_pictures

pytestmark = pytest.mark.usefixtures("forget_accelerate")

PLAIN = {**OPTIONS["data"], "caption_dropout": 0.0}


def as_prior(batch, places=None):
    """The batch with all, or some, of its pictures for regularisation with prior prediction."""
    places = range(len(batch.pictures)) if places is None else places
    pictures = [
        replace(picture, role="regularisation", options=picture.options.model_copy(update={"prior_prediction": True}))
        if place in places
        else picture
        for place, picture in enumerate(batch.pictures)
    ]
    return replace(batch, pictures=tuple(pictures))


def doubled(prepared):
    """A micro-batch in float64."""
    assert prepared.texts is not None
    texts = {name: tensor.double() for name, tensor in prepared.texts.items()}
    return replace(prepared, noisy=prepared.noisy.double(), wanted=prepared.wanted.double(), texts=texts)


def gradient(session, prepared) -> torch.Tensor:
    """Of the loss, with respect to all parameters of the adapters."""
    parameters = [p for layer in session.adapted.values() for p in layer.adapter.parameters() if p.requires_grad]
    derived = Derived(session.adapted.values())
    for parameter in parameters:
        parameter.grad = None
    derived.begin()
    feed.errors(session, prepared).mean().backward()
    derived.pull_back()
    derived.end()
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])


def readapted(session, method, options):
    """The session in float64 with fresh adapters of another method."""
    unet, names = session.model.networks["unet"], [name.removeprefix("unet.") for name in session.adapted]
    detach(unet)
    unet.double()
    config = adapters.methods()[method].Config(method=method, **options)
    session.adapted = {f"unet.{name}": attach(unet, name, config, seed=1) for name in names}


@pytest.mark.full
def test_nothing_pulls_at_the_start(place):
    """For every method the gradient of such pictures is below 1e-10 of what their own targets give."""
    compared = {}
    with place.session("run", data=PLAIN) as session:
        batch = session.batches.at(0, 0)
        own, base = (doubled(feed.prepare(session, b)) for b in (batch, as_prior(batch)))
        assert base.prior == (0, 1) and own.prior == ()
        for method, options in variants():
            readapted(session, method, options)
            ordinary, left = gradient(session, own).norm(), gradient(session, base).norm()
            compared[label(method, options)] = float(left / ordinary)
            assert ordinary > 0
    assert {method for name in compared for method in [name.split("-")[0]]} == set(adapters.methods())
    assert max(compared.values()) < 1e-10, compared


@pytest.mark.parametrize("loss", ["mse", "huber", "smooth_l1"])
def test_the_target_is_the_base_and_nothing_else(place, loss):
    """Away from the start the error is the distance to the base without adapters; the other samples keep theirs."""
    objective = {"loss": loss, **({} if loss == "mse" else {"loss_delta": 0.01})}
    with place.session("run", data=PLAIN, objective=objective) as session:
        for number, layer in enumerate(session.adapted.values()):
            randomise(layer.adapter, number)
        batch = session.batches.at(0, 0)
        own, mixed = feed.prepare(session, batch), feed.prepare(session, as_prior(batch, [1]))
        with torch.no_grad():
            usual, found = feed.errors(session, own), feed.errors(session, mixed)
            adapted = session.model.predict(own.noisy, own.times, own.texts, own.sizes)
            for network in session.model.networks.values():
                detach(network)
            base = session.model.predict(own.noisy, own.times, own.texts, own.sizes)
    assert found[0] == usual[0] and found[1] != usual[1]
    assert own.weights is not None
    wanted = losses.errors(losses.Loss(loss, 0.01), adapted, base) * own.weights
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-9)


@pytest.mark.once
@pytest.mark.parametrize("packing", ["none", "nf4", "int8"])
@pytest.mark.parametrize("texts", [False, True])
def test_trained_text_encoders_and_packed_bases(place, packing, texts):
    """The base has the conditions of frozen text encoders, and the quantized weights."""
    targets = {**OPTIONS["targets"], "text_encoders": texts}
    options = ["--base.quantization", packing]
    with place.session("run", *options, data=PLAIN, targets=targets) as session:
        for number, layer in enumerate(session.adapted.values()):
            randomise(layer.adapter, number)
        prepared = feed.prepare(session, as_prior(session.batches.at(0, 0)))
        assert (prepared.texts is None) == texts
        found = prior.targets(session, prepared)
        assert all(layer.enabled for layer in session.adapted.values())
        with torch.no_grad():
            for network in session.model.networks.values():
                detach(network)
            conditions = session.encode(list(prepared.captions)) if texts else prepared.texts
            base = session.model.predict(prepared.noisy, prepared.times, conditions, prepared.sizes)
    assert torch.equal(found, base)


def test_checkpoints_compute_again_with_adapters(place):
    """The backward pass with gradient checkpointing gives the same gradients."""
    found = []
    for checkpointing in (False, True):
        training = {**OPTIONS["training"], "gradient_checkpointing": checkpointing}
        with place.session(f"run {checkpointing}", data=PLAIN, training=training) as session:
            for number, layer in enumerate(session.adapted.values()):
                randomise(layer.adapter, number, 0.1)
            found.append(gradient(session, feed.prepare(session, as_prior(session.batches.at(0, 0), [0]))))
    assert found[0].norm() > 0
    torch.testing.assert_close(*found)


def test_compiled_blocks_see_the_switch(place):
    """torch's tracer guards the switch: a block that was traced with adapters is traced again without."""
    with place.session("run", data=PLAIN) as session:
        for number, layer in enumerate(session.adapted.values()):
            randomise(layer.adapter, number)
        prepared = feed.prepare(session, as_prior(session.batches.at(0, 0)))
        wanted = prior.targets(session, prepared), feed.errors(session, prepared)
        for block in session.model.blocks():
            block.compile(backend="eager")
        for _ in range(2):
            found = feed.errors(session, prepared), prior.targets(session, prepared)
            torch.testing.assert_close(found, wanted[::-1])


def test_without_it_the_base_is_not_asked(place, monkeypatch):
    asked = []
    monkeypatch.setattr(prior, "targets", lambda *given: asked.append(given))
    with place.session("run", data=PLAIN) as session:
        progress = loop.Progress(feed.Feed(session))
        loop.take_step(session, progress)
    assert not asked


def test_a_sharded_base_is_asked_by_all_processes_or_none(place, monkeypatch):
    """Reading it is done together: a process whose pictures are ordinary takes part where another's are not."""
    asked = []
    with place.session("run", data=PLAIN) as session:
        ordinary = feed.prepare(session, session.batches.at(0, 0))
        assert not ordinary.base_too
        monkeypatch.setattr(feed.sharding, "is_wanted", lambda: True)
        assert not feed.prepare(session, session.batches.at(0, 0)).base_too
        elsewhere = as_prior(session.batches.at(0, 0)).pictures
        monkeypatch.setattr(session.batches, "together", lambda batch: list(elsewhere))
        prepared = feed.prepare(session, session.batches.at(0, 0))
        assert prepared.base_too and prepared.prior == ()
        predict = session.model.predict
        monkeypatch.setattr(session.model, "predict", lambda *given: asked.append(len(given[0])) or predict(*given))
        assert torch.equal(feed.errors(session, prepared), feed.errors(session, ordinary))
    assert asked == [1, 2, 2]


def test_the_pictures_of_all_processes_are_known_to_each():
    index = Index(tuple(Picture(Path(f"{n}.png"), f"{n}", "", 64, 64, (64, 64), 1, f"{n}") for n in range(7)))
    ranks = [Batches(index, 2, 2, 3, rank, seed=1) for rank in range(3)]
    for step in range(6):
        for micro in range(2):
            own = [batches.at(step, micro) for batches in ranks]
            every = [picture for batch in own for picture in batch.pictures]
            assert all(one.together(batch) == every for one, batch in zip(ranks, own, strict=True))


def test_accumulated_steps_take_part(place):
    """With every picture so, a step from the start leaves the adapter where it is."""
    with place.session("run", "--training.accumulation", "2", data=PLAIN) as session:
        at = session.batches.at
        session.batches.at = lambda step, micro: as_prior(at(step, micro))
        loss, norm, _ = loop.take_step(session, loop.Progress(feed.Feed(session)))
        assert loss < 1e-10 and norm < 1e-5
        session.batches.at = at
        loss, norm, _ = loop.take_step(session, loop.Progress(feed.Feed(session)))
        assert loss > 1e-3 and norm > 1e-3


def test_an_error_in_between_switches_adapters_on_again():
    config = adapters.methods()["lora"].Config(method="lora", rank=2)
    layer = attach(nn.Sequential(nn.Linear(8, 8)), "0", config, seed=0)
    with pytest.raises(RuntimeError), prior.base_alone([layer]):
        assert not layer.enabled
        raise RuntimeError
    assert layer.enabled


@pytest.mark.full
def test_the_base_is_kept_better(place, tmp_path):
    """After some steps the adapted network is nearer to the base on regularisation pictures than one that was trained
    on the same pictures without them, or with them as targets."""
    draw_pictures(tmp_path / "class", 4, 11)
    own, far = {"path": str(place.stage / "pictures")}, {}
    kinds = {"alone": None, "targets": {}, "prior": {"prior_prediction": True}}
    for kind, more in kinds.items():
        others = [] if more is None else [{"path": str(tmp_path / "class"), "role": "regularisation", **more}]
        held = {"path": str(tmp_path / "class"), "role": "validation"}
        data = {**PLAIN, "flip": False, "folders": [own, *others, held], "validation_folder": ""}
        training = {**OPTIONS["training"], "steps": 30, "learning_rate": 0.003}
        with place.session(kind, data=data, training=training) as session:
            progress = loop.Progress(feed.Feed(session))
            for session.step in range(30):
                loop.take_step(session, progress)
            far[kind] = distance_to_base(session)
    assert far["prior"] < 0.7 * far["alone"] and far["prior"] < 0.7 * far["targets"], far


def distance_to_base(session) -> float:
    """Mean squared difference of the predictions with and without adapters, on the validation pictures."""
    found = []
    with torch.no_grad(), session.derived.frozen():
        for number, picture in enumerate(session.validation.pictures):
            mean, _ = session.latents.get(picture, False).chunk(2)
            noise = torch.randn((4, *mean.shape), generator=torch.Generator().manual_seed(number))
            times = session.model.process.times(torch.arange(1, 5, dtype=torch.float64) / 5, mean[0].numel())
            sizes = sizes_at(picture, None, False).expand(4, -1)
            given = feed.noised(session, mean.expand_as(noise), noise, times, (picture.caption,) * 4, sizes)
            adapted = session.model.predict(given.noisy, given.times, given.texts, given.sizes)
            base = prior.targets(session, replace(given, prior=(0, 1, 2, 3)))
            found.append((adapted - base).square().mean())
    return float(torch.stack(found).mean())
