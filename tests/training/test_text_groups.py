"""Captions that change from step to step: encoded in groups, with the denoiser elsewhere, and the same whatever the
groups are."""

import copy
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import nn

from modules.data import cache
from modules.data.cache import TextCache
from modules.families import load_class
from modules.preset import files
from modules.preset.schema import Base, Data
from modules.quant import PackedLinear, keep_in_memory, pack_linears
from modules.training import check, collapse, gradient_start, loop, text_groups
from modules.training.text_groups import TextGroups, lasting
from tests.data.encoder import Encoder
from tests.families.using import CPU
from tests.training.runs import Place, ask, equal

GPU = torch.device("cpu:0")
"""Stands for a GPU: torch computes on it as on the CPU, but it is another device than `torch.device("cpu")`."""

CHANGING = {"resolution": 16, "shuffle": True, "keep_tokens": 0, "part_dropout": 0.3, "caption_dropout": 0.1}


@pytest.fixture(autouse=True)
def groups_from_the_third_step_on(monkeypatch):
    """The samples of the first steps are used at other times too, so their captions are encoded before."""
    monkeypatch.setattr(collapse, "SAMPLES", 2)
    monkeypatch.setattr(gradient_start, "PICTURES", 2)


@pytest.fixture
def many(place: Place) -> Place:
    """Captions with so many parts that no two uses are alike."""
    folder = place.runs / "pictures"
    folder.mkdir()
    for path in (place.stage / "pictures").glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
        parts = [f"{path.stem}{letter}" for letter in "abcdefghijkl"]
        (folder / path.name).with_suffix(".txt").write_text(", ".join(parts), encoding="utf-8")
    return place


def data_of(place: Place, **more) -> dict:
    folders = {"folders": [str(place.runs / "pictures")], "cache_folder": str(place.runs / "cache")}
    return {**CHANGING, **folders, **more}


# -- what is on the device --------------------------------------------------------------------------------------------


class Watched:
    """What is on the device during a training, by the calls that move and use networks."""

    def __init__(self, monkeypatch):
        self.there: set[str] = set()
        self.encoded_beside, self.groups, self.predictions = 0, 0, 0
        family = load_class("sdxl")
        self.wrap(monkeypatch, family, "place", lambda *_: self.there.add("denoiser"))
        self.wrap(monkeypatch, family, "present", lambda _, name: self.there.add(name))
        self.wrap(monkeypatch, family, "release_encoders", self.released)
        self.wrap(monkeypatch, family, "encode_texts", self.encoded)
        self.wrap(monkeypatch, family, "predict", self.predicted)
        self.wrap(monkeypatch, text_groups, "move", self.moved)

    def wrap(self, monkeypatch, owner, name: str, look) -> None:
        inside = getattr(owner, name)

        def wrapped(*given, **named):
            look(*given, **named)
            return inside(*given, **named)

        monkeypatch.setattr(owner, name, wrapped)

    def released(self, model, texts: bool, images: bool = True) -> None:
        self.there -= {*(("vae",) if images else ()), *(model.text_encoders if texts else ())}

    def encoded(self, model, captions) -> None:
        assert len(captions) == 1
        self.encoded_beside += "denoiser" in self.there

    def predicted(self, model, *_) -> None:
        assert "denoiser" in self.there and self.there.isdisjoint(model.text_encoders)
        self.predictions += 1

    def moved(self, parts, device) -> None:
        found = list(parts)
        assert found, "the denoiser's modules"
        if device == GPU:
            assert not self.there - {"denoiser"}, "encoders are gone when the denoiser comes back"
            self.there.add("denoiser")
        else:
            self.there.discard("denoiser")
            self.groups += 1


@pytest.mark.short("3-4")
@pytest.mark.parametrize("ahead, groups", [(3, 4), (100, 1)])
def test_encoders_and_denoiser_are_never_on_the_device_together(many, monkeypatch, ahead, groups):
    watched = Watched(monkeypatch)
    options = ["--data.encode_ahead", str(ahead), "--training.steps", "12", "--training.batch_size", "1"]
    with many.session("run", *options, data=data_of(many)) as session:
        session.model.device = GPU
        assert loop.train(session)
    assert watched.encoded_beside == 0 and watched.predictions > 12 and watched.groups == groups


def test_a_missing_cache_file_is_encoded_apart_too(place: Place, monkeypatch):
    watched = Watched(monkeypatch)
    data = {"resolution": 16, "cache_folder": str(place.runs / "cache")}
    with place.session("run", "--training.steps", "2", data=data) as session:
        session.model.device = GPU
        assert session.texts is not None
        session.texts.cache.store.recent.clear()
        for path in (place.runs / "cache" / "texts").glob("*/*.safetensors"):
            path.unlink()
        assert loop.train(session)
    assert watched.encoded_beside == 0 and watched.groups > 0


@pytest.mark.parametrize("kind", ["dense", "fp8"])
def test_all_of_the_denoiser_but_its_adapters_is_moved(place: Place, kind):
    """"meta" stands for another device. What the optimizer and the gradients refer to stays where it is."""
    with place.session("run") as session:
        denoiser = next(iter(session.model.networks.values()))
        if kind != "dense":
            pack_linears(session.model.blocks()[0], kind)
            keep_in_memory(session.model.blocks()[1])
        own = {id(p): p.data_ptr() for layer in session.adapted.values() for p in layer.adapter.parameters()}
        gradients = session.flat.gradients.data_ptr()
        text_groups.move(text_groups.frozen_parts(denoiser), torch.device("meta"))
        after = dict(denoiser.named_parameters())
        assert own and own.keys() < {id(parameter) for parameter in after.values()}
        kept = {f"{name}.weight" for name, part in denoiser.named_modules()
                if isinstance(part, PackedLinear) and part.in_memory}
        for name, parameter in after.items():
            if id(parameter) in own:
                assert not parameter.is_meta and parameter.data_ptr() == own[id(parameter)], name
            else:
                assert parameter.is_meta == (name not in kept), name
        assert bool(kept) == (kind != "dense") and session.flat.gradients.data_ptr() == gradients
        assert all(p.grad is None or p.grad.is_meta == p.is_meta for p in denoiser.parameters())


@pytest.mark.parametrize("kind", ["dense", "int8"])
def test_there_and_back_is_bit_for_bit(kind):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 64)).eval().requires_grad_(False)
    if kind != "dense":
        pack_linears(network, kind)
    x, kept = torch.randn(3, 64), copy.deepcopy(network)
    for device in (CPU, GPU):
        text_groups.move(network.modules(), device)
    assert torch.equal(network(x), kept(x))
    assert all(torch.equal(one, two) for one, two in zip(network.buffers(), kept.buffers(), strict=True))


# -- the same whatever the groups are ---------------------------------------------------------------------------------


@pytest.mark.full
def test_groups_do_not_change_a_run(many, monkeypatch):
    """Neither their size nor a break in one, nor whether there is a cache."""
    runs = {"one": ["--data.encode_ahead", "1"], "five": ["--data.encode_ahead", "5"],
            "broken": ["--data.encode_ahead", "5"], "uncached": ["--data.cache", "false"]}
    steps = ["--training.steps", "13", "--training.batch_size", "1"]
    for name, more in runs.items():
        if name == "broken":
            ask(monkeypatch, many, name, "stop", at=12)
            assert many.train(name, *steps, *more, data=data_of(many)) == 130
            more = ["--data.encode_ahead", "2"]
        assert many.train(name, *steps, *more, data=data_of(many)) == 0
    losses = {name: [event["loss"] for event in many.events(name, "step")] for name in runs}
    assert all(found == losses["one"] for found in losses.values()) and len(losses["one"]) == 13
    assert all(equal(many.adapter("one"), many.adapter(name)) for name in runs)
    assert any(event["name"] == "captions" for event in many.events("five", "stage"))


def test_conditions_of_a_step_are_those_of_its_captions_alone(many):
    with many.session("run", "--data.encode_ahead", "4", "--training.steps", "30", data=data_of(many)) as session:
        texts = session.texts
        assert texts is not None
        for step in (12, 13, 20):
            texts.reach(step, session.steps)
            captions = session.batches.at(step, 0).captions
            assert any(caption in texts.held for caption in captions)
            found = texts.get(captions)
            with torch.no_grad():
                each = [session.model.encode_texts([caption]) for caption in captions]
            assert all(torch.equal(found[name], torch.cat([one[name] for one in each])) for name in found)
        assert step in texts.steps and len(texts.steps) == 4


def test_captions_that_do_not_change_need_no_groups(place: Place):
    """Trigger, dropout of whole captions and validation pictures included."""
    data = {"resolution": 16, "caption_dropout": 0.3, "trigger": "sks"}
    assert place.train("plain", "--samples.enabled", "--data.encode_ahead", "1", data=data) == 0
    assert not [event for event in place.events("plain", "stage") if event["name"] == "captions"]


# -- memory and disk --------------------------------------------------------------------------------------------------


class Uses:
    """Batches of given captions, one list for each step."""

    def __init__(self, steps):
        self.steps = steps

    def captions(self, steps, start=0):
        return (caption for step in self.steps[start:steps] for caption in step)


@contextmanager
def anywhere(what):
    yield


def groups(steps, kept=(), ahead=4, folder=None) -> TextGroups:
    data, encoder = Data(cache=folder is not None, cache_folder=str(folder or "unused")), cast(Any, Encoder())
    return TextGroups(TextCache(data, encoder), Uses(steps), set(kept), ahead, anywhere)  # pyright: ignore


def test_a_group_is_dropped_when_the_next_one_begins_and_leaves_no_files(tmp_path):
    steps = [[f"{step} first", f"{step} second", "kept"] for step in range(10)]
    texts = groups(steps, ["kept"], 3, tmp_path)
    texts.cache.fill(["kept"])
    for step in range(10):
        texts.reach(step, 10)
        assert step in texts.steps and len(texts.held) == 2 * len(texts.steps) <= 6
        texts.get(steps[step])
    assert len(list(tmp_path.glob("texts/*/*.safetensors"))) == 1 and texts.steps == range(9, 10)


def test_a_group_ends_where_its_memory_is_full():
    steps = [[f"{step} a", f"{step} b"] for step in range(8)]
    texts = groups(steps, ahead=8)
    size = sum(tensor.nbytes for tensor in texts.cache.encode("0 a").values())
    texts.memory, begun = 5 * size, []
    for step in range(8):
        texts.reach(step, 8)
        begun += [step] if step == texts.steps[0] else []
        assert texts.get(steps[step])["ids"].shape[0] == 2
    assert begun == [0, 3, 6]
    texts.memory = 0
    texts.steps = range(0)
    texts.reach(2, 8)
    assert 2 in texts.steps, "a group has a step at least"


def test_what_is_in_the_cache_is_not_encoded_again(tmp_path):
    steps = [["a", "b"], ["c", "d"]]
    first = groups(steps, folder=tmp_path)
    first.cache.fill(["a", "c"])
    second = groups(steps, folder=tmp_path)
    encoder = cast(Any, second.cache.model)
    second.reach(0, 2)
    assert second.held.keys() == {"b", "d"} and encoder.texts == 2


def test_what_is_worth_a_place_on_disk(monkeypatch):
    steps = [["whole", "x", "twice"], ["y", "y"], ["twice"], ["z", ""]]
    assert lasting(Uses(steps), 4, 2, {"whole", ""}) == {"whole", "twice", ""}  # pyright: ignore
    assert lasting(Uses(steps), 4, 4, {"whole"}) == {"whole"}  # pyright: ignore
    monkeypatch.setattr(text_groups, "MOST_OFTEN", 1)
    steps = [["a", "b"], ["a", "b"], ["b", "whole"]]
    assert lasting(Uses(steps), 3, 1, {"whole"}) == {"b", "whole"}, "the most frequent one"  # pyright: ignore


def test_conditions_of_many_captions_are_not_all_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.Store.__init__, "__defaults__", (1000,))
    encoder = cast(Any, Encoder())
    texts = TextCache(Data(cache_folder=str(tmp_path)), encoder)
    texts.fill(f"caption {number}" for number in range(100))
    assert texts.store.size <= 1000 and len(texts.store.recent) < 20
    assert texts.get(["caption 0", "caption 99"])["ids"].shape[0] == 2 and encoder.texts == 100


def test_a_run_may_resume_with_other_groups(place: Place):
    from modules.training.run import may_change

    assert may_change("data.encode_ahead") and not may_change("data.caption_tokens")
    assert not may_change("base.clip_skip") and Base().clip_skip is None


# -- a base in shards -------------------------------------------------------------------------------------------------


def test_a_sharded_denoiser_stays_and_the_check_says_so(place: Place, monkeypatch):
    def notes(name: str, data: dict) -> list[str]:
        preset = files.resolve(place.command(name, data=data)[1], []).preset
        return check.examine(preset, "cpu", processes=2).notes

    changing, fixed = {"resolution": 16, "shuffle": True}, {"resolution": 16, "caption_dropout": 0.5}
    assert text_groups.TOGETHER not in notes("plain", changing)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert text_groups.TOGETHER in notes("sharded", changing) and text_groups.TOGETHER not in notes("fixed", fixed)

    released, moved, model = [], [], load_class("sdxl").skeleton(Base(path=str(place.stage / "base")))
    monkeypatch.setattr(model, "release_encoders", lambda texts: released.append(texts))
    monkeypatch.setattr(text_groups, "move", lambda parts, device: moved.extend(parts))
    with text_groups.apart(model):
        assert released == []
    assert released == [True] and moved == []


def test_the_denoiser_comes_back_when_encoding_fails(place: Place, monkeypatch):
    moved, model = [], load_class("sdxl").skeleton(Base(path=str(place.stage / "base")))
    monkeypatch.setattr(model, "release_encoders", lambda texts: moved.append(("encoders", texts)))
    monkeypatch.setattr(text_groups, "move", lambda parts, device: moved.append((len(parts), device.type)))
    with pytest.raises(MemoryError), text_groups.apart(model):
        raise MemoryError
    count = len([*next(iter(model.networks.values())).modules()])
    assert moved == [(count, "cpu"), ("encoders", True), (count, "meta")]
