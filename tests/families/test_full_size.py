"""Models of real size, without weights: known sizes, how hosts spell their layers, and what presets adapt in them."""

import pytest

from modules.training import setup
from tests import full_size

WEIGHTS = {
    "sd15": 859_520_964,
    "sd21": 865_910_724,
    "sdxl": 2_567_463_684,
    "sd35_medium": 2_243_171_520,
    "sd35_large": 8_056_627_520,
    "flux_dev": 11_901_408_320,
    "flux_schnell": 11_891_178_560,
}
"""Weights of the published denoisers: the configurations in tests/data are the published ones."""


@pytest.fixture(scope="module", params=full_size.MODELS)
def named(request, tmp_path_factory):
    return request.param, full_size.skeleton(request.param, tmp_path_factory.mktemp("full"))


def test_the_denoiser_has_its_published_size(named):
    name, model = named
    denoiser = next(iter(model.networks.values()))
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == WEIGHTS[name]


@pytest.mark.parametrize("host", full_size.HOSTS)
def test_hosts_spell_the_layers_as_listed(named, host):
    name, model = named
    assert full_size.key_list(model, host) == (full_size.KEYS / f"{name}_{host}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("host", full_size.HOSTS)
def test_no_two_layers_share_a_key(named, host):
    _, model = named
    keys = []
    for layer in setup.layer_names(model):
        try:
            keys.append(model.export_key(layer, host))
        except ValueError:
            continue  # says that the host has no name for it
    assert len(keys) == len(set(keys)) > 300


@pytest.mark.slow
def test_the_page_about_families_is_fresh():
    assert full_size.PAGE.read_text(encoding="utf-8") == full_size.page()
