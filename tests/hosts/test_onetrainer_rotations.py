"""OneTrainer's own rotations, with and without magnitudes: read, continued and trained on as its own code does it."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modules.adapters.base import Adapted, attach, detach
from modules.export.export import export
from modules.files import forms, kinds, writer
from modules.files.change import Change
from modules.files.facts import Facts
from modules.files.start_from import start
from tests.adapters.cases import close
from tests.export.setup import preset, randomise
from tests.hosts import bases, programs

pytestmark = pytest.mark.skipif(not programs.folders("onetrainer"), reason="GIMBAL_HOSTS has no OneTrainer")

STEPS, RATE = 20, 1e-2
EXACT, SAME_WAY = 1e-10, 1e-6  # the run's factor on its parameters is kept in float32


@dataclass(frozen=True)
class Case:
    """A layer, and how OneTrainer is set."""

    shape: tuple[int, ...]
    size: int
    """Of the blocks, as set."""
    real: int
    """As OneTrainer makes it for this layer."""
    scaled: bool = True
    share: bool = False
    doft: bool = False


CASES = {
    "linear": Case((12, 16), 4, 4),
    "unscaled": Case((12, 16), 4, 4, scaled=False),
    "larger divisor": Case((12, 40), 32, 40),
    "shared": Case((12, 18), 5, 6, share=True, scaled=False),
    "tie": Case((6, 8, 3, 3), 5, 4),
    "conv": Case((6, 8, 3, 3), 12, 12, scaled=False),
    "point": Case((6, 8, 1, 1), 4, 4),
    "shared conv": Case((6, 8, 3, 3), 8, 8, share=True),
    "doft": Case((12, 16), 4, 4, doft=True),
    "doft unscaled": Case((12, 16), 8, 8, scaled=False, doft=True),
    "doft conv": Case((6, 8, 3, 3), 9, 9, doft=True),
}


def drawn(name: str, case: Case) -> dict[str, Tensor]:
    """The layer, the tensors of its file and what to learn, by suffix, float64."""
    random = torch.Generator().manual_seed(len(name))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    blocks = 1 if case.share else math.prod(case.shape[1:]) // case.real
    unit = 0.4 / math.sqrt(case.real) * (2 * math.sqrt(case.real - 1) if case.scaled else 1)
    found = {"weight": normal(*case.shape), "bias": normal(case.shape[0]), "goal": normal(*case.shape),
             "oft_R.weight": unit * normal(blocks, case.real * (case.real - 1) // 2)}
    if case.scaled:
        found["oft_R.scaled_oft"] = torch.tensor(True)
    if case.doft:
        found["dora_log_multiplier"] = 0.2 * normal(case.shape[0])
    return found


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> dict[str, dict[str, Tensor]]:
    """What OneTrainer's code makes of each case, by suffix."""
    place, folder = tmp_path_factory.mktemp("onetrainer"), programs.folders("onetrainer")[0]
    given = {f"{name}.{key}": value for name, case in CASES.items() for key, value in drawn(name, case).items()}
    save_file(given, place / "file.safetensors")
    settings = {name: {"block_size": case.size, "share": case.share, "scaled": case.scaled, "doft": case.doft,
                       "steps": STEPS, "lr": RATE} for name, case in CASES.items()}
    request = {"file": str(place / "file.safetensors"), "cases": settings, "out": str(place / "out.safetensors")}
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder.parent / "packages")}
    command = [sys.executable, str(programs.DRIVERS / "one_trainer_rotations.py"), str(folder)]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=environment)
    assert done.stdout, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert not said["failed"], done.stderr
    found: dict[str, dict[str, Tensor]] = {name: {} for name in CASES}
    for key, value in load_file(place / "out.safetensors").items():
        name, _, suffix = key.partition(".")
        found[name][suffix] = value
    return found


def continued(name: str, case: Case) -> tuple[Adapted, Change]:
    """A run that starts from the file, with the options that the importer gives it."""
    own = drawn(name, case)
    base: nn.Module = nn.Linear(case.shape[1], case.shape[0])
    if len(case.shape) == 4:
        base = nn.Conv2d(case.shape[1], case.shape[0], case.shape[2:], padding=case.shape[2] // 2)
    base.double().load_state_dict({key: own.pop(key) for key in ("weight", "bias")})
    rotation = {"kind": "blocks", "block_size": case.size, "divisor": "nearest", "conv": "kernel", "map": "neumann_5",
                "share": case.share}
    options = {"rotation": rotation, "step_size": "calibrated" if case.scaled else "raw"}
    config = preset("doft" if case.doft else "oft", options).adapter
    adapted = attach(nn.ModuleDict({"layer": base}), "layer", config, 0)
    parts = {kinds.split(f"x.{key}")[2]: tensor for key, tensor in own.items() if key != "goal"}  # pyright: ignore
    terms = kinds.terms(parts, adapted.layer, adapted.layer.dense(), writer.About(writer.ONETRAINER, "x"))
    return adapted, Change(adapted.layer, terms)


def needed(theirs: dict[str, dict[str, Tensor]], name: str) -> dict[str, Tensor]:
    """The answer about a case."""
    if not theirs[name]:
        pytest.skip("this checkout of OneTrainer has no commit c6b1d5c0 (git fetch origin pull/1335/head)")
    return theirs[name]


@pytest.mark.parametrize("name", CASES)
def test_their_files_are_read_and_continued_exactly(theirs, name):
    wanted, (adapted, change) = needed(theirs, name), continued(name, CASES[name])
    W = adapted.layer.dense()
    close(forms.applied(change.terms, adapted.layer, W), wanted["adapted"].flatten(1), EXACT)
    assert start({"layer": change}, {"layer": adapted}) == []
    close(adapted.adapted_weight(), wanted["adapted"], EXACT)
    assert (wanted["adapted"].flatten(1) - W).norm() > 0.2 * W.norm(), "nothing to test"


@pytest.mark.full
@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_its_loader_reads_ours(tmp_path, family):
    """A run with its map, in its spelling: every tensor is used, and every layer computes what was trained."""
    found = bases.base(family)
    rotation = {"kind": "blocks", "block_size": 4, "divisor": "nearest", "conv": "kernel", "map": "neumann_5"}
    spelled = {"host": "comfyui_node", "node_spelling": "oftv2", "form": "compact"}  # auto may write a small difference
    options = preset("oft", {"rotation": rotation}, dtype="float32", **spelled)
    network = nn.ModuleDict(found.model.networks)
    layers = {name: attach(network, name, options.adapter, 0) for name in found.layers if "embed" not in name}
    try:
        for number, adapted in enumerate(layers.values()):
            randomise(adapted, number, 0.3)
        report = export(found.model, layers, options, Facts(), tmp_path / "oft.safetensors")
        wanted = {name: adapted.adapted_weight() for name, adapted in layers.items()}
    finally:
        for one in found.model.networks.values():
            detach(one)
    assert set(report.forms.values()) == {"rotation for the OFTv2 node"}
    program = programs.program("onetrainer")
    effect = program.effect(report.path, family, "float32", 1.0)
    program.close()
    assert not effect.failed and not effect.unread and not effect.stray, effect
    for name, weight in wanted.items():
        before = found.weights[f"{name}.weight"]
        assert (effect.weights[name] - weight).norm() <= 1e-5 * (weight - before).norm(), name


@pytest.mark.parametrize("name", CASES)
def test_training_goes_the_same_way(theirs, name):
    """Scaled rotations at the same rate, beside magnitudes at the root of 2 times it; unscaled ones with raw steps."""
    case = CASES[name]
    wanted, (adapted, change) = needed(theirs, name), continued(name, case)
    start({"layer": change}, {"layer": adapted})
    rate = RATE * (math.sqrt(2) if case.doft and case.scaled else 1)
    goal, W = drawn(name, case)["goal"].flatten(1), adapted.layer.dense()
    optimizer = torch.optim.Adam(adapted.adapter.parameters(), lr=rate, eps=1e-30)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (adapted.adapter.weight(W) - goal).square().sum().backward()
        optimizer.step()
    close(adapted.adapted_weight(), wanted["trained"], SAME_WAY)
    assert (wanted["trained"] - wanted["adapted"]).norm() > 0.05 * W.norm(), "nothing to test"
