"""Files of layers that a learned weight takes the base out of: right in every program."""

import pytest
import torch

from modules import hosts
from modules.export.export import export
from modules.files import distance
from modules.files.facts import Facts
from tests.export.setup import Model, preset, trained

LAYERS = ["unet.wide", "unet.conv"]


def write(folder, options, beta, layers, **more):
    model = Model()
    layers = trained(model, "wora", options, layers)
    with torch.no_grad():
        place = slice(0, None, 2) if options.get("channel_beta") else ...
        layers[LAYERS[0]].adapter.beta[place] = beta
    return export(model, layers, preset("wora", options, **more), Facts(), folder / "test.safetensors")


def reads(host, axis):
    """Whether the program reads magnitudes along the axis."""
    return axis == ("output" if host in ("diffusers", "lycoris") else "input") or host.startswith("comfyui")


@pytest.mark.parametrize("host", hosts.names())
@pytest.mark.parametrize("channel", [False, True], ids=["layer", "channel"])
@pytest.mark.parametrize("axis", ["input", "output"])
@pytest.mark.parametrize("beta", [0.0, 1e-45, -1e-30, 1e-8, 1e-3, 1 / 30])
def test_every_program(tmp_path, host, axis, channel, beta):
    options, vanished = {"rank": 2, "axis": axis, "channel_beta": channel}, beta < 1e-2
    if not reads(host, axis) and not vanished:
        pytest.skip("refused, or in full, as ever")
    layers = LAYERS if reads(host, axis) else LAYERS[:1]
    for dtype in ("float32", "float16"):
        report = write(tmp_path, options, beta, layers, host=host, dtype=dtype)
        assert max(error.weight for error in report.errors.values()) <= distance.TOLERANCE[dtype]
        assert ("full" in report.forms[LAYERS[0]]) == vanished, report.forms
        assert all("full" not in report.forms[name] for name in layers[1:]), "the others are as small as ever"
