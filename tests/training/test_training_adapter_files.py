"""Which files a training adapter may be, and when --check asks for one."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from modules.preset.files import resolve
from modules.training import check, setup, training_adapter
from tests import tiny_flux
from tests.training.distilled import Given, every_layer, plain_model
from tests.training.runs import Place, draw_pictures

pytestmark = pytest.mark.usefixtures("forget_accelerate")


def look(place: Place, path: Path, **sections) -> check.Findings:
    """What --check says with this file."""
    options = [("base.training_adapter", str(path))] if path.name else []
    return check.examine(resolve(place.command("run", **sections)[1], options).preset, "cpu")


def test_a_fitting_file_is_no_problem(place, given: Given):
    found = look(place, given.file)
    assert not found.problems and not [note for note in found.notes if "training_adapter" in note]


QUERY = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
NORM = KEY.replace("attn1_to_q", "norm1")


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


def pair(key: str, out: int, fan_in: int) -> dict[str, torch.Tensor]:
    return {f"{key}.lora_up.weight": ones(out, 2), f"{key}.lora_down.weight": ones(2, fan_in)}


WRONG = {
    "text encoders": (
        pair("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 16, 16),
        "text encoders, but a training adapter changes the denoiser alone",
    ),
    "a magnitude": ({f"{KEY}.dora_scale": ones(16, 1)}, "magnitude (DoRA), but a training adapter is a plain LoRA"),
    "a bias": ({f"{KEY}.diff_b": ones(16)}, "LoRA and bias, but a training adapter is a plain LoRA"),
    "a norm": ({f"{NORM}.w_norm": ones(16), f"{NORM}.b_norm": ones(16)}, "norm"),
    "a difference": ({f"{KEY.replace('to_q', 'to_k')}.diff": ones(16, 16)}, "full difference, but a training adapter"),
    "another layer": (pair("lora_unet_input_blocks_99_1_proj_in", 16, 16), "the model has no layers with these names"),
    "something else": ({"emb_params": ones(2, 16)}, "emb_params"),
    "another size": (pair(KEY.replace("to_q", "to_k"), 99, 16), "99 x 16"),
    "non-finite values": (pair(KEY.replace("to_q", "to_k"), 16, 16), "non-finite values"),
}
"""What is in a file beside a fitting pair, and what is said."""


@pytest.mark.short("text encoders", "a magnitude", "another size")
@pytest.mark.parametrize("what", WRONG)
def test_what_it_cannot_have_is_one_sentence(place, what, tmp_path, capsys):
    """Before anything is touched, and in a training too."""
    more, words = WRONG[what]
    tensors, path = {**pair(KEY, 16, 16), **more}, tmp_path / "wrong.safetensors"
    if what == "non-finite values":
        next(iter(more.values()))[0] = torch.nan
    save_file(tensors, path)
    (problem,) = look(place, path).problems
    assert problem.startswith(f"base.training_adapter: {path}: ") and words in problem and "\n" not in problem
    assert place.train("run", "--base.training_adapter", str(path)) == 2
    assert words in (said := capsys.readouterr().err) and "Traceback" not in said
    assert not (place.runs / "run").exists()
    preset = resolve(place.command("run")[1], [("base.training_adapter", str(path))]).preset
    with pytest.raises(ValueError, match="base.training_adapter: .*wrong.safetensors: "):
        training_adapter.read(preset, plain_model(place))


def test_a_file_that_changes_nothing_is_refused(place, tmp_path):
    for name, shape in (("alpha", ()), ("lora_up.weight", (16, 2))):
        save_file({**pair(KEY, 16, 16), f"{KEY}.{name}": torch.zeros(shape)}, path := tmp_path / f"{name}.safetensors")
        (problem,) = look(place, path).problems
        assert problem.startswith(f"base.training_adapter: {path}: all its changes are zero"), problem


def kinds_of_files(folder: Path) -> dict[str, Path]:
    """Files that are no adapters of this base, by what is said about them."""
    flux = {f"transformer.single_transformer_blocks.{n}.attn.to_q.lora_{side}.weight": ones(4, 4) for n in (0, 37)
            for side in "AB"}
    save_file(flux, folder / "flux.safetensors")
    older = "lora_unet_up_blocks_3_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({**pair(KEY, 16, 16), **pair(older, 16, 16)}, folder / "older.safetensors")
    save_file({f"{KEY}.lokr_w1": ones(4, 4), f"{KEY}.lokr_w2": ones(4, 4)}, folder / "lokr.safetensors")
    (folder / "text.safetensors").write_text("no tensors")
    (folder / "pickle.pt").write_bytes(b"PK\3\4 anything")
    (folder / "empty.safetensors").write_bytes(b"")
    return {
        "a FLUX.1 model, but the base is an SDXL model": folder / "flux.safetensors",
        "a Stable Diffusion 1 or 2 model, but the base is an SDXL model": folder / "older.safetensors",
        "LoKr, but a training adapter is a plain LoRA": folder / "lokr.safetensors",
        "safetensors": folder / "text.safetensors",
        "save it as .safetensors": folder / "pickle.pt",
        "is empty": folder / "empty.safetensors",
        "no such file": folder / "missing.safetensors",
        "is a folder": folder,
    }


def test_files_that_are_something_else(place, tmp_path):
    for words, path in kinds_of_files(tmp_path).items():
        (problem,) = look(place, path).problems
        assert problem.startswith("base.training_adapter: ") and str(path) in problem, problem
        assert words in problem and "\n" not in problem, (words, problem)


def test_a_file_of_peft_is_read_as_one_of_kohya(place, given: Given, tmp_path):
    """The same changes in diffusers' naming are the same training adapter."""
    model = plain_model(place)
    names = [name for name in every_layer(model) if ".attn" in name]
    inside = [name.removeprefix("unet.") for name in names]
    config = LoraConfig(r=3, lora_alpha=6, target_modules=inside, init_lora_weights=False)
    wrapped = get_peft_model(model.networks["unet"], config)
    wrapped.save_pretrained(tmp_path)
    wanted = {f"unet.{name}": weight for name, weight in wrapped.merge_and_unload().named_parameters()}
    plain, path = plain_model(place), tmp_path / "adapter_model.safetensors"
    preset = resolve(place.command("run")[1], [("base.training_adapter", str(path))]).preset
    found = training_adapter.read(preset, plain)
    assert found.keys() == set(names)
    for name, (layer, terms) in found.items():
        assert terms.up is not None and terms.down is not None
        changed = layer.dense() + terms.up @ terms.down
        torch.testing.assert_close(changed, wanted[f"{name}.weight"], rtol=1e-4, atol=1e-5)


def test_values_are_kept_in_the_number_format_of_the_base(place, given: Given):
    preset = resolve(place.command("run")[1], [given.option, ("base.dtype", "bfloat16")]).preset
    model = plain_model(place, ("base.dtype", "bfloat16"))
    active = training_adapter.add(training_adapter.read(preset, model), model)
    assert {spot.beside.up.dtype for spot in active.spots} == {torch.bfloat16}
    assert not {name for name in model.networks["unet"].state_dict() if name.endswith((".up", ".down"))}


# -- distilled bases --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schnell(tmp_path_factory) -> Place:
    """A FLUX.1-schnell of two blocks of each kind, and pictures."""
    place = Place(tmp_path_factory.mktemp("schnell"), tmp_path_factory.mktemp("runs"))
    tiny_flux.make_folder(place.stage, dev=False)
    draw_pictures(place.stage / "pictures", 2, 0)
    draw_pictures(place.stage / "validation", 1, 1)
    return place


FLUX = {
    "family": "flux", "targets": {"layers": "attention"}, "adapter": {"method": "lora", "rank": 2},
    "data": {"resolution": 32}, "objective": {"min_snr_gamma": None},
}


QKV = "lora_unet_double_blocks_0_img_attn_qkv"
LAST = "lora_unet_final_layer_adaLN_modulation_1"


def random_pairs(**shapes: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Pairs of rank 2 by kohya's name."""
    torch.manual_seed(0)
    ones = [item for key, shape in shapes.items() for item in pair(key, *shape).items()]
    return {name: torch.randn_like(tensor) for name, tensor in ones}


def test_a_distilled_base_is_warned_about(schnell: Place, tmp_path):
    (note,) = [note for note in look(schnell, Path(), **FLUX).notes if "distilled" in note]
    assert note == training_adapter.UNTRAINED and "base.training_adapter" in note
    save_file(random_pairs(**{QKV: (96, 32)}), tmp_path / "beside.safetensors")
    found = look(schnell, tmp_path / "beside.safetensors", **FLUX)
    assert not found.problems and not [note for note in found.notes if "distilled" in note]


def test_other_bases_are_not(place, tmp_path):
    dev = Place(tmp_path, tmp_path)
    tiny_flux.make_folder(tmp_path)
    draw_pictures(tmp_path / "pictures", 2, 0)
    draw_pictures(tmp_path / "validation", 1, 1)
    notes = [*look(dev, Path(), **FLUX).notes, *look(place, Path()).notes]
    assert not [note for note in notes if "distilled" in note]


def test_fused_and_exchanged_layers(schnell: Place, tmp_path):
    """The change of a fused matrix reaches each of its layers, and the halves of the last layer the right ones."""
    path, tensors = tmp_path / "beside.safetensors", random_pairs(**{QKV: (96, 32), LAST: (64, 32)})
    save_file(tensors, path)
    preset = resolve(schnell.command("run", **FLUX)[1], [("base.training_adapter", str(path))]).preset
    model = setup.load(preset, torch.device("cpu"))
    found = {name: terms for name, (_, terms) in training_adapter.read(preset, model).items()}
    up, last = (tensors[f"{key}.lora_up.weight"] for key in (QKV, LAST))
    parts = zip("qkv", up.chunk(3), strict=True)
    wanted = {f"transformer.transformer_blocks.0.attn.to_{one}": rows for one, rows in parts}
    wanted["transformer.norm_out.linear"] = torch.cat(last.chunk(2)[::-1])
    assert found.keys() == wanted.keys()
    for name, rows in wanted.items():
        torch.testing.assert_close(found[name].up, rows / 1.0)
    network = setup.whole(model)
    x = torch.randn(3, 32)
    before = {name: network.get_submodule(name)(x) for name in wanted}
    training_adapter.add(training_adapter.read(preset, model), model)
    for name, rows in wanted.items():
        down = tensors[f"{LAST if 'norm_out' in name else QKV}.lora_down.weight"]
        torch.testing.assert_close(network.get_submodule(name)(x), before[name] + x @ down.T @ rows.T)
