"""Packed base layers: what bitsandbytes makes of a weight, and that everything else is the dense layer of it."""

import copy

import pytest
import torch
from torch import nn

from modules import adapters
from modules.adapters.base import attach
from modules.families.sdxl import Model
from modules.preset.schema import Base
from modules.quant import (
    FrozenLinear,
    PackedLinear,
    dense_weight,
    device_of,
    features,
    is_packed,
    is_rounded,
    keep_in_memory,
    pack_linears,
    with_dense_weight,
)
from tests.tiny_sdxl import make_folder

CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", ["nf4", "int8", "fp8", "dense"])
ROUNDED = pytest.mark.parametrize("kind", ["nf4", "int8", "fp8"])
BNB = pytest.mark.parametrize("kind", ["nf4", "int8"])
SHAPES = pytest.mark.parametrize("shape", [(64, 128), (12, 64), (5, 3), (96, 320)])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def linear(shape=(12, 64), dtype=torch.float32, bias=True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(shape[1], shape[0], bias=bias).to(dtype).requires_grad_(False)


def packed(layer: nn.Linear, kind: str) -> PackedLinear:
    return PackedLinear(layer, kind, CPU)


def theirs(layer: nn.Linear, kind: str) -> nn.Module:
    """bitsandbytes' own layer of the same weight; in training mode its int8 layer leaves activations alone."""
    import bitsandbytes as bnb

    shape, weight = (layer.in_features, layer.out_features, layer.bias is not None), layer.weight.data.clone()
    if kind == "nf4":
        module = bnb.nn.Linear4bit(*shape, quant_type="nf4", compute_dtype=weight.dtype)
        module.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        module = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False)
        module.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    module.bias = layer.bias
    return module.to("cpu")


# -- the weight -------------------------------------------------------------------------------------------------------


@BNB
@SHAPES
@DTYPES
def test_weight_is_what_bitsandbytes_dequantises(kind, shape, dtype):
    import bitsandbytes.functional as bnb

    layer = linear(shape, dtype)
    ours, reference = dense_weight(packed(layer, kind), dtype), theirs(layer, kind).weight
    if kind == "nf4":
        expected = bnb.dequantize_4bit(reference.data, reference.quant_state)
    else:
        expected = bnb.int8_vectorwise_dequant(reference.data, reference.SCB).to(dtype)
    assert ours.shape == shape and ours.dtype == dtype and torch.equal(ours, expected)


@BNB
@SHAPES
def test_layer_computes_what_bitsandbytes_layer_does(kind, shape):
    layer, x = linear(shape), torch.randn(2, 7, shape[1])
    torch.testing.assert_close(packed(layer, kind)(x), theirs(layer, kind)(x), atol=2e-6, rtol=1e-5)


@KINDS
@SHAPES
@DTYPES
def test_rounding_is_the_formats(kind, shape, dtype):
    layer = linear(shape, dtype)
    weight = layer.weight.float()
    error = (dense_weight(packed(layer, kind)) - weight).abs()
    if kind == "int8":  # 127 steps from zero to the row's largest, of a weight rounded to float16 first
        largest = weight.abs().amax(1, keepdim=True)
        assert (error <= largest * (0.5 / 127 + 2**-10)).all() and error.max() > 0
    elif kind == "fp8":  # 3 bits after the first: half a step is a 16th, of the smallest numbers a step of their own
        largest = weight.abs().amax(1, keepdim=True)
        assert (error <= torch.maximum(weight.abs() / 16, largest / 448 * 2**-10) * 1.0001).all() and error.max() > 0
    elif kind == "dense":
        assert error.max() == 0
    else:  # the widest gap of nf4 is 0.304 of the block's largest; scales are rounded to 8 bits
        blocks = nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
        largest = blocks.abs().amax(1, keepdim=True).expand(-1, 64).flatten()[: weight.numel()].view(shape)
        spread = largest.max() - largest.min() + 1e-3 * largest.max()
        assert (error <= largest * 0.155 + 0.05 * spread).all()
        assert error.norm() / weight.norm() < 0.12


def test_nf4_takes_a_seventh_of_the_memory_and_eight_bits_a_quarter():
    def size(layer):
        return sum(t.numel() * t.element_size() for t in layer.state_dict().values())

    layer = linear((512, 512), bias=False)
    assert size(layer) / size(packed(layer, "nf4")) > 7
    assert size(layer) / size(packed(layer, "int8")) > 3.9
    assert size(layer) / size(packed(layer, "fp8")) > 3.9


# -- the layer --------------------------------------------------------------------------------------------------------


@KINDS
@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_layer_is_the_dense_layer_whatever_the_mode(kind, dtype, bias, training):
    layer = linear((64, 64), dtype, bias).train(training)
    small = packed(layer, kind)
    assert small.training == training
    weight, kept = dense_weight(small).clone(), copy.deepcopy(small.bias)
    x = torch.randn(3, 64, dtype=dtype)
    for mode in (small.train(), small.eval()):
        expected = nn.functional.linear(x, weight.to(dtype), kept)
        assert torch.equal(mode(x), expected)
    assert torch.equal(dense_weight(small), weight)
    small(x.float()), small(x.bfloat16())  # other inputs leave the layer as it is
    assert bias == (small.bias is not None) and (kept is None or torch.equal(small.bias, kept))
    assert torch.equal(dense_weight(small), weight)


@KINDS
def test_gradient_of_the_input_is_the_dense_layers(kind):
    small = packed(linear(), kind)
    x, twin = (torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    small(x).square().sum().backward()
    nn.functional.linear(twin, dense_weight(small), small.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-6, atol=1e-6)
    assert not any(p.requires_grad for p in small.parameters())


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64)])
def test_frozen_products_are_autograds(shape):
    weight = torch.randn(12, 64, dtype=torch.float64)
    calls = []

    def dense():
        calls.append(1)
        return weight

    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    y = FrozenLinear.apply(x, dense)
    expected = twin @ weight.mT
    seed = torch.randn_like(expected)
    y.backward(seed), expected.backward(seed)
    torch.testing.assert_close(y, expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-14, atol=1e-14)
    assert len(calls) == 2, "the weight is made anew in the backward pass"
    assert torch.autograd.gradcheck(lambda v: FrozenLinear.apply(v, dense), (x.detach().requires_grad_(),))


def test_autocast_gives_half_results_and_full_gradients():
    small, x = packed(linear(), "nf4"), torch.randn(3, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = small(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, dense_weight(small).sum(0).expand(3, -1), rtol=0.02, atol=0.02)


# -- moving, copying, casting -----------------------------------------------------------------------------------------


@KINDS
def test_moves_and_copies_keep_every_bit(kind):
    network = nn.Sequential(linear((64, 128)))
    pack_linears(network, kind)
    weight, x = dense_weight(network[0]).clone(), torch.randn(2, 128)
    expected = network(x)
    for other in (copy.deepcopy(network), network.to("cpu"), network.float()):
        assert torch.equal(dense_weight(other[0]), weight)
        assert torch.equal(other(x), expected)
    half = copy.deepcopy(network).bfloat16()
    assert torch.equal(dense_weight(half[0]), weight if is_rounded(half[0]) else weight.bfloat16().float())
    assert half(x.bfloat16()).dtype == with_dense_weight(half[0], weight).weight.dtype == torch.bfloat16
    assert half[0].bias.dtype == torch.bfloat16
    twin = copy.deepcopy(network)
    twin[0].weight.zero_()
    assert torch.equal(dense_weight(network[0]), weight)


@KINDS
def test_everything_of_a_layer_moves_with_its_network(kind):
    """The device "meta" stands for a GPU: nothing may stay behind."""
    network = nn.Sequential(linear((64, 128)))
    pack_linears(network, kind)
    moved = network.to("meta")
    assert all(t.is_meta for t in (*moved.parameters(), *moved.buffers()))
    assert not [name for name, value in vars(moved[0]).items() if isinstance(value, torch.Tensor)]


@KINDS
def test_weights_kept_in_memory_come_to_the_device_for_each_use(kind):
    network = nn.Sequential(linear((64, 128)))
    pack_linears(network, kind)
    x = torch.randn(2, 128)
    weight, expected = dense_weight(network[0]).clone(), network(x)
    keep_in_memory(network)
    assert torch.equal(dense_weight(network[0]), weight) and torch.equal(network(x), expected)
    network.to("meta")  # stands for a GPU
    layer = network[0]
    assert device_of(layer).type == "meta" and layer.bias.is_meta
    assert not any(tensor.is_meta for tensor in (layer.weight, *layer.buffers())), "the weight stays in main memory"
    assert dense_weight(layer).is_meta and network(x.to("meta")).is_meta
    assert is_rounded(layer) == (kind != "dense")


def test_a_dense_layer_kept_in_memory_follows_casts():
    network = nn.Sequential(linear((12, 64)))
    weight = network[0].weight.clone()
    keep_in_memory(network)
    network.bfloat16()
    assert network[0].weight.dtype == torch.bfloat16
    assert torch.equal(dense_weight(network[0]), weight.bfloat16().float())


@KINDS
def test_state_dict_holds_all_of_a_layer(kind):
    one, other = packed(linear(), kind), PackedLinear(nn.Linear(64, 12), kind, CPU)
    assert not torch.equal(dense_weight(one), dense_weight(other))
    other.load_state_dict(one.state_dict())
    assert torch.equal(dense_weight(one), dense_weight(other)) and torch.equal(one.bias, other.bias)


@KINDS
def test_only_linear_layers_are_packed(kind):
    class Special(nn.Linear):
        pass

    network = nn.ModuleDict({
        "linear": linear(), "conv": nn.Conv2d(4, 4, 1), "embedding": nn.Embedding(4, 4), "norm": nn.LayerNorm(4),
        "special": Special(4, 4), "inside": nn.Sequential(linear(bias=False), nn.ReLU()),
    })
    kept = {name: module for name, module in network.named_modules() if type(module) is not nn.Linear}
    pack_linears(network, kind)
    found = {name for name, module in network.named_modules() if is_packed(module)}
    assert found == {"linear", "inside.0"}
    assert all(network.get_submodule(name) is module for name, module in kept.items() if name)
    assert features(network["linear"]) == (12, 64) and isinstance(network["linear"], nn.Linear)
    before = network["linear"]
    pack_linears(network, kind)
    assert network["linear"] is before


@KINDS
@pytest.mark.parametrize("bias", [True, False])
@DTYPES
def test_dense_copy_keeps_the_bias_and_leaves_the_layer_alone(kind, bias, dtype):
    small = packed(linear(dtype=dtype, bias=bias), kind)
    before, weight = dense_weight(small).clone(), torch.randn(12, 64)
    new = with_dense_weight(small, weight)
    assert isinstance(new, nn.Linear) and not is_packed(new)
    assert new.weight.dtype == dtype and not new.weight.requires_grad
    assert torch.equal(new.weight, weight.to(dtype))
    assert new.bias is None if not bias else torch.equal(new.bias, small.bias)
    assert new(torch.randn(2, 64, dtype=dtype)).dtype == dtype
    assert torch.equal(dense_weight(small), before) and is_packed(small)


def test_dense_copy_of_a_dense_layer():
    layer = linear(dtype=torch.bfloat16)
    before, weight = layer.weight.clone(), torch.randn(12, 64)
    new = with_dense_weight(layer, weight)
    assert torch.equal(new.weight, weight.bfloat16()) and new.bias is layer.bias
    assert torch.equal(layer.weight, before) and torch.equal(dense_weight(layer), before)


# -- a whole model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("quant"))


LAYERS = [
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
    "up_blocks.0.resnets.0.conv1",
]


def step(model: Model, method: str) -> dict[str, torch.Tensor]:
    """Gradients of one step through adapters on `LAYERS`, moved away from their start."""
    unet = model.networks["unet"]
    config = adapters.methods()[method].Config(method=method)
    layers = {name: attach(unet, name, config, seed=3) for name in LAYERS}
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for adapted in layers.values():
            for parameter in adapted.adapter.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    noisy, hidden, pooled = (torch.randn(s, generator=generator) for s in ((2, 4, 8, 8), (2, 77, 32), (2, 16)))
    texts = {"hidden": hidden.to(unet.dtype), "pooled": pooled.to(unet.dtype)}
    model.predict(noisy, torch.tensor([10, 900]), texts, torch.ones(2, 6)).float().square().mean().backward()
    return {f"{name}.{key}": p.grad for name, a in layers.items() for key, p in a.adapter.named_parameters()}


def placed(folder, kind: str, dtype: torch.dtype) -> Model:
    base = Base(path=str(folder), quantization=kind)
    model = Model.load(base, CPU, dtype)
    model.place(base, texts=False)
    return model


@pytest.mark.short("lora-nf4", "wora-int8", "lora-fp8")
@ROUNDED
@pytest.mark.parametrize("method", ["lora", "wora"])
def test_a_step_on_a_packed_model_is_the_dense_models(folder, kind, method):
    model = placed(folder, kind, torch.float32)
    dense = Model.load(Base(path=str(folder)), CPU, torch.float32)
    count = 0
    for name, module in model.networks["unet"].named_modules():
        if is_packed(module):
            dense.networks["unet"].get_submodule(name).weight.copy_(dense_weight(module))
            count += 1
    assert count > 50
    found, expected = step(model, method), step(dense, method)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@ROUNDED
def test_a_packed_model_in_bfloat16_trains(folder, kind):
    model = placed(folder, kind, torch.bfloat16)
    gradients = step(model, "lora")
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() and g.norm() > 0 for g in gradients.values())
