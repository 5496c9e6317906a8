"""What other trainers say of folders: roles, repeats, sizes, captions, masks, augmentation, and when to write."""

import json

import pytest

from tests.importing.conftest import settings
from tests.importing.test_import_aitoolkit import job
from tests.importing.test_import_kohya import GUI
from tests.importing.test_import_onetrainer import SDXL

# -- OneTrainer -------------------------------------------------------------------------------------------------------


def concept(path, **changes):
    return {"name": "", "path": path, **changes}


def onetrainer(*concepts, **changes):
    return {**SDXL, "concepts": list(concepts), **changes}


def test_roles_repeats_and_weights(imported, accounted, of):
    values = onetrainer(
        concept("/a", balancing=0.0022, loss_weight=0.5),
        concept("/b", balancing=2.0, include_subdirectories=True),
        concept("/c", type="PRIOR_PREDICTION", balancing=0.5),
        concept("/d", type="VALIDATION", image={"enable_random_flip": True}),
        concept("/e", balancing=0),
        concept("/f", balancing=40, balancing_strategy="SAMPLES"),
    )
    result = imported(values)
    data = result.preset.data
    assert settings(result.preset) == {
        "/a": {"repeats": 0.0022, "loss_weight": 0.5},
        "/b": {"repeats": 2.0, "recursive": True},
        "/c": {"role": "regularisation", "repeats": 0.5},
        "/d": {"role": "validation"},
        "/f": {},
    }
    assert not data.recursive and data.prior_prediction and data.regularisation_ratio is None
    assert "over the number of its pictures" in of(result.found, "concepts[5].balancing").sentence
    assert of(result.found, "concepts[3].image.enable_random_flip").part == "dropped"
    assert of(result.found, "concepts[4].path").part == "dropped"
    accounted(result.found, values)


@pytest.mark.parametrize("resolution, override, wanted, own", [
    ("512,768", None, ((512, 768), (0.5, 0.5), 768), {}),
    ("512", "1024", ((), (), 512), {"resolution": 1024}),
    ("512,768", "1024", ((512, 768), (0.5, 0.5), 768), {"resolution": 1024}),
    ("512", "512,1024", ((512,), (1.0,), 512), {"resolutions": (512, 1024), "resolution_shares": (0.5, 0.5)}),
    ("640x960", None, ((), (), 784), {}),
])
def test_each_use_draws_a_resolution(imported, accounted, resolution, override, wanted, own):
    image = {"enable_resolution_override": True, "resolution_override": override} if override else {}
    values = onetrainer(concept("/a"), concept("/b", image=image), resolution=resolution)
    result = imported(values)
    data = result.preset.data
    assert (data.resolutions, data.resolution_shares, data.resolution) == wanted
    assert settings(result.preset) == {"/a": {}, "/b": own}
    accounted(result.found, values)


def test_masks_of_onetrainer(imported, accounted, of):
    masks = {"masked_training": True, "unmasked_weight": 0.25, "normalize_masked_area_loss": True,
             "masked_prior_preservation_weight": 0.5, "unmasked_probability": 0.3}  # fmt: skip
    result = imported({**SDXL, **masks})
    data = result.preset.data
    assert (data.masks, data.unmasked_weight, data.normalize_mask) == ("files", 0.25, True)
    assert data.unmasked_probability == 0
    assert of(result.found, "masked_prior_preservation_weight").part == "changed"
    assert "inpainting" in of(result.found, "unmasked_probability").sentence
    accounted(result.found, {**SDXL, **masks})
    off = imported({**SDXL, **masks, "masked_training": False})
    assert off.preset.data.masks == "none" and of(off.found, "unmasked_weight").part == "dropped"


def test_augmentation(imported, accounted, of):
    image = {"enable_crop_jitter": False, "enable_random_rotate": True, "random_rotate_max_angle": 60,
             "enable_random_brightness": True, "random_brightness_max_strength": 0.2, "enable_random_hue": True,
             "random_hue_max_strength": 0.5, "random_contrast_max_strength": 0.7, "enable_fixed_saturation": True,
             "random_saturation_max_strength": 0.4}  # fmt: skip
    values = onetrainer(concept("/a", image=image, image_variations=7))
    result = imported(values)
    data = result.preset.data
    assert (data.crop, data.rotation, data.brightness, data.contrast, data.saturation) == ("centre", 45, 0.2, 0, 0)
    assert (data.hue, data.variants) == (0.25, 7), "its hue is half of its strength"
    assert of(result.found, "concepts[0].image.random_rotate_max_angle").part == "changed"
    assert of(result.found, "concepts[0].image.enable_fixed_saturation").part == "changed"
    assert imported(onetrainer(concept("/a"), latent_caching=False)).preset.data.variants == 0
    accounted(result.found, values)


def test_captions_of_concepts(imported, accounted, tmp_path):
    prompts, tags = tmp_path / "prompts.txt", tmp_path / "tags.csv"
    prompts.write_text("a cat\n\na dog\n")
    tags.write_text("solo,1\n1girl,2\n")
    text = {"tag_dropout_enable": True, "tag_dropout_mode": "RANDOM", "tag_dropout_probability": 0.3,
            "tag_dropout_special_tags_mode": "WHITELIST", "tag_dropout_special_tags": str(tags)}  # fmt: skip
    values = onetrainer(
        concept("/a", text=text),
        concept("/b", text={"prompt_source": "concept", "prompt_path": str(prompts)}),
        concept("/c", text={"prompt_source": "filename"}),
    )
    result = imported(values)
    data = result.preset.data
    assert data.drop_never == ("solo", "1girl") and data.part_dropout == 0.3
    assert (data.captions, data.caption_lines, data.missing_captions) == ("txt", "random", "empty")
    found = settings(result.preset)
    assert found["/b"]["captions"] == "text" and found["/c"]["captions"] == "filename"
    assert (found["/b"].get("caption_text") or data.caption_text) == "a cat\na dog"
    accounted(result.found, values)


@pytest.mark.parametrize("unit, count, ours", [
    ("STEP", 200, (200, "steps")),
    ("EPOCH", 2, (2, "epochs")),
    ("MINUTE", 15, (15, "minutes")),
    ("HOUR", 2, (120, "minutes")),
    ("SECOND", 90, (2, "minutes")),
])
def test_intervals_of_onetrainer(imported, of, unit, count, ours):
    values = {f"{key}{end}": value for key in ("sample_after", "backup_after", "save_every", "validate_after")
              for end, value in (("", count), ("_unit", unit))}  # fmt: skip
    result = imported({**SDXL, "validation": True, **values, "rolling_backup": True, "rolling_backup_count": 4})
    preset = result.preset
    saving = preset.saving
    found = {(preset.samples.every, preset.samples.every_unit), (saving.state_every, saving.state_every_unit),
             (saving.export_every, saving.export_every_unit), (preset.validation.every, preset.validation.every_unit)}
    assert found == {ours} and saving.keep_states == 4
    assert of(result.found, "save_every").part == ("changed" if unit == "SECOND" else "mapped")


def test_a_skipped_layer(imported):
    values = {**SDXL, "model_type": "STABLE_DIFFUSION_15", "text_encoder_layer_skip": 1}
    assert imported(values).preset.base.clip_skip == 2


# -- kohya ------------------------------------------------------------------------------------------------------------

KOHYA = """
pretrained_model_name_or_path = "some_v1-5.safetensors"
network_module = "networks.lora"
network_dim = 8
network_alpha = 8
learning_rate = 1e-4
max_train_epochs = 12
{arguments}
[general]
caption_extension = ".txt"
{general}
"""


def kohya(sets, arguments="", general=""):
    return KOHYA.format(arguments=arguments, general=general) + sets


def subset(path, *lines):
    return "\n".join(["[[datasets.subsets]]", f'image_dir = "{path}"', *lines, ""])


def test_one_folder_at_several_resolutions(imported):
    sets = "".join(f"[[datasets]]\nresolution = {side}\n{subset('/a', 'num_repeats = 2')}" for side in (512, 768, 1024))
    data = imported(kohya(sets), "toml").preset.data
    first, *others = data.folders
    assert first.model_dump() == {"path": "/a", "repeats": 2.0} and data.resolution == 512 and not data.resolutions
    assert [one.model_dump() for one in others] == [
        {"path": "/a", "repeats": 2.0, "resolution": side} for side in (768, 1024)
    ]


def test_a_folder_that_comes_again(imported, of):
    sets = "[[datasets]]\n" + subset("/a", "num_repeats = 2") + subset("/b") + subset("/a", "num_repeats = 3")
    result = imported(kohya(sets), "toml")
    assert settings(result.preset) == {"/a": {"repeats": 5.0}, "/b": {}}
    assert "added" in of(result.found, "datasets[0].subsets[2].image_dir").sentence


def test_captions_of_subsets(imported, accounted, of):
    sets = "[[datasets]]\n" + subset(
        "/a", "shuffle_caption = true", 'keep_tokens_separator = "|||"', 'caption_prefix = "sks,"',
        'caption_suffix = ", best"', "enable_wildcard = true", "caption_tag_dropout_rate = 0.1",
    ) + subset("/b", 'caption_extension = ".txt2"', 'class_tokens = "a dog"') + subset(
        "/c", 'caption_extension = ".nothing"', "caption_dropout_every_n_epochs = 3")  # fmt: skip
    result = imported(kohya(sets, 'max_token_length = 225\nclip_skip = 2\nweighted_captions = true'), "toml")
    data, found = result.preset.data, settings(result.preset)
    assert (data.shuffle, data.keep_separator, data.prefix, data.suffix) == (True, "|||", "sks,", ", best")
    assert (data.wildcards, data.caption_lines, data.part_dropout, data.captions) == (True, "random", 0.1, "txt")
    assert (data.caption_tokens, result.preset.base.clip_skip, data.emphasis) == (225, 2, True)
    assert found["/b"]["captions"] == "text" and found["/c"]["captions"] == "none"
    assert (found["/b"].get("caption_text") or data.caption_text) == "a dog"
    assert found["/b"]["caption_lines"] == "first" and not found["/b"]["shuffle"]
    assert of(result.found, "datasets[0].subsets[1].caption_extension").part == "changed"
    assert of(result.found, "datasets[0].subsets[2].caption_dropout_every_n_epochs").part == "dropped"


def test_masks_and_augmentation_of_subsets(imported, of):
    sets = "[[datasets]]\n" + subset("/a", 'conditioning_data_dir = "/masks"', "random_crop = true", "flip_aug = true")
    sets += subset("/b", "alpha_mask = true", "color_aug = true")
    result = imported(kohya(sets, "masked_loss = true"), "toml")
    data, found = result.preset.data, settings(result.preset)
    assert (data.masks, data.unmasked_weight, data.normalize_mask) == ("/masks", 0.0, False)
    assert found["/b"]["masks"] == "alpha" and (data.crop, found["/b"]["crop"], data.flip) == ("random", "centre", True)
    assert data.variants == 0, "nothing is cached there"
    assert of(result.found, "datasets[0].subsets[1].color_aug").part == "changed"
    off = imported(kohya(sets), "toml")
    assert off.preset.data.masks == "none"
    assert of(off.found, "datasets[0].subsets[0].conditioning_data_dir").part == "dropped"


def test_regularisation_of_subsets(imported):
    sets = "[[datasets]]\nprior_loss_weight = 0.4\n" + subset("/a") + subset("/r", "is_reg = true", "num_repeats = 3")
    result = imported(kohya(sets), "toml")
    regular = {"role": "regularisation", "repeats": 3.0, "loss_weight": 0.4}
    assert settings(result.preset) == {"/a": {}, "/r": regular} and result.preset.data.regularisation_ratio == 1


def test_folders_of_a_command(imported, of):
    text = ("train_network.py --network_module=networks.lora --network_dim=4 --learning_rate=1e-4 --train_data_dir=/a "
            "--reg_data_dir=/r --prior_loss_weight=0.5 --caption_extension=.none-use-foldername")  # fmt: skip
    result = imported(text, "txt")
    assert settings(result.preset) == {"/a": {}, "/r": {"role": "regularisation", "loss_weight": 0.5}}
    assert not result.preset.data.recursive and result.preset.data.captions == "foldername"
    assert "foldername" not in of(result.found, "train_data_dir").sentence


@pytest.mark.parametrize("lines, saving", [
    ("save_every_n_epochs = 2\nsave_last_n_epochs = 3", (2, "epochs", 3)),
    ("save_every_n_steps = 100\nsave_last_n_steps = 250", (100, "steps", 3)),
    ("save_n_epoch_ratio = 4", (3, "epochs", None)),
    ("save_every_n_steps = 100\nsave_every_n_epochs = 1", (100, "steps", None)),
])
def test_when_kohya_saves(imported, lines, saving):
    lines += "\nsample_every_n_epochs = 2\nsample_every_n_steps = 70\nvalidate_every_n_epochs = 4"
    preset = imported(kohya("[[datasets]]\n" + subset("/a"), lines), "toml").preset
    found = preset.saving
    assert (found.export_every, found.export_every_unit, found.keep_exports) == saving
    assert (preset.samples.every, preset.samples.every_unit) == (2, "epochs")
    assert (preset.validation.every, preset.validation.every_unit) == (4, "epochs")


@pytest.mark.parametrize("ending, source", [
    (".txt", "txt"), (".caption", "caption"), (".txt-no", "foldername"), (".txt2", "foldername"),
    (".none-use-foldername", "foldername"),
])  # fmt: skip
def test_endings_of_the_window(imported, of, ending, source):
    result = imported({**GUI, "caption_extension": ending})
    assert result.preset.data.captions == source
    assert of(result.found, "caption_extension").part == ("changed" if source == "foldername" else "mapped")


def test_data_sets_that_the_window_names(imported, accounted, of, tmp_path):
    (tmp_path / "sets.toml").write_text("[[datasets]]\nresolution = 640\nbatch_size = 3\n" + subset("/z"))
    result = imported({**GUI, "dataset_config": "sets.toml"})
    data = result.preset.data
    assert settings(result.preset) == {"/z": {}} and (data.resolution, result.preset.training.batch_size) == (640, 3)
    assert of(result.found, "train_data_dir").part == "dropped"
    missing = imported({**GUI, "dataset_config": "nowhere.toml"})
    assert "not found" in of(missing.found, "dataset_config").sentence


# -- ai-toolkit -------------------------------------------------------------------------------------------------------


def test_data_sets_of_ai_toolkit(imported, accounted, of):
    datasets = [
        {"folder_path": "/a", "resolution": [512, 768, 1024], "mask_path": "/masks", "mask_min_value": 0.2,
         "caption_ext": "json", "random_crop": True},
        {"folder_path": "/r", "is_reg": True, "loss_multiplier": 0.5, "resolution": [512, 768, 1024],
         "default_caption": "a dog", "caption_ext": "odd"},
        {"folder_path": "/b", "alpha_mask": True, "invert_mask": True, "num_repeats": 3, "resolution": 768},
    ]  # fmt: skip
    values = job(datasets=datasets, train={"reg_weight": 0.5})
    result = imported(values)
    data, found = result.preset.data, settings(result.preset)
    assert data.resolutions == (512, 768, 1024) and not data.resolution_shares and data.recursive
    assert (data.masks, data.unmasked_weight, data.normalize_mask, data.crop) == ("/masks", 0.2, True, "random")
    assert (data.captions, data.variants) == ("json", 0)
    assert {key: found["/r"][key] for key in ("role", "loss_weight", "captions", "trigger", "masks")} == {
        "role": "regularisation", "loss_weight": 0.25, "captions": "text", "trigger": "", "masks": "none",
    }  # fmt: skip
    assert (found["/b"]["repeats"], found["/b"]["resolution"], found["/b"]["masks"]) == (3.0, 768, "alpha")
    assert of(result.found, "datasets[2].invert_mask").part == "changed"
    accounted(result.found, {**values["config"]["process"][0], "config.name": "", "job": "", "meta": values["meta"]})


# -- LoRA_Easy_Training_Scripts ---------------------------------------------------------------------------------------

EASY = """
[general_args.args]
pretrained_model_name_or_path = "/models/some.safetensors"
sdxl = true
mixed_precision = "bf16"
max_train_epochs = 5
seed = 7
max_token_length = 225
keep_tokens_separator = "|||"
[general_args.dataset_args]
resolution = 1024
batch_size = 2
[network_args.args]
network_dim = 16
network_alpha = 8.0
min_timestep = 0
[network_args.args.network_args]
conv_dim = 4
conv_alpha = 1.0
algo = "loha"
preset = ""
[optimizer_args.args]
optimizer_type = "AdamW8bit"
learning_rate = 0.0002
lr_scheduler = "cosine"
warmup_ratio = 0.1
masked_loss = true
[optimizer_args.args.optimizer_args]
weight_decay = "0.2"
betas = "0.9,0.98"
[saving_args.args]
output_name = "easy"
save_every_n_epochs = 1
save_last_n_epochs = 2
easy_name = "x"
[bucket_args.dataset_args]
enable_bucket = true
min_bucket_reso = 256
[[subsets]]
name = "subset 1"
image_dir = "/data/a"
num_repeats = 4
caption_extension = ".txt"
shuffle_caption = true
conditioning_data_dir = "/masks"
[[subsets]]
image_dir = "/data/r"
num_repeats = 1
caption_extension = ".txt"
is_reg = true
[train_mode]
train_mode = "{mode}"
"""


def test_easy_scripts(imported, of):
    result = imported(EASY.format(mode="lora"), "toml")
    preset, data = result.preset, result.preset.data
    assert (result.found.trainer, preset.family, preset.name) == ("LoRA_Easy_Training_Scripts", "sdxl", "easy")
    assert (preset.adapter.method, preset.adapter.rank, preset.adapter.alpha) == ("loha", 16, 8)
    assert {rule.rank for rule in preset.targets.rules} == {4} and preset.training.epochs == 5
    assert (preset.optimizer.weight_decay, preset.optimizer.beta2, preset.training.batch_size) == (0.2, 0.98, 2)
    own = settings(preset)
    assert own["/data/a"] == {"repeats": 4.0} and own["/data/r"]["role"] == "regularisation"
    assert (data.masks, data.caption_tokens, data.keep_separator, data.resolution) == ("/masks", 225, "|||", 1024)
    assert (preset.saving.export_every_unit, preset.saving.keep_exports) == ("epochs", 2)
    assert of(result.found, "optimizer_args.args.warmup_ratio").ours == {"training.warmup_share": 0.1}
    keys = {entry.key for part in (result.found.mapped, result.found.changed, result.found.dropped) for entry in part}
    assert {"subsets[0].image_dir", "general_args.dataset_args.batch_size", "network_args.args.network_dim"} <= keys
    assert of(result.found, "saving_args.args.easy_name").part == "dropped"
    assert not [entry for entry in result.found.dropped if entry.sentence.startswith("unknown")]


@pytest.mark.parametrize("change, words", [
    ({"mode": "textual_inversion"}, "train_mode is textual_inversion"),
    ({"algo": "glora"}, "GLoRA is not one of Gimbal's"),
])
def test_what_the_easy_scripts_train_beside(imported, change, words):
    text = EASY.format(mode=change.get("mode", "lora")).replace('"loha"', f'"{change.get("algo", "loha")}"')
    with pytest.raises(ValueError, match=words):
        imported(text, "toml")


def test_flux_of_the_easy_scripts(imported):
    text = EASY.format(mode="lora").replace("sdxl = true", "guidance_scale = 1.0").replace('algo = "loha"', "")
    preset = imported(text.replace('preset = ""', ""), "toml").preset
    assert preset.family == "flux" and preset.adapter.method == "lora"


def test_the_file_of_a_preset_has_the_entries(imported):
    result = imported(onetrainer(concept("/a", balancing=0.5), concept("/b")))
    assert json.loads(result.file.read_text())["data"]["folders"] == [{"path": "/a", "repeats": 0.5}, "/b"]
