"""SDXL from a single checkpoint in the original naming: the same model as the diffusers folder it was made from."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, PNDMScheduler
from safetensors.torch import load_file, save_file
from torch import nn

from modules.adapters import methods
from modules.adapters.base import attach
from modules.families.sdxl import Model
from modules.preset.schema import Base, Targets
from modules.training.setup import match_layers, whole
from tests.families.single_file import CLIP_G, UNET, VAE, make_pair

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def folder(pair):
    return Model.load(Base(path=str(pair[0])), CPU, torch.float32)


@pytest.fixture(scope="module")
def base(pair):
    return Base(path=str(pair[1]), config=str(pair[0]))


@pytest.fixture(scope="module")
def single(base):
    assert Model.problems(base) == []
    return Model.load(base, CPU, torch.float32)


def changed(pair, path: Path, change) -> Path:
    """The checkpoint after `change` of its tensors, written to `path`."""
    tensors = load_file(pair[1])
    change(tensors)
    save_file(tensors, path)
    return path


def test_hashes_are_the_folders_so_caches_are_shared(single, folder):
    assert single.base_hash() == folder.base_hash()
    assert [single.fingerprint(part) for part in ("images", "texts")] == [
        folder.fingerprint(part) for part in ("images", "texts")
    ]


def test_encoding_and_prediction_are_the_folders(single, folder):
    captions, pixels = ["red apple", "a face"], torch.rand(2, 3, 16, 16) * 2 - 1
    texts, expected = single.encode_texts(captions), folder.encode_texts(captions)
    assert all(torch.equal(texts[name], expected[name]) for name in expected)
    assert torch.equal(single.encode_images(pixels), folder.encode_images(pixels))
    rest = (torch.randn(2, 4, 8, 8), torch.tensor([10, 900]))
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
    assert torch.equal(single.predict(*rest, texts, sizes), folder.predict(*rest, texts, sizes))
    assert torch.equal(single.process.alphas_cumprod, folder.process.alphas_cumprod)
    assert single.process.prediction == folder.process.prediction


def test_text_encoders_can_be_trained(base):
    model, config = Model.load(base, CPU, torch.float32), methods()["lora"].Config(method="lora")
    names, _ = match_layers(model, Targets(layers="attention", text_encoders=True))
    layers = [attach(whole(model), n, config, 0) for n in names if n.startswith("text") and ".layers.0." in n]
    assert len(layers) == 2 * 4
    model.encode_texts(["red apple"])["hidden"].square().sum().backward()
    for adapted in layers:
        assert any(p.grad is not None and p.grad.norm() > 0 for p in adapted.adapter.parameters()), adapted.layer.name


# -- key names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["kohya", "comfyui"])
def test_unet_keys_are_the_checkpoints_names(pair, folder, host):
    weights = load_file(pair[1])
    names = {key.removeprefix(UNET).removesuffix(".weight").replace(".", "_"): weight for key, weight in weights.items()
             if key.startswith(UNET) and key.endswith(".weight")}
    layers = {name: m for name, m in folder.networks["unet"].named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    for layer, module in layers.items():
        key = folder.export_key(f"unet.{layer}", host)
        assert key.startswith("lora_unet_")
        assert torch.equal(names.pop(key.removeprefix("lora_unet_")), module.weight), layer
    assert all(weight.dim() == 1 for weight in names.values()), "a layer of the checkpoint has no key"


@pytest.mark.parametrize("host", ["kohya", "comfyui"])
def test_text_encoder_keys_are_kohyas_and_comfyuis(folder, host):
    layers, _ = match_layers(folder, Targets(layers="attention-mlp", text_encoders=True))
    found = {folder.export_key(name, host) for name in layers if name.startswith("text_encoder")}
    inside = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2")
    stem = "lora_te{}_text_model_encoder_layers_{}_{}"
    assert found == {stem.format(te, layer, part) for te in (1, 2) for layer in (0, 1) for part in inside}


# -- what can be wrong ------------------------------------------------------------------------------------------------


def one_sentence(base: Base, *words: str) -> None:
    (problem,) = Model.problems(base)
    assert "\n" not in problem and all(word in problem for word in words), problem


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache in place of this machine's."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_without_configuration_and_hub_the_config_option_is_named(pair, hub_cache):
    one_sentence(Base(path=str(pair[1])), "base.config", "--base.config", Model.HUB_ID, "cannot be reached")


def test_a_configuration_in_the_hubs_cache_is_enough(pair, hub_cache, folder):
    here = hub_cache / f"models--{Model.HUB_ID.replace('/', '--')}"
    (here / "refs").mkdir(parents=True)
    (here / "refs" / "main").write_text("0" * 40)
    shutil.copytree(pair[0], here / "snapshots" / ("0" * 40), ignore=shutil.ignore_patterns("*.safetensors"))
    base = Base(path=str(pair[1]))
    assert Model.problems(base) == []
    assert Model.load(base, CPU, torch.float32).base_hash() == folder.base_hash()
    (here / "snapshots" / ("0" * 40) / "unet" / "config.json").unlink()
    one_sentence(base, "base.config", "cannot be reached")


@pytest.mark.parametrize("prefix, part", [(CLIP_G, "second text encoder"), (VAE, "VAE"), (UNET, "UNet")])
def test_a_checkpoint_without_a_part_says_which(pair, tmp_path, prefix, part):
    def without(tensors):
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    path = changed(pair, tmp_path / "x.safetensors", without)
    base = Base(path=str(path), config=str(pair[0]))
    one_sentence(base, "base.path", "lacks", part)
    with pytest.raises(ValueError, match=r"base\.path: .*could not be loaded"):
        Model.load(base, CPU, torch.float32)


@pytest.mark.parametrize("name", ["out.2.bias", "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"])
def test_a_missing_weight_is_an_error_when_loading(pair, tmp_path, name):
    path = changed(pair, tmp_path / "x.safetensors", lambda tensors: tensors.pop(UNET + name))
    with pytest.raises(ValueError, match=r"base\.path: .*could not be loaded"):
        Model.load(Base(path=str(path), config=str(pair[0])), CPU, torch.float32)


def test_another_size_of_model_is_an_error_when_loading(pair, tmp_path):
    def wider(tensors):
        tensors[UNET + "input_blocks.0.0.weight"] = torch.zeros(16, 4, 3, 3)

    path = changed(pair, tmp_path / "x.safetensors", wider)
    with pytest.raises(ValueError, match=r"base\.path: .*could not be loaded"):
        Model.load(Base(path=str(path), config=str(pair[0])), CPU, torch.float32)


@pytest.mark.parametrize("marks, zero_snr", [(("v_pred",), False), (("v_pred", "ztsnr"), True)])
def test_marks_of_v_prediction_are_followed(pair, tmp_path, single, marks, zero_snr):
    path = changed(pair, tmp_path / "x.safetensors", lambda t: t.update({mark: torch.zeros(0) for mark in marks}))
    model = Model.load(Base(path=str(path), config=str(pair[0])), CPU, torch.float32)
    assert single.process.prediction == "epsilon" and model.process.prediction == "v_prediction"
    assert model.pipeline.scheduler.config.rescale_betas_zero_snr == zero_snr
    assert (model.process.alphas_cumprod[-1] < 1e-6) == zero_snr


@pytest.mark.short("EulerDiscreteScheduler")
@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler])
def test_samples_of_bases_with_zero_terminal_snr_begin_in_pure_noise(pair, tmp_path, scheduler):
    """Whatever spacing the configuration has (SDXL's is "leading"), and with a scheduler that knows no such thing."""
    file = changed(pair, tmp_path / "x.safetensors", lambda t: t.update(v_pred=torch.zeros(0), ztsnr=torch.zeros(0)))
    folder = Path(shutil.copytree(pair[0], tmp_path / "base"))
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "leading"}
    scheduler(**noise).save_pretrained(folder / "scheduler")
    model = Model.load(Base(path=str(file), config=str(folder)), CPU, torch.float32)
    seen = []
    model.pipeline.unet.register_forward_pre_hook(lambda module, given: seen.append(float(given[1])))
    model.sample(["red"], "", 16, 16, 25, 1.0, 0)
    assert len(seen) == 25 and seen[0] == 999
    model.pipeline.scheduler.set_timesteps(25)
    assert (model.pipeline.scheduler.alphas_cumprod[-1] < 1e-6) and model.process.alphas_cumprod[-1] < 1e-6
