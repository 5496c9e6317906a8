"""OneTrainer's files as presets."""

import json
import math

import pytest

from tests.importing.conftest import settings

SDXL = {
    "__version": 11,
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_XL_10_BASE",
    "base_model_name": "someone/some-sdxl",
    "output_model_destination": "models/paper_cut.safetensors",
    "output_model_format": "KOHYA_LORA",
    "output_dtype": "BFLOAT_16",
    "resolution": "1024",
    "epochs": 20,
    "batch_size": 4,
    "learning_rate": 3e-4,
    "learning_rate_scheduler": "COSINE",
    "learning_rate_warmup_steps": 100,
    "train_dtype": "BFLOAT_16",
    "layer_filter": "attentions",
    "layer_filter_preset": "attn-mlp",
    "lora_rank": 16,
    "lora_alpha": 16,
    "unet": {"train": True, "weight_dtype": "BFLOAT_16"},
    "text_encoder": {"train": False, "weight_dtype": "BFLOAT_16", "dropout_probability": 0.1},
    "text_encoder_2": {"train": False, "weight_dtype": "BFLOAT_16", "dropout_probability": 0.1},
    "optimizer": {"optimizer": "ADAMW_8BIT", "weight_decay": 0.02, "beta2": 0.99, "stochastic_rounding": False},
    "secrets": {"huggingface_token": "hf_not_for_the_screen"},
}

FLUX = {
    "training_method": "LORA",
    "model_type": "FLUX_DEV_1",
    "base_model_name": "someone/some-flux",
    "resolution": "512,768",
    "transformer": {"weight_dtype": "NFLOAT_4"},
    "text_encoder": {"train": False},
    "text_encoder_2": {"train": False},
    "timestep_distribution": "LOGIT_NORMAL",
    "noising_bias": 0.25,
    "noising_weight": 0.5,
    "layer_filter_preset": "attn-mlp",
    "layer_filter": "attn,ff.net,proj_mlp",
    "loss_weight_fn": "MIN_SNR_GAMMA",
}


def test_a_plain_lora(imported, accounted, of):
    result = imported(SDXL)
    preset = result.preset
    assert (preset.family, preset.base.path, preset.name) == ("sdxl", "someone/some-sdxl", "paper_cut")
    assert (preset.adapter.method, preset.adapter.rank, preset.adapter.alpha) == ("lora", 16, None)
    assert (preset.training.epochs, preset.training.batch_size, preset.training.learning_rate) == (20, 4, 3e-4)
    assert (preset.training.schedule, preset.training.final_lr, preset.training.warmup) == ("cosine", 0, 100)
    assert (preset.optimizer.name, preset.optimizer.weight_decay, preset.optimizer.beta2) == ("adamw8bit", 0.02, 0.99)
    assert preset.targets.layers == "attention-mlp" and not preset.targets.text_encoders
    assert preset.objective.min_snr_gamma is None and preset.data.caption_dropout == 0.1
    assert (preset.export.host, preset.export.dtype) == ("kohya", "bfloat16")
    accounted(result.found, SDXL)
    changed = {entry.key for entry in result.found.changed}
    assert changed == {"epochs"}, "alpha = rank, plain LoRA, steps, no scaler, and the filter is written out"
    assert "hf_not_for_the_screen" not in result.text


@pytest.mark.parametrize("alpha", [None, 1, 4.0])
def test_alpha_keeps_its_scale_and_is_explained(imported, of, alpha):
    values = {**SDXL, "lora_alpha": alpha}
    if alpha is None:
        del values["lora_alpha"]
    result = imported(values)
    assert result.preset.adapter.scale == (alpha or 1) / 16
    sentence = of(result.found, "lora_alpha").sentence
    assert f"{(alpha or 1) / 16:.4g}" in sentence and ("does not say so" in sentence) == (alpha is None)


@pytest.mark.parametrize("output", [None, False, True])
def test_the_axis_of_dora(imported, of, output):
    values = {**SDXL, "lora_decompose": True}
    if output is not None:
        values["lora_decompose_output_axis"] = output
    result = imported(values)
    assert result.preset.adapter.method == "dora"
    assert result.preset.adapter.axis == ("output" if output else "input")
    assert ("not the default" in of(result.found, "lora_decompose_output_axis").sentence) == bool(output)


def test_diffusers_format_is_not_chosen_for_what_it_cannot_hold(imported):
    assert imported({**SDXL, "output_model_format": "DIFFUSERS_LORA"}).preset.export.host == "diffusers"
    values = {**SDXL, "output_model_format": "DIFFUSERS_LORA", "lora_decompose": True}
    assert imported(values).preset.export.host == "comfyui"


@pytest.mark.parametrize("scaler, product", [("NONE", 1), ("BATCH", 4), ("GRADIENT_ACCUMULATION", 2), ("BOTH", 8)])
def test_the_scaler_is_in_the_learning_rate(imported, scaler, product):
    result = imported({**SDXL, "gradient_accumulation_steps": 2, "learning_rate_scaler": scaler})
    assert math.isclose(result.preset.training.learning_rate, 3e-4 * math.sqrt(product), rel_tol=1e-4)
    assert ("learning_rate_scaler" in {entry.key for entry in result.found.changed}) == (product > 1)


def test_warm_up(imported, of):
    fraction = imported({**SDXL, "learning_rate_warmup_steps": 0.1})
    assert fraction.preset.training.warmup_share == 0.1
    batches = imported({**SDXL, "learning_rate_warmup_steps": 100, "gradient_accumulation_steps": 4})
    assert batches.preset.training.warmup == 25
    assert of(batches.found, "learning_rate_warmup_steps").part == "changed"
    assert imported({**SDXL, "learning_rate_warmup_steps": 0}).preset.training.warmup == 0


@pytest.mark.parametrize("preset, ours", [("attn-mlp", "attention-mlp"), ("attn-only", "attention"), ("full", "all")])
def test_layer_presets(imported, of, preset, ours):
    """Only the window turns the name into layers, which is said where the file has the name alone."""
    result = imported({**SDXL, "layer_filter": "", "layer_filter_preset": preset})
    assert result.preset.targets.layers == ours
    found = of(result.found, "layer_filter_preset") if preset != "full" else None
    assert found is None or "window" in found.sentence
    other = imported({**SDXL, "layer_filter": "down_blocks", "layer_filter_preset": "custom"})
    assert of(other.found, "layer_filter").part == "mapped" and "unet.*down_blocks*" in other.preset.targets.layers
    regex = imported({**SDXL, "layer_filter": "down_blocks.[01]", "layer_filter_regex": True})
    assert of(regex.found, "layer_filter").part == "changed"


def test_a_rotation_without_block_size_has_the_default_whatever_the_rank(imported, of):
    result = imported({**SDXL, "peft_type": "OFT_2", "lora_rank": 24})
    assert result.preset.adapter.rotation.block_size == 32 and of(result.found, "lora_rank").part == "dropped"


def test_flux(imported, accounted, of):
    result = imported(FLUX)
    preset = result.preset
    assert (preset.family, preset.base.quantization, preset.data.resolution) == ("flux", "nf4", 768)
    objective = preset.objective
    assert (objective.density, objective.density_mean, objective.density_spread) == ("logit_normal", 0.25, 1.5)
    assert objective.shift == 1 and objective.min_snr_gamma is None
    assert of(result.found, "resolution").part == "changed" and of(result.found, "loss_weight_fn").part == "dropped"
    assert "transformer.*.ff_context.*" in preset.targets.exclude
    accounted(result.found, FLUX)
    dynamic = imported({**FLUX, "dynamic_timestep_shifting": True, "timestep_shift": 3.0})
    assert dynamic.preset.objective.shift is None


def test_flux2(imported, accounted):
    """Its own preset for 16 GB."""
    values = {
        "base_model_name": "black-forest-labs/FLUX.2-klein-base-9B", "batch_size": 2, "learning_rate": 3e-5,
        "model_type": "FLUX_2", "resolution": "512", "output_model_format": "DIFFUSERS_LORA", "compile": True,
        "transformer": {"train": True, "weight_dtype": "INT_W8A8"},
        "text_encoder": {"train": False, "weight_dtype": "FLOAT_8"}, "training_method": "LORA",
        "vae": {"weight_dtype": "FLOAT_32"}, "train_dtype": "BFLOAT_16", "output_dtype": "BFLOAT_16",
        "layer_filter": "transformer_block", "layer_filter_preset": "blocks",
        "quantization": {"layer_filter": "transformer_block", "layer_filter_preset": "blocks"},
        "timestep_distribution": "LOGIT_NORMAL", "dynamic_timestep_shifting": True,
    }
    result = imported(values)
    preset = result.preset
    assert (preset.family, preset.base.path) == ("flux2", "black-forest-labs/FLUX.2-klein-base-9B")
    assert (preset.base.quantization, preset.objective.density) == ("int8", "logit_normal")
    assert preset.objective.shift is None and preset.targets.layers == "attention-mlp"
    assert not preset.targets.exclude and not preset.targets.text_encoders
    accounted(result.found, values)


def test_chroma(imported, accounted):
    """As in its own preset for 24 GB."""
    values = {
        "base_model_name": "lodestones/Chroma1-HD", "batch_size": 2, "learning_rate": 0.0003,
        "model_type": "CHROMA_1", "resolution": "512", "transformer": {"train": True, "weight_dtype": "FLOAT_8"},
        "text_encoder": {"train": False, "weight_dtype": "BFLOAT_16"}, "training_method": "LORA",
        "timestep_distribution": "INVERTED_PARABOLA", "noising_weight": 7.7,
        "layer_filter": "attn,ff.net,proj_mlp", "layer_filter_preset": "attn-mlp",
    }
    result = imported(values)
    preset = result.preset
    assert (preset.family, preset.base.path) == ("chroma", "lodestones/Chroma1-HD")
    assert (preset.base.quantization, preset.objective.density) == ("fp8", "logit_normal")
    assert preset.objective.shift == 1 and not preset.targets.text_encoders
    accounted(result.found, values)


def test_files_of_the_denoiser_and_the_vae(imported, of):
    result = imported({**FLUX, "transformer": {**FLUX["transformer"], "model_name": "/m/flux1-dev.safetensors"},
                       "vae": {"model_name": "/m/vae"}})
    base = result.preset.base
    assert (base.path, base.config) == ("/m/flux1-dev.safetensors", "")
    assert base.vae == "/m/vae/diffusion_pytorch_model.safetensors"
    assert of(result.found, "transformer.model_name").part == "mapped"
    result = imported({**FLUX, "base_model_name": "/m/flux", "vae": {"model_name": "someone/vae"},
                       "transformer": {**FLUX["transformer"], "model_name": "/m/flux1-dev.safetensors"}})
    base = result.preset.base
    assert (base.path, base.config, base.vae) == ("/m/flux1-dev.safetensors", "/m/flux", "")
    assert of(result.found, "vae.model_name").part == "dropped"
    base = imported({**FLUX, "vae": {"model_name": "/m/ae.safetensors"}}).preset.base
    assert (base.path, base.vae) == ("someone/some-flux", "/m/ae.safetensors")


def test_text_encoders(imported, of):
    values = {**SDXL, "text_encoder": {"train": True, "learning_rate": 1e-4, "stop_training_after": 5}}
    result = imported(values)
    targets = result.preset.targets
    assert targets.text_encoders and math.isclose(targets.text_encoder_lr_scale, 1 / 3, rel_tol=1e-3)
    assert targets.exclude == ("text_encoder_2.*",)
    assert of(result.found, "text_encoder.stop_training_after").part == "mapped"
    (own,) = targets.encoders
    assert (own.name, own.lr_scale, own.stop) == ("text_encoder", None, 5 / values["epochs"])


def test_each_text_encoder_keeps_its_rate_and_its_end(imported, of):
    parts = {"text_encoder": {"train": True, "learning_rate": 3e-4},
             "text_encoder_2": {"train": True, "learning_rate": 1e-5, "stop_training_after": 20,
                                "stop_training_after_unit": "EPOCH"}}
    result = imported({**SDXL, **parts})
    targets = result.preset.targets
    assert targets.text_encoder_lr_scale == 1 and not targets.exclude
    (own,) = targets.encoders
    assert (own.name, own.stop) == ("text_encoder_2", None) and math.isclose(own.lr_scale, 1 / 30, rel_tol=1e-5)
    assert of(result.found, "text_encoder_2.learning_rate").part == "changed"
    parts["text_encoder_2"] |= {"stop_training_after": 100, "stop_training_after_unit": "STEP"}
    assert "after 100 steps" in of(imported({**SDXL, **parts}).found, "text_encoder_2.stop_training_after").sentence


@pytest.mark.parametrize(
    "name, ours, options",
    [
        ("PRODIGY", "prodigy", {"d_coef": 2.0, "growth_rate": "inf", "safeguard_warmup": True}),
        ("ADAFACTOR", "adafactor", {"relative_step": True, "scale_parameter": True, "eps": 1e-30}),
        ("ADAFACTOR", "adafactor", {"relative_step": False, "eps2": 1e-3}),
        ("SCHEDULE_FREE_ADAMW", "schedulefree_adamw", {"r": 1.0}),
        ("LION_8BIT", "lion8bit", {"is_paged": False}),
        ("ADAMW_8BIT", "paged_adamw8bit", {"is_paged": True}),
        ("CAME", "came", {"beta3": 0.9}),
        ("MUON", "muon", {"momentum": 0.9}),
        ("ADOPT", "pytorch_optimizer", {"beta2": 0.99, "decoupled_decay": True, "stochastic_rounding": True}),
        ("PRODIGY_ADV", "adv_optm", {"d_coef": 2.0, "weight_decay": 0.1}),
        ("DADAPT_ADAM", "prodigy", {}),
    ],
)
def test_optimizers(imported, accounted, name, ours, options):
    values = {**SDXL, "optimizer": {"optimizer": name, **options}}
    result = imported(values)
    assert result.preset.optimizer.name == ours
    accounted(result.found, values)
    if name == "PRODIGY":
        assert (result.preset.optimizer.factor, result.preset.optimizer.weight_decay) == (2.0, 0.0)
        assert result.preset.training.learning_rate == 1.0
    if name == "ADOPT":
        assert result.preset.optimizer.algorithm == "ADOPT" and result.preset.optimizer.weight_decay == 0.0
        assert result.preset.optimizer.arguments == ("weight_decouple=True", "betas=(0.9, 0.99)")
        assert not result.preset.optimizer.problems(1e-4, "cpu")
    if name == "PRODIGY_ADV":
        assert (result.preset.optimizer.arguments, result.preset.optimizer.weight_decay) == (("d_coef=2.0",), 0.1)
    if options.get("relative_step"):
        assert result.preset.optimizer.least_scale == 1e-3 and result.preset.training.learning_rate == 0.01


def test_old_versions(imported, accounted):
    values = {
        "__version": 0,
        "training_method": "LORA",
        "model_type": "STABLE_DIFFUSION_15",
        "base_model_name": "someone/old",
        "optimizer": "ADAMW",
        "optimizer_weight_decay": 0.1,
        "train_unet": True,
        "unet_learning_rate": 2e-4,
        "train_text_encoder": False,
        "unet_weight_dtype": "FLOAT_16",
        "min_snr_gamma": 7.0,
        "save_after": 100,
        "save_after_unit": "STEP",
        "lora_layers": "attentions",
        "lora_layer_preset": "attn-mlp",
        "gradient_checkpointing": False,
        "resolution": "512",
    }
    result = imported(values)
    preset = result.preset
    assert (preset.family, preset.optimizer.name, preset.optimizer.weight_decay) == ("sd15", "adamw", 0.1)
    assert (preset.training.learning_rate, preset.base.dtype) == (2e-4, "float16")
    assert (preset.objective.min_snr_gamma, preset.saving.export_every) == (7.0, 100)
    assert preset.targets.layers == "attention-mlp" and not preset.training.gradient_checkpointing
    accounted(result.found, values)


CONCEPTS = [
    {
        "name": "a",
        "path": "/data/a",
        "balancing": 3.0,
        "image": {"enable_random_flip": True, "enable_random_hue": True,
                  "random_hue_max_strength": 0.2},
        "text": {
            "enable_tag_shuffling": True,
            "keep_tags_count": 2,
            "tag_dropout_enable": True,
            "tag_dropout_mode": "RANDOM",
            "tag_dropout_probability": 0.2,
        },
    },
    {"name": "b", "path": "/data/b", "type": "VALIDATION"},
    {"name": "c", "path": "/data/c", "enabled": False, "balancing": 9},
    {"name": "d", "path": "/data/d", "text": {"prompt_source": "filename"}},
]
SAMPLES = [
    {"prompt": "a cat", "width": 768, "seed": 7},
    {"prompt": "a dog", "width": 1024, "seed": 7},
    {"prompt": "off", "enabled": False},
]


@pytest.mark.parametrize("packed", [True, False])
def test_concepts_and_samples(imported, accounted, of, tmp_path, packed):
    values = {
        **SDXL,
        "concept_file_name": "concepts.json",
        "sample_definition_file_name": "samples.json",
        "sample_after": 100,
        "sample_after_unit": "STEP",
    }
    if packed:
        values |= {"concepts": CONCEPTS, "samples": SAMPLES}
    else:
        (tmp_path / "concepts.json").write_text(json.dumps(CONCEPTS))
        (tmp_path / "samples.json").write_text(json.dumps(SAMPLES))
    result = imported(values)
    data, samples = result.preset.data, result.preset.samples
    plain = {"shuffle": False, "keep_tokens": 1, "part_dropout": 0.0, "flip": False, "hue": 0.0}
    assert settings(result.preset) == {
        "/data/a": {"repeats": 3.0},
        "/data/b": {"role": "validation"},
        "/data/d": {"captions": "filename", **plain},
    }
    assert data.shuffle and data.flip and (data.keep_tokens, data.part_dropout, data.hue) == (2, 0.2, 0.1)
    assert (data.captions, data.missing_captions, data.caption_lines) == ("txt", "empty", "random")
    assert (data.crop, data.variants, data.recursive) == ("random", 1, False)
    assert samples.prompts == ("a cat", "a dog") and (samples.every, samples.seed) == (100, 7)
    assert of(result.found, "concepts[0].balancing").ours == {"data.folders[0].repeats": 3.0}
    assert of(result.found, "concepts[2].path").part == of(result.found, "samples[2].prompt").part == "dropped"
    assert of(result.found, "samples[0].width").part == "changed"
    accounted(result.found, {**values, "concepts": CONCEPTS, "samples": SAMPLES})


def test_a_concept_file_that_is_not_there(imported, of):
    result = imported({**SDXL, "concept_file_name": "elsewhere.json"})
    assert "not found" in of(result.found, "concept_file_name").sentence


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "STABLE_CASCADE_1"}, "model_type STABLE_CASCADE_1 is none of Gimbal's families"),
        ({"model_type": "HI_DREAM_FULL"}, "HI_DREAM_FULL is none of"),
        ({"training_method": "EMBEDDING"}, "training_method is EMBEDDING"),
        ({"training_method": "FINE_TUNE"}, "give --method"),
        ({"batch_size": "many"}, "batch_size: 'many' is not a number"),
        ({"epochs": 2.5}, "epochs: 2.5 is not a whole number"),
        ({"compile": "perhaps"}, "compile: 'perhaps' is not true or false"),
        ({"resolution": "big"}, "resolution: 'big' is not a resolution"),
        (
            {"optimizer": {"optimizer": "ADAMW", "beta1": 3}},
            r"optimizer.beta1: 3.0 is too large.*\(from optimizer.beta1\)",
        ),
    ],
)
def test_bad_settings(imported, change, words):
    with pytest.raises(ValueError, match=words) as caught:
        imported({**SDXL, **change})
    assert "\n" not in str(caught.value)


def test_unknown_keys_are_listed(imported, of):
    result = imported({**SDXL, "no_such_key": 3, "unet": {"train": True, "nor_this": 1}})
    assert of(result.found, "no_such_key").sentence.startswith("unknown")
    assert of(result.found, "unet.nor_this").sentence.startswith("unknown")


def test_z_image(imported, accounted):
    """As its shipped preset for 16 GB."""
    values = {
        "base_model_name": "Tongyi-MAI/Z-Image", "batch_size": 2, "learning_rate": 0.0003, "model_type": "Z_IMAGE",
        "output_model_format": "DIFFUSERS_LORA", "resolution": "512", "compile": True,
        "transformer": {"train": True, "weight_dtype": "FLOAT_8"},
        "text_encoder": {"train": False, "weight_dtype": "FLOAT_8"}, "training_method": "LORA",
        "train_dtype": "BFLOAT_16", "output_dtype": "BFLOAT_16", "timestep_distribution": "LOGIT_NORMAL",
        "layer_filter": "^(?=.*attention)(?!.*refiner).*,^(?=.*feed_forward)(?!.*refiner).*",
        "layer_filter_preset": "attn-mlp", "layer_filter_regex": True,
        "samples": [{"prompt": "a cat", "enabled": True}],
    }
    result = imported(values)
    preset = result.preset
    assert (preset.family, preset.base.path, preset.base.quantization) == ("zimage", "Tongyi-MAI/Z-Image", "fp8")
    assert (preset.targets.layers, preset.targets.text_encoders) == ("main-blocks", False)
    assert (preset.objective.density, preset.objective.shift) == ("logit_normal", 1.0)
    assert (preset.export.host, preset.samples.steps, preset.samples.guidance) == ("diffusers", 28, 4.0)
    accounted(result.found, values)
