"""ai-toolkit's jobs as presets."""

import copy

import pytest
import torch

from modules import families
from modules.data.folders import folder_options
from modules.preset.schema import Base, Targets
from modules.training.setup import match_layers
from tests import tiny_krea2, tiny_qwenimage, tiny_zimage
from tests.importing.conftest import settings

FLUX = {
    "job": "extension",
    "config": {
        "name": "my flux",
        "process": [
            {
                "type": "sd_trainer",
                "training_folder": "output",
                "device": "cuda:0",
                "trigger_word": "p3rs0n",
                "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
                "save": {"dtype": "bf16", "save_every": 250, "max_step_saves_to_keep": 4},
                "datasets": [
                    {"folder_path": "/data/a", "caption_ext": "txt", "caption_dropout_rate": 0.1,
                     "shuffle_tokens": True,
                     "cache_latents_to_disk": True, "resolution": [512, 768]},
                    {"folder_path": "/data/b", "num_repeats": 4, "flip_x": True},
                ],
                "train": {"batch_size": 2, "steps": 1200, "gradient_accumulation_steps": 3, "train_unet": True,
                          "train_text_encoder": False, "noise_scheduler": "flowmatch", "optimizer": "adamw8bit",
                          "lr": "1e-4", "dtype": "bf16", "ema_config": {"use_ema": True, "ema_decay": 0.99},
                          "optimizer_params": {"weight_decay": 0.05}},
                "model": {"name_or_path": "someone/some-flux", "is_flux": True, "quantize": True},
                "sample": {"sampler": "flowmatch", "sample_every": 200, "width": 1024, "height": 768, "neg": "",
                           "prompts": ["[trigger] at sea", "a cat"], "seed": 9, "walk_seed": True,
                           "guidance_scale": 4, "sample_steps": 20},
            }
        ],
    },
    "meta": {"name": "[name]", "version": "1.0"},
}  # fmt: skip


def job(**sections):
    """The job with changed sections of its process; None takes one out, and so it does inside."""
    values = copy.deepcopy(FLUX)
    process = values["config"]["process"][0]
    for name, section in sections.items():
        if section is None:
            del process[name]
        elif isinstance(section, dict):
            process[name] = {key: one for key, one in {**process.get(name, {}), **section}.items() if one is not None}
        else:
            process[name] = section
    return values


@pytest.mark.parametrize("arch, path", [
    ("flux2", "black-forest-labs/FLUX.2-dev"), ("flux2_klein_9b", "black-forest-labs/FLUX.2-klein-base-9B"),
])
def test_flux2(imported, arch, path):
    """It adapts the layers of all blocks, and none beside them."""
    model = {"is_flux": None, "arch": arch, "name_or_path": path, "qtype": "qfloat8"}
    preset = imported(job(model=model, train={"timestep_type": "sigmoid"})).preset
    assert (preset.family, preset.base.path, preset.base.quantization) == ("flux2", path, "fp8")
    assert preset.targets.layers == "attention-mlp" and not preset.targets.exclude
    assert (preset.objective.density, preset.objective.shift) == ("logit_normal", 1)
    kwargs = {"only_if_contains": ["single_blocks.1.", "double_blocks"]}
    some = imported(job(model=model, network={"network_kwargs": kwargs}))
    assert some.preset.targets.layers == "transformer.*single_transformer_blocks.1.*, transformer.*transformer_blocks*"


@pytest.mark.parametrize("path, taken", [
    ("lodestones/Chroma/v28", "lodestones/Chroma1-HD"), ("lodestones/Chroma", "lodestones/Chroma1-HD"),
    ("lodestones/Chroma1-Base", "lodestones/Chroma1-Base"), ("/models/c.safetensors", "/models/c.safetensors"),
])
def test_chroma(imported, of, path, taken):
    result = imported(job(model={"is_flux": None, "arch": "chroma", "name_or_path": path}))
    preset = result.preset
    assert (preset.family, preset.base.path, preset.targets.layers) == ("chroma", taken, "all")
    assert not preset.targets.exclude and preset.objective.density == "logit_normal"
    assert of(result.found, "model.name_or_path").part == ("mapped" if path == taken else "changed")


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_flux(imported, accounted, of, ending):
    result = imported(FLUX, ending)
    preset = result.preset
    assert (preset.family, preset.name, preset.base.quantization) == ("flux", "my_flux", "fp8")
    assert (preset.adapter.method, preset.adapter.rank, preset.adapter.alpha) == ("lora", 16, None)
    own = {"repeats": 4.0, "resolution": 512, "shuffle": False, "caption_dropout": 0.0, "flip": True}
    assert settings(preset) == {"/data/a": {}, "/data/b": own} and preset.data.trigger == "p3rs0n"
    assert (preset.data.caption_dropout, preset.data.shuffle, preset.data.resolutions) == (0.1, True, (512, 768))
    assert (preset.training.steps, preset.training.batch_size, preset.training.accumulation) == (1200, 2, 3)
    assert (preset.training.schedule, preset.training.warmup) == ("constant", 0)
    assert (preset.optimizer.weight_decay, preset.optimizer.eps) == (0.05, 1e-6)
    assert (preset.objective.density, preset.objective.shift) == ("logit_normal", 1.0)
    assert preset.samples.prompts == ("p3rs0n at sea", "a cat") and preset.samples.height == 768
    assert (preset.saving.state_every, preset.saving.export_every, preset.saving.keep_states) == (250, 250, 4)
    assert (preset.training.ema, preset.training.ema_decay) == ("device", 0.99)
    assert "untrained adapter there" in of(result.found, "train.ema_config.use_ema").sentence
    assert of(result.found, "datasets[1].num_repeats").ours == {"data.folders[1].repeats": 4.0}
    assert of(result.found, "datasets[1].flip_x").ours == {"data.folders[1].flip": True}
    process = FLUX["config"]["process"][0]
    accounted(result.found, {**process, "config.name": "", "job": "", "meta": FLUX["meta"]})
    assert "network.linear_alpha" not in {entry.key for entry in result.found.changed}


def test_files_of_text_encoder_and_vae(imported, of):
    base = imported(job(model={"vae_path": "/m/ae.safetensors", "te_name_or_path": "/m/t5xxl.safetensors"})).preset.base
    assert (base.texts, base.vae) == (("/m/t5xxl.safetensors",), "/m/ae.safetensors")
    result = imported(job(model={"vae_path": "someone/vae"}))
    assert result.preset.base.vae == "" and of(result.found, "model.vae_path").part == "dropped"


def test_alpha_of_transformers_is_ignored_there(imported, of):
    result = imported(job(network={"linear_alpha": 4}))
    assert result.preset.adapter.alpha is None and "ignores alpha" in of(result.found, "network.linear_alpha").sentence
    unet = imported(job(network={"linear_alpha": None}, model={"is_flux": None, "is_xl": True}))
    assert unet.preset.family == "sdxl" and unet.preset.adapter.scale == 1 / 16
    assert "does not say so" in of(unet.found, "network.alpha").sentence


@pytest.mark.parametrize(
    "kind, density, shift, changed",
    [
        ("sigmoid", "logit_normal", 1.0, False),
        ("linear", "uniform", 1.0, False),
        ("shift", "uniform", None, False),
        ("weighted", "uniform", 1.0, True),
        ("lognorm_blend", "logit_normal", 1.0, True),
    ],
)
def test_noise_levels(imported, kind, density, shift, changed):
    result = imported(job(train={"timestep_type": kind}))
    assert (result.preset.objective.density, result.preset.objective.shift) == (density, shift)
    assert ("train.timestep_type" in {entry.key for entry in result.found.changed}) == changed


def test_sdxl_with_text_encoder_and_convolutions(imported, accounted, of):
    values = job(
        model={"is_flux": None, "arch": "sdxl", "quantize": None},
        network={"type": "dora", "conv": 8, "conv_alpha": 8},
        train={
            "train_text_encoder": True,
            "text_encoder_lr": 5e-5,
            "min_snr_gamma": 5.0,
            "noise_scheduler": "ddpm",
            "lr_scheduler": "cosine",
            "lr_scheduler_params": {"eta_min": 1e-5},
            "loss_type": "mae",
        },
    )
    result = imported(values)
    preset = result.preset
    assert (preset.adapter.method, preset.adapter.axis) == ("dora", "output")
    assert of(result.found, "network.type").part == "changed"
    assert preset.targets.layers == "attention-mlp-conv" and preset.targets.rules[0].rank == 8
    assert (preset.targets.text_encoders, preset.targets.text_encoder_lr_scale) == (True, 0.5)
    assert preset.objective.min_snr_gamma == 5.0 and preset.training.final_lr == pytest.approx(0.1)
    assert preset.objective.loss == "l1"
    accounted(result.found, {**values["config"]["process"][0], "config.name": "", "job": "", "meta": FLUX["meta"]})


def test_prodigy_has_no_other_rate(imported, of):
    result = imported(job(train={"optimizer": "prodigy", "lr": 1e-4, "optimizer_params": {"d_coef": 0.8}}))
    assert (result.preset.training.learning_rate, result.preset.optimizer.factor) == (1.0, 0.8)
    assert of(result.found, "train.lr").part == "changed"


@pytest.mark.parametrize("kind", ["loha", "lorm"])
def test_methods_that_are_missing(imported, kind):
    with pytest.raises(ValueError, match=r"not one of Gimbal's.*--method lora"):
        imported(job(network={"type": kind}))
    assert imported(job(network={"type": kind}), method="oft").preset.adapter.method == "oft"


def test_patterns_of_layers(imported, of):
    result = imported(job(network={"network_kwargs": {"ignore_if_contains": ["norm"], "only_if_contains": ["attn"]}}))
    assert "*norm*" in result.preset.targets.exclude and result.preset.targets.layers == "transformer.*blocks*.*attn*"


@pytest.mark.parametrize(
    "values, words",
    [
        (job(model={"is_flux": None, "arch": "wan21:14b"}), "arch wan21 is none of Gimbal's families"),
        (job(model={"is_flux": None, "arch": "hidream"}), "arch hidream is none of"),
        (job(model={"is_flux": None, "is_lumina2": True}), "is_lumina2 is none of"),
        (job(type="concept_slider"), "concept_slider is no training of an adapter"),
        (job(network=None), "no network section"),
        (job(train={"steps": "long"}), "train.steps: 'long' is not a number"),
        (job(train={"train_unet": False}), "nothing was trained"),
        ({"job": "train", "config": {"name": "x", "process": ["sd_trainer"]}}, "is no section"),
    ],
)
def test_bad_jobs(imported, values, words):
    with pytest.raises(ValueError, match=words) as caught:
        imported(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["zimage", "zimage:turbo"])
def test_z_image_trains_what_has_layers_in_its_name(imported, arch, tmp_path):
    """`transformer_block_names` in toolkit/lora_special.py: every linear layer whose name contains one."""
    model = families.read("zimage", Base(path=str(tiny_zimage.make_folder(tmp_path))))[0]
    preset = imported(job(model={"is_flux": None, "arch": arch})).preset
    assert (preset.family, preset.objective.density, preset.objective.shift) == ("zimage", "logit_normal", 1.0)
    wanted = {f"transformer.{name}" for name, module in model.networks["transformer"].named_modules()
              if isinstance(module, torch.nn.Linear) and "layers" in f"transformer.{name}"}
    assert set(match_layers(model, preset.targets)[0]) == wanted
    some = job(model={"is_flux": None, "arch": arch}, network={"network_kwargs": {"only_if_contains": ["attention"]}})
    chosen, problems = match_layers(model, imported(some).preset.targets)
    assert not problems and set(chosen) == {name for name in wanted if "attention" in name}


def test_krea_2_trains_its_blocks(imported, tmp_path):
    """`get_transformer_block_names` in extensions_built_in/diffusion_models/krea2/krea2.py, in the names of which those
    of the small transformers of the text are, too; and Turbo's training adapter."""
    model = families.read("krea2", Base(path=str(tiny_krea2.make_folder(tmp_path))))[0]
    found = imported(job(model={"is_flux": None, "arch": "krea2:turbo", "name_or_path": "krea/Krea-2-Turbo",
                                "assistant_lora_path": "/files/adapter.safetensors"}))
    chosen, problems = match_layers(model, found.preset.targets)
    everything = match_layers(model, Targets(layers="all"))[0]
    assert (found.preset.family, found.preset.base.path, problems) == ("krea2", "krea/Krea-2-Turbo", [])
    assert found.preset.base.training_adapter == "/files/adapter.safetensors"
    assert set(chosen) == {name for name in everything if "blocks" in name}
    only = job(model={"is_flux": None, "arch": "krea2"}, network={"type": "lora", "linear": 4, "linear_alpha": 4,
               "network_kwargs": {"only_if_contains": ["blocks.0.attn.wq", "mlp.gate"]}})
    chosen, problems = match_layers(model, imported(only).preset.targets)
    assert not problems and set(chosen) == {
        name for name in everything if "blocks.0.attn.to_q" in name or "ff.gate" in name}


def test_qwen_image_trains_its_blocks(imported, tmp_path):
    """`get_transformer_block_names` in extensions_built_in/diffusion_models/qwen_image/qwen_image.py."""
    model = families.read("qwenimage", Base(path=str(tiny_qwenimage.make_folder(tmp_path))))[0]
    preset = imported(job(model={"is_flux": None, "arch": "qwen_image"})).preset
    chosen, problems = match_layers(model, preset.targets)
    everything = match_layers(model, Targets(layers="all"))[0]
    assert preset.family == "qwenimage" and not problems
    assert set(chosen) == {name for name in everything if "transformer_blocks" in name}
    with pytest.raises(ValueError, match="qwen_image_layered is none of"):
        imported(job(model={"is_flux": None, "arch": "qwen_image_layered"}))


@pytest.mark.parametrize(
    "theirs, ours, part",
    [
        ("/models/adapter.safetensors", "/models/adapter.safetensors", "mapped"),
        ("loras/adapter.safetensors", "loras/adapter.safetensors", "mapped"),
        ("./folder", "./folder/pytorch_lora_weights.safetensors", "mapped"),
        ("someone/adapter-of-it", "someone/adapter-of-it/pytorch_lora_weights.safetensors", "changed"),
        ("someone/adapter/v2.safetensors", "someone/adapter/v2.safetensors", "changed"),
    ],
)
def test_the_assistant_of_a_distilled_base_is_the_training_adapter(imported, of, theirs, ours, part):
    result = imported(job(model={"assistant_lora_path": theirs}))
    entry = of(result.found, "model.assistant_lora_path")
    assert result.preset.base.training_adapter == ours
    assert (entry.part, entry.ours) == (part, {"base.training_adapter": ours})
    assert ("download this file" in entry.sentence) == (part == "changed")
    assert imported(job()).preset.base.training_adapter == ""
    other = imported(job(model={"inference_lora_path": theirs}))
    assert of(other.found, "model.inference_lora_path").part == "dropped" and other.preset == imported(job()).preset


def test_control_pictures_of_a_model_that_edits_are_references(imported):
    """One folder, a list of them, or numbered keys; the pictures of samples too."""
    datasets = [
        {"folder_path": "/a", "control_path": "/before", "flip_x": True, "random_crop": True},
        {"folder_path": "/b", "control_path": ["/one", "/two"]},
        {"folder_path": "/c", "control_path_1": "/x", "control_path_2": "/y"},
        {"folder_path": "/d"},
    ]
    shown = {"prompt": "make it red", "ctrl_img_1": "/s/1.png", "ctrl_img_2": "/s/2.png"}
    samples = {"prompts": None, "samples": [shown, {"prompt": "a cat"}]}
    model = {"name_or_path": "Qwen/Qwen-Image-Edit-2509", "arch": "qwen_image_edit_plus", "is_flux": None}
    preset = imported(job(datasets=datasets, model=model, sample=samples)).preset
    assert preset.family == "qwenimage"
    given = [() if isinstance(one, str) else one.references for one in preset.data.folders]
    assert given == [("/before",), ("/one", "/two"), ("/x", "/y"), ()]
    assert not any(folder_options(preset.data, one).flip for one in preset.data.folders if not isinstance(one, str))
    first, second = preset.samples.prompts
    assert (first.prompt, first.references, second) == ("make it red", ("/s/1.png", "/s/2.png"), "a cat")
    plain = imported(job(datasets=datasets[:1]))
    assert not any(one.references for one in plain.preset.data.folders if not isinstance(one, str))
