"""Files that people have: read with the right meaning, or refused in one sentence that says what to do."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modules.families import load_class
from modules.files import opening, reading
from modules.preset.schema import Base
from modules.tools import convert, inspect_file, resize
from modules.tools.merge import command
from tests.files.corpus import READ, UNREADABLE
from tests.files.making import TINY, Sample


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The tiny models on disk, by family."""
    return {family: tiny.make_folder(tmp_path_factory.mktemp(family)) for family, tiny in TINY.items()}


@pytest.fixture(scope="module")
def models(bases):
    cpu = torch.device("cpu")
    return {family: load_class(family).load(Base(path=str(path)), cpu, torch.float32) for family, path in bases.items()}


def same(found: torch.Tensor, wanted: Any) -> bool:
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= 2e-5 * wanted.abs().max())


def assert_meant(sample: Sample, changes: dict, model) -> None:
    """Exactly the layers of the sample change, and become what its own program makes of them."""
    assert changes.keys() == sample.weights.keys() | sample.biases.keys()
    modules: dict[str, Any] = {f"{name}.{path}": module for name, network in model.networks.items()
                               for path, module in network.named_modules()}
    for name, change in changes.items():
        wanted = sample.weights.get(name, modules[name].weight)
        assert same(change.adapted(), wanted), name
        bias = 0.0 if change.terms.bias is None else change.terms.bias
        if modules[name].__dict__["_parameters"].get("bias") is not None:
            base = modules[name].bias.detach()
            assert same(base + bias, sample.biases.get(name, base)), name


@pytest.mark.parametrize("name", READ)
def test_read_with_the_right_meaning(models, tmp_path, name):
    sample = READ[name]()
    file = opening.read(sample.save(tmp_path))
    if sample.refused:
        with pytest.raises(ValueError) as said:
            reading.changes(file, models[sample.family])
        assert sample.refused in str(said.value) and len(str(said.value).splitlines()) == 1
    if not sample.weights:
        return
    changes = reading.changes(file, models[sample.family], skip=bool(sample.refused))
    assert_meant(sample, changes, models[sample.family])
    assert any(not same(w, dict(models[sample.family].networks[layer.partition(".")[0]].named_modules())[
        layer.partition(".")[2]].weight) for layer, w in sample.weights.items()), "the sample changes something"


@pytest.mark.parametrize("name", UNREADABLE)
def test_others_are_one_sentence(models, tmp_path, name):
    sample = UNREADABLE[name]()
    file = opening.read(sample.save(tmp_path))
    with pytest.raises(ValueError) as said:
        reading.changes(file, models[sample.family or "sd15"])
    assert sample.refused in str(said.value) and len(str(said.value).splitlines()) == 1
    assert "damaged" not in str(said.value)


# -- the tools --------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.short(*[*READ, *UNREADABLE][::2])
@pytest.mark.parametrize("name", [*READ, *UNREADABLE])
def test_inspected_without_a_false_word(tmp_path, name):
    """Never damaged, never an error that is no sentence; what is not known is what a reading leaves out."""
    sample = (READ | UNREADABLE)[name]()
    file = opening.read(sample.save(tmp_path))
    try:
        found = inspect_file.inspect(file)
    except ValueError as error:
        assert name in UNREADABLE or name == "peft two adapters"
        assert sample.refused in str(error) and "damaged" not in str(error) and len(str(error).splitlines()) == 1
        return
    assert not found.damaged or "VeRA" in found.damaged[0]
    assert not found.unknown or sample.refused
    assert "): not checked" not in found.text(), "what a program computes from a kind of tensors"


MERGED = ("LyCORIS norms", "LyCORIS IA3", "LyCORIS LoKr Tucker", "peft lora_bias", "peft modules_to_save", "peft IA3",
          "peft embedding", "peft VeRA", "peft WoRA", "OneTrainer embeddings", "FLUX BFL control", "FLUX XLabs generic")


@pytest.mark.short("LyCORIS norms", "peft WoRA", "FLUX BFL control", "peft embedding")
@pytest.mark.parametrize("name", MERGED)
def test_merged_into_a_base_on_disk(bases, tmp_path, name):
    sample = READ[name]()
    path, base = sample.save(tmp_path), bases[sample.family]
    if sample.refused:
        with pytest.raises(ValueError, match="--skip-unknown"):
            command.merge(str(base), [command.Adapter(path)], tmp_path / "out", command.Choice())
    choice = command.Choice(skip_unknown=bool(sample.refused))
    command.merge(str(base), [command.Adapter(path)], tmp_path / "out", choice)
    model = load_class(sample.family).load(Base(path=str(tmp_path / "out")), torch.device("cpu"), torch.float32)
    modules = {f"{name}.{path}": module for name, network in model.networks.items()
               for path, module in network.named_modules()}
    for layer, weight in sample.weights.items():
        assert same(modules[layer].weight, weight), layer
    for layer, bias in sample.biases.items():
        assert same(modules[layer].bias, bias), layer


CONVERTED = {
    "LyCORIS norms": ("comfyui", "kohya", "comfyui_node"), "LyCORIS IA3": ("comfyui",),
    "LyCORIS LoKr Tucker": ("comfyui", "kohya"), "ComfyUI saved": ("comfyui",), "peft WoRA": ("diffusers", "comfyui"),
    "peft VeRA": ("comfyui",), "peft AdaLoRA": ("diffusers",), "peft lora_bias": ("comfyui",),
    "FLUX BFL": ("comfyui",), "FLUX XLabs single blocks": ("diffusers",), "FLUX BFL control": ("comfyui",),
}


@pytest.mark.short(
    "LyCORIS norms-comfyui", "LyCORIS LoKr Tucker-kohya", "peft WoRA-diffusers", "peft VeRA-comfyui", "FLUX BFL-comfyui"
)
@pytest.mark.parametrize("name, host", [(name, host) for name, hosts in CONVERTED.items() for host in hosts])
def test_converted_for_programs_that_can_hold_it(bases, models, tmp_path, name, host):
    """The new file means what the old one meant, so read again it gives the same weights."""
    sample = READ[name]()
    source = convert.Source(sample.save(tmp_path), str(bases[sample.family]), skip_unknown=bool(sample.refused))
    text = convert.convert(source, convert.options_of({"host": host, "dtype": "fp32"}), tmp_path / "out.safetensors")
    changes = reading.changes(opening.read(tmp_path / "out.safetensors"), models[sample.family])
    assert_meant(sample, changes, models[sample.family])
    has_norms = name in ("LyCORIS norms", "ComfyUI saved", "FLUX BFL", "FLUX BFL control")
    assert ("sd-scripts ignores them" in text) == has_norms


def test_resized_with_a_bias_in_the_pair(models, tmp_path):
    """At full rank everything stays, also where the scale was in peft's options."""
    sample = READ["peft lora_bias"]()
    found = resize.resized(opening.read(sample.save(tmp_path)), resize.to_rank(3))
    save_file(found.tensors, tmp_path / "out.safetensors", found.metadata or None)
    changes = reading.changes(opening.read(tmp_path / "out.safetensors"), models["sd15"])
    assert_meant(sample, changes, models["sd15"])


def test_norms_are_refused_where_no_program_reads_them(bases, tmp_path):
    """diffusers reads none; with the option the rest is written, and said."""
    path, base = READ["LyCORIS norms"]().save(tmp_path), str(bases["sd15"])
    options = convert.options_of({"host": "diffusers", "dtype": "fp32"})
    with pytest.raises(ValueError, match="cannot hold changes of norms; .*--skip-unknown"):
        convert.convert(convert.Source(path, base), options, tmp_path / "out.safetensors")
    text = convert.convert(convert.Source(path, base, skip_unknown=True), options, tmp_path / "out.safetensors")
    assert "diffusers does not read norm layers" in text
