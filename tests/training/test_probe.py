"""`--check --probe`: real steps at the largest bucket, nothing kept; and what is said when memory is full."""

import importlib.util
import json

import psutil
import pytest
import torch

from modules.data.cache import LatentCache, TextCache
from modules.preset.cli import parse_overrides
from modules.preset.files import resolve
from modules.training import check, loop, memory, probe
from tests.training.runs import Place

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
GPU = torch.device("cuda")


def contents(place: Place) -> set[str]:
    return {str(path) for folder in (place.stage, place.runs) for path in folder.rglob("*") if path.is_file()}


def test_the_peak_is_in_mebibytes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 << 20)
    assert memory.peak_mb(GPU) == 3
    cpu = torch.device("cpu")
    assert 0.9 * psutil.Process().memory_info().rss / 2**20 < memory.peak_mb(cpu) < 2 * memory.total_mb(cpu)


def test_a_probe_measures_and_keeps_nothing(place: Place, capsys, monkeypatch):
    steps = []

    def counted(session, progress):
        steps.append({picture.bucket for picture in session.batches.at(session.step, 0).pictures})
        return take_step(session, progress)

    take_step = loop.take_step
    monkeypatch.setattr(loop, "take_step", counted)
    place.command("probed")
    before = contents(place)
    wide = ("--data.resolution", "32", "--training.steps", "700")
    assert place.train("probed", "--check", "--json", "--probe", *wide) == 0
    facts = json.loads(capsys.readouterr().out)["probe"]
    assert contents(place) == before
    assert len(steps) > 2 and set.union(*steps) == {tuple(facts["bucket"])}
    assert 0 < facts["preparing_mb"] <= facts["training_mb"] < facts["total_mb"]
    assert facts["seconds_per_step"] > 0 and facts["seconds"] == pytest.approx(700 * facts["seconds_per_step"])
    assert place.train("probed", "--check", "--probe", *wide) == 0
    assert "peak memory" in capsys.readouterr().out


def test_a_probe_belongs_to_a_check(place: Place, capsys):
    assert place.train("probed", "--probe") == 2
    assert "--probe: works only with --check" in capsys.readouterr().err


def no_memory(*_):
    raise FULL


def test_full_memory_names_the_cheapest_way_out(place: Place, capsys, monkeypatch):
    monkeypatch.setattr(loop, "take_step", no_memory)
    assert place.train("full", "--check", "--probe") == 2
    said = capsys.readouterr().err
    assert "out of memory on" in said and "--training.gradient_checkpointing true" in said
    assert place.train("full", "--training.gradient_checkpointing") == 1
    finished, error = place.events("full", "finished")[0], place.events("full", "error")[0]
    assert finished["outcome"] == "failed"
    assert "--training.batch_size 1 --training.accumulation 2" in error["message"], "the next one"


def test_every_way_out_can_be_typed_and_they_end(place: Place):
    """Whoever follows them one after the other ends without one, and has changed something each time."""
    given = {"--training.batch_size": "4", "--data.resolution": "1024", "--base.dtype": "float32"}
    given["--targets.text_encoders"] = "true"
    path, seen = place.command("knobs")[1], []

    def typed():
        return resolve(path, parse_overrides([word for pair in given.items() for word in pair])).preset

    preset = typed()
    while knob := memory.next_knob(preset, GPU, "bfloat16", 5):
        assert len(seen) < 20
        words = knob.partition(" (")[0].split()
        given |= dict(zip(words[::2], words[1::2], strict=True))
        before, preset = preset, typed()
        assert preset != before, knob
        seen.append(words[0])
    assert preset.base.quantization == "nf4" and preset.base.offload_blocks == 5
    assert preset.training.batch_size * preset.training.accumulation == 4 and preset.data.resolution == 512
    assert seen.index("--training.gradient_checkpointing") < seen.index("--base.quantization"), "cheapest first"
    assert memory.sentence(preset, torch.device("cpu"), "float32", 5).endswith("is left that saves much memory")


def test_what_is_proposed_is_never_refused_by_the_check(place: Place, monkeypatch):
    """Not what cannot be sharded, and not to leave the text encoders alone while other options name their layers."""
    path = place.command("knobs")[1]
    done = [("--training.gradient_checkpointing", "true"), ("--training.batch_size", "1")]
    texts = [("--targets.text_encoders", "true"), ("--data.resolution", "512")]
    rule = ("--targets.rules", '[{"match": "text_encoder.*", "lr_scale": 0.5}]')
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    sharded = memory.next_knob(resolve(path, parse_overrides(typed(done + texts))).preset, GPU, "bfloat16", 5)
    assert sharded.startswith("--targets.text_encoders false")
    ruled = resolve(path, parse_overrides(typed([*done, *texts, rule]))).preset
    assert memory.next_knob(ruled, GPU, "bfloat16", 5) == ""
    assert "more processes" in memory.sentence(ruled, torch.device("cpu"), "float32", 5)


def typed(options: list[tuple[str, str]]) -> list[str]:
    return [word for pair in options for word in pair]


def test_only_what_changes_the_result_asks_for_another_name(place: Place, monkeypatch, capsys):
    monkeypatch.setattr(loop, "take_step", no_memory)
    assert place.train("full") == 1
    assert "gradient_checkpointing true" in (said := capsys.readouterr().err) and "another --name" not in said
    assert place.train("full", "--training.gradient_checkpointing") == 1, "what was proposed is not refused"
    assert "--training.batch_size 1" in (said := capsys.readouterr().err) and "another --name" in said


@pytest.mark.full
def test_memory_full_of_encoders_is_not_the_denoisers(place: Place, capsys, monkeypatch):
    """It comes later, so nothing that makes it smaller helps."""
    monkeypatch.setattr(LatentCache, "fill", no_memory)
    for more in (["--check", "--probe"], []):
        assert place.train("encoders", *more) != 0
        said = capsys.readouterr().err
        assert "GiB) while pictures and captions are encoded" in said and "gradient_checkpointing" not in said


@pytest.mark.parametrize("compiler", [None, "gcc"])
def test_compiling_for_a_gpu_needs_a_c_compiler(place: Place, compiler, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(check.shutil, "which", lambda name: "/usr/bin/gcc" if name == compiler else None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name == "triton" or find(name, *more))
    preset = resolve(place.command("compiled")[1], [("training.compile", "true")]).preset
    said = [problem for problem in check.examine(preset, "cuda").problems if "training.compile" in problem]
    assert (not said) if compiler else "a C compiler (gcc or clang)" in said[0]


def test_memory_that_is_held_but_free_does_not_count(monkeypatch):
    calls = []
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: calls.append(name))
    memory.reset_peak(GPU)
    assert calls == ["empty_cache", "reset_peak_memory_stats"]


def test_a_probe_encodes_only_what_it_needs(place: Place, monkeypatch):
    pictures, captions = [], []
    monkeypatch.setattr(probe, "MEASURED", 1)
    fill, fill_texts = LatentCache.fill, TextCache.fill

    def filled(cache, given, *more):
        pictures.extend(given)
        fill(cache, given, *more)

    def filled_texts(cache, given, *more):
        captions.extend(given)
        fill_texts(cache, given, *more)

    monkeypatch.setattr(LatentCache, "fill", filled)
    monkeypatch.setattr(TextCache, "fill", filled_texts)
    assert place.train("few", "--check", "--probe", "--training.batch_size", "1", "--data.caption_dropout", "1") == 0
    assert len(pictures) == 2 and captions == [""], "a warming step and a measured one"


@pytest.mark.parametrize(
    "error, expected",
    [
        (FULL, True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_signs_of_full_memory(error, expected):
    assert memory.ran_out(error) == expected
