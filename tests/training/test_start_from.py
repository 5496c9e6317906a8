"""adapter.start_from: a run begins with a finished file's weights, or says before the start why it cannot."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modules.adapters.base import detach
from modules.files import run_file
from modules.preset.files import resolve
from modules.training.setup import layer_names, load_and_attach, match_layers
from tests.training.runs import OPTIONS, ask

pytestmark = pytest.mark.usefixtures("forget_accelerate")

LORA = {"method": "lora", "rank": 2}
METHODS = [
    LORA,
    {"method": "dora", "rank": 2, "axis": "input"},
    {"method": "dora", "rank": 2, "axis": "output"},
    {"method": "oft", "rotation": {"kind": "blocks", "block_size": 4}},
]
EXPORT = {"dtype": "float32", "dataset_names": False}
KEEP = {"state_every": 1}


def trained(place, name):
    """The adapted weights of a finished run, by full layer name."""
    folder = place.runs / name
    _, layers = load_and_attach(resolve(str(folder / "preset.json")).preset, torch.device("cpu"))
    run_file.load(folder / "adapter.safetensors", layers)
    return {layer: adapted.adapted_weight() for layer, adapted in layers.items()}


def exported(place, name):
    (file,) = [path for path in (place.runs / name).glob("*.safetensors") if path.name != "adapter.safetensors"]
    return file


def first(place, adapter=LORA, **more):
    """A finished run's exported file."""
    assert place.train("first", adapter=adapter, export=EXPORT | more) == 0
    return exported(place, "first")


@pytest.mark.short("dora-2-input")
@pytest.mark.parametrize("adapter", METHODS, ids=lambda adapter: "-".join(map(str, list(adapter.values())[:3])))
def test_a_run_begins_with_the_weights_of_a_finished_one(place, adapter):
    node = {"host": "comfyui_node", "node_spelling": "oftv2"} if adapter["method"] == "oft" else {}
    file = first(place, adapter, **node)
    wanted = trained(place, "first")
    with place.session("second", adapter={**adapter, "start_from": str(file)}) as session:
        assert session.adapted.keys() == wanted.keys()
        for name, adapted in session.adapted.items():
            assert torch.allclose(adapted.adapted_weight(), wanted[name], rtol=0, atol=1e-5), name


@pytest.mark.full
def test_a_file_of_peft(place, stage):
    with place.session("plain", adapter=LORA) as session:
        names = list(session.adapted)
    preset = resolve(str(place.runs / "plain.json")).preset
    model, _ = load_and_attach(preset, torch.device("cpu"))
    unet = model.networks["unet"]
    detach(unet)
    assert set(names) == set(match_layers(model, preset.targets)[0]) <= set(layer_names(model))
    inside = [name.removeprefix("unet.") for name in names]
    wrapped = get_peft_model(unet, LoraConfig(r=2, lora_alpha=6, target_modules=inside, init_lora_weights=False))
    wrapped.save_pretrained(place.runs / "peft")
    wanted = {f"unet.{name}": weight for name, weight in wrapped.merge_and_unload().named_parameters()}
    path = str(place.runs / "peft" / "adapter_model.safetensors")
    with place.session("second", adapter={**LORA, "start_from": path}) as session:
        for name, adapted in session.adapted.items():
            assert torch.allclose(adapted.adapted_weight(), wanted[f"{name}.weight"], rtol=0, atol=1e-5), name


@pytest.mark.full
@pytest.mark.parametrize("adapter, words", [
    ({"method": "lora", "rank": 1}, "the file has rank 2, but the run has rank 1; set adapter.rank 2"),
    ({"method": "oft"}, "the file has a low-rank pair, which oft cannot represent"),
])
def test_what_does_not_fit_is_said_before_anything_is_done(place, capfd, adapter, words):
    file = first(place)
    capfd.readouterr()
    for flags in (["--check"], []):
        assert place.train("second", *flags, adapter={**adapter, "start_from": str(file)}) == 2
        said = capfd.readouterr().err
        assert said.count(f"adapter.start_from: {file}: ") == 1 and words in said
    assert not (place.runs / "second").exists()


def test_what_is_no_layer_is_refused_unless_it_is_left_out(place, capfd, tmp_path):
    """Embeddings and norms beside the layers: a sentence with the option, and with it the rest counts."""
    file = first(place)
    wanted, path = trained(place, "first"), tmp_path / "bundled.safetensors"
    norm = "lora_unet_input_blocks_1_0_in_layers_0.w_norm"
    extras = {"bundle_emb.cat.clip_l": torch.ones(1, 16), norm: torch.ones(8)}
    save_file(load_file(file) | extras, path)
    capfd.readouterr()
    assert place.train("second", "--check", adapter={**LORA, "start_from": str(path)}) == 2
    said = capfd.readouterr().err
    assert "bundle_emb.cat.clip_l: an embedding that OneTrainer put into the file; adapter.skip_unknown true" in said
    assert "no method trains norms; adapter.skip_unknown true reads the rest" in said and "Traceback" not in said
    with place.session("second", adapter={**LORA, "start_from": str(path), "skip_unknown": True}) as session:
        for name, adapted in session.adapted.items():
            assert torch.allclose(adapted.adapted_weight(), wanted[name], rtol=0, atol=1e-5), name


def test_sizes_of_another_model_are_said_before_too(place, capfd, tmp_path):
    tensors = load_file(first(place))
    key = next(key for key in tensors if "down" in key or "lora_A" in key)
    save_file({**tensors, key: torch.ones(2, 5)}, tmp_path / "odd.safetensors")
    assert place.train("second", "--check", adapter={**LORA, "start_from": str(tmp_path / "odd.safetensors")}) == 2
    assert "the file is for another model" in capfd.readouterr().err


def test_layers_that_are_not_trained_and_files_that_are_not_there(place, capfd):
    file = first(place)
    narrow = {**OPTIONS["targets"], "exclude": [*OPTIONS["targets"]["exclude"], "*.to_q"]}
    assert place.train("second", "--check", adapter={**LORA, "start_from": str(file)}, targets=narrow) == 2
    assert "adapter.start_from: the file also changes layers that are not trained" in capfd.readouterr().err
    assert place.train("second", adapter={**LORA, "start_from": "nowhere.safetensors"}) == 2
    said = capfd.readouterr().err
    assert "adapter.start_from: nowhere.safetensors: no such file" in said and "Traceback" not in said


@pytest.mark.full
def test_a_run_that_goes_on_needs_the_file_no_more(place, monkeypatch):
    file = first(place)
    adapter = {**LORA, "start_from": str(file)}
    with monkeypatch.context() as patch:
        ask(patch, place, "second", "stop", at=2)
        assert place.train("second", adapter=adapter, saving=KEEP) == 130
    file.unlink()
    assert place.train("second", adapter=adapter, saving=KEEP) == 0
    assert place.train("second", adapter=adapter, saving=KEEP) == 0  # finished already


@pytest.mark.full
def test_where_the_file_lies_stays_private(place):
    file = first(place)
    assert place.train("second", adapter={**LORA, "start_from": str(file)}, export=EXPORT) == 0
    with safe_open(exported(place, "second"), "pt") as stored:
        assert str(file) not in json.dumps(stored.metadata())
