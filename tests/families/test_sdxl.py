"""The SDXL family on a tiny random pipeline of real diffusers classes."""

import fnmatch

import pytest
import torch

from modules.families import names
from modules.families.sdxl import HUB_ID, Model, ldm_name
from modules.preset.schema import Base, Targets
from modules.training.setup import match_layers, whole
from tests.tiny_sdxl import make_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def model(folder):
    return Model.load(Base(path=str(folder)), CPU, torch.float32)


def test_is_found_by_its_file():
    assert "sdxl" in names()


def test_everything_is_frozen(model):
    assert not any(p.requires_grad for p in whole(model).parameters())


def test_skeleton_has_the_same_layers_without_weights(folder, model):
    skeleton = Model.skeleton(Base(path=str(folder)))
    assert all(p.is_meta for p in whole(skeleton).parameters())
    for targets in (Targets(layers="all"), Targets(layers="attention", text_encoders=True)):
        assert match_layers(skeleton, targets)[0] == match_layers(model, targets)[0]
    assert (skeleton.bucket_step, skeleton.latent_factor) == (model.bucket_step, model.latent_factor) == (8, 2)


def test_latents_are_scaled_and_decode_is_the_inverse_map(model):
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    moments = model.encode_images(pixels)
    assert moments.shape == (2, 8, 8, 12) and moments.dtype == torch.float32
    distribution = model.pipeline.vae.encode(pixels).latent_dist
    factor = model.pipeline.vae.config.scaling_factor
    torch.testing.assert_close(moments, torch.cat([distribution.mean, distribution.std], 1) * factor)


def test_predict_is_the_pipelines_own_call(model):
    texts = model.encode_texts(["red apple", "a face"])
    assert texts["hidden"].shape == (2, 77, 32) and texts["pooled"].shape == (2, 16)
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
    ours = model.predict(noisy, timesteps, texts, sizes)
    added = {"text_embeds": texts["pooled"], "time_ids": sizes}
    theirs = model.pipeline.unet(noisy, timesteps, texts["hidden"], added_cond_kwargs=added).sample
    torch.testing.assert_close(ours, theirs)


def test_samples_follow_from_the_seed(model):
    options = {"negative": "", "width": 16, "height": 16, "steps": 2, "guidance": 3.0}
    first, again = (model.sample(["red"], **options, seed=1)[0] for _ in range(2))
    other = model.sample(["red"], **options, seed=2)[0]
    assert first.size == (16, 16)
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_what_captions_are_too_long_by(model):
    assert model.cut_off("red") == ""
    for caption in ("x " * 100, "a red apple, " * 3 + "été 猫 " * 30):
        beyond = model.cut_off(caption)
        assert beyond and caption.endswith(beyond)
        for tokenizer in (model.pipeline.tokenizer, model.pipeline.tokenizer_2):
            read = tokenizer(caption, truncation=True, max_length=tokenizer.model_max_length).input_ids
            assert len(read) == model.caption_tokens + 2
            kept = tokenizer(caption.removesuffix(beyond)).input_ids
            assert kept[:-1] == read[: len(kept) - 1] and len(read) - len(kept) < 3  # a letter may be cut in two


def test_fingerprints_follow_the_weights(folder):
    one, two = (Model.load(Base(path=str(folder)), CPU, torch.float32) for _ in range(2))
    assert one.fingerprint("images") == two.fingerprint("images")
    assert one.base_hash() == two.base_hash()
    with torch.no_grad():
        next(two.pipeline.vae.parameters()).add_(1)
    assert one.fingerprint("images") != two.fingerprint("images")


NAMED = {
    "attention": "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "attention-mlp": "unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "attention-mlp-conv": "unet.down_blocks.0.downsamplers.0.conv",
    "all": "unet.conv_in",
}


def test_named_targets_grow(model):
    before: set[str] = set()
    for layers, newcomer in NAMED.items():
        found = set(match_layers(model, Targets(layers=layers))[0])
        assert before < found and newcomer in found and newcomer not in before
        assert not any(name.startswith("text_encoder") for name in found)
        before = found
    everything = {n for n, m in whole(model).named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
    assert before == {name for name in everything if name.startswith("unet.")}


def test_text_encoders_join_when_asked(model):
    found, _ = match_layers(model, Targets(layers="attention", text_encoders=True))
    assert len([name for name in found if name.startswith("text_encoder.")]) == 2 * 4
    assert len([name for name in found if name.startswith("text_encoder_2.")]) == 2 * 4


@pytest.mark.parametrize(
    "targets, words",
    [
        (Targets(layers="atention"), ["targets.layers", "'atention'", "did you mean attention?"]),
        (Targets(include=("unet.mid_blok.*",)), ["targets.include", "'unet.mid_blok.*'", "unet.mid_block"]),
        (Targets(exclude=("*attn3*",)), ["targets.exclude", "'*attn3*'"]),
        (Targets(exclude=("*",)), ["no layer is left"]),
    ],
)
def test_bad_targets_are_explained(model, targets, words):
    (problem,) = match_layers(model, targets)[1]
    assert problem.startswith("targets.") and all(word in problem for word in words), problem


def test_layers_that_do_match_are_found_beside_bad_patterns(model):
    targets = Targets(layers="atention", include=("unet.conv_in", "nothing"), exclude=("nowhere",))
    found, problems = match_layers(model, targets)
    assert found == ["unet.conv_in"]
    assert [problem.split(":")[0] for problem in problems] == ["targets.layers", "targets.include", "targets.exclude"]


def test_patterns_add_and_remove(model):
    found, _ = match_layers(model, Targets(layers="attention", include=("unet.conv_in",), exclude=("*attn2*",)))
    assert "unet.conv_in" in found and not fnmatch.filter(found, "*attn2*")


# Key names as in a real SDXL file (two resnets per down block, three per up block).
KEYS = {
    "unet.conv_in": "lora_unet_input_blocks_0_0",
    "unet.conv_out": "lora_unet_out_2",
    "unet.time_embedding.linear_2": "lora_unet_time_embed_2",
    "unet.add_embedding.linear_1": "lora_unet_label_emb_0_0",
    "unet.down_blocks.0.resnets.1.conv1": "lora_unet_input_blocks_2_0_in_layers_2",
    "unet.down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_3_0_op",
    "unet.down_blocks.1.resnets.0.conv_shortcut": "lora_unet_input_blocks_4_0_skip_connection",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q":
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "unet.down_blocks.2.attentions.1.proj_in": "lora_unet_input_blocks_8_1_proj_in",
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj":
        "lora_unet_middle_block_1_transformer_blocks_0_ff_net_0_proj",
    "unet.mid_block.resnets.1.time_emb_proj": "lora_unet_middle_block_2_emb_layers_1",
    "unet.up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0":
        "lora_unet_output_blocks_2_1_transformer_blocks_0_attn2_to_out_0",
    "unet.up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_2_2_conv",
    "unet.up_blocks.2.resnets.2.conv2": "lora_unet_output_blocks_8_0_out_layers_3",
    "text_encoder.encoder.layers.0.self_attn.q_proj": "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    "text_encoder.text_model.encoder.layers.1.mlp.fc1": "lora_te1_text_model_encoder_layers_1_mlp_fc1",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc2": "lora_te2_text_model_encoder_layers_0_mlp_fc2",
    "text_encoder_2.text_projection": "lora_te2_text_projection",
}


@pytest.mark.parametrize("layer, key", KEYS.items())
def test_keys_of_comfyui_and_kohya(model, layer, key):
    assert model.export_key(layer, "comfyui") == model.export_key(layer, "kohya") == key


def test_comfyui_reads_token_embeddings_under_its_own_names(model):
    key = model.export_key("text_encoder_2.text_model.embeddings.token_embedding", "comfyui")
    assert key == "text_encoders.clip_g.transformer.text_model.embeddings.token_embedding"


def test_upsampler_of_a_block_without_attention():
    assert ldm_name("up_blocks.0.upsamplers.0.conv", 2, ["UpBlock2D"]) == "output_blocks.2.1.conv"


def test_diffusers_keys_spell_the_text_model(model):
    assert model.export_key("unet.conv_in", "diffusers") == "unet.conv_in"
    key = model.export_key("text_encoder.encoder.layers.0.mlp.fc1", "diffusers")
    assert key == "text_encoder.text_model.encoder.layers.0.mlp.fc1"


def test_every_layer_has_its_own_key(model):
    layers, _ = match_layers(model, Targets(layers="all", text_encoders=True))
    for host in ("comfyui", "kohya", "diffusers"):
        assert len({model.export_key(layer, host) for layer in layers}) == len(layers)


@pytest.mark.parametrize(
    "path, words",
    [
        ("", ["no model given", "--base", HUB_ID]),
        ("nowhere/at/all", ["nowhere/at/all does not exist", "--base"]),
        ("missing.safetensors", ["missing.safetensors does not exist"]),
    ],
)
def test_missing_models_are_explained(path, words):
    (problem,) = Model.problems(Base(path=path))
    assert problem.startswith("base.path") and all(word in problem for word in words), problem


def test_wrong_folders_and_files_are_explained(tmp_path):
    (problem,) = Model.problems(Base(path=str(tmp_path)))
    assert "model_index.json" in problem
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (problem,) = Model.problems(Base(path=str(tmp_path / "model.ckpt")))
    assert "not a .safetensors" in problem


def test_a_hub_model_that_is_not_here_and_cannot_be_reached():
    (problem,) = Model.problems(Base(path="nobody/nothing"))
    assert "nobody/nothing" in problem and "--base" in problem


def test_broken_weights_name_the_base(folder, tmp_path):
    import shutil

    broken = tmp_path / "base"
    shutil.copytree(folder, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match=r"base\.path: .*base could not be loaded"):
        Model.load(Base(path=str(broken)), CPU, torch.float32)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_base_still_predicts(folder, kind):
    from modules.quant import is_packed

    packed = Model.load(Base(path=str(folder), quantization=kind), CPU, torch.float32)
    layer = packed.networks["unet"].get_submodule("down_blocks.1.attentions.0.proj_in")
    assert is_packed(layer)
    texts = packed.encode_texts(["red"])
    args = (torch.randn(1, 4, 8, 8), torch.tensor([10]), texts, torch.zeros(1, 6))
    assert torch.isfinite(packed.predict(*args)).all()
