"""FLUX.1 from single files: the same model as the diffusers folder they were made from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from modules.families.flux import DEV, PREFIX, SCHNELL, Model
from modules.preset.schema import Base, Targets
from modules.quant import is_packed
from modules.training.setup import match_layers
from tests.families.single_file_flux import CLIP, PARTS, T5, VAE, make_pair, original, write_transformer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A pipeline as folder `base`, as transformer-only file and as full checkpoint."""
    place = tmp_path_factory.mktemp("flux")
    base, _ = make_pair(place)
    pipeline = FluxPipeline.from_pretrained(base)
    write_transformer(pipeline, place / "alone.safetensors")
    write_transformer(pipeline, place / "prefixed.safetensors", PREFIX)
    return place


@pytest.fixture(scope="module")
def folder(place):
    return Model.load(Base(path=str(place / "base")), CPU, torch.float32)


def in_file(place: Path, name: str, config: str = "base") -> Base:
    return Base(path=str(place / name), config=str(place / config))


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    found, wanted = ours.state_dict(), theirs.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", ["alone", "prefixed", "full"])
def test_weights_are_the_folders_bit_for_bit(place, folder, name):
    base = in_file(place, f"{name}.safetensors")
    assert Model.problems(base) == []
    single = Model.load(base, CPU, torch.float32)
    for part in PARTS:
        assert_same(single.pipeline.components[part], folder.pipeline.components[part])
    assert single.base_hash() == folder.base_hash() and single.fingerprint("texts") == folder.fingerprint("texts")
    texts, wanted = single.encode_texts(["red apple"]), folder.encode_texts(["red apple"])
    assert all(torch.equal(texts[key], wanted[key]) for key in wanted)
    every = Targets(layers="all", text_encoders=True)
    assert match_layers(Model.skeleton(base), every)[0] == match_layers(single, every)[0]
    assert single.process == folder.process
    assert not any(p.requires_grad for p in single.pipeline.transformer.parameters())


def test_original_names_are_those_that_diffusers_reads():
    """At the real width, which diffusers' reader insists on, but with one column: it never looks at columns."""
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    with torch.device("meta"):
        real = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn((len(tensor), 1)[: tensor.dim()], generator=generator)
             for name, tensor in real.state_dict().items()}
    read = convert_flux_transformer_checkpoint_to_diffusers(original(state, real.inner_dim))
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_plain_fp8_is_read_as_the_rounded_weights(place, folder, tmp_path):
    small = torch.float8_e4m3fn
    write_transformer(folder.pipeline, tmp_path / "fp8.safetensors", dtype=small)
    base = Base(path=str(tmp_path / "fp8.safetensors"), config=str(place / "base"))
    assert Model.problems(base) == []
    found = Model.load(base, CPU, torch.bfloat16).pipeline.transformer.state_dict()
    for name, tensor in folder.pipeline.transformer.state_dict().items():
        assert torch.equal(found[name], tensor.to(small).to(torch.bfloat16)), name


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantisation(place, kind):
    base = in_file(place, "alone.safetensors").model_copy(update={"quantization": kind})
    model = Model.load(base, CPU, torch.bfloat16)
    model.place(base, texts=False)
    assert is_packed(model.pipeline.transformer.single_transformer_blocks[0].proj_mlp)
    args = (torch.randn(1, 4, 8, 8), torch.tensor([100.0]), model.encode_texts(["red"]), torch.zeros(1, 6))
    assert torch.isfinite(model.predict(*args)).all()


# -- what can be wrong ------------------------------------------------------------------------------------------------


def one_sentence(base: Base, *words: str) -> None:
    (problem,) = Model.problems(base)
    assert "\n" not in problem and all(word in problem for word in words), problem


def changed(place: Path, name: str, path: Path, change) -> Path:
    """File `name` after `change` of its tensors, written to `path`."""
    tensors = load_file(place / name)
    change(tensors)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("mark", ["double_blocks.0.img_attn.qkv.weight_scale_2", "double_blocks.0.img_mlp.0.wscales",
                                  "single_blocks.0.linear1.weight.absmax"])
def test_packed_weights_are_refused(place, tmp_path, mark):
    path = changed(place, "alone.safetensors", tmp_path / "x.safetensors", lambda t: t.update({mark: torch.ones(1)}))
    one_sentence(Base(path=str(path), config=str(place / "base")), "base.path", "packed", mark, "base.quantization")


@pytest.mark.parametrize("change, words", [
    (lambda t: t.pop("double_blocks.1.img_mlp.0.bias"), "lacks double_blocks.1.img_mlp.0.bias"),
    (lambda t: t.update({"double_blocks.2.x": torch.ones(1)}), "unknown double_blocks.2.x"),
    (lambda t: t.update({"img_in.weight": torch.ones(32, 64)}), r"img_in.weight is \(32, 64\), not \(32, 16\)"),
])
def test_other_tensors_are_an_error_when_loading(place, tmp_path, change, words):
    path = changed(place, "alone.safetensors", tmp_path / "x.safetensors", change)
    with pytest.raises(ValueError, match=rf"base\.path: .*could not be loaded as a FLUX\.1 model: .*{words}"):
        Model.load(Base(path=str(path), config=str(place / "base")), CPU, torch.float32)


@pytest.mark.parametrize("prefix, part", [(CLIP, "first text"), (T5, "second text"), (VAE, "VAE")])
def test_a_full_checkpoint_without_a_part_says_which(place, tmp_path, prefix, part):
    def without(tensors):
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    path = changed(place, "full.safetensors", tmp_path / "x.safetensors", without)
    one_sentence(Base(path=str(path), config=str(place / "base")), "base.path", "lacks", part)


def test_a_file_of_something_else_or_damaged(place, tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    one_sentence(Base(path=str(tmp_path / "x.safetensors")), "base.path", "FLUX.1", "flux1-dev.safetensors")
    (tmp_path / "x.safetensors").write_bytes((place / "alone.safetensors").read_bytes()[:1000])
    base = Base(path=str(tmp_path / "x.safetensors"), config=str(place / "base"))
    one_sentence(base, "base.path", "damaged")
    with pytest.raises(ValueError, match=r"base\.path: .*could not be loaded.*damaged"):
        Model.load(base, CPU, torch.float32)


def test_a_transformer_alone_needs_a_folder_with_the_other_weights(place, tmp_path):
    shutil.copytree(place / "base", tmp_path / "base")
    base = Base(path=str(place / "alone.safetensors"), config=str(tmp_path / "base"))
    for path in (tmp_path / "base" / "transformer").glob("*.safetensors"):
        path.unlink()
    assert Model.problems(base) == []
    assert Model.load(base, CPU, torch.float32)
    for path in (tmp_path / "base" / "text_encoder_2").glob("*.safetensors"):
        path.unlink()
    one_sentence(base, "base.config", "only the transformer", "no weights of text_encoder_2")
    (tmp_path / "base" / "vae" / "config.json").unlink()
    one_sentence(base, "base.config", "vae/config.json")


def test_the_other_variants_configuration_is_refused(place, tmp_path):
    shutil.copytree(place / "base", tmp_path / "base")
    path = tmp_path / "base" / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "guidance_embeds": False}))
    for name in ("alone", "full"):
        base = Base(path=str(place / f"{name}.safetensors"), config=str(tmp_path / "base"))
        one_sentence(base, "base.config", "guidance", "same variant")


@pytest.mark.parametrize("guided, hub", [(True, DEV), (False, SCHNELL)])
def test_without_configuration_and_hub_the_config_option_is_named(place, tmp_path, guided, hub):
    def without(tensors):
        for name in [name for name in tensors if name.startswith("guidance_in.") and not guided]:
            del tensors[name]

    path = changed(place, "alone.safetensors", tmp_path / "x.safetensors", without)
    one_sentence(Base(path=str(path)), "base.config", "--base.config", hub, "cannot be reached", "weights")
