"""Two processes on the CPU that share the base out among them: they learn, show and write what one does.

All trainings of two processes run one after the other behind one start of accelerate's launcher: starting takes longer
than they do. The optimizer makes plain steps: Adam would blow rounding up where a gradient is near zero.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modules.preset.files import resolve
from modules.training import resuming
from modules.training.command import FAILED, REFUSED
from modules.training.sharding import SETTINGS, problems
from tests import tiny_chroma, tiny_flux, tiny_zimage
from tests.training.runs import ROOT, Place, draw_pictures, equal, launch
from tests.training.sharded import Plan, write_plans
from tests.training.test_processes import LAUNCHER, close
from tests.training.test_training_adapter_files import LAST, QKV, random_pairs

CONFIG = ["--config_file", "configs/fsdp2.yaml", "--main_process_port", "0"]

PLAIN = {"optimizer": {"name": "adamw", "eps": 1.0}, "saving": {"state_every": 1}}
TRAINING = {"batch_size": 1, "learning_rate": 0.01, "schedule": "constant", "warmup": 0}

FLUX = {
    **PLAIN,
    "family": "flux",
    "targets": {"layers": "all"},
    "objective": {"min_snr_gamma": None},
    "data": {"resolution": 32, "caption_dropout": 0.3},
    "training": {**TRAINING, "steps": 3, "accumulation": 2, "gradient_checkpointing": True},
}
"""Layers of the blocks and around them."""

AVERAGED = {**FLUX, "training": {**FLUX["training"], "ema": "main_memory", "ema_decay": 0.5}}

SAMPLED = {**AVERAGED, "samples": {"steps": 2, "prompts": ["red apple", "blue heart"], "every": 2}}

TURNED = {
    **PLAIN,
    "targets": {"layers": "attention-mlp-conv", "text_encoders": True, "exclude": ["unet.up_*", "unet.mid_*"]},
    "adapter": {"method": "oft", "rotation": {"kind": "blocks", "block_size": 4}},
    "training": {**TRAINING, "steps": 2, "gradient_checkpointing": False},
}
"""Nothing is derived from base weights; convolutions, and text encoders that are whole everywhere."""

MASKED = {**FLUX, "family": "chroma"}
"""Checkpointing is inside of the blocks."""

LISTED = {**FLUX, "family": "zimage"}
"""Each condition has a length of its own."""

HALF = {**FLUX, "adapter": {"method": "dora", "rank": 2, "axis": "output"}}
HALF["training"] = {**TRAINING, "steps": 2, "precision": "bfloat16", "gradient_checkpointing": True}


@dataclass
class Shared:
    """What two processes have done."""

    flux: Place
    sdxl: Place
    chroma: Place
    zimage: Place
    process: subprocess.Popen
    out: str
    err: str


def beside(flux: Place) -> tuple[str, str]:
    """A training adapter for some layers, trained and not."""
    file = flux.stage / "beside.safetensors"
    save_file(random_pairs(**{QKV: (96, 32), LAST: (64, 32)}), file)
    return "--base.training_adapter", str(file)


def plans(flux: Place, sdxl: Place, chroma: Place, zimage: Place) -> list[Plan]:
    """All trainings of two processes."""
    return [
        Plan(flux.command("sampled", **SAMPLED)),
        Plan(flux.command("stopped", **AVERAGED), stop_at=2),
        Plan(flux.command("stopped", **AVERAGED)),
        Plan(sdxl.command("turned", **TURNED), reshard=False),
        Plan(chroma.command("masked", **MASKED)),
        Plan(zimage.command("listed", **LISTED)),
        Plan(flux.command("half", **HALF), as_on_gpu=True),
        Plan(flux.command("whole", **HALF), sharded=False),
        Plan(flux.command("beside", *beside(flux), **FLUX)),
        Plan(flux.command("failing", **SAMPLED), failing=1),
    ]


@pytest.fixture(scope="module")
def shared(stage: Path, tmp_path_factory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    tiny_flux.make_folder(folder / "stage")
    draw_pictures(folder / "stage" / "pictures", 5, 0)
    draw_pictures(folder / "stage" / "validation", 2, 1)
    stages = {"flux": folder / "stage", "sdxl": stage, "chroma": folder / "masked", "zimage": folder / "listed"}
    for name, tiny in (("chroma", tiny_chroma), ("zimage", tiny_zimage)):
        shutil.copytree(folder / "stage", stages[name], ignore=shutil.ignore_patterns("base"))
        tiny.make_folder(stages[name])
    for name in stages:
        (folder / name).mkdir()
    places = [Place(at, folder / name) for name, at in stages.items()]
    written = write_plans(folder / "plans.json", plans(*places))
    command = [*LAUNCHER, *CONFIG, "tests/training/sharded.py", str(written)]
    process = launch(command, ACCELERATE_USE_CPU="1", PYTHONPATH=str(ROOT))
    try:
        out, err = process.communicate(timeout=500)
        yield Shared(*places, process, out, err)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def alone(place: Place, name: str, sections: dict, *more: str) -> None:
    """The same training in one process with twice the batch."""
    twice = {**sections, "training": {**sections["training"], "batch_size": 2}}
    assert place.train(name, *more, **twice) == 0


def losses(place: Place, name: str, kind: str) -> list[float]:
    return [event["loss"] for event in place.events(name, kind)]


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def assert_same_run(place: Place, name: str, expected: str) -> None:
    """Losses, adapter and exported file of two runs are the same up to rounding."""
    assert losses(place, name, "step") == pytest.approx(losses(place, expected, "step"), rel=1e-6)
    assert losses(place, name, "validation") == pytest.approx(losses(place, expected, "validation"), rel=1e-6)
    close(place.adapter(name), place.adapter(expected))
    paths = [place.runs / run / f"{run}.safetensors" for run in (name, expected)]
    found, wanted = (load_file(path) for path in paths)
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        room = 2e-3 if tensor.dtype == torch.float16 else 1e-5
        torch.testing.assert_close(found[key], tensor, rtol=room, atol=room * max(1e-3, float(tensor.abs().max())))
    hashes = [metadata(path)["gimbal.base_hash"] for path in paths]
    assert hashes[0] == hashes[1]
    errors = json.loads(metadata(paths[0])["gimbal.errors"])
    assert len(errors) > 20 and max(errors.values()) <= 1.6e-2


@pytest.mark.full
def test_a_shared_base_learns_shows_and_writes_what_a_whole_one_does(shared: Shared):
    place = shared.flux
    alone(place, "alone", SAMPLED)
    assert_same_run(place, "sampled", "alone")
    written = [sorted(str(path.relative_to(place.runs / name)).replace(name, "NAME")
                      for path in (place.runs / name).rglob("*") if "tfevents" not in path.name)
               for name in ("sampled", "alone")]
    assert written[0] == written[1]
    assert len(place.events("sampled", "sample")) == len(place.events("alone", "sample")) == 6
    for event in place.events("sampled", "sample"):
        found, expected = (numpy.asarray(Image.open(place.runs / name / event["path"]), int)
                           for name in ("sampled", "alone"))
        assert numpy.abs(found - expected).max() <= 1


@pytest.mark.full
def test_a_training_adapter_is_whole_in_every_process(shared: Shared):
    place = shared.flux
    alone(place, "beside alone", FLUX, *beside(place))
    assert_same_run(place, "beside", "beside alone")
    assert losses(place, "beside", "step") != pytest.approx(losses(place, "sampled", "step"), rel=1e-3)


@pytest.mark.full
def test_a_shared_base_whose_blocks_checkpoint_themselves(shared: Shared):
    alone(shared.chroma, "alone", MASKED)
    assert_same_run(shared.chroma, "masked", "alone")


@pytest.mark.full
def test_a_shared_base_with_conditions_of_their_own_lengths(shared: Shared):
    alone(shared.zimage, "alone", LISTED)
    assert_same_run(shared.zimage, "listed", "alone")


@pytest.mark.full
def test_each_process_has_its_share_only(shared: Shared):
    """The numbers are of each process' own tensors."""
    for place, name in ((shared.flux, "sampled"), (shared.sdxl, "turned")):
        (detail,) = [e["detail"] for e in place.events(name, "stage") if e["name"] == "shard"]
        total, count, *shares = (int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d|\d", detail))
        assert count == len(shares) == 2 and sum(shares) == total
        assert max(shares) <= 0.6 * total
    assert not [e for e in shared.flux.events("whole", "stage") if e["name"] == "shard"]


@pytest.mark.full
def test_convolutions_and_whole_text_encoders(shared: Shared):
    alone(shared.sdxl, "alone", TURNED)
    assert_same_run(shared.sdxl, "turned", "alone")


@pytest.mark.full
def test_stopped_and_resumed_is_the_whole_run(shared: Shared):
    assert [event["outcome"] for event in shared.flux.events("stopped", "finished")] == ["stopped", "done"]
    assert equal(shared.flux.adapter("stopped"), shared.flux.adapter("sampled"))


@pytest.mark.full
def test_in_half_precision_shares_change_the_order_of_a_sum_alone(shared: Shared):
    """The gradient of what all blocks are given (time and pooled text) is added up in another order."""
    assert losses(shared.flux, "half", "step") == losses(shared.flux, "whole", "step")
    half, whole = shared.flux.adapter("half"), shared.flux.adapter("whole")
    outside = {key for key in whole if ".time_text_embed." in key}
    assert equal(*({key: run[key] for key in run if key not in outside} for run in (half, whole)))
    for key in outside:
        torch.testing.assert_close(half[key], whole[key], rtol=0.02, atol=0.02 * float(whole[key].abs().max()))


@pytest.mark.full
def test_an_error_in_one_process_ends_all(shared: Shared):
    assert shared.process.returncode not in (0, None)
    assert "Process 1 failed: no samples here" in shared.err
    assert not (shared.flux.runs / "failing" / "failing.safetensors").exists()
    assert shared.out.count("Done:") == 8


@pytest.mark.full
def test_processes_read_a_weight_together_even_if_one_alone_needs_it(shared: Shared):
    assert shared.out.count("read together") == 2


def test_processes_that_see_different_states_are_refused(place: Place, monkeypatch, capsys):
    """As on several machines whose run folders are not one."""
    monkeypatch.setattr(resuming, "gather_object", lambda own: [*own, "step-000002"])
    assert place.train("split") == FAILED
    assert "saving.folder: processes see different states (no state, step-000002)" in capsys.readouterr().err


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.fixture
def fsdp(monkeypatch):
    """The environment that accelerate's launcher makes of configs/fsdp2.yaml."""
    settings = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_SHARDING_STRATEGY": "FULL_SHARD"}
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    return monkeypatch


def preset(place: Place, *more: str):
    """A preset with options as on the command line."""
    path = place.command("any")[1]
    return resolve(path, list(zip(more[::2], more[1::2], strict=True))).preset


def test_nothing_is_wrong_with_the_launch_file(place: Place, fsdp):
    assert problems(preset(place), 2) == []


@pytest.mark.parametrize(
    "option, value",
    [
        ("fsdp_version", "1"),
        ("fsdp_reshard_after_forward", "FULL_SHARD"),
        ("fsdp_sharding_strategy", "NO_SHARD"),
        ("fsdp_offload_params", "true"),
        ("fsdp_cpu_ram_efficient_loading", "true"),
        ("fsdp_activation_checkpointing", "true"),
        ("fsdp_activation_checkpointing_offload", "true"),
        ("fsdp_auto_wrap_policy", "SIZE_BASED_WRAP"),
        ("fsdp_transformer_layer_cls_to_wrap", "FluxTransformerBlock"),
        ("fsdp_ignored_modules", ".*norm.*"),
        ("fsdp_state_dict_type", "SHARDED_STATE_DICT"),
        ("fsdp_backward_prefetch", "BACKWARD_PRE"),
        ("fsdp_forward_prefetch", "true"),
        ("use_parallelism_config", "true"),
    ],
)
def test_settings_that_do_not_fit_are_refused(place: Place, fsdp, option, value):
    fsdp.setenv(SETTINGS[option].variable, value)
    (problem,) = problems(preset(place), 2)
    assert problem.startswith(f"accelerate's {option} is {value}: ")


@pytest.mark.parametrize(
    "option, value, text",
    [
        ("base.quantization", "nf4", "weights in nf4 cannot be sharded"),
        ("base.offload_blocks", "1", "blocks in main memory cannot be sharded"),
        ("training.compile", "true", "sharded blocks cannot be compiled"),
    ],
)
def test_options_that_do_not_fit_are_refused(place: Place, fsdp, option, value, text):
    chosen = preset(place, option, value)
    (problem,) = problems(chosen, 2)
    assert problem.startswith(f"{option}: ") and text in problem and "configs/several_gpus.yaml" in problem
    fsdp.setenv("ACCELERATE_USE_FSDP", "false")
    assert problems(chosen, 2) == []


def test_one_process_is_refused_before_anything_is_touched(place: Place, fsdp, capsys):
    fsdp.setenv("FSDP_VERSION", "1")
    assert place.train("refused") == REFUSED
    said = capsys.readouterr().err
    assert "accelerate's fsdp_version is 1: set it to 2" in said and "there is only one process" in said
    assert not (place.runs / "refused").exists()
