"""New tokens: their rows alone learn, what reads them, resuming, files in and out, and what is refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modules.adapters.base import Adapted
from modules.export.token_files import folder_of
from modules.families.parts.new_tokens import embeddings_of
from modules.preset.files import resolve
from modules.training import check, state
from tests.tiny_sd15 import make_folder as make_sd15
from tests.training.runs import OPTIONS, Place, draw_pictures, equal, stop_and_resume

pytestmark = pytest.mark.usefixtures("forget_accelerate")

STEPS = 4
TOKENS = [{"token": "<sks>", "text": "ab", "vectors": 3, "lr_scale": 2}, {"token": "zwx", "stop": 0.5}]
"""`ab` has two tokens in the tiny vocabulary, which knows letters only."""


def sections(*, tokens=TOKENS, layers: str = "unet.down_blocks.1.*.attn1.to_[qk]", **more) -> dict:
    return {
        "targets": {"layers": layers, "tokens": tokens},
        "adapter": {"method": "lora", "rank": 2},
        "optimizer": {"name": "adamw", "weight_decay": 0.5},
        "data": {"resolution": 16, "trigger": "a <sks> zwx"},
        "training": {**OPTIONS["training"], "steps": STEPS, "batch_size": 1, **more.pop("training", {})},
        "saving": {"state_every": 1, "keep_states": 9},
        **more,
    }


def looked(place: Place, **given) -> list[str]:
    command = place.command("looked", **given)
    return check.examine(resolve(command[1]).preset, "cpu").problems


def exported(place: Place, name: str) -> dict[str, torch.Tensor]:
    return load_file(place.runs / name / f"{name}.safetensors")


# -- what is trained --------------------------------------------------------------------------------------------------


def test_only_the_rows_learn_each_at_its_rate_and_until_its_stop(place: Place):
    assert place.train("run", **sections(training={"max_grad_norm": 0})) == 0
    found = [state.load_state(folder).adapter for folder in state.states(place.runs / "run")]
    rows = {f"{encoder}.new_tokens.vectors.{n}" for encoder in ("text_encoder", "text_encoder_2") for n in (0, 1)}
    assert {key for key in found[0] if key.startswith("text_encoder")} == rows
    for name in rows:
        for step in range(1, STEPS):
            stays = torch.equal(found[step - 1][name], found[step][name])
            assert stays == (name.endswith(".1") and step >= 2), (name, step)
    with place.session("again", **sections()) as session:
        start = {name: tensor.clone() for name, tensor in session.tensors().items()}
        for encoder in ("text_encoder", "text_encoder_2"):
            weight = embeddings_of(session.model.networks[encoder]).weight
            ids = session.model.tokenizer_of(encoder)("ab", add_special_tokens=False).input_ids
            begun = start[f"{encoder}.new_tokens.vectors.0"]
            assert torch.equal(begun, weight[[ids[0], ids[1], ids[0]]]), "in turn"
            moved = (found[0][f"{encoder}.new_tokens.vectors.0"] - begun).abs()
            assert moved.max() == pytest.approx(0.02, rel=1e-3), "Adam's first step is the rate, and nothing decays"
    assert not equal(found[0], found[-1])


def test_the_table_is_untouched_and_what_has_no_new_token_is_read_as_before(place: Place):
    plain = sections(tokens=[])
    with place.session("plain", **plain) as session:
        encoder = session.model.networks["text_encoder_2"]
        table = embeddings_of(encoder).weight.clone()
        before = session.model.encode_texts(["red asks, a face"])
    with place.session("new", **sections()) as session:
        model = session.model
        after = model.encode_texts(["red asks, a face"])
        assert all(torch.equal(before[name], after[name]) for name in before), "asks has no token of its own in it"
        assert torch.equal(embeddings_of(model.networks["text_encoder_2"]).weight, table)
        assert session.texts is None, "conditions that learn are not cached"
        hidden = model.encode_texts(["a <SKS>, red"])["hidden"]
        hidden.square().sum().backward()
        grads = [table.adapter.vectors[0].grad for table in model.tables.values()]
        assert all(grad is not None and bool((grad != 0).any(1).all()) for grad in grads), "all vectors are read"
        assert all(embeddings_of(model.networks[name]).weight.grad is None for name in model.tables)
        assert len(model.token_starts("a <sks>, red")) == len(model.token_starts("a , red")) + 3


def test_a_token_s_vectors_stand_in_the_place_of_its_word(place: Place):
    """With rows equal to the vectors of words, the token is read as those words."""
    with place.session("run", **sections(tokens=[{"token": "sks", "text": "qr", "vectors": 2}])) as session:
        model = session.model
        found = model.encode_texts(["a (sks), red"])
        meant = model.encode_texts(["a (qr), red"])  # of two tokens
        assert all(torch.equal(found[name], meant[name]) for name in found)


def test_a_table_that_is_adapted_too_and_half_precision(place: Place):
    both = sections(layers="none")
    both["targets"] |= {"include": ["text_encoder.*token_embedding"]}
    both["base"] = {"path": str(place.stage / "base")}
    with place.session("run", "--base.dtype", "bfloat16", **both) as session:
        encoder = session.model.networks["text_encoder"]
        table = session.model.tables["text_encoder"]
        assert isinstance(table.base, Adapted) and encoder.dtype == torch.bfloat16
        assert all(rows.dtype == torch.float32 for rows in table.adapter.parameters())
        hidden = session.model.encode_texts(["a <sks>"])["hidden"]
        hidden.float().square().sum().backward()
        assert table.base.adapter.up.grad is not None and table.adapter.vectors[0].grad is not None


@pytest.mark.full
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_resumed_run_is_the_whole_run(place: Place, monkeypatch, at):
    """Pivotal tuning with adapted text encoders, an average, samples and validation."""
    more = sections(training={"ema": "device", "ema_decay": 0.6}, validation={"every": 1, "draws": 1},
                    samples={"enabled": True, "every": 1, "steps": 1, "prompts": ["a <sks>"]})
    more["targets"] |= {"layers": "attention", "text_encoders": True, "text_encoder_stop": 0.75}
    assert place.train("whole", **more) == 0
    stop_and_resume(monkeypatch, place, "parts", at, **more)
    assert equal(place.adapter("whole"), place.adapter("parts"))
    assert equal(exported(place, "whole"), exported(place, "parts"))
    for kind, field in (("validation", "loss"), ("step", "loss")):
        told = [[event[field] for event in place.events(name, kind)] for name in ("whole", "parts")]
        assert told[0] == told[1]
    pictures = [sorted(path.read_bytes() for path in (place.runs / name / "samples").glob("*.png"))
                for name in ("whole", "parts")]
    assert pictures[0] == pictures[1] and len(set(pictures[0])) > 2
    kept = state.load_state(state.states(place.runs / "whole")[-1]).ema
    assert {key for key in kept if "new_tokens" in key} and equal(
        {key: kept[key] for key in kept}, {key: place.adapter("whole")[key] for key in kept})


# -- files ------------------------------------------------------------------------------------------------------------


def test_the_file_has_them_and_embedding_files_are_beside_it(place: Place):
    assert place.train("run", "--export.dtype", "float16", **sections()) == 0
    tensors, learned = exported(place, "run"), place.adapter("run")
    folder = folder_of(place.runs / "run" / "run.safetensors")
    files = {path.stem: load_file(path) for path in folder.iterdir()}
    assert files.keys() == {"sks", "zwx"}
    for number, (token, file, count) in enumerate((("<sks>", "sks", 3), ("zwx", "zwx", 1))):
        for key, encoder in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
            rows = learned[f"{encoder}.new_tokens.vectors.{number}"]
            assert rows.shape == (count, 16) and torch.equal(tensors[f"bundle_emb.{token}.{key}"], rows)
            assert torch.equal(files[file][key], rows)
    assert any("lora_up" in key for key in tensors)


@pytest.mark.parametrize("kind", ["adapter", "embedding"])
def test_a_training_starts_from_its_own_files(place: Place, kind):
    """The embedding from either file; the adapter with its embedding inside, nothing of which is unknown then."""
    assert place.train("run", "--training.steps", "1", **sections()) == 0
    path = place.runs / "run" / "run.safetensors"
    given = path if kind == "adapter" else folder_of(path) / "sks.safetensors"
    tokens = [{"token": "<sks>", "vectors": 3, "file": str(given)}, {**TOKENS[1], "file": str(path)}]
    adapter = {"method": "lora", "rank": 2, "start_from": str(path)}
    with place.session("next", **sections(tokens=tokens, adapter=adapter)) as session:
        found = session.tensors()
    learned = {name: tensor for name, tensor in place.adapter("run").items() if "new_tokens" in name}
    assert len(learned) == 4 and equal({name: found[name] for name in learned}, learned)
    if kind == "adapter":
        (problem,) = looked(place, **sections(tokens=[tokens[0], TOKENS[1]], adapter=adapter))
        assert "bundle_emb.zwx.clip_g" in problem and "adapter.skip_unknown true reads the rest" in problem


def test_textual_inversion_alone_has_a_file_of_the_embeddings(place: Place):
    assert place.train("run", **sections(layers="none", tokens=TOKENS[:1])) == 0
    tensors = exported(place, "run")
    assert tensors.keys() == {"bundle_emb.<sks>.clip_l", "bundle_emb.<sks>.clip_g"}
    with safe_open(place.runs / "run" / "run.safetensors", "pt") as file:
        assert json.loads(file.metadata()["gimbal.preset"])["targets"]["tokens"][0]["token"] == "<sks>"
    assert place.train("run", "--training.steps", str(STEPS + 1), **sections(layers="none", tokens=TOKENS[:1])) == 0


@pytest.mark.full
def test_stable_diffusion_1_has_one_tensor_in_its_file(place: Place, tmp_path_factory):
    stage = tmp_path_factory.mktemp("sd15")
    make_sd15(stage, short=True)
    draw_pictures(stage / "pictures", 2, 0)
    own = Place(stage, place.runs)
    one = {**sections(tokens=TOKENS[:1], layers="none"), "family": "sd15"}
    one["data"] |= {"validation_folder": ""}
    assert own.train("run", "--training.steps", "1", **one) == 0
    assert exported(own, "run").keys() == {"bundle_emb.<sks>.clip_l"}
    file = folder_of(place.runs / "run" / "run.safetensors") / "sks.safetensors"
    assert load_file(file).keys() == {"emb_params"}
    for key in ("emb_params", "emp_params", "<sks>", "clip_l", "clip_h"):
        path = place.runs / "given.safetensors"
        save_file({key: load_file(file)["emb_params"]}, path)
        with own.session(f"from_{len(key)}", **{**one, "targets": {
                "layers": "none", "tokens": [{"token": "<sks>", "vectors": 3, "file": str(path)}]}}) as session:
            assert torch.equal(session.tensors()["text_encoder.new_tokens.vectors.0"], load_file(file)["emb_params"])


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens, sentence", [
    ([{"token": "a"}], "targets.tokens[0].token: 'a' is already a token in the vocabulary of text_encoder"),
    ([{"token": "my sks"}], "targets.tokens[0].token: 'my sks' cannot be a token; give one word without spaces"),
    ([{"token": "a.b"}], "targets.tokens[0].token: 'a.b' cannot be a token"),
    ([{"token": "<sks>", "text": "abc"}],
     "targets.tokens[0].text: 'abc' has 3 tokens in text_encoder, but vectors is 1; set vectors to 3, or give"),
    ([{"token": "<sks>", "text": " "}], "targets.tokens[0].text: ' ' has no token; give a word"),
    ([TOKENS[1], {"token": "<sks>", "text": "zwx", "vectors": 3}], "tokens[1].text: 'zwx' has a new token in it"),
    ([{"token": "<sks>", "vectors": 2}, {"token": "<sks>_1"}],
     "targets.tokens[1].token: '<sks>_1' is already a word of targets.tokens[0]"),
    ([{"token": "<zwx>"}, {"token": "zwx"}], "tokens[1].token: 'zwx' would be exported to the same file as '<zwx>'"),
    ([{"token": "elsewhere"}], "targets.tokens[0].token: 'elsewhere' is in no caption of the training"),
    ([{"token": "<sks>", "file": "nowhere.safetensors"}], "targets.tokens[0].file: nowhere.safetensors"),
    ([{"token": "<sks>", "stop": 0.5}], "targets.tokens[0].stop: only text encoders are trained"),
])  # fmt: skip
def test_what_cannot_be_learned_is_refused(place: Place, tokens, sentence):
    problems = looked(place, **sections(tokens=tokens, layers="none"))
    assert any(sentence in problem for problem in problems), problems


def test_files_of_another_size_or_kind_are_refused(place: Place):
    def refused(tensors: dict[str, torch.Tensor], **more) -> str:
        path = place.runs / "given.safetensors"
        save_file(tensors, path)
        (problem,) = looked(place, **sections(tokens=[{"token": "<sks>", "file": str(path), **more}], layers="none"))
        return problem

    two = {"clip_l": torch.zeros(2, 16), "clip_g": torch.zeros(2, 16)}
    assert "has 2 vectors for text_encoder, but vectors is 1; set vectors to 2" in refused(two)
    assert "it is of another model" in refused({"clip_l": torch.zeros(1, 16), "clip_g": torch.zeros(1, 8)})
    assert "has no vectors for clip_l and clip_g" in refused({"emb_params": torch.zeros(1, 16)})
    assert "has no embedding of '<sks>'; it has other" in refused({"bundle_emb.other.clip_l": torch.zeros(1, 16)})
    assert "is for the output of a text encoder" in refused({**two, "clip_l_out": torch.zeros(1, 16)}, vectors=2)
    assert "is an adapter file without embeddings" in refused({"lora_te_x.lora_down.weight": torch.zeros(1, 16)})


def test_a_family_that_cannot_learn_them_says_so():
    from types import SimpleNamespace

    from modules.training import new_tokens

    stand_in = SimpleNamespace(token_keys={})
    preset = resolve("lora_zimage", [("targets.tokens", json.dumps(TOKENS))]).preset
    (problem,) = new_tokens.problems(stand_in, preset)
    assert problem.startswith("targets.tokens: '<sks>', but text encoders of zimage cannot learn new tokens here")
