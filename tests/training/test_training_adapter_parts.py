"""The training adapter in each part of a training, and with each way in which a base is stored."""

from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from modules import quant
from modules.adapters.base import detach
from modules.adapters.layers import as_layer
from modules.training import feed, gradient_start, loop, prior, setup, text_groups
from modules.training.training_adapter import Beside
from tests.adapters.cases import randomise
from tests.training.distilled import Given, every_layer, plain_model, write_file
from tests.training.runs import OPTIONS, Place, equal
from tests.training.test_prior import as_prior

pytestmark = pytest.mark.usefixtures("forget_accelerate")

PLAIN = {**OPTIONS["data"], "caption_dropout": 0.0}
LORA = {"method": "lora", "rank": 2}


def test_prior_prediction_has_it_on(place, given: Given):
    """The target is what the base with it inside predicts, whatever the adapters are."""
    found = []
    for stage, options in ((place.stage, given.typed), (given.merged, ())):
        with Place(stage, place.runs).session(f"run {len(options)}", *options, data=PLAIN, adapter=LORA) as session:
            for number, layer in enumerate(session.adapted.values()):
                randomise(layer.adapter, number)
            batch = as_prior(session.batches.at(0, 0))
            found.append(prior.targets(session, feed.prepare(session, batch)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.short("lora-2-pissa", "wora-2")
@pytest.mark.parametrize(
    "adapter",
    [{"method": "dora", "rank": 2}, {"method": "lora", "rank": 2, "init": "pissa"}, {"method": "wora", "rank": 2},
     {"method": "oft", "rotation": {"kind": "blocks", "block_size": 4}}, {"method": "lora", "step_size": "calibrated"}],
    ids=lambda adapter: "-".join(map(str, adapter.values())),
)
def test_methods_see_the_plain_base(place, given: Given, adapter):
    """Initial values and everything that is derived from the base weight are those without it, bit for bit."""
    found = []
    for name, options in (("with", given.typed), ("without", ())):
        with place.session(name, *options, adapter=adapter) as session:
            session.derived.begin()
            layers = session.adapted.items()
            leaves = {f"{one}.{key}": leaf for one, layer in layers for key, leaf in layer.leaves.items()}
            found.append({**session.tensors(), **leaves})
            assert bool(session.training_adapter.spots) == bool(options)
    assert equal(*found)


@pytest.mark.full
def test_initial_values_from_gradients_follow_the_loss_that_is_trained(place, given: Given):
    """They are the directions of the first steps, in which it is on: those of a base with it inside."""
    adapter, found = {**LORA, "init": "gradient"}, []
    for stage, options in ((place.stage, given.typed), (given.merged, ())):
        with Place(stage, place.runs).session(f"run {len(options)}", *options, adapter=adapter, data=PLAIN) as session:
            gradient_start.begin(session, loop.batch_loss)
            downs = {name: layer.adapter.state_dict()["down"] for name, layer in session.adapted.items()}
            found.append({name: down / down.norm(dim=1, keepdim=True) for name, down in downs.items()})
    for name, rows in found[0].items():
        assert (rows * found[1][name]).sum(1).abs().min() > 0.99, name


PLACES = [("none", 0), ("nf4", 0), ("int8", 0), ("fp8", 2), ("none", 2)]


@pytest.mark.short("nf4-0", "fp8-2")
@pytest.mark.parametrize("packing, offloaded", PLACES)
def test_quantized_and_offloaded_bases(place, given: Given, packing, offloaded):
    """Its own change is not rounded: the prediction is that of the base's dense weights with the change added."""
    options = ("--base.quantization", packing, "--base.offload_blocks", str(offloaded))
    with place.session("run", *given.typed, *options, data=PLAIN, adapter=LORA) as session:
        prepared = feed.prepare(session, session.batches.at(0, 0))
        found = feed.errors(session, prepared)
        loop.take_step(session, loop.Progress(feed.Feed(session)))
        with session.training_adapter.off():
            alone = feed.errors(session, prepared)
            network = setup.whole(session.model)
            detach(network)
            for name, change in given.changes.items():
                layer = as_layer(network.get_submodule(name), name)
                weight = layer.native(layer.dense() + change.float())
                parent = network.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], quant.with_dense_weight(layer.base, weight))
            expected = feed.errors(session, prepared)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert (alone - found).abs().max() > 0.01


HALF = ("--training.precision", "bfloat16")


@pytest.mark.short("bfloat16")
@pytest.mark.parametrize("options", [HALF, (*HALF, "--base.dtype", "float32")], ids=["bfloat16", "base in float32"])
def test_half_precision(place, given: Given, options):
    """Layers give what they give without it in number formats, and the loss is that of float32 up to rounding."""
    found, kinds = [], dict[torch.nn.Module, torch.dtype]()

    def look(module: torch.nn.Module, _, y: Tensor) -> None:
        kinds[module] = y.dtype

    for more in ((), options):
        AcceleratorState._reset_state(reset_partial_state=True)
        with place.session(f"run {len(more)}", *given.typed, *more, data=PLAIN, adapter=LORA) as session:
            besides = [spot.beside for spot in session.training_adapter.spots]
            for beside in besides:
                beside.register_forward_hook(look)
                beside.inner.register_forward_hook(look)
            found.append(loop.take_step(session, loop.Progress(feed.Feed(session)))[0])
            assert all(kinds[beside] == kinds[beside.inner] for beside in besides)
    assert set(kinds.values()) >= {torch.float32, torch.bfloat16}
    assert found[1] == pytest.approx(found[0], rel=0.02) and found[1] != found[0]


@pytest.mark.full
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_have_it_where_others_of_their_kind_have_not(place, compiler, monkeypatch, checkpointing):
    """A file for one block of several: torch must not run one's compiled code for the other."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    file, model = place.runs / "some.safetensors", plain_model(place)
    chosen = [name for name in every_layer(model) if "transformer_blocks.0.ff" in name][1:]
    assert len(chosen) < len([name for name in every_layer(model) if "transformer_blocks.0.ff" in name])
    write_file(file, model, chosen, scale=3.0)
    training = {**OPTIONS["training"], "gradient_checkpointing": checkpointing}
    with place.session("run", "--base.training_adapter", str(file), data=PLAIN, training=training) as session:
        for number, layer in enumerate(session.adapted.values()):
            randomise(layer.adapter, number)
        prepared = feed.prepare(session, session.batches.at(0, 0))
        parameters = session.flat.parameters

        def everything() -> list[Tensor]:
            found = feed.errors(session, prepared)
            gradients = torch.autograd.grad(found.sum(), parameters, allow_unused=True)
            with torch.no_grad():
                on = feed.errors(session, prepared)
                with session.training_adapter.off():
                    off = feed.errors(session, prepared)
            return [found, on, off, *(grad for grad in gradients if grad is not None)]

        wanted = everything()
        assert (wanted[1] - wanted[2]).abs().min() > 1e-3 * wanted[1].abs().max()
        session.model.compile_blocks(checkpointing)
        for _ in range(2):
            for one, two in zip(everything(), wanted, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4 * float(two.abs().max()))


@pytest.mark.full
def test_what_is_moved_for_text_encoders_comes_back(place, given: Given):
    """Captions of coming steps are encoded with the base off the device; the change is part of it."""
    with place.session("run", *given.typed, data=PLAIN) as session:
        parts = list(text_groups.frozen_parts(session.model.networks["unet"]))
        assert {id(part) for part in parts} >= {id(spot.beside) for spot in session.training_adapter.spots}
        prepared = feed.prepare(session, session.batches.at(0, 0))
        before = feed.errors(session, prepared)
        with text_groups.apart(session.model):
            pass
        assert torch.equal(feed.errors(session, prepared), before)
        moved = session.training_adapter.spots[0].beside.to("meta")
        assert moved.up.is_meta and moved.down.is_meta


def test_an_error_inside_puts_it_back(place, given: Given):
    with place.session("run", *given.typed) as session:
        unet = session.model.networks["unet"]
        with pytest.raises(RuntimeError), session.training_adapter.off():
            assert not any(isinstance(module, Beside) for module in unet.modules())
            raise RuntimeError
        assert sum(isinstance(module, Beside) for module in unet.modules()) == len(given.changes)


@pytest.mark.full
def test_the_probe_has_it_too(place, given: Given, monkeypatch):
    seen = []
    take_step = loop.take_step

    def counted(session, progress):
        seen.append(len(session.training_adapter.spots))
        return take_step(session, progress)

    monkeypatch.setattr(loop, "take_step", counted)
    assert place.train("probe", *given.typed, "--check", "--probe") == 0
    assert seen and set(seen) == {len(given.changes)}
