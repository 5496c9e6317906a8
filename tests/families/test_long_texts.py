"""Captions in chunks, weights of words and the layer that is read, against sd-scripts' scheme stated once more.

The restatement follows library/strategy_base.py, strategy_sd.py and strategy_sdxl.py of kohya-ss/sd-scripts (48d368fa):
one chunk at a time, with the encoder's own layers, and without anything of `parts/long_texts.py`.
"""

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from modules.data.cache import TextCache
from modules.families import load_class
from modules.families.base import Reading
from modules.families.parts.emphasis import parts_of
from modules.preset.schema import Base, Data
from tests import tiny_sd15, tiny_sdxl
from tests.families.rows import FAMILIES
from tests.families.using import CPU

KINDS = {"sdxl": ("sdxl", tiny_sdxl.make_folder, {}), "sd1": ("sd15", tiny_sd15.make_folder, {}),
         "sd2": ("sd15", tiny_sd15.make_folder, {"second": True})}
WORDS = "qwertyuiopasdfghjklzxcvbnm"
"""The tiny tokenizer reads every letter as one token."""


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory) -> Any:
    """A tiny base whose tokenizers pad as the published ones do: with `!`, but for CLIP-L's."""
    family, make, sizes = KINDS[request.param]
    loaded = load_class(family).load(Base(path=str(make(tmp_path_factory.mktemp(family), **sizes))), CPU, torch.float32)
    pads = {"sdxl": "tokenizer_2", "sd2": "tokenizer"}
    if request.param in pads:
        own = copy.deepcopy(loaded.pipeline.components[pads[request.param]])
        own.pad_token = "!"
        assert own.pad_token_id == 0
        loaded.pipeline.register_modules(**{pads[request.param]: own})
    return loaded


@pytest.fixture(autouse=True)
def usual_again(model):
    yield
    model.use_reading(Reading())


def letters(count: int, seed: int = 0) -> str:
    """A caption of `count` tokens."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


# -- the scheme, stated once more -------------------------------------------------------------------------------------


def rows_of_tokens(tokenizer, pieces: list[tuple[str, float]], most: int) -> tuple[list[int], list[float]]:
    """The whole row: start, tokens, end, padding; and a weight for each."""
    tokens, weights = [], []
    for text, weight in pieces:
        ids = tokenizer(text).input_ids[1:-1]
        tokens, weights = tokens + ids, weights + [weight] * len(ids)
    tokens, weights = tokens[:most], weights[:most]
    missing = most - len(tokens)
    row = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * missing]
    return row, [1.0, *weights, *[1.0] * (missing + 1)]


def pieces_of_row(tokenizer, row: list[int]) -> list[list[int]]:
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if len(row) == 77:
        return [row]
    pieces = []
    for at in range(1, len(row) - 77 + 2, 75):
        piece = [row[0], *row[at : at + 75], row[-1]]
        if pad != end:
            if piece[-2] != end and piece[-2] != pad:
                piece[-1] = end
            if piece[1] == pad:
                piece[1] = end
        pieces.append(piece)
    return pieces


def layer_of(encoder, piece: list[int], skip: int, normed: bool) -> tuple[Tensor, Tensor]:
    """The output of a layer, by leaving out those after it; and the normed output of the last."""
    inside = encoder.text_model if "text_model" in dict(encoder.named_children()) else encoder
    ids = torch.tensor([piece])
    whole = encoder(ids).last_hidden_state
    shorter = copy.deepcopy(inside)
    if skip > 1:
        shorter.encoder.layers = shorter.encoder.layers[: 1 - skip]
    if not normed:
        shorter.final_layer_norm = torch.nn.Identity()
    return shorter(ids).last_hidden_state, whole


def restated(tokenizer, encoder, pieces, tokens: int, skip: int, normed: bool) -> tuple[Tensor, Tensor]:
    """Features `(1, tokens + 2, dim)` and the last layer of the first chunk, with its tokens."""
    row, weights = rows_of_tokens(tokenizer, pieces, tokens)
    chunks = pieces_of_row(tokenizer, row)
    read = [layer_of(encoder, chunk, skip, normed)[0] for chunk in chunks]
    hidden = torch.cat([read[0][:, :1], *[one[:, 1:76] for one in read], read[-1][:, 76:]], 1)
    first = layer_of(encoder, chunks[0], 1, True)[1]
    end = chunks[0].index(tokenizer.eos_token_id) if tokenizer.eos_token_id in chunks[0] else 0
    return hidden * torch.tensor(weights)[None, :, None], first[:, end]


def expected(model, pieces: list[tuple[str, float]], tokens: int, skip: int = 1) -> dict[str, Tensor]:
    pipeline = model.pipeline
    with torch.no_grad():
        if "text_encoder_2" not in model.networks:
            return {"hidden": restated(pipeline.tokenizer, pipeline.text_encoder, pieces, tokens, skip, True)[0]}
        one, _ = restated(pipeline.tokenizer, pipeline.text_encoder, pieces, tokens, 2, False)
        two, last = restated(pipeline.tokenizer_2, pipeline.text_encoder_2, pieces, tokens, 2, False)
        return {"hidden": torch.cat([one, two], -1), "pooled": pipeline.text_encoder_2.text_projection(last)}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


# -- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.once
@pytest.mark.parametrize("tokens", [150, 225, 300])
@pytest.mark.parametrize("length", [0, 1, 74, 75, 76, 140, 149, 150, 151, 224, 225, 400])
def test_chunks_are_those_of_sd_scripts(model, tokens, length):
    model.use_reading(Reading(tokens))
    assert model.caption_tokens == tokens and model.chunk_tokens == 75
    caption = letters(length)
    with torch.no_grad():
        found = model.encode_texts([caption])
    assert found["hidden"].shape[1] == tokens + 2
    assert_equal(found, expected(model, [(caption, 1.0)], tokens))


def test_a_sign_that_is_also_the_padding(model):
    """sd-scripts takes a `!` at the edge of a chunk for padding; so files agree only if we do."""
    model.use_reading(Reading(150))
    for caption in (f"{letters(74)} ! {letters(9)}", f"{letters(75)} ! {letters(9)}", "! a b"):
        with torch.no_grad():
            assert_equal(model.encode_texts([caption]), expected(model, [(caption, 1.0)], 150))


def test_captions_that_differ_at_token_140_differ(model, tmp_path):
    first, second = (f"{letters(139)} {word} {letters(5)}" for word in "ab")
    for tokens, differ in ((75, False), (150, True)):
        model.use_reading(Reading(tokens))
        cache = TextCache(Data(cache_folder=str(tmp_path)), model)
        one, two = cache.get([first]), cache.get([second])
        assert (not torch.equal(one["hidden"], two["hidden"])) == differ
        assert one["hidden"].shape[1] == tokens + 2, "not the entry of the other length"


def test_captions_together_are_what_each_is_alone(model):
    model.use_reading(Reading(225, emphasis=True))
    captions = [letters(9), f"({letters(100)}:1.3)", ""]
    with torch.no_grad():
        together = model.encode_texts(captions)
        for number, caption in enumerate(captions):
            alone = model.encode_texts([caption])
            assert_equal({name: tensor[number : number + 1] for name, tensor in together.items()}, alone)


def test_text_encoders_learn_from_every_chunk(model):
    """The gradient of what a chunk reads reaches the first layer."""
    model.use_reading(Reading(225, emphasis=True))
    weights = [next(model.networks[name].parameters()).requires_grad_() for name in model.text_encoders]
    for chunk in range(3):
        hidden = model.encode_texts([letters(225)])["hidden"][:, 1 + 75 * chunk : 76 + 75 * chunk]
        for gradient in torch.autograd.grad(hidden.square().sum(), weights):
            assert gradient.abs().sum() > 0
    for weight in weights:
        weight.requires_grad_(False)


def test_the_usual_reading_is_the_pipelines_own(model):
    """Bit for bit, and so is ours where it has nothing to do."""
    captions = ["red apple", "", letters(200)]
    with torch.no_grad():
        given = model.pipeline.encode_prompt(captions, device=CPU, num_images_per_prompt=1,
                                             do_classifier_free_guidance=False)
        for reading in (Reading(), Reading(emphasis=True)):
            model.use_reading(reading)
            found = model.encode_texts(captions)
            assert torch.equal(found["hidden"], given[0])
            assert "pooled" not in found or torch.equal(found["pooled"], given[2])


@pytest.mark.short("sdxl")
def test_samples_read_long_prompts_too(model):
    model.use_reading(Reading(150))
    sampling: dict[str, Any] = {"width": 16, "height": 16, "steps": 2, "guidance": 5.0, "seed": 0}
    prompts = {word: f"{letters(139)} {word}" for word in "ab"}
    pictures = {(positive, negative): model.sample([prompts[positive]], prompts[negative], **sampling)[0].tobytes()
                for positive in "ab" for negative in "ab"}
    assert len(set(pictures.values())) == 4
    model.use_reading(Reading())
    cut = {model.sample([prompts[one]], prompts[other], **sampling)[0].tobytes() for one in "ab" for other in "ab"}
    assert len(cut) == 1


def test_what_is_cut_off_follows_the_length(model):
    caption = letters(160)
    for tokens in (75, 150, 225):
        model.use_reading(Reading(tokens))
        assert len(model.cut_off(caption).split()) == max(0, 160 - tokens)
    model.use_reading(Reading(150, emphasis=True))
    weighted = f"({letters(100)}:1.2), \\({letters(60)}"
    assert model.token_starts(weighted)[0] == 1 and weighted[model.token_starts(weighted)[101]] == "("
    assert weighted.endswith(model.cut_off(weighted)) and len(model.cut_off(weighted).split()) == 12


# -- the layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [75, 150])
def test_clip_skip_is_a_shorter_encoder_with_its_final_norm(model, tokens):
    """Of SD1 and SD2; SDXL says that it has no effect."""
    notes = model.use_reading(Reading(tokens, layer=2))
    caption = letters(100)
    with torch.no_grad():
        found, plain = model.encode_texts([caption]), expected(model, [(caption, 1.0)], tokens)
    if "text_encoder_2" in model.networks:
        assert len(notes) == 1 and notes[0].startswith("base.clip_skip: 2 has no effect")
        assert_equal(found, plain)
        return
    assert notes == [] and not torch.allclose(found["hidden"], plain["hidden"])
    assert_equal(found, expected(model, [(caption, 1.0)], tokens, skip=2))


def test_a_layer_that_is_not_there_is_refused():
    model = load_class("sd15")(tiny_pipeline(), CPU)
    with pytest.raises(ValueError, match=r"base\.clip_skip: 3, but .* 2 layers"):
        model.use_reading(Reading(layer=3))


def tiny_pipeline():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        return tiny_sd15.make_pipeline(Path(folder))


def test_conditions_are_cached_apart(model):
    """Each reading is another entry; the usual one has the entries it had."""
    seen = {}
    for reading in (Reading(), Reading(150), Reading(emphasis=True), Reading(layer=2), Reading(150, 2)):
        model.use_reading(reading)
        seen[model.reading] = model.fingerprint("texts")
    assert len(set(seen.values())) == len(seen) == (3 if "text_encoder_2" in model.networks else 5)
    assert seen[Reading()] == model_fingerprint_before(model)


def model_fingerprint_before(model) -> str:
    """As it was when there was one reading only."""
    import hashlib

    from modules.families.parts import files

    networks = [model.networks[name] for name in model.text_encoders]
    tokenizers = [model.pipeline.components[name.replace("text_encoder", "tokenizer")] for name in model.text_encoders]
    facts = [model.PIPELINE, files.computing(model.device), "75", *(files.tokenizing(one) for one in tokenizers),
             files.weights_hash(*networks), *(files.settings(network.config) for network in networks)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


# -- emphasis ---------------------------------------------------------------------------------------------------------

UP, DOWN = 1.1, 1 / 1.1

SYNTAX: dict[str, list[tuple[str, float]]] = {
    "plain words": [("plain words", 1)],
    "an (important) word": [("an ", 1), ("important", UP), (" word", 1)],
    "((very)) [less] (x:1.2) (y:.5) (z:-1)": [
        ("very", UP * UP), (" ", 1), ("less", DOWN), (" ", 1), ("x", 1.2), (" ", 1), ("y", 0.5), (" ", 1), ("z", -1),
    ],
    "(unbalanced": [("unbalanced", UP)],
    "un)balanced] (and:1.5": [("un)balanced] ", 1), ("and:1.5", UP)],
    r"\(literal\] \\ and (\(in\):1.5)": [("(literal] \\ and ", 1), ("(in)", 1.5)],
    "(two)(halves)": [("twohalves", UP)],
    "at 12:30 (a:b:1.3) (c:1.2.3)": [("at 12:30 ", 1), ("a:b", 1.3), (" ", 1), ("c:1.2.3", UP)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1), ("house", 1.3 * UP * UP), (" ", UP), ("on", DOWN * UP), (" a ", UP), ("hill", 0.5 * UP),
        (", sun, ", UP), ("sky", UP**4), (".", UP),
    ],
    "": [("", 1)],
    "()": [("", 1)],
}  # fmt: skip


@pytest.mark.parametrize("caption", SYNTAX)
def test_signs_are_weights(caption):
    found = parts_of(caption)
    assert [part.text for part in found] == [text for text, _ in SYNTAX[caption]]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in SYNTAX[caption]])


def test_any_text_has_parts_and_every_character_its_place():
    draw = random.Random(0)
    for _ in range(2000):
        caption = "".join(draw.choices(["(", ")", "[", "]", "\\", ":", "1.2", ":1.2)", "a", " ", "é", "."], k=12))
        for part in parts_of(caption):
            assert part.text == "".join(caption[place] for place in part.places)


@pytest.mark.parametrize("tokens", [75, 150])
def test_weights_multiply_the_features_as_in_sd_scripts(model, tokens):
    model.use_reading(Reading(tokens, emphasis=True))
    first, second = letters(70, 1), letters(30, 2)
    caption = rf"{first} ({second}:1.3), [{first}] \(x\)"
    pieces = [(f"{first} ", 1.0), (second, 1.3), (", ", 1.0), (first, DOWN), (" (x)", 1.0)]
    with torch.no_grad():
        assert_equal(model.encode_texts([caption]), expected(model, pieces, tokens))
    model.use_reading(Reading(tokens))
    with torch.no_grad():
        assert_equal(model.encode_texts([caption]), expected(model, [(caption, 1.0)], tokens))


# -- other families ---------------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("name", [name for name, row in FAMILIES.items() if row.family not in ("sdxl", "sd15")])
def test_families_with_a_length_of_their_own_say_so(name, tmp_path):
    row = FAMILIES[name]
    folder = row.make_pair(tmp_path)[0]
    model = load_class(row.family).skeleton(Base(path=str(folder)))
    before = model.caption_tokens
    notes = model.use_reading(Reading(225, 2, True))
    assert [note.split(" ")[0].rstrip(":") for note in notes] == [
        "data.caption_tokens", "base.clip_skip", "data.emphasis"]
    assert str(before) in notes[0] and model.caption_tokens == before == model.chunk_tokens
    assert model.use_reading(Reading()) == []
