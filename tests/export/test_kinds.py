"""Every kind of foreign adapter: our reading of its tensors is the weight that its own trainer computes."""

import pytest
import torch

from modules.adapters.layers import as_layer
from modules.files import forms, kinds, writer
from tests.export import foreign
from tests.export.foreign import conv, linear


def peft_cases():
    from peft import DeloraConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig

    to = ["layer"]
    yield "lora", LoraConfig(r=3, lora_alpha=5, target_modules=to), linear()
    yield "rslora", LoraConfig(r=4, lora_alpha=5, use_rslora=True, target_modules=to), linear()
    pattern = {"rank_pattern": {"layer": 5}, "alpha_pattern": {"layer": 2}}
    yield "patterns", LoraConfig(r=4, lora_alpha=5, target_modules=to, **pattern), linear()
    yield "lora-conv", LoraConfig(r=3, lora_alpha=5, target_modules=to), conv()
    yield "dora", LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=to), linear()
    yield "dora-square", LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=to), linear(16)
    yield "dora-conv", LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=to), conv()
    for terms in (2, 3, 4, 5, 6, 7):
        yield f"oft-{terms}", OFTConfig(oft_block_size=4, num_cayley_neumann_terms=terms, target_modules=to), linear()
    yield "oft-exact", OFTConfig(oft_block_size=4, use_cayley_neumann=False, target_modules=to), linear()
    yield "oft-share", OFTConfig(oft_block_size=4, block_share=True, target_modules=to), linear()
    yield "oft-conv", OFTConfig(oft_block_size=6, target_modules=to), conv()
    yield "oft-point", OFTConfig(oft_block_size=4, target_modules=to), conv(kernel=1)
    yield "delora", DeloraConfig(r=3, target_modules=to), linear()
    yield "loha", LoHaConfig(r=2, alpha=3, target_modules=to), linear()
    yield "loha-conv", LoHaConfig(r=2, alpha=3, target_modules=to), conv()
    yield "loha-tucker", LoHaConfig(r=2, alpha=3, use_effective_conv2d=True, target_modules=to), conv()
    yield "lokr", LoKrConfig(r=2, alpha=3, decompose_factor=2, target_modules=to), linear()
    yield "lokr-whole", LoKrConfig(r=16, alpha=3, decompose_factor=2, target_modules=to), linear()
    yield "lokr-both", LoKrConfig(r=1, alpha=3, decompose_both=True, target_modules=to), linear()
    yield "lokr-conv", LoKrConfig(r=2, alpha=3, decompose_factor=2, target_modules=to), conv()


def lycoris_cases():
    both = {"linear": linear, "conv": conv}
    for shape, make in both.items():
        for algorithm, options in {
            "locon": {"lora_dim": 3, "alpha": 2},
            "locon-dora": {"lora_dim": 3, "alpha": 2, "weight_decompose": True},
            "loha": {"lora_dim": 2, "alpha": 1},
            "loha-dora": {"lora_dim": 2, "alpha": 2, "weight_decompose": True},
            "lokr": {"lora_dim": 2, "alpha": 1, "factor": 2},
            "lokr-whole": {"lora_dim": 100, "alpha": 1, "factor": 2},
            "lokr-both": {"lora_dim": 1, "alpha": 2, "decompose_both": True},
            "lokr-output": {"lora_dim": 2, "alpha": 2, "factor": 2, "weight_decompose": True},
            "lokr-input": {"lora_dim": 2, "alpha": 2, "factor": 2, "weight_decompose": True, "wd_on_out": False},
            "glora": {"lora_dim": 2, "alpha": 1},
            "full": {},
            "diag-oft": {"lora_dim": 4, "constraint": 0},
            "diag-oft-bound": {"lora_dim": 4, "constraint": 0.05},
            "boft": {"lora_dim": 4, "constraint": 0},
            "boft-rescaled": {"lora_dim": 4, "constraint": 0.05, "rescaled": True},
            "diag-oft-rescaled": {"lora_dim": 4, "constraint": 0, "rescaled": True},
        }.items():
            yield f"{algorithm}-{shape}", algorithm, make(16), options
    for algorithm in ("locon", "loha", "lokr"):
        yield f"{algorithm}-tucker", algorithm, conv(16), {"lora_dim": 2, "alpha": 2, "use_tucker": True}


def assert_read(case, program=""):
    layer = as_layer(case.base, "unet.layer")
    parts = {}
    for suffix, tensor in case.tensors.items():
        found = kinds.split(case.name + suffix)
        assert found is not None and found[:2] == (case.name, suffix), suffix
        parts[found[2]] = tensor
    about = writer.About(program, case.name, case.metadata, case.config)
    W = layer.dense()
    terms = kinds.terms(parts, layer, W, about)
    found = layer.native(forms.applied(terms, layer, W))
    assert (case.weight - case.base.weight).abs().max() > 1e-3, "the case changes nothing"
    assert (found - case.weight).abs().max() <= 1e-5 * case.weight.abs().max()
    return terms


@pytest.mark.parametrize("name, config, base", list(peft_cases()), ids=lambda value: str(value)[:12])
def test_peft(name, config, base):
    assert_read(foreign.of_peft(config, base), writer.PEFT)


@pytest.mark.parametrize("name, algorithm, base, options", list(lycoris_cases()), ids=lambda value: str(value)[:20])
def test_lycoris(name, algorithm, base, options):
    short = next(a for a in ("diag-oft", "boft", "locon", "loha", "lokr", "glora", "full") if algorithm.startswith(a))
    assert_read(foreign.of_lycoris(short, base, options))


@pytest.mark.parametrize("magnitude", ["", "log", "multiplier", "norm"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("base", [linear(), conv(), conv(kernel=1)], ids=["linear", "conv", "point"])
def test_onetrainer_rotations(base, scaled, magnitude):
    terms = assert_read(foreign.of_onetrainer(base, 4, scaled, magnitude), writer.ONETRAINER)
    assert (terms.axis == "output") == bool(magnitude)


def test_onetrainer_shared_blocks():
    terms = assert_read(foreign.of_onetrainer(linear(), 4, True, share=True), writer.ONETRAINER)
    assert terms.rotation.shape == (4, 4, 4)


@pytest.mark.parametrize("axis", ["input", "output"])
@pytest.mark.parametrize("base", [linear(), linear(16), conv()], ids=["linear", "square", "conv"])
def test_onetrainer_magnitudes(base, axis):
    assert assert_read(foreign.dora_of_onetrainer(base, axis), writer.ONETRAINER).axis == axis


@pytest.mark.parametrize("alpha", [None, 1.5])
@pytest.mark.parametrize("base", [linear(), conv()], ids=["linear", "conv"])
def test_kohya(base, alpha):
    assert_read(foreign.lora_of_kohya(base, alpha=alpha))


@pytest.mark.parametrize("alpha", [0.01, 1e3])
@pytest.mark.parametrize("base", [linear(), conv()], ids=["linear", "conv"])
def test_kohya_rotation(base, alpha):
    terms = assert_read(foreign.oft_of_kohya(base, 3, alpha))
    assert terms.side == "output" and terms.rotation.shape == (3, 4, 4)


def test_polar_and_clipped_rotations():
    """CANS is the exact Cayley transform; a clip holds each block's largest angle."""
    case = foreign.of_onetrainer(linear(), 4, False)
    parts = {"oft_R": 3 * case.tensors[".oft_R.weight"], "cans": torch.empty(0)}
    layer = as_layer(case.base, "layer")
    turn = kinds.terms(parts, layer, layer.dense(), writer.About()).rotation
    assert turn is not None
    assert (turn @ turn.mT - torch.eye(4)).abs().max() < 1e-5
    clipped = kinds.terms(parts | {"clipped": torch.tensor(0.2)}, layer, layer.dense(), writer.About()).rotation
    assert clipped is not None
    angles = torch.linalg.eigvals(clipped).angle().abs().amax(dim=1)
    assert (angles <= 2 * torch.tensor(0.2).atan() + 1e-5).all() and (angles > 0.1).any()
    exponential = kinds.terms(parts | {"exponential": torch.empty(0)}, layer, layer.dense(), writer.About()).rotation
    assert exponential is not None
    assert (exponential @ exponential.mT - torch.eye(4)).abs().max() < 1e-5


def test_the_first_scaled_rotation_needs_a_word():
    """Files of its first version look the same; the factor is another."""
    case = foreign.of_onetrainer(linear(), 4, True)
    parts = {kinds.split("x" + suffix)[2]: tensor for suffix, tensor in case.tensors.items()}
    layer = as_layer(case.base, "layer")
    late, early = (
        kinds.terms(parts, layer, layer.dense(), writer.About(metadata=metadata)).rotation
        for metadata in ({}, {"oft_factor": "elements"})
    )
    eye = torch.eye(4)
    assert ((early - eye).norm() / (late - eye).norm()) == pytest.approx(2 * 3**0.5 / 6**0.5, rel=0.05)


@pytest.mark.parametrize(
    "parts, words",
    [
        ({"up": torch.ones(12, 2), "down": torch.ones(3, 16)}, "ranks 2 and 3"),
        ({"up": torch.ones(12, 2), "down": torch.ones(2, 15)}, "12 x 15.*this base has 12 x 16"),
        ({"up": torch.ones(12, 2)}, "incomplete: it has only up"),
        ({"oft_R": torch.ones(4, 5)}, "do not fill a triangle"),
        ({"oft_R": torch.ones(3, 6)}, "another model"),
        ({"oft_R": torch.ones(1, 10)}, "1 blocks of 5"),
        ({"oft_blocks": torch.ones(4, 3, 2)}, "should be square"),
        ({"up": torch.ones(12, 2), "down": torch.ones(2, 16), "magnitude": torch.ones(1, 5)}, "5 values along the in"),
        ({"diff": torch.ones(12, 16), "bias": torch.ones(3)}, "bias has 3 values"),
    ],
)
def test_misfits_are_sentences(parts, words):
    layer = as_layer(linear(), "unet.here")
    with pytest.raises(ValueError, match=f"unet.here: .*{words}"):
        kinds.terms(parts, layer, layer.dense(), writer.About())
