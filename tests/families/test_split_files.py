"""Bases in ComfyUI's split files: the same model as the folder that they were made from, and what can be wrong."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules import families
from modules.preset.schema import Base, Targets
from modules.tools.merge.checkpoint import Checkpoint
from modules.training.setup import layer_names, match_layers
from tests.families import single_file, split_files
from tests.families.using import CPU


@pytest.fixture(scope="module")
def whole(family, folder):
    return family.load(Base(path=str(folder)), CPU, torch.float32)


@pytest.fixture(scope="module")
def split(pair, whole, tmp_path_factory):
    return split_files.write(pair[0], pair[1], whole.pipeline, tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def in_files(split) -> Base:
    """Encoders in another order than the pipeline has them."""
    texts = tuple(str(path) for path in reversed(split.texts.values()))
    return Base(path=str(split.denoiser), texts=texts, vae=str(split.vae), config=str(split.config))


def with_(base: Base, **changes) -> Base:
    return base.model_copy(update={name: str(value) if isinstance(value, Path) else value
                                   for name, value in changes.items()})


def assert_same(one, other, parts=None) -> None:
    for part in parts or (*other.networks, "vae"):
        ours, theirs = (model.pipeline.components[part].state_dict() for model in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), part


def one_sentence(family, base: Base, *words: str) -> None:
    (problem,) = family.problems(base)
    assert "\n" not in problem and all(word in problem for word in words), problem


@pytest.mark.full
@pytest.mark.every_family
def test_the_files_are_the_folders_model(family, whole, in_files):
    assert family.problems(in_files) == []
    model = family.load(in_files, CPU, torch.float32)
    assert_same(model, whole)
    assert model.base_hash() == whole.base_hash()
    assert [model.fingerprint(part) for part in ("images", "texts")] == [
        whole.fingerprint(part) for part in ("images", "texts")]
    every = Targets(layers="all", text_encoders=True)
    assert match_layers(family.skeleton(in_files), every)[0] == match_layers(whole, every)[0]
    assert not any(tensor.is_meta for network in (*model.networks.values(), model.pipeline.vae)
                   for tensor in (*network.parameters(), *network.buffers()))


def test_every_file_is_in_the_fingerprint_and_no_other_weights(family, split, in_files):
    found = family.files_of(in_files)
    weights = {part: path for part, path in found.items() if path.suffix == ".safetensors"}
    assert weights == {"checkpoint": split.denoiser, **split.texts, "vae": split.vae}
    assert family.files_of(with_(in_files, texts=in_files.texts[::-1])) == found


@pytest.mark.short("sd1", "flux", "sd3")
def test_a_denoiser_in_diffusers_naming(family, folder, whole, in_files):
    (path,) = (folder / family.DENOISER).glob("*.safetensors")
    base = with_(in_files, path=path, config=folder)  # which has what is only in the original denoiser's file
    assert family.problems(base) == []
    assert_same(family.load(base, CPU, torch.float32), whole)


@pytest.mark.full
@pytest.mark.short("sdxl", "flux")
def test_a_vae_in_either_naming_stands_for_that_of_folder_and_checkpoint(family, pair, whole, tmp_path):
    folder, checkpoint = pair
    vae = {name: tensor + 1 for name, tensor in whole.pipeline.vae.state_dict().items()}
    other = type(whole.pipeline.vae).from_config(whole.pipeline.vae.config)
    other.load_state_dict(vae)
    old = {name.replace("attentions.0.to_q.", "attentions.0.query."): tensor for name, tensor in vae.items()}
    path = tmp_path / "vae.safetensors"
    in_folder, in_checkpoint = Base(path=str(folder), vae=str(path)), Base(path=str(checkpoint), config=str(folder),
                                                                           vae=str(path))
    for base, tensors in ((in_folder, split_files.ldm(other)), (in_checkpoint, vae), (in_folder, old)):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        assert family.problems(base) == []
        model = family.load(base, CPU, torch.float32)
        assert all(torch.equal(tensor, vae[name]) for name, tensor in model.pipeline.vae.state_dict().items())
        assert_same(model, whole, whole.networks)
        found = family.files_of(base)
        assert found["vae"] == path and not any(f.startswith("vae/") and f.endswith("tensors") for f in found)


@pytest.mark.short("sd1", "sd3")
def test_text_encoders_stand_for_those_of_the_folder(family, folder, whole, split, tmp_path):
    changed = {name: tensor * 2 if tensor.is_floating_point() else tensor
               for name, tensor in load_file(split.texts["text_encoder"]).items()}
    save_file(changed, tmp_path / "x.safetensors")
    base = Base(path=str(folder), texts=(str(tmp_path / "x.safetensors"),))
    model = family.load(base, CPU, torch.float32)
    name, tensor = next(iter(whole.pipeline.text_encoder.state_dict().items()))
    assert torch.equal(model.pipeline.text_encoder.state_dict()[name], tensor * 2)
    assert_same(model, whole, [part for part in (*whole.networks, "vae") if part != "text_encoder"])


@pytest.mark.short("sdxl", "sd3")
def test_in_float16_the_number_formats_are_the_folders(family, folder, in_files):
    model, whole = (family.load(base, CPU, torch.float16, False) for base in (in_files, Base(path=str(folder))))
    for part in (*whole.networks, "vae"):
        ours, theirs = (one.pipeline.components[part].state_dict() for one in (model, whole))
        assert {name: t.dtype for name, t in ours.items()} == {name: t.dtype for name, t in theirs.items()}, part


@pytest.mark.short("sdxl", "sd3", "flux")
def test_the_hubs_small_files_are_enough(family, split, in_files, whole, tmp_path, monkeypatch):
    if set(family.OPTIONAL) - split.texts.keys():
        pytest.skip("the hub's model has all encoders")
    for place in ("huggingface_hub", "transformers.utils.hub"):
        monkeypatch.setattr(f"{place}.constants.HF_HUB_CACHE", str(tmp_path))
    here = tmp_path / f"models--{family.hub_id(str(split.denoiser)).replace('/', '--')}"
    (here / "refs").mkdir(parents=True)
    (here / "refs" / "main").write_text("0" * 40)
    shutil.copytree(split.config, here / "snapshots" / ("0" * 40))
    base = with_(in_files, config="")
    assert family.problems(base) == []
    assert_same(family.load(base, CPU, torch.float32), whole)


@pytest.mark.short("sdxl", "flux")
def test_merging_finds_the_layers_of_a_denoiser_alone(family, folder, whole, split, tmp_path):
    (other,) = (folder / family.DENOISER).glob("*.safetensors")
    long = tmp_path / "long.safetensors"
    save_file({f"diffusion_model.{name}": tensor for name, tensor in load_file(split.denoiser).items()}, long)
    skeleton, denoiser = family.skeleton(Base(path=str(folder))), whole.networks[family.DENOISER]
    for path in (split.denoiser, long, other):
        stored = Checkpoint(skeleton, path)
        for layer in layer_names(skeleton):
            network, _, inside = layer.partition(".")
            if network == family.DENOISER:
                assert torch.equal(stored.tensor((layer, "weight")), denoiser.get_submodule(inside).weight), layer


# -- what can be wrong ------------------------------------------------------------------------------------------------


@pytest.mark.short("sd1", "flux")
def test_a_missing_part_says_which_file_it_is_in(family, split, in_files):
    for part, path in split.texts.items():
        texts = tuple(text for text in in_files.texts if text != str(path))
        one_sentence(family, with_(in_files, texts=texts), "base.path", f"no weights of {part}", "--base.texts",
                     family.TEXT_FILES[part].title)
    one_sentence(family, with_(in_files, vae=""), "base.path", "no weights of vae", "--base.vae")


@pytest.mark.short("sdxl", "sd3")
def test_a_file_of_another_kind_is_named(family, split, in_files, tmp_path):
    adapter = {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 2),
               "unet.down_blocks.0.attentions.0.to_q.lora_B.weight": torch.ones(2, 2)}
    save_file(adapter, tmp_path / "lora.safetensors")
    first, lora = next(iter(split.texts.values())), tmp_path / "lora.safetensors"
    one_sentence(family, with_(in_files, path=lora), "base.path", "an adapter file such as a LoRA")
    one_sentence(family, with_(in_files, texts=(str(lora),)), "base.texts", "an adapter file such as a LoRA")
    one_sentence(family, with_(in_files, vae=lora), "base.vae", "an adapter file such as a LoRA")
    one_sentence(family, with_(in_files, texts=(*in_files.texts, str(split.vae))), "base.texts", "a VAE")
    one_sentence(family, with_(in_files, texts=(str(split.denoiser),)), "base.texts", "a denoiser")
    one_sentence(family, with_(in_files, vae=first), "base.vae", "a text encoder")
    one_sentence(family, with_(in_files, vae=split.denoiser), "base.vae", "a denoiser")
    one_sentence(family, with_(in_files, path=split.vae), "base.path", "a VAE")
    one_sentence(family, with_(in_files, path=first), "base.path", "a text encoder")


def test_a_file_is_of_one_family_alone(family, row, pair, split):
    """So that its family can be found, although the VAEs and text encoders of families are alike."""
    for path in (pair[1], split.denoiser):
        others = {name for name in families.names() if name != row.family}
        said = {name: families.load_class(name).problems(Base(path=str(path))) for name in others}
        assert all(problems[0].startswith("base.path") for problems in said.values()), said


@pytest.mark.short("sd1", "flux")
def test_the_same_encoder_twice(family, split, in_files, tmp_path):
    again = tmp_path / "again.safetensors"
    shutil.copy(split.texts["text_encoder"], again)
    one_sentence(family, with_(in_files, texts=(*in_files.texts, str(again))), "base.texts", str(again),
                 "the same text encoder")


@pytest.mark.short("sdxl", "sd3")
def test_another_width_is_a_sentence_with_the_tensor(family, split, in_files, tmp_path):
    def wider(path: Path, name: str) -> str:
        tensors = load_file(path)
        tensors[name] = torch.cat([tensors[name]] * 2, -1)
        save_file(tensors, tmp_path / path.name)
        return str(tmp_path / path.name)

    marks = {"encoder.block.0.layer.0.SelfAttention.k.weight", "text_model.encoder.layers.0.mlp.fc1.weight",
             "model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"}
    for path in split.texts.values():
        (name,) = marks & load_file(path).keys()
        texts = tuple(wider(path, name) if text == str(path) else text for text in in_files.texts)
        one_sentence(family, with_(in_files, texts=texts), "base.texts", str(tmp_path / path.name), name, ", not (")
    (name,) = {"encoder.conv_in.weight", "encoder.conv1.weight"} & load_file(split.vae).keys()
    one_sentence(family, with_(in_files, vae=wider(split.vae, name)), "base.vae", name, ", not (")
    name = max(load_file(split.denoiser).items(), key=lambda item: item[1].numel())[0]
    one_sentence(family, with_(in_files, path=wider(split.denoiser, name)), "base.path", name, ", not (")


@pytest.mark.short("flux")
def test_a_missing_or_damaged_file(family, split, in_files, tmp_path):
    one_sentence(family, with_(in_files, vae=tmp_path / "no.safetensors"), "base.vae", "does not exist")
    one_sentence(family, with_(in_files, texts=(str(tmp_path),)), "base.texts", "is a folder")
    one_sentence(family, with_(in_files, vae=tmp_path / "vae.pt"), "base.vae", "pickle")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(split.vae.read_bytes()[:1000])
    one_sentence(family, with_(in_files, vae=cut), "base.vae", "damaged")
    save_file({}, tmp_path / "empty.safetensors")
    one_sentence(family, with_(in_files, texts=(str(tmp_path / "empty.safetensors"),)), "base.texts", "no tensors")
    one_sentence(family, with_(in_files, path=tmp_path / "empty.safetensors"), "base.path")


@pytest.mark.short("sdxl", "sd3")
def test_open_clips_names_are_read(family, whole, split, in_files, tmp_path):
    """As OpenCLIP's own files have them: the second text encoder of SDXL."""
    if "text_encoder_2" not in split.texts or family.TEXT_FILES["text_encoder_2"].other is None:
        pytest.skip("no second CLIP")
    path, usual = tmp_path / "g.safetensors", load_file(split.texts["text_encoder_2"])
    older = {name: tensor for name, tensor in usual.items() if not name.startswith("text_projection")}
    older["text_projection"] = usual["text_projection.weight"].T  # of ComfyUI's own node
    texts = tuple(str(path) if text == str(split.texts["text_encoder_2"]) else text for text in in_files.texts)
    for tensors in (older, dict(single_file.open_clip(whole.pipeline.text_encoder_2))):
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
        assert family.problems(with_(in_files, texts=texts)) == []
        assert_same(family.load(with_(in_files, texts=texts), CPU, torch.float32), whole)
