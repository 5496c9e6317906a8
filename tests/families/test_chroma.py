"""What Chroma1 has of its own, on tiny random pipelines of real diffusers classes."""

import pytest
import torch
from diffusers import ChromaPipeline

from modules import objectives
from modules.families.chroma import Model
from modules.objectives import Flow
from modules.preset.schema import Base
from modules.tools.base_of_file import is_its
from tests.families.using import CPU
from tests.tiny_chroma import make_folder

CAPTION = "red apple"
SIZES = torch.zeros(1, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("chroma"))


@pytest.fixture(scope="module")
def model(folder):
    return Model.load(Base(path=str(folder)), CPU, torch.float32)


def one_call(pipeline, **options) -> tuple[dict, torch.Tensor]:
    """What a pipeline gave to its transformer in its first step, and what it got."""
    calls = []
    hook = pipeline.transformer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True
    )
    with torch.no_grad():
        pipeline(output_type="latent", width=16, height=24, num_inference_steps=3, **options)
    hook.remove()
    return calls[0]


def noisy_of(model, given: dict) -> torch.Tensor:
    """The noisy latents of a call."""
    return model.pipeline._unpack_latents(given["hidden_states"], 24, 16, model.latent_factor)


# -- the call ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predict_is_the_pipelines_own_call(folder, dtype):
    model = Model.load(Base(path=str(folder)), CPU, dtype)
    given, theirs = one_call(model.pipeline, prompt=CAPTION, guidance_scale=1.0)
    texts = model.encode_texts([CAPTION])
    assert torch.equal(texts["hidden"], given["encoder_hidden_states"])
    assert given["attention_mask"].dtype == torch.bool
    with torch.no_grad():
        times = model.pipeline.scheduler.timesteps[:1].double()
        ours = model.predict(noisy_of(model, given), times, texts, SIZES)
    assert torch.equal(ours, model.pipeline._unpack_latents(theirs, 24, 16, model.latent_factor))


def test_samples_of_a_batch_do_not_mix(model):
    texts, times = model.encode_texts([CAPTION, "face"]), torch.tensor([100.0, 900], dtype=torch.float64)
    noisy = torch.randn(2, 4, 8, 12)
    with torch.no_grad():
        both = model.predict(noisy, times, texts, SIZES.expand(2, -1))
        second = {name: tensor[1:] for name, tensor in texts.items()}
        alone = model.predict(noisy[1:], times[1:], second, SIZES)
    torch.testing.assert_close(both[1:], alone)


# -- the mask ---------------------------------------------------------------------------------------------------------


def changed(model, token: int) -> bool:
    """Whether the prediction depends on a token of the caption, padding included."""
    texts = model.encode_texts([CAPTION])
    other = {**texts, "hidden": texts["hidden"].clone()}
    other["hidden"][:, token] += 5
    noisy, times = torch.randn(1, 4, 8, 12), torch.tensor([500.0], dtype=torch.float64)
    with torch.no_grad():
        first, second = (model.predict(noisy, times, one, SIZES) for one in (texts, other))
    return not torch.equal(first, second)


def test_the_transformer_sees_the_caption_its_end_and_one_padding_token(model):
    words = model.tokenizer(CAPTION).input_ids  # with the end token
    mask = model.encode_texts([CAPTION])["mask"]
    assert mask.tolist() == [[1.0] * (len(words) + 1) + [0.0] * (model.text_length - len(words) - 1)]
    assert [changed(model, token) for token in (0, len(words) - 1, len(words), len(words) + 1, model.text_length - 1)
            ] == [True, True, True, False, False]


def test_a_caption_of_full_length_has_no_padding(model):
    assert model.encode_texts(["x " * 600])["mask"].all()


def test_t5_reads_no_padding(model):
    """Of a caption alone it gives the same as of the caption with padding."""
    words = model.tokenizer(CAPTION, return_tensors="pt").input_ids
    alone = model.pipeline.text_encoder(words)[0]
    torch.testing.assert_close(model.encode_texts([CAPTION])["hidden"][:, : words.shape[1]], alone)


def test_the_transformer_without_the_padding_gives_the_same(model):
    """As sd-scripts and ComfyUI call it: with a shorter text, and without a mask."""
    texts = model.encode_texts([CAPTION])
    seen = texts["hidden"][:, : int(texts["mask"].sum())]
    noisy, times = torch.randn(1, 4, 8, 12), torch.tensor([300.0], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model.predict(noisy, times, texts, SIZES),
                                   model.call(noisy, times, seen, {"attention_mask": None}))


def test_diffusers_by_itself_masks_nothing(folder, model):
    """It adds the mask to the attention's scores. When this fails, diffusers masks, and `_with_real_mask` can go."""
    pipeline = ChromaPipeline.from_pretrained(folder)
    options = {"prompt": CAPTION, "guidance_scale": 1.0}
    results = [one_call(one, generator=torch.Generator().manual_seed(0), **options)
               for one in (pipeline, model.pipeline)]
    (theirs, theirs_predicted), (ours, ours_predicted) = results
    assert torch.equal(theirs["hidden_states"], ours["hidden_states"])
    assert torch.equal(theirs["attention_mask"].bool(), ours["attention_mask"])
    assert theirs["attention_mask"].is_floating_point() and not torch.allclose(theirs_predicted, ours_predicted)


def test_checkpointing_keeps_the_mask(folder):
    """diffusers' own leaves it out in single blocks."""
    model = Model.load(Base(path=str(folder)), CPU, torch.float32)
    texts, noisy = model.encode_texts([CAPTION]), torch.randn(1, 4, 8, 12)
    times, found = torch.tensor([300.0], dtype=torch.float64), []
    for step in range(2):
        if step:
            model.enable_checkpointing()
        found.append(model.predict(noisy.requires_grad_(), times, texts, SIZES))
    assert torch.equal(*found)


def test_sharded_blocks_are_still_blocks(folder):
    """torch's fully_shard derives their classes; checkpointing begins after that."""
    model = Model.load(Base(path=str(folder)), CPU, torch.float32)
    blocks = model.blocks()
    assert len(blocks) == 4
    for block in blocks:
        block.__class__ = type(f"FSDP{type(block).__name__}", (type(block),), {})
    assert model.blocks() == blocks


# -- training ---------------------------------------------------------------------------------------------------------


def test_noise_time_and_target_are_those_of_sd_scripts(model):
    """`get_noisy_model_input_and_timesteps` with timestep_sampling sigmoid, as its manual recommends, and
    `get_noise_pred_and_target` (library/flux_train_utils.py and flux_train_network.py at commit 48d368fa), restated.
    OneTrainer's (BaseChromaSetup.py at 23df3832) differ in one thing: its transformer's time is 1/1000 lower."""
    generator = torch.Generator().manual_seed(0)
    latents, noise, normal = (torch.randn(*shape, generator=generator) for shape in 2 * [(2, 4, 12, 8)] + [(2,)])
    sigmas = torch.sigmoid(1.0 * normal)
    wide = sigmas.view(-1, 1, 1, 1)
    noisy_there, time_there, target_there = (1 - wide) * latents + wide * noise, sigmas * 1000 / 1000, noise - latents

    assert model.process == Flow(shift=1.0) and model.process.density == "logit_normal"
    times = model.process.times(torch.sigmoid(normal.double()), latents[0, 0].numel())
    parts = model.process.parts(times)
    noisy = objectives.add_noise(latents, noise, parts)
    torch.testing.assert_close(noisy, noisy_there)
    torch.testing.assert_close(objectives.target(model.process.prediction, latents, noise, parts), target_there)
    seen = []
    hook = model.pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True)
    with torch.no_grad():
        model.predict(noisy, times, model.encode_texts([CAPTION, "face"]), SIZES.expand(2, -1))
    hook.remove()
    torch.testing.assert_close(seen[0], time_there)


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_are_told_from_those_of_its_relative(folder):
    """By layers that only one of them has; nothing tells attention alone."""
    from modules.families.flux import Model as Relative

    assert is_its(folder, "chroma") and not is_its(folder, "flux")
    pair = ".lora_down.weight"
    both = [f"lora_unet_double_blocks_0_img_attn_qkv{pair}", f"transformer.transformer_blocks.0.ff.net.2{pair}",
            f"diffusion_model.single_blocks.37.linear1{pair}"]
    own = [f"lora_unet_distilled_guidance_layer_layers_0_in_layer{pair}", f"lora_te1_encoder_block_0_layer_0_x{pair}",
           "distilled_guidance_layer.norms.0.scale"]
    others = [f"lora_unet_double_blocks_0_img_mod_lin{pair}", f"transformer.transformer_blocks.0.norm1.linear{pair}",
              f"lora_unet_single_blocks_0_modulation_lin{pair}", f"lora_te1_text_model_encoder_layers_0_x{pair}",
              f"transformer.single_transformer_blocks.0.norm.linear{pair}", "guidance_in.in_layer.weight",
              "final_layer.adaLN_modulation.1.weight"]
    assert Model.recognises(both) and Relative.recognises(both)
    for key in own:
        assert Model.recognises([*both, key]) and not Relative.recognises([*both, key]), key
    for key in others:
        assert Relative.recognises([*both, key]) and not Model.recognises([*both, key]), key
