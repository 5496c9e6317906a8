"""What training sees of an imported data set: the pictures, captions, repeats, roles and masks that the other trainer's
own code takes of the same folders, restated here by hand from what its sources say."""

import numpy as np
import pytest
from PIL import Image

from modules.data.captions import caption_for, captions_of
from modules.data.index import build_index
from tests.importing.test_import_aitoolkit import job
from tests.importing.test_import_onetrainer import SDXL


@pytest.fixture
def put(tmp_path):
    """A function: make a picture, with a caption and perhaps a mask beside it; the folder's path."""
    drawing = np.random.default_rng(0)

    def do(folder, name, caption=None, mask=None, ending=".txt"):
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawing.integers(0, 255, (64, 64, 3), np.uint8)).save(place / f"{name}.png")
        if caption is not None:
            (place / name).with_suffix(ending).write_text(caption)
        if mask is not None:
            mask = tmp_path / mask
            mask.parent.mkdir(parents=True, exist_ok=True)
            half = np.zeros((64, 64), np.uint8)
            half[:, :32] = 255
            Image.fromarray(half).save(mask)
        return str(place)

    return do


def seen(preset, which="training"):
    """Of each entry of the index: its folder and name, captions, repeats, role, weight, resolution, whether masked."""
    index = build_index(preset.data.model_copy(update={"cache": False}), which, 8)
    return sorted(
        (f"{p.path.parent.name}/{p.path.stem}", tuple(captions_of(p.options, p.caption)), float(p.repeats), p.role,
         p.loss_weight, p.options.resolution, p.mask is not None)
        for p in index.pictures
    )  # fmt: skip


def test_concepts(imported, put, tmp_path, of):
    """OneTrainer: a file's lines are drawn from, and a missing file is an empty caption (LoadMultipleTexts,
    SelectRandomText); masks are optional (GenerateImageLike); each use draws a resolution."""
    main = [put("main", "a", "one\ntwo", mask="main/a-masklabel.png"), put("main", "b")][0]
    put("main/10_below", "not", "not read there")
    prior, valid = put("prior", "p", "a thing"), put("valid", "v", "seen")
    named, one = put("named", "blue cup"), put("one", "o", "not read")
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    wide = {"enable_resolution_override": True, "resolution_override": "64,96"}
    concepts = [
        {"path": main, "loss_weight": 0.5},
        {"path": prior, "type": "PRIOR_PREDICTION", "balancing": 2.0},
        {"path": valid, "type": "VALIDATION"},
        {"path": named, "balancing": 0.5, "image": wide, "text": {"prompt_source": "filename"}},
        {"path": one, "text": {"prompt_source": "concept", "prompt_path": str(tmp_path / "prompts.txt")}},
    ]
    result = imported({**SDXL, "concepts": concepts, "resolution": "64", "masked_training": True})
    assert [entry for entry in seen(result.preset) if not entry[0].startswith("10_below")] == [
        ("main/a", ("one", "two"), 1, "train", 0.5, 64, True),
        ("main/b", ("",), 1, "train", 0.5, 64, False),
        ("named/blue cup", ("blue cup",), 0.25, "train", 1, 64, False),
        ("named/blue cup", ("blue cup",), 0.25, "train", 1, 96, False),
        ("one/o", ("a cat", "a dog"), 1, "train", 1, 64, False),
        ("prior/p", ("a thing",), 2, "regularisation", 1, 64, False),
    ]
    assert [entry[:2] for entry in seen(result.preset, "validation")] == [("valid/v", ("seen",))]
    below = of(result.found, "concepts[0].path")
    assert below.part == "changed" and "10_below" in below.sentence, "what is read here and not there is said"


def subsets(image, words, reg, masked, conditions):
    """A document of sd-scripts: one folder at two resolutions, class tokens, a regularisation folder, masks."""
    return f"""
        pretrained_model_name_or_path = "base"
        network_module = "networks.lora"
        network_dim = 4
        max_train_steps = 3
        masked_loss = true
        prior_loss_weight = 0.5
        [general]
        caption_extension = ".txt"
        keep_tokens_separator = "|||"
        shuffle_caption = true
        [[datasets]]
        resolution = 64
        [[datasets.subsets]]
        image_dir = "{image}"
        num_repeats = 2
        enable_wildcard = true
        [[datasets.subsets]]
        image_dir = "{words}"
        class_tokens = "a cup"
        caption_prefix = "photo of"
        [[datasets.subsets]]
        image_dir = "{reg}"
        is_reg = true
        [[datasets]]
        resolution = [96, 96]
        [[datasets.subsets]]
        image_dir = "{image}"
        [[datasets]]
        resolution = 64
        [[datasets.subsets]]
        image_dir = "{masked}"
        conditioning_data_dir = "{conditions}"
        caption_extension = ".caption"
    """


def test_subsets(imported, put, tmp_path, of):
    """sd-scripts: class_tokens belong to their subset alone (load_dreambooth_dir), wildcards and a line are drawn
    (process_caption), and as many regularisation as other pictures are used."""
    image = [put("image", "a", "sks, {red|blue} |||cup\nsecond"), put("image", "b")][0]
    words, masked = put("words", "w"), put("masked", "m", "by hand", mask="conditions/m.png", ending=".caption")
    reg = [put("reg", name, "cup") for name in "wxyz"][0]
    conditions = tmp_path / "conditions"
    result = imported(subsets(image, words, reg, masked, conditions), "toml", family="sdxl")
    first = "sks, {red|blue} |||cup"
    training = 2 * 2 + 1 + 2 + 1
    assert seen(result.preset) == [
        ("image/a", (first,), 1, "train", 1, 96, False),
        ("image/a", (first, "second"), 2, "train", 1, 64, False),
        ("image/b", ("",), 1, "train", 1, 96, False),
        ("image/b", ("",), 2, "train", 1, 64, False),
        ("masked/m", ("by hand",), 1, "train", 1, 64, True),
        *(("reg/" + name, ("cup",), training / 4, "regularisation", 0.5, 64, False) for name in "wxyz"),
        ("words/w", ("a cup",), 1, "train", 1, 64, False),
    ]
    index = build_index(result.preset.data, "training", 8)
    words = next(p for p in index.pictures if p.path.stem == "w" and p.role == "train")
    assert caption_for(words.options, words.caption, 0, 0) == "photo of a cup"
    drawn = {caption_for(p.options, p.caption, 0, place) for p in index.pictures[:1] for place in range(50)}
    assert drawn == {"sks, red, cup", "sks, blue, cup", "second"}
    assert "no folder has masks" not in of(result.found, "masked_loss").sentence


def test_data_sets(imported, put, tmp_path):
    """ai-toolkit: a list of resolutions is a data set each; default_caption, trigger_word and prior_reg belong to their
    data set alone."""
    main = [put("main", "a", "on"), put("main", "b")][0]
    other, plain, prior = put("other", "o"), put("plain", "r", "cup"), put("prior", "q", "cup")
    masked = put("masked", "m", "half", mask="masks/m.png")
    sets = [
        {"folder_path": main, "resolution": [64, 96], "num_repeats": 2},
        {"folder_path": other, "default_caption": "a default", "trigger_word": "sks", "resolution": 64},
        {"folder_path": plain, "is_reg": True, "resolution": 64},
        {"folder_path": prior, "prior_reg": True, "resolution": 64},
        {"folder_path": masked, "mask_path": str(tmp_path / "masks"), "loss_multiplier": 0.5, "resolution": 64},
    ]
    result = imported(job(datasets=sets, trigger_word=None), "yaml")
    found = seen(result.preset)
    assert [entry for entry in found if entry[3] == "train"] == [
        ("main/a", ("on",), 2, "train", 1, 64, False), ("main/a", ("on",), 2, "train", 1, 96, False),
        ("main/b", ("",), 2, "train", 1, 64, False), ("main/b", ("",), 2, "train", 1, 96, False),
        ("masked/m", ("half",), 1, "train", 0.5, 64, True), ("other/o", ("a default",), 1, "train", 1, 64, False),
    ]  # fmt: skip
    index = build_index(result.preset.data, "training", 8)
    assert {p.path.stem: p.is_prior for p in index.pictures if p.role == "regularisation"} == {"r": False, "q": True}
    assert {p.path.stem: p.options.trigger for p in index.pictures if p.options.trigger} == {"o": "sks"}


def test_prior_regularisation_alone(imported, put, of):
    """ai-toolkit takes every second batch only of is_reg data sets."""
    main, prior = put("main", "a", "on"), put("prior", "q", "cup")
    more = put("plain", "r", "cup")
    sets = [{"folder_path": main, "num_repeats": 6, "resolution": 64},
            {"folder_path": prior, "prior_reg": True, "num_repeats": 2, "resolution": 64}]  # fmt: skip
    result = imported(job(datasets=sets), "yaml")
    assert [entry[2:4] for entry in seen(result.preset)] == [(6, "train"), (2, "regularisation")]
    mixed = imported(job(datasets=[*sets, {"folder_path": more, "is_reg": True, "resolution": 64}]), "yaml")
    assert sum(entry[2] for entry in seen(mixed.preset) if entry[3] == "regularisation") == 6
    assert "repeats say" in of(mixed.found, "datasets[1].prior_reg").sentence


def test_easy_subsets(imported, put):
    """LoRA_Easy_Training_Scripts: its sections become sd-scripts' general section (validate_dataset_args)."""
    image, reg = put("image", "a", "sks, table\nmore"), put("reg", "r", "cup", ending=".caption")
    text = f"""
        [[subsets]]
        image_dir = "{image}"
        num_repeats = 3
        caption_extension = ".txt"
        [[subsets]]
        image_dir = "{reg}"
        is_reg = true
        caption_extension = ".caption"
        class_tokens = "cup"
        [train_mode]
        train_mode = "lora"
        [general_args.args]
        pretrained_model_name_or_path = "base"
        sdxl = true
        prior_loss_weight = 0.25
        max_train_steps = 3
        [general_args.dataset_args]
        resolution = 64
        max_token_length = 225
        [network_args.args]
        network_dim = 4
    """
    result = imported(text, "toml")
    assert seen(result.preset) == [
        ("image/a", ("sks, table",), 3, "train", 1, 64, False),
        ("reg/r", ("cup",), 3, "regularisation", 0.25, 64, False),
    ]
    assert result.preset.data.caption_tokens == 225


def test_loose_pictures_of_a_command(imported, put, of):
    """`--train_data_dir` reads only the folders called N_name in it."""
    put("data/10_sks cup", "a", "a cup")
    folder = put("data", "loose", "not read there")
    command = "sdxl_train_network.py --pretrained_model_name_or_path b --network_module networks.lora"
    more = f"--max_train_steps 3 --resolution 64 --caption_extension .txt --train_data_dir '{folder}'"
    result = imported(f"{command} {more}", "txt")
    said = of(result.found, "train_data_dir")
    assert said.part == "changed" and "loose.png" in said.sentence
