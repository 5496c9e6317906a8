"""sd-scripts' TOML files and commands, and kohya_ss' JSON files, as presets."""

import math

import pytest

from modules.importing import import_file
from tests.importing.conftest import settings

COMMAND = r"""
# SDXL, as pasted
export HF_HOME=/somewhere
accelerate launch --num_cpu_threads_per_process 2 --mixed_precision bf16 sdxl_train_network.py \
  --pretrained_model_name_or_path="/models/some xl.safetensors" --train_data_dir=/data/pictures \
  --network_module=networks.lora --network_dim=32 --network_alpha=16 \
  --resolution=1024,1024 --enable_bucket --train_batch_size=2 --max_train_steps=1500 \
  --learning_rate=2e-4 --text_encoder_lr 5e-5 --unet_lr=1e-4 \
  --optimizer_type AdamW8bit --optimizer_args "weight_decay=0.05" "betas=0.9,0.99" \
  --lr_scheduler=cosine --lr_warmup_steps=0.1 --mixed_precision=bf16 --save_precision=fp16 \
  --gradient_checkpointing --xformers --cache_latents --min_snr_gamma=5 --noise_offset=0.03 \
  --caption_extension=.txt --shuffle_caption --keep_tokens=2 --output_dir=/out --output_name=my_style \
  --sample_prompts=prompts.txt --sample_every_n_steps=100 --save_every_n_steps=500 --seed 3
"""

TOML = """
pretrained_model_name_or_path = "/models/someXL.safetensors"
output_name = "toml_style"
max_train_epochs = 10
learning_rate = 1e-4
network_train_unet_only = true
network_module = "{module}"
network_dim = 8
network_alpha = 8.0
network_args = [{args}]
optimizer_type = "{optimizer}"
optimizer_args = []
lr_scheduler = "constant"
mixed_precision = "fp16"
save_precision = "fp16"

[the_names_of_sections_do_not_matter]
seed = 42
clip_skip = 2

[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1

[[datasets]]
resolution = [768, 1024]
batch_size = 3
enable_bucket = true

  [[datasets.subsets]]
  image_dir = "/data/a"
  num_repeats = 10

  [[datasets.subsets]]
  image_dir = "/data/b"
  caption_extension = ".caption"

  [[datasets.subsets]]
  image_dir = "/data/regular"
  is_reg = true
"""


def toml(module="networks.lora", args="", optimizer="AdamW8bit"):
    return TOML.format(module=module, args=args, optimizer=optimizer)


def lists(found):
    return {entry.key: entry for part in (found.mapped, found.changed, found.dropped) for entry in part}


def test_a_command(imported, of, tmp_path):
    (tmp_path / "prompts.txt").write_text("# two\na cat, --w 768 --h 512 --d 7 --s 20 --l 6.5 --n ugly, bad\na dog\n")
    result = imported(COMMAND, "txt")
    preset, found = result.preset, lists(result.found)
    assert (preset.family, preset.base.path, preset.name) == ("sdxl", "/models/some xl.safetensors", "my_style")
    assert (preset.adapter.method, preset.adapter.rank, preset.adapter.alpha) == ("lora", 32, 16)
    assert (preset.targets.layers, preset.targets.text_encoders) == ("attention-mlp", True)
    assert (preset.training.learning_rate, preset.targets.text_encoder_lr_scale) == (1e-4, 0.5)
    assert (preset.training.steps, preset.training.warmup_share, preset.training.batch_size) == (1500, 0.1, 2)
    assert (preset.training.schedule, preset.training.final_lr, preset.training.seed) == ("cosine", 0, 3)
    assert (preset.optimizer.weight_decay, preset.optimizer.beta1, preset.optimizer.beta2) == (0.05, 0.9, 0.99)
    assert preset.data.folders == ("/data/pictures",) and preset.data.shuffle and preset.data.keep_tokens == 2
    assert (preset.objective.min_snr_gamma, preset.objective.noise_offset) == (5, 0.03)
    samples = preset.samples
    assert samples.prompts == ("a cat,", "a dog") and samples.negative == "ugly, bad"
    assert (samples.width, samples.height, samples.seed, samples.steps, samples.guidance) == (768, 512, 7, 20, 6.5)
    assert (samples.every, preset.saving.export_every, preset.export.host) == (100, 500, "kohya")
    flags = {
        word.split("=")[0][2:]
        for line in COMMAND.split("sdxl_train_network.py")[1].splitlines()
        for word in line.split()
        if word.startswith("--")
    }
    assert flags - {key.split(".")[0] for key in found} == set()
    assert found["launcher[0]"].value == "--num_cpu_threads_per_process 2"
    assert {key for key, entry in found.items() if entry.part == "changed"} == {
        "network_alpha",
        "text_encoder_lr",
        "sample_prompts",
    }


@pytest.mark.parametrize("joined", ["\\", "^", "`"])
def test_how_shells_join_lines(imported, joined):
    text = f"python train_network.py {joined}\r\n --network_module=networks.lora {joined}\n --network_dim 8"
    assert imported(text, "sh").preset.adapter.rank == 8


def test_paths_of_windows(imported):
    text = 'python .\\train_network.py --pretrained_model_name_or_path "C:\\my models\\new.safetensors" --network_dim 8'
    assert imported(text, "bat").preset.base.path == "C:\\my models\\new.safetensors"


def test_toml(imported, of):
    result = imported(toml(), "toml")
    preset = result.preset
    assert (preset.family, preset.adapter.alpha, preset.training.epochs) == ("sdxl", None, 10)
    own = {"/data/a": {"repeats": 10.0}, "/data/b": {"captions": "caption"}}
    assert settings(preset) == {**own, "/data/regular": {"role": "regularisation"}}
    assert preset.data.shuffle and not preset.data.recursive and preset.data.captions == "txt"
    assert preset.data.resolution == round(math.sqrt(768 * 1024)) and preset.training.batch_size == 3
    assert not preset.targets.text_encoders and preset.training.seed == 42
    assert of(result.found, "datasets[0].subsets[0].num_repeats").part == "mapped"
    assert of(result.found, "datasets[0].subsets[2].image_dir").part == "mapped"
    assert of(result.found, "clip_skip").part == "dropped"
    assert imported(toml(), "toml", family="sd15").preset.base.clip_skip == 2


def test_files_that_a_command_names(imported, of, tmp_path):
    (tmp_path / "settings.toml").write_text("network_dim = 12\nlearning_rate = 3e-4\n")
    (tmp_path / "data.toml").write_text('[[datasets]]\nresolution = 640\n[[datasets.subsets]]\nimage_dir = "/data/z"\n')
    text = "sdxl_train_network.py --config_file settings --dataset_config data.toml --network_module=networks.lora"
    preset = imported(text, "txt").preset
    assert (preset.adapter.rank, preset.data.folders, preset.data.resolution) == (12, ("/data/z",), 640)


def test_the_caption_ending_that_nobody_expects(imported, of):
    text = "train_network.py --network_module=networks.lora --network_dim=4 --learning_rate=1e-4"
    result = imported(text, "txt")
    assert result.preset.data.captions == "caption" and not of(result.found, "caption_extension").written


@pytest.mark.parametrize(
    "args, method, axis, layers",
    [
        ('"algo=locon", "preset=attn-mlp"', "lora", None, "attention-mlp"),
        ('"algo=lora", "dora_wd=True", "preset=full"', "dora", "output", "all"),
        ('"algo=locon", "dora_wd=True", "wd_on_output=False"', "dora", "input", "all"),
        ('"algo=diag-oft", "preset=attn-only"', "oft", None, "attention"),
        ('"algo=diag-oft", "rescaled=True"', "doft", None, "all"),
    ],
)
def test_lycoris(imported, of, args, method, axis, layers):
    result = imported(toml("lycoris.kohya", args), "toml")
    adapter = result.preset.adapter
    assert (adapter.method, result.preset.targets.layers) == (method, layers)
    assert axis is None or adapter.axis == axis
    assert ("network_args.wd_on_output" in {entry.key for entry in result.found.changed}) == (method == "dora")
    if method in ("oft", "doft"):
        assert adapter.rotation.block_size == 8
        parts = 2 if method == "doft" else 1  # beside the magnitudes
        assert math.isclose(result.preset.training.learning_rate, 1e-4 * 4 * math.sqrt(7 * parts), rel_tol=1e-3)
        assert adapter.side == "output"


@pytest.mark.parametrize("algorithm", ["ia3", "glora", "full", "dylora"])
def test_methods_that_are_missing(imported, algorithm):
    with pytest.raises(ValueError, match=r"not one of Gimbal's.*--method"):
        imported(toml("lycoris.kohya", f'"algo={algorithm}"'), "toml")
    assert imported(toml("lycoris.kohya", f'"algo={algorithm}"'), "toml", "lora").preset.adapter.method == "lora"


def test_rs_lora_and_convolutions(imported, of):
    preset = imported(toml("lycoris.kohya", '"algo=locon", "rs_lora=True"'), "toml").preset
    assert math.isclose(preset.adapter.scale, 8 / math.sqrt(8), rel_tol=1e-4)
    result = imported(toml("networks.lora", '"conv_dim=4", "conv_alpha=1"'), "toml")
    assert result.preset.targets.layers == "attention-mlp-conv"
    assert {rule.rank for rule in result.preset.targets.rules} == {4}
    assert "0.25 there" in of(result.found, "network_args.conv_alpha").sentence


@pytest.mark.parametrize(
    "optimizer, ours",
    [
        ("Prodigy", "prodigy"),
        ("Adafactor", "adafactor"),
        ("DAdaptAdam", "prodigy"),
        ("Lion", "lion8bit"),
        ("AdamWScheduleFree", "schedulefree_adamw"),
        ("some.module.CAME", "came"),
        ("pytorch_optimizer.AdaBelief", "pytorch_optimizer"),
        ("PagedAdEMAMix8bit", "paged_ademamix8bit"),
    ],
)
def test_optimizers(imported, optimizer, ours):
    preset = imported(toml(optimizer=optimizer), "toml").preset
    assert preset.optimizer.name == ours
    if optimizer == "Adafactor":  # its own step size is what kohya turns on
        assert (preset.training.learning_rate, preset.optimizer.least_scale) == (0.01, 0.001)


FLUX = """
flux_train_network.py --pretrained_model_name_or_path flux1-dev.safetensors --clip_l c.safetensors --t5xxl t.safetensors
--ae ae.safetensors --network_module networks.lora_flux --network_dim 16 --network_alpha 16 --learning_rate 1e-4
--max_train_steps 100 --fp8_base --guidance_scale 1.0 --caption_extension .txt {more}
"""


@pytest.mark.parametrize(
    "more, density, mean, shift",
    [
        ("", "uniform", 0, 3.0),
        ("--timestep_sampling sigmoid", "logit_normal", 0, 1.0),
        ("--timestep_sampling shift --discrete_flow_shift 3.1582", "logit_normal", 0, 3.1582),
        ("--timestep_sampling flux_shift", "logit_normal", 0, None),
        ("--weighting_scheme logit_normal --logit_mean 0.5", "logit_normal", -0.5, 3.0),
    ],
)
def test_noise_levels_of_flux(imported, of, more, density, mean, shift):
    result = imported(FLUX.format(more=more), "txt")
    preset = result.preset
    assert preset.family == "flux" and preset.base.quantization == "fp8"
    objective = preset.objective
    assert (objective.density, objective.density_mean, objective.shift) == (density, mean, shift)
    assert objective.min_snr_gamma is None and "text_encoder_2.*" in preset.targets.exclude
    assert of(result.found, "model_prediction_type").part == "changed"
    assert ("logit_mean" in {entry.key for entry in result.found.changed}) == (mean != 0)


@pytest.mark.parametrize("more, texts", [("", False), ("--network_args train_t5xxl=True", True)])
def test_chroma(imported, of, more, texts):
    """The same program, told by an option. Without T5 it has no text encoder to train."""
    command = FLUX.replace("--clip_l c.safetensors ", "").replace("flux1-dev", "Chroma1-HD").replace("1.0", "0.0")
    more = f"--model_type chroma --apply_t5_attn_mask --timestep_sampling sigmoid --model_prediction_type raw {more}"
    result = imported(command.format(more=more), "txt")
    preset = result.preset
    assert (preset.family, preset.base.path) == ("chroma", "Chroma1-HD.safetensors")
    assert (preset.objective.density, preset.objective.density_mean, preset.objective.shift) == ("logit_normal", 0, 1)
    assert preset.targets.text_encoders == texts
    assert {of(result.found, key).part for key in ("model_type", "apply_t5_attn_mask")} == {"mapped"}
    assert of(result.found, "guidance_scale").part == "dropped"
    window = {"LoRA_type": "Flux1", "flux1_checkbox": True, "model_type": "chroma", "learning_rate": 1e-4,
              "pretrained_model_name_or_path": "Chroma1-HD.safetensors", "max_train_steps": 100}
    assert imported(window).preset.family == "chroma"


def test_files_of_text_encoders_and_vae(imported, of):
    result = imported(FLUX.format(more="--vae other.safetensors"), "txt")
    assert (result.preset.base.texts, result.preset.base.vae) == (("c.safetensors", "t.safetensors"), "ae.safetensors")
    assert of(result.found, "t5xxl").part == "mapped" and of(result.found, "vae").part == "dropped"
    three = "--clip_l l.safetensors --clip_g g.safetensors --t5xxl t.safetensors --vae v.safetensors"
    base = imported(f"sd3_train_network.py {three}", "txt").preset.base
    assert (base.texts, base.vae) == (("l.safetensors", "g.safetensors", "t.safetensors"), "v.safetensors")
    plain = "sdxl_train_network.py --pretrained_model_name_or_path a.safetensors --clip_l x.safetensors --vae"
    base = imported(f"{plain} sdxl_vae.safetensors", "txt").preset.base
    assert (base.texts, base.vae) == ((), "sdxl_vae.safetensors")
    result = imported(f"{plain} some/folder", "txt")
    assert result.preset.base.vae == "" and of(result.found, "vae").part == "dropped"


def test_the_windows_fields_of_text_encoders(imported):
    page = {"LoRA_type": "Flux1", "max_resolution": "512,512", "flux1_checkbox": True, "pretrained_model_name_or_path":
            "f.safetensors", "flux1_clip_l": "l.safetensors", "flux1_t5xxl": "t.safetensors", "ae": "ae.safetensors",
            "sd3_clip_l": "", "max_train_steps": 10}
    base = imported(page, "json").preset.base
    assert (base.path, base.texts, base.vae) == ("f.safetensors", ("l.safetensors", "t.safetensors"), "ae.safetensors")


def test_the_family_has_to_be_known(imported):
    text = toml().replace("someXL", "some")
    with pytest.raises(ValueError, match="give --family sd15 or --family sdxl"):
        imported(text, "toml")
    assert imported(text, "toml", family="sd15").preset.family == "sd15"


@pytest.mark.parametrize(
    "text, words",
    [
        ("sdxl_train.py --learning_rate 1e-5", "sdxl_train.py trains no adapter"),
        ("anima_train_network.py --network_dim 4", "trains no adapter of a family"),
        ("train_network.py --network_dim many", "network_dim: 'many' is not a number"),
        ("train_network.py --network_dim 4 --network_dim 8", "given twice"),
        ("train_network.py --network_dim 4 8", "more than one value"),
        ("train_network.py --network_args conv_dim 4", "is not key=value"),
        ("train_network.py --output_name 'half", "not a whole command"),
    ],
)
def test_bad_commands(imported, text, words):
    with pytest.raises(ValueError, match=words) as caught:
        imported(text, "txt")
    assert "\n" not in str(caught.value)


GUI = {
    "LoRA_type": "Standard", "LyCORIS_preset": "full", "sdxl": True,
    "pretrained_model_name_or_path": "/models/a.safetensors",
    "train_data_dir": "/data", "output_name": "from_window", "network_dim": 32, "network_alpha": 1, "conv_dim": 4,
    "conv_alpha": 1, "dora_wd": True, "learning_rate": 0.0001, "unet_lr": 0.0001, "text_encoder_lr": 0, "epoch": 8,
    "max_train_epochs": 0, "max_train_steps": 0, "train_batch_size": "2", "max_resolution": "1024,1024",
    "enable_bucket": True, "optimizer": "AdamW8bit", "optimizer_args": "weight_decay=0.1", "lr_scheduler": "cosine",
    "lr_warmup": 10, "mixed_precision": "bf16", "save_precision": "fp16", "caption_extension": ".txt", "seed": "",
    "keep_tokens": "0", "clip_skip": "1", "min_snr_gamma": 0, "noise_offset": 0, "gradient_checkpointing": True,
    "sample_prompts": "a cat --w 512", "sample_every_n_steps": 50, "additional_parameters": "--tokens 3",
    "wandb_api_key": "not_for_the_screen", "no_such_field": 1, "factor": -1,
}  # fmt: skip


def test_the_window(imported, accounted, of):
    result = imported(GUI)
    preset = result.preset
    assert (preset.family, preset.adapter.method, preset.adapter.alpha, preset.name) == (
        "sdxl",
        "lora",
        1,
        "from_window",
    )
    assert (preset.training.epochs, preset.optimizer.weight_decay) == (8, 0.1)
    assert not preset.targets.text_encoders and preset.samples.prompts == ("a cat",)
    assert of(result.found, "lr_warmup").part == "mapped" and of(result.found, "network_alpha").part == "changed"
    assert of(result.found, "conv_dim").part == of(result.found, "dora_wd").part == "dropped"
    assert of(result.found, "no_such_field").sentence.startswith("unknown")
    assert "not_for_the_screen" not in result.text
    accounted(result.found, GUI)


@pytest.mark.parametrize(
    "kind, method", [("LyCORIS/LoCon", "dora"), ("Kohya LoCon", "lora"), ("LyCORIS/Diag-OFT", "oft")]
)
def test_kinds_of_the_window(imported, accounted, kind, method):
    values = {**GUI, "LoRA_type": kind}
    result = imported(values)
    assert result.preset.adapter.method == method
    accounted(result.found, values)


def test_steps_of_the_window_come_before_epochs(imported, accounted):
    for epoch in (1, 8):
        values = {**GUI, "max_train_steps": 700, "epoch": epoch}
        result = imported(values)
        assert (result.preset.training.steps, result.preset.training.epochs) == (700, None)
        assert result.preset.training.warmup_share == 0.1
        accounted(result.found, values)


def test_missing_kinds_of_the_window(imported):
    with pytest.raises(ValueError, match="GLoRA is not one of Gimbal's"):
        imported({**GUI, "LoRA_type": "LyCORIS/GLoRA"})
    with pytest.raises(ValueError, match="not of kohya_ss' LoRA page"):
        imported({key: value for key, value in GUI.items() if key != "LoRA_type"})
    with pytest.raises(ValueError, match="anima is none of"):
        imported({**GUI, "anima_checkbox": True})


@pytest.mark.parametrize("line", ["seed = inf", 'network_args = ["algo=lokr", "factor=inf"]'])
def test_endless_numbers_are_one_sentence(tmp_path, line):
    path = tmp_path / "settings.toml"
    path.write_text(f'pretrained_model_name_or_path = "x"\nnetwork_module = "lycoris.kohya"\n{line}\n')
    with pytest.raises(ValueError, match="settings.toml: [^\n]*$"):
        import_file(path)


@pytest.mark.parametrize("script, module, family, rates, t5, expected", [
    ("flux_train_network.py", "networks.lora_flux", "flux", "1e-4 5e-5", "train_t5xxl=True", {"text_encoder_2": 0.5}),
    ("sd3_train_network.py", "networks.lora_sd3", "sd3", "1e-4 5e-5", "train_t5xxl=True",
     {"text_encoder_2": 0.5, "text_encoder_3": 0.5}),
    ("sd3_train_network.py", "networks.lora_sd3", "sd3", "1e-4 5e-5 2e-5", "", {"text_encoder_2": 0.5}),
    ("sdxl_train_network.py", "networks.lora", "sdxl", "1e-4 5e-5", "", {}),
])  # fmt: skip
def test_a_rate_for_each_text_encoder(imported, script, module, family, rates, t5, expected):
    """As the modules' own `prepare_optimizer_params_with_multiple_te_lrs` divides them."""
    words = f"python {script} --network_module {module} --network_dim 8 --learning_rate 1e-4 --text_encoder_lr {rates}"
    targets = imported(f"{words} --network_args x=1 {t5}", "sh").preset.targets
    assert targets.text_encoders and targets.text_encoder_lr_scale == 1
    assert {one.name: one.lr_scale for one in targets.encoders} == expected
