"""SD3 from a single checkpoint, with and without text encoders: the same model as the folder it was made from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.families.sd3 import Model
from modules.preset.schema import Base, Targets
from modules.training.setup import match_layers, whole
from tests.families.single_file_sd3 import TRANSFORMER, make_pair

CPU = torch.device("cpu")
ENCODERS = ("text_encoders.",)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def folder(pair):
    return Model.load(Base(path=str(pair[0])), CPU, torch.float32)


@pytest.fixture
def without(pair, tmp_path):
    """A checkpoint that lacks the tensors with these beginnings, and the configuration's folder."""

    def write(*beginnings: str, config: Path = pair[0], **more: torch.Tensor) -> Base:
        tensors = {name: t for name, t in load_file(pair[1]).items() if not name.startswith(beginnings or ("-",))}
        save_file(tensors | more, tmp_path / "some.safetensors")
        return Base(path=str(tmp_path / "some.safetensors"), config=str(config))

    return write


@pytest.fixture
def config(pair, tmp_path):
    """The configuration without weights."""
    ignored = shutil.ignore_patterns("*.safetensors*")
    return Path(shutil.copytree(pair[0], tmp_path / "config", ignore=ignored))


def forget_t5(config: Path) -> None:
    index = json.loads((config / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (config / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(config / "text_encoder_3")
    shutil.rmtree(config / "tokenizer_3")


def assert_same(base: Base, folder: Model, parts: tuple[str, ...] | None = None) -> Model:
    assert Model.problems(base) == []
    single = Model.load(base, CPU, torch.float32)
    networks = {**folder.networks, "vae": folder.pipeline.vae}
    for part in networks if parts is None else parts:
        ours, theirs = single.pipeline.components[part].state_dict(), networks[part].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items()), part
    assert not any(p.requires_grad for p in whole(single).parameters())
    skeleton = Model.skeleton(base)
    everything = Targets(layers="all", text_encoders=True)
    assert match_layers(skeleton, everything)[0] == match_layers(single, everything)[0]
    return single


def one_sentence(base: Base, *words: str) -> None:
    (problem,) = Model.problems(base)
    assert "\n" not in problem and all(word in problem for word in words), problem


@pytest.mark.full
@pytest.mark.parametrize("missing", [(), ENCODERS, ("text_encoders.t5",), ("text_encoders.clip_g",), ("first_stage",)])
def test_weights_are_the_folders_and_what_lacks_comes_from_it(without, folder, missing):
    single = assert_same(without(*missing), folder)
    texts, expected = single.encode_texts(["red apple"]), folder.encode_texts(["red apple"])
    torch.testing.assert_close(texts, expected)  # equal but for rounding: the file's tensors are aligned otherwise
    assert single.base_hash() == folder.base_hash() and single.fingerprint("texts") == folder.fingerprint("texts")


def test_a_transformer_alone_without_prefix(pair, folder, tmp_path):
    tensors = {n.removeprefix(TRANSFORMER): t for n, t in load_file(pair[1]).items() if n.startswith(TRANSFORMER)}
    save_file(tensors, tmp_path / "some.safetensors")
    assert_same(Base(path=str(tmp_path / "some.safetensors"), config=str(pair[0])), folder)


def test_a_whole_checkpoint_needs_no_weights_beside_it(without, folder, config):
    assert_same(without(config=config), folder)


def test_t5_is_left_away_where_the_index_says_so(without, folder, config):
    forget_t5(config)
    parts = ("transformer", "text_encoder", "text_encoder_2", "vae")
    for beginnings in ((), ("text_encoders.t5",)):
        single = assert_same(without(*beginnings, config=config), folder, parts)
        assert list(single.networks) == list(parts[:3])
        assert (single.encode_texts(["red"])["hidden"][:, 77:] == 0).all()


def test_what_is_missing_is_one_sentence(without, config, pair, tmp_path):
    one_sentence(without("text_encoders.t5", config=config), "base.path", "T5", "has no weights", "[null, null]")
    one_sentence(without(*ENCODERS, config=config), "CLIP-L", "CLIP-G", "T5", "--base.config", "text_encoder_2")
    forget_t5(config)
    one_sentence(without(*ENCODERS, config=config), "CLIP-L", "CLIP-G", "text_encoder, text_encoder_2")
    one_sentence(without(TRANSFORMER), "base.path", "has no transformer")
    (config / "transformer" / "config.json").unlink()
    one_sentence(without(config=config), "base.config", "transformer/config.json")
    (tmp_path / "cut.safetensors").write_bytes(pair[1].read_bytes()[:1000])
    one_sentence(Base(path=str(tmp_path / "cut.safetensors"), config=str(pair[0])), "base.path", "damaged")


def test_weights_in_4_bits_are_refused(without):
    mark = {TRANSFORMER + "context_embedder.weight.absmax": torch.ones(1)}
    one_sentence(without(**mark), "base.path", "nf4", "base.quantization")


def test_a_missing_weight_is_an_error_when_loading(without):
    base = without(TRANSFORMER + "joint_blocks.0.x_block.attn2.proj.bias")
    with pytest.raises(ValueError, match=r"base\.path: .*could not be loaded as an SD3 model"):
        Model.load(base, CPU, torch.float32)


# -- without a configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing, hub_id",
    [
        ((), "stabilityai/stable-diffusion-3.5-medium"),
        ((".attn2.",), "stabilityai/stable-diffusion-3.5-large"),
        ((".attn2.", ".ln_"), "stabilityai/stable-diffusion-3-medium-diffusers"),
    ],
)
def test_the_configuration_on_the_hub_follows_the_layers(pair, tmp_path, missing, hub_id):
    tensors = {n: t for n, t in load_file(pair[1]).items() if not any(part in n for part in missing)}
    save_file(tensors, tmp_path / "some.safetensors")
    assert Model.hub_id(str(tmp_path / "some.safetensors")) == hub_id


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache in place of this machine's."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_hubs_cache_gives_what_the_checkpoint_lacks(pair, hub_cache, folder, without):
    hub_id = Model.hub_id(str(pair[1]))
    base = without(*ENCODERS).model_copy(update={"config": ""})
    one_sentence(base, "base.config", hub_id, "cannot be reached")
    snapshot = hub_cache / f"models--{hub_id.replace('/', '--')}" / "snapshots" / ("0" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    shutil.copytree(pair[0], snapshot)
    assert_same(base, folder)
    (snapshot / "text_encoder_3" / "model.safetensors").unlink()
    one_sentence(base, "base.path", "T5", hub_id, "cannot be reached")
