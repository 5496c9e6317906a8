"""Models of real size, without weights: known sizes, how hosts spell their layers, and what presets adapt in them."""

import pytest

from modules import families
from modules.families.parts import published
from modules.training import setup
from tests import full_size
from tests.families.test_every_family import own_place

ALIKE = {"chroma": {"flux"}, "flux": {"chroma"}, "flux2": {"chroma", "flux"}, "sd3": {"qwenimage"},
         "qwenimage21": {"qwenimage", "sd3"}}
"""Families whose attention may have the same names, by family."""


@pytest.fixture(scope="module", params=full_size.MODELS)
def named(request, tmp_path_factory):
    return request.param, full_size.skeleton(request.param, tmp_path_factory.mktemp("full"))


@pytest.mark.full
def test_the_denoiser_has_its_published_size(named):
    name, model = named
    denoiser = next(iter(model.networks.values()))
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == full_size.MODELS[name].weights


@pytest.mark.parametrize("host", full_size.HOSTS)
def test_hosts_spell_the_layers_as_listed(named, host):
    name, model = named
    assert full_size.key_list(model, host) == (full_size.KEYS / f"{name}_{host}.txt").read_text(encoding="utf-8")


@pytest.mark.full
@pytest.mark.parametrize("family", families.names())
def test_the_published_layers_are_listed(family):
    listed = (published.FOLDER / f"{family}.txt").read_text(encoding="utf-8")
    assert full_size.layer_table(family) == listed
    assert published.table(list(published.layers(family))) == listed


@pytest.mark.parametrize("host", full_size.HOSTS)
def test_no_two_layers_share_a_key_and_its_rows(named, host):
    _, model = named
    keys = []
    for layer in setup.layer_names(model):
        try:
            keys.append(own_place(model, layer, host))
        except ValueError:
            continue  # says that the host has no name for it
    assert len(keys) == len(set(keys)) > 100


@pytest.mark.parametrize("host", full_size.HOSTS)
def test_files_are_recognised_as_one_familys(named, host):
    """By the denoiser's layers, all or attention alone; text encoders alone tell less."""
    name, model = named
    family = full_size.MODELS[name].family
    whole, attention, texts = [], [], []
    for layer in setup.layer_names(model):
        try:
            key = model.export_key(layer, host) + ".lora_down.weight"
        except ValueError:
            continue
        (whole if layer.startswith(f"{model.DENOISER}.") else texts).append(key)
        attention += [key] if layer.startswith(f"{model.DENOISER}.") and ".att" in layer else []
    for keys in (whole, attention, whole + texts):
        found = {kind for kind in families.names() if families.load_class(kind).recognises(keys)}
        assert {family} <= found <= {family, *(ALIKE.get(family, ()) if keys is attention else ())}
    assert not texts or families.load_class(family).recognises(texts)


@pytest.mark.full
def test_the_page_about_families_is_fresh():
    """Every sixth row: `python -m tests.full_size` makes them all."""
    lines, fresh = (text.splitlines() for text in (full_size.PAGE.read_text(encoding="utf-8"), full_size.page(every=6)))
    assert [line for line in lines if line in fresh or not line.startswith("| `")] == fresh
    shown = [line for line in lines if line.startswith("| `")]
    assert len(shown) == sum(len(full_size.presets(one.family)) for one in full_size.MODELS.values() if one.presets)
