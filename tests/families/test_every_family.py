"""What every family promises, on its tiny random pipeline. A family is a row of `rows.FAMILIES`."""

import fnmatch
import shutil
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import nn

from modules.data.cache import LatentCache, TextCache
from modules.data.index import build_index
from modules.families import names
from modules.families.base import together
from modules.families.parts import files
from modules.families.parts.names import TEXT_MODEL
from modules.preset.schema import Base, Data, Targets
from modules.training.setup import in_denoiser, match_layers, whole
from tests.families.rows import FAMILIES, SIZE
from tests.families.using import CPU, SIZES, adapters_on, loaded, predicted
from tests.training.runs import draw_pictures

HOSTS = ("comfyui", "kohya", "diffusers")


@pytest.fixture(scope="module")
def model(family, folder):
    assert family.problems(Base(path=str(folder))) == []
    return loaded(family, folder)


@pytest.fixture
def own(family, folder):
    """A model that the test may change."""
    return loaded(family, folder)


# -- networks ---------------------------------------------------------------------------------------------------------


def test_is_found_by_its_file_and_has_a_row():
    assert {row.family for row in FAMILIES.values()} == set(names())


@pytest.mark.short("sd1", "zimage")
def test_everything_is_frozen(model):
    assert not any(p.requires_grad for p in whole(model).parameters())
    assert not any(m.training for network in model.networks.values() for m in network.modules())


@pytest.mark.full
def test_skeleton_has_the_same_layers_without_weights(family, folder, model):
    skeleton = family.skeleton(Base(path=str(folder)))
    assert all(p.is_meta for p in whole(skeleton).parameters())
    for targets in (Targets(layers="all"), Targets(layers="attention", text_encoders=True)):
        assert match_layers(skeleton, targets)[0] == match_layers(model, targets)[0]
    for fact in ("bucket_step", "latent_factor", "latent_channels", "caption_tokens"):
        assert attrgetter(fact)(skeleton) == attrgetter(fact)(model)
    assert type(skeleton.process) is type(model.process)
    assert skeleton.process.prediction == model.process.prediction


@pytest.mark.short("sd1", "zimage")
def test_fingerprints_follow_the_weights(own, model):
    parts = ("images", "texts")
    assert [own.fingerprint(part) for part in parts] == [model.fingerprint(part) for part in parts]
    assert own.base_hash() == model.base_hash()
    changed = {"images": own.pipeline.vae, "texts": list(own.networks.values())[-1]}
    for part, network in changed.items():
        with torch.no_grad():
            next(network.parameters()).add_(1)
        assert own.fingerprint(part) != model.fingerprint(part)


@pytest.mark.short("sd1", "zimage")
def test_adapters_do_not_change_the_hash(own, model):
    adapters_on(own, Targets(layers="attention"))
    assert own.base_hash() == model.base_hash()


@pytest.mark.short("sd1", "zimage")
def test_encoders_leave_and_come_back(own):
    captions = ["red apple"]
    before = own.encode_texts(captions)
    own.release_encoders(texts=True)
    after = own.encode_texts(captions)
    assert all(torch.equal(before[name], after[name]) for name in before)


# -- encoding and prediction ------------------------------------------------------------------------------------------


@pytest.mark.every_family
def test_latents_are_shifted_and_scaled(row, model):
    pixels = torch.rand(2, 3, *SIZE) * 2 - 1
    moments = model.encode_images(pixels)
    side = [length // model.latent_factor for length in SIZE]
    assert moments.shape == (2, 2 * model.latent_channels, *side) and moments.dtype == torch.float32
    found = model.pipeline.vae.encode(pixels.unsqueeze(2) if row.film else pixels).latent_dist
    mean, std = (each.squeeze(2) if row.film else each for each in (found.mean, found.std))
    expected = [row.scaled(model.pipeline, *part) for part in ((mean, False), (std, True))]
    expected = torch.cat(expected, 1)
    torch.testing.assert_close(moments, expected)


@pytest.mark.every_family
def test_prediction_is_the_pipelines_own_call(row, model):
    """Every step of sampling, with the inputs that the pipeline gave its denoiser; bit for bit."""
    calls = []
    hook = next(iter(model.networks.values())).register_forward_hook(
        lambda _, args, named, output: calls.append(row.call(model, args, named, output[0])), with_kwargs=True
    )
    model.sample(["red apple"], "a face", SIZE[1], SIZE[0], steps=3, guidance=row.guidance, seed=0)
    hook.remove()
    assert len(calls) >= 3
    each = [model.encode_texts([caption]) for caption in ("a face", "red apple")]  # by itself, as the pipeline does
    if row.one_length:
        each = [{name: value[n : n + 1] for name, value in together(each).items()} for n in (0, 1)]
    both = each[::-1] if row.prompt_first else each
    turns = each[::-1] if model.negative_prompt("a face") else each[1:]  # one call for each prompt, the positive first
    with torch.no_grad():
        for number, (noisy, times, output) in enumerate(calls):
            texts = together(both if len(noisy) == 2 else [turns[number % len(turns)]])
            assert torch.equal(model.predict(noisy, times, texts, SIZES.expand(len(noisy), -1)), output)


def test_texts_are_cached(model, tmp_path):
    captions = ["red apple", "", "a face, style"]
    expected = [model.encode_texts([caption]) for caption in captions]
    data = Data(cache_folder=str(tmp_path))
    for _ in range(2):
        found = TextCache(data, model).get(captions)
        for name, tensor in found.items():
            assert len(tensor) == 3 and all(
                torch.equal(own[:, : one[name].shape[1]], one[name]) and not own[:, one[name].shape[1] :].any()
                for own, one in zip(tensor.split(1), expected, strict=True)
            )


@pytest.mark.full
def test_what_is_cached_of_an_item_depends_on_it_alone(model, tmp_path):
    """Bit for bit: alone, among others, after others, without a cache."""
    draw_pictures(tmp_path / "pictures", 6, 0)
    data = Data(folders=(str(tmp_path / "pictures"),), resolution=32, flip=True)
    (first, *others), caption = build_index(data, "training", model.bucket_step).pictures, "red apple"
    ways = {"alone": ([first], [caption]), "among": ([*others, first], ["a", caption, "", "x " * 90])}
    ways["after"] = (others, ["a face", "style"])
    found = []
    for way, (pictures, captions) in ways.items():
        own = data.model_copy(update={"cache_folder": str(tmp_path / way), "cache": way != "after"})
        latents, texts = LatentCache(own, model), TextCache(own, model)
        latents.fill(pictures)
        texts.fill(captions)
        got = texts.get([caption, "blue", caption])
        each = [latents.get(first, flip) for flip in (False, True)]
        found.append([*each, *(tensor[place : place + 1] for tensor in got.values() for place in (0, 2))])
    for one in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], one, strict=True))
    written = [{path.name: path.read_bytes() for path in (tmp_path / way).rglob("*.safetensors")}
               for way in ("alone", "among")]
    assert len(written[0]) == 2 + 2 and written[0].items() <= written[1].items()


@pytest.mark.short("sd1", "zimage")
def test_fingerprints_say_how_items_are_encoded(own, monkeypatch):
    """The same weights with other settings, tokenizers or versions give other features; use alone changes nothing."""
    def fingerprints():
        return [own.fingerprint(part) for part in ("images", "texts")]

    before = fingerprints()
    own.encode_texts(["red apple, a face"])
    assert fingerprints() == before
    own.pipeline.vae.register_to_config(scaling_factor=0.5)
    images, texts = fingerprints()
    assert images != before[0] and texts == before[1]
    own.tokenizer.add_tokens(["redapple"])
    assert fingerprints()[1] != texts
    now = fingerprints()
    monkeypatch.setattr(files, "version", lambda name: "0")
    assert not set(fingerprints()) & set(now)


def test_what_captions_are_too_long_by(model):
    assert model.cut_off("red") == ""
    for caption in ("x " * 1200, "a red apple, " * 3 + "été 猫 " * 400):
        beyond = model.cut_off(caption)
        assert beyond and caption.endswith(beyond)
        tokens = model.tokenizer(caption, add_special_tokens=False).input_ids
        kept = model.tokenizer(caption.removesuffix(beyond), add_special_tokens=False).input_ids
        assert 0 <= model.caption_tokens - len(kept) < 3  # a letter may be cut in two
        assert kept[:-1] == tokens[: len(kept) - 1]


# -- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.short("sd1", "zimage")
def test_samples_follow_from_the_seed(model):
    options: dict[str, Any] = {"negative": "", "width": SIZE[1], "height": SIZE[0], "steps": 2, "guidance": 3.0}
    first, again = (model.sample(["red"], **options, seed=1)[0] for _ in range(2))
    _, other = model.sample(["red", "red"], **options, seed=0)
    different = model.sample(["red"], **options, seed=2)[0]
    assert first.size == SIZE[::-1]
    assert first.tobytes() == again.tobytes() == other.tobytes() != different.tobytes()


@pytest.mark.full
def test_samples_are_made_of_the_conditions_that_are_given(model):
    """A training has encoded its prompts before the denoiser came to the device."""
    options: dict[str, Any] = {"width": SIZE[1], "height": SIZE[0], "steps": 2, "guidance": 3.0, "seed": 1}
    asked = []

    def encode(captions):
        asked.extend(captions)
        return model.encode_texts(captions)

    (expected,) = model.sample(["red"], "a face", **options)
    (found,) = model.sample(["red"], "a face", **options, encode=encode)
    assert found.tobytes() == expected.tobytes()
    assert sorted(asked) == (["a face", "red"] if model.negative_prompt("a face") else ["red"])
    much = {name: 20 * tensor if tensor.is_floating_point() else tensor
            for name, tensor in model.encode_texts(["red"]).items()}
    (other,) = model.sample(["red"], "a face", **options, encode=lambda _: much)
    assert other.tobytes() != expected.tobytes()


# -- layers -----------------------------------------------------------------------------------------------------------


def test_named_targets_grow(row, model):
    before: set[str] = set()
    for layers, newcomer in row.newcomers.items():
        found = set(match_layers(model, Targets(layers=layers))[0])
        assert before < found and newcomer in found and newcomer not in before
        assert all(in_denoiser(model, name) for name in found)
        before = found
    everything = {n for n, m in whole(model).named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    left = {name for name in everything - before if in_denoiser(model, name)}
    assert left == {name for pattern in row.never for name in fnmatch.filter(everything, pattern)}


def test_every_pattern_of_a_set_is_some_layers_of_the_denoiser_or_a_text_encoder(row, model):
    layers = list(dict(whole(model).named_modules()))
    for patterns in model.named_targets().values():
        for pattern in patterns:
            assert fnmatch.filter(layers, pattern) or "text_encoder" in pattern, pattern


def test_text_encoders_join_when_asked(row, model):
    found, problems = match_layers(model, Targets(layers="attention", text_encoders=True))
    counts = {part: len([n for n in found if n.startswith(f"{part}.")]) for part in list(model.networks)[1:]}
    assert (counts, problems) == (row.joining, [])


def test_patterns_add_and_remove(row, model):
    chosen, added = list(row.newcomers.values())[0], list(row.newcomers.values())[-1]
    found, problems = match_layers(model, Targets(layers="attention", include=(added,), exclude=(chosen,)))
    assert added in found and chosen not in found and problems == []


@pytest.mark.full
def test_every_adapter_learns_and_checkpointing_changes_nothing(family, folder):
    """Dropout stays off where transformers wants training mode."""
    gradients = []
    for checkpointing in (False, True):
        model = loaded(family, folder)
        layers = adapters_on(model, Targets(layers="all", text_encoders=True))
        for layer in layers:
            for parameter in layer.adapter.parameters():
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        if checkpointing:
            model.enable_checkpointing()
        predicted(model, ["red apple", "a face"]).square().sum().backward()
        for layer in layers:
            unread = layer.layer.name.startswith("text_encoder")  # a projection, or a layer after the one that is read
            assert unread or all(p.grad is not None for p in layer.adapter.parameters()), layer.layer.name
        gradients.append([p.grad for layer in layers for p in layer.adapter.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


# -- exporting --------------------------------------------------------------------------------------------------------


@pytest.mark.every_family
@pytest.mark.parametrize("host", HOSTS)
def test_every_layer_has_its_own_key(row, model, host):
    layers, _ = match_layers(model, Targets(layers="all", text_encoders=True))
    cannot = {n for pattern in row.unreachable for n in fnmatch.filter(layers, pattern)} if host == "diffusers" else ()
    for layer in cannot:
        with pytest.raises(ValueError, match="diffusers"):
            model.export_key(layer, host)
    layers = [layer for layer in layers if layer not in cannot]
    assert len({own_place(model, layer, host) for layer in layers}) == len(layers)


def own_place(model, layer: str, host: str) -> tuple[str, int]:
    """The layer's name in the host's files, and its first row there: layers that are fused share the name."""
    key = model.export_key(layer, host)
    return key, next(spelling.row for spelling in model.spellings(layer) if spelling.name == key)


@pytest.mark.parametrize("host", HOSTS)
def test_the_first_level_of_text_encoders_names_makes_no_difference(row, model, host):
    """transformers 5 has dropped it from one of CLIP's classes, and every host wants it there (export.md 0.2); the
    class of Qwen that generates has it, and the one without an output has not."""
    names = model.names_of("text_encoder")
    layer = next(name for name in match_layers(model, Targets(layers="attention", text_encoders=True))[0]
                 if name.startswith("text_encoder."))
    if any(fnmatch.fnmatch(layer, pattern) for pattern in row.unreachable) and host == "diffusers":
        return
    path = layer.removeprefix("text_encoder.").removeprefix(names.level)
    key = model.export_key(f"text_encoder.{names.level}{path}", host)
    assert key == model.export_key(f"text_encoder.{path}", host)
    assert ("text_model" in key) == (names.level == TEXT_MODEL)


def test_metadata_names_the_architecture(model):
    facts = model.metadata()
    assert facts["modelspec.architecture"].endswith("/lora") and facts["ss_base_model_version"]
    assert all(isinstance(value, str) for value in facts.values())


# -- single checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_single_checkpoint_is_the_same_model(family, pair, model):
    base = Base(path=str(pair[1]), config=str(pair[0]))
    assert family.problems(base) == []
    single = family.load(base, CPU, torch.float32)
    assert single.networks.keys() == model.networks.keys()
    for part in (*model.networks, "vae"):
        ours, theirs = (m.pipeline.components[part].state_dict() for m in (single, model))
        assert ours.keys() == theirs.keys()
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    torch.testing.assert_close(predicted(single, ["red"]), predicted(model, ["red"]))  # not bit for bit: alignment
    assert not any(p.requires_grad for p in whole(single).parameters())
    skeleton, targets = family.skeleton(base), Targets(layers="all", text_encoders=True)
    assert match_layers(skeleton, targets)[0] == match_layers(model, targets)[0]


def test_a_damaged_checkpoint(family, pair, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(pair[1].read_bytes()[:1000])
    base = Base(path=str(tmp_path / "x.safetensors"), config=str(pair[0]))
    (problem,) = family.problems(base)
    assert problem.startswith("base.path") and "damaged" in problem
    with pytest.raises(ValueError, match=r"base\.path: .*could not be loaded"):
        family.load(base, CPU, torch.float32)


def test_an_incomplete_configuration_names_the_files(family, pair, tmp_path):
    shutil.copytree(pair[0], tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    base = Base(path=str(pair[1]), config=str(tmp_path / "config"))
    assert family.problems(base) == []
    for name in (*family.CONFIGS, family.INDEX):
        kept = (tmp_path / "config" / name).read_bytes()
        (tmp_path / "config" / name).unlink()
        (problem,) = family.problems(base)
        assert problem.startswith("base.config") and name in problem and "\n" not in problem
        (tmp_path / "config" / name).write_bytes(kept)


# -- what can be wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, words",
    [
        ("", ["no model given", "--base", "HUB_ID"]),
        ("nowhere/at/all", ["nowhere/at/all does not exist", "--base"]),
        ("missing.safetensors", ["missing.safetensors does not exist"]),
        ("nobody/nothing", ["nobody/nothing", "--base"]),
    ],
)
def test_missing_models_are_explained(family, path, words):
    (problem,) = family.problems(Base(path=path))
    words = [family.HUB_ID if word == "HUB_ID" else word for word in words]
    assert problem.startswith("base.path") and all(word in problem for word in words), problem


def test_wrong_folders_and_files_are_explained(family, tmp_path):
    (problem,) = family.problems(Base(path=str(tmp_path)))
    assert family.INDEX in problem
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (problem,) = family.problems(Base(path=str(tmp_path / "model.ckpt")))
    assert "not a .safetensors" in problem


def test_broken_weights_name_the_base(family, folder, tmp_path):
    broken = tmp_path / "base"
    shutil.copytree(folder, broken)
    weights = next((broken / family.DENOISER).glob("*.safetensors"))
    weights.write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match=r"base\.path: .*base could not be loaded"):
        loaded(family, broken)
