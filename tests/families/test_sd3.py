"""Stable Diffusion 3 and 3.5 on tiny random pipelines: what this family has beyond the others' contract."""

import pytest
import torch

from modules.adapters import methods
from modules.adapters.base import attach, detach
from modules.families.sd3 import T5_TOKENS, Model
from modules.objectives import Flow
from modules.preset.schema import Base, Preset, Targets
from modules.training.check import examine
from modules.training.setup import match_layers, whole
from tests.export.setup import assert_diffusers_computes
from tests.tiny_sd3 import CLIP_G, CLIP_L, T5, make_folder
from tests.training.runs import draw_pictures

CPU = torch.device("cpu")
SIZES = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)


@pytest.fixture(scope="module", params=[True, False], ids=["t5", "no t5"])
def folder(request, tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("sd3"), t5=request.param)


@pytest.fixture(scope="module")
def model(folder):
    assert Model.problems(Base(path=str(folder))) == []
    return Model.load(Base(path=str(folder)), CPU, torch.float32)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """With T5."""
    return Model.load(Base(path=str(make_folder(tmp_path_factory.mktemp("full")))), CPU, torch.float32)


@pytest.fixture
def bare(full):
    """The model with T5, without adapters after the test."""
    yield full
    for network in full.networks.values():
        detach(network)


# -- networks ---------------------------------------------------------------------------------------------------------


def test_only_networks_that_are_there(model, folder):
    t5 = (folder / "text_encoder_3").exists()
    assert list(model.networks) == ["transformer", "text_encoder", "text_encoder_2", "text_encoder_3"][: 3 + t5]
    skeleton = Model.skeleton(Base(path=str(folder)))
    assert list(skeleton.networks) == list(model.networks)
    assert all(p.is_meta for p in whole(skeleton).parameters())
    assert (skeleton.bucket_step, skeleton.process) == (model.bucket_step, model.process) == (4, Flow(shift=3.0))


def test_texts_without_t5_are_zeros_there(model):
    texts = model.encode_texts(["red apple", "a face"])
    assert texts["hidden"].shape == (2, 77 + T5_TOKENS, T5) and texts["pooled"].shape == (2, CLIP_L + CLIP_G)
    clip, t5 = texts["hidden"].split([77, T5_TOKENS], 1)
    assert (t5.abs().sum() == 0) == ("text_encoder_3" not in model.networks)
    assert (clip[..., : CLIP_L + CLIP_G] != 0).all() and (clip[..., CLIP_L + CLIP_G :] == 0).all()


def test_samples_are_the_pipelines_own(model):
    options = {"width": 16, "height": 16, "guidance_scale": 3.0, "num_inference_steps": 2}
    expected = model.pipeline("red", negative_prompt="", generator=torch.Generator().manual_seed(7), **options).images
    (ours,) = model.sample(["red"], "", 16, 16, steps=2, guidance=3.0, seed=7)
    assert ours.tobytes() == expected[0].tobytes()


def test_what_no_encoder_reads_is_cut_off(model):
    t5 = "text_encoder_3" in model.networks
    assert model.caption_tokens == (T5_TOKENS - 1 if t5 else 75)
    for caption, read in (("red", True), ("x " * 60, True), ("x " * 120, t5), ("x " * 300, False)):
        assert (model.cut_off(caption) == "") == read
    beyond = model.cut_off("red apple, face " * 200)
    kept = ("red apple, face " * 200).removesuffix(beyond)
    assert beyond and model.cut_off(kept) == "" and model.cut_off(kept + "a a") != ""


# -- layers -----------------------------------------------------------------------------------------------------------

LAST_QUERY = "transformer.transformer_blocks.2.attn.add_q_proj"


def test_nobody_reads_the_last_query_of_the_text(bare):
    """Why it is no target: an adapter there would never move, while every other one does."""
    config = methods()["lora"].Config(method="lora", rank=2)
    names = [*match_layers(bare, Targets(layers="all"))[0], LAST_QUERY]
    layers = {name: attach(whole(bare), name, config, 0) for name in names}
    texts = bare.encode_texts(["red", "a face"])
    bare.predict(torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0]), texts, SIZES).square().sum().backward()
    still = [n for n, layer in layers.items() if not any(p.grad.norm() > 0 for p in layer.adapter.parameters())]
    assert still == [LAST_QUERY]


def test_t5_joins_and_the_first_projection_does_not(full):
    found, problems = match_layers(full, Targets(layers="all", text_encoders=True))
    assert len([name for name in found if name.startswith("text_encoder_3.")]) == 2 * 7 and problems == []
    assert "text_encoder_2.text_projection" in found and "text_encoder.text_projection" not in found


# -- keys -------------------------------------------------------------------------------------------------------------

BLOCK = "transformer.transformer_blocks.0"
KEYS = {
    "comfyui": {
        f"{BLOCK}.attn2.to_q": f"{BLOCK}.attn2.to_q",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "text_encoder_2.encoder.layers.0.mlp.fc1": "lora_te2_text_model_encoder_layers_0_mlp_fc1",
        "text_encoder_2.text_projection": "lora_te2_text_projection",
        "text_encoder_2.text_model.embeddings.token_embedding":
            "text_encoders.clip_g.transformer.text_model.embeddings.token_embedding",
        "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q": "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    },
    "kohya": {
        f"{BLOCK}.attn.add_k_proj": "lora_unet_joint_blocks_0_context_block_attn_qkv",
        f"{BLOCK}.attn2.to_q": "lora_unet_joint_blocks_0_x_block_attn2_qkv",
        f"{BLOCK}.norm1.linear": "lora_unet_joint_blocks_0_x_block_adaLN_modulation_1",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "text_encoder_3.encoder.block.1.layer.1.DenseReluDense.wo":
            "lora_te3_encoder_block_1_layer_1_DenseReluDense_wo",
    },
    "diffusers": {
        f"{BLOCK}.ff_context.net.0.proj": f"{BLOCK}.ff_context.net.0.proj",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1": "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    },
}


@pytest.mark.parametrize("host", KEYS)
def test_keys(full, host):
    assert {layer: full.export_key(layer, host) for layer in KEYS[host]} == KEYS[host]


def test_t5_for_diffusers_does_not_exist(full):
    with pytest.raises(ValueError, match=r"^export.host diffusers: text_encoder_3.*targets.exclude.*comfyui"):
        full.export_key("text_encoder_3.encoder.block.0.layer.0.SelfAttention.q", "diffusers")


@pytest.mark.parametrize("host, exclude, count", [("diffusers", (), 1), ("diffusers", ("text_encoder_3.*",), 0),
                                                  ("comfyui", (), 0)])
def test_that_is_said_before_the_training(tmp_path, host, exclude, count):
    values = {
        "family": "sd3",
        "base": {"path": str(make_folder(tmp_path))},
        "adapter": {"method": "lora"},
        "targets": {"text_encoders": True, "exclude": exclude},
        "objective": {"min_snr_gamma": None},
        "export": {"host": host},
        "data": {"resolution": 64},
    }
    found = examine(Preset.model_validate(values), "cpu").problems
    assert len([problem for problem in found if problem.startswith("export.host diffusers: ")]) == count
    assert [problem for problem in found if not problem.startswith(("export.host", "data.folders"))] == []


def test_pictures_beyond_the_table_of_positions_are_refused_before_the_training(full, tmp_path):
    longest, step = full.longest_side, full.bucket_step
    texts, sizes = full.encode_texts(["red"]), torch.zeros(1, 6)
    noisy = torch.randn(1, full.latent_channels, step // full.latent_factor, longest // full.latent_factor)
    full.predict(noisy, torch.tensor([500.0]), texts, sizes)
    with pytest.raises(ValueError, match="pos_embed_max_size"):
        full.predict(torch.cat([noisy, noisy[..., :2]], -1), torch.tensor([500.0]), texts, sizes)

    draw_pictures(tmp_path / "pictures", 2, 0)
    base = {"path": str(make_folder(tmp_path))}
    for resolution, expected in ((longest, []), (2 * longest, ["data.resolution", "samples.width", "samples.height"])):
        data = {"folders": [str(tmp_path / "pictures")], "resolution": resolution, "max_aspect": 1}
        values = {"family": "sd3", "base": base, "adapter": {"method": "lora"}, "objective": {"min_snr_gamma": None}}
        found = examine(Preset.model_validate({**values, "data": data}), "cpu").problems
        assert [problem.split(":")[0] for problem in found] == expected
        assert all(f"{longest} px" in problem for problem in found)


def test_metadata_names_the_version(full):
    assert full.metadata()["modelspec.architecture"] == "stable-diffusion-3-5-medium/lora"
    assert full.metadata()["ss_base_model_version"] == "sd3.5-medium"


@pytest.mark.parametrize(
    "method, options",
    [
        ("lora", {"rank": 3, "alpha": 2.0}),
        ("dora", {"rank": 3, "axis": "output"}),
        ("oft", {"rotation": {"kind": "planes", "planes": 2}}),
    ],
)
def test_diffusers_loads_and_computes_what_was_trained(tmp_path, bare, method, options):
    names, _ = match_layers(bare, Targets(layers="all", text_encoders=True))
    names = [name for name in names if not name.startswith("text_encoder_3.")]
    chosen = {"host": "diffusers", "dtype": "float32"}
    assert_diffusers_computes(bare, (method, options), names, tmp_path, chosen)
