"""Options without effect: every option says what it has an effect with, or is known to have one always."""

import json
from dataclasses import dataclass

import pytest

from modules.preset import conditions, effects, files, options, renames, section
from modules.preset.export_options import Export
from modules.preset.schema import Preset
from tests.preset import shipped

LISTED = """
adapter.axis adapter.block_size adapter.bound adapter.depth adapter.dropout adapter.exact adapter.factor
adapter.final adapter.folder adapter.form adapter.frozen adapter.init adapter.interval adapter.kind
adapter.learn_weights adapter.links adapter.min_rank adapter.module_dropout adapter.norm_gradient adapter.orthogonality
adapter.planes adapter.rank adapter.rank_dropout adapter.rotation.block_size
adapter.rotation.divisor adapter.rotation.map adapter.rotation.planes adapter.rotation.share adapter.second_rank
adapter.side adapter.start_from adapter.step_size adapter.target_rank adapter.warmup
base.dtype base.offload_blocks base.path base.quantization base.texts base.training_adapter base.vae
data.buckets data.cache data.caption_dropout data.flip data.folders data.missing_captions data.part_dropout
data.resolution data.shuffle data.trigger
base.clip_skip data.broken data.brightness data.caption_lines data.caption_text data.caption_tokens data.captions
data.contrast data.crop data.emphasis data.folders[].loss_weight data.folders[].path data.folders[].references
data.folders[].repeats data.folders[].role data.hue data.keep_separator data.masks data.max_enlargement data.prefix
data.recursive
data.resolutions data.rotation data.saturation data.suffix data.underscores data.wildcards
description export.author export.dataset_names export.dtype export.form export.host export.license export.title
family name
objective.adaptive_offset objective.density objective.loss objective.max_noise objective.min_noise
objective.noise_offset objective.perturbation objective.prediction objective.pyramid_noise
optimizer.algorithm optimizer.alpha optimizer.arguments optimizer.beta1 optimizer.beta2 optimizer.beta2_decay
optimizer.beta3 optimizer.bias_correction optimizer.clip optimizer.eps optimizer.factor optimizer.first_lr
optimizer.form optimizer.growth optimizer.guard optimizer.iterations optimizer.late_weight optimizer.least_scale
optimizer.moment_rank optimizer.momentum optimizer.nesterov optimizer.ridge optimizer.skip_above
samples.enabled samples.prompts[].prompt samples.prompts[].references
saving.export_every saving.folder saving.keep_states saving.resume_changed saving.state_every
targets.encoders[].lr_scale targets.encoders[].name targets.encoders[].stop
targets.exclude targets.include targets.layers targets.rules targets.tokens
targets.tokens[].file targets.tokens[].lr_scale targets.tokens[].stop targets.tokens[].token targets.tokens[].vectors
targets.rules[].lr_scale targets.rules[].match targets.rules[].rank
training.accumulation training.batch_size training.compile training.epochs training.gradient_checkpointing
training.ema training.learning_rate training.max_grad_norm training.precision training.schedule training.seed
training.warmup_share
"""
ALWAYS = set(LISTED.split())
"""Options that have an effect whatever the others are. A new option is put here, or says what it `needs`."""


@dataclass(frozen=True)
class One:
    """An option somewhere in a preset."""

    name: str
    path: str
    """Of the section, or of the entries of the list, that it is in."""
    needs: tuple[str, ...]


def everything() -> list[One]:
    found = []
    for group in options.groups(Preset):
        for name, field in group.options():
            if name == options.join(group.path, group.tag):
                continue
            found.append(One(name, group.path, section.needs(field)))
            entries = options.entry(field.annotation)
            for key, inner in entries.model_fields.items() if entries else ():
                found.append(One(f"{name}[].{key}", f"{name}[]", section.needs(inner)))
    return found


def test_every_option_says_what_it_needs_or_always_has_an_effect():
    mirrored = {name.replace("data.", "data.folders[].") for name in ALWAYS}  # a folder's settings: as all pictures'
    needing = {one.name for one in everything() if one.needs}  # with one method or optimizer, if not with others
    undecided = {one.name for one in everything()} - needing - ALWAYS - mirrored
    assert not undecided, f"give them needs=, or list them as ALWAYS: {sorted(undecided)}"
    free = {one.name for one in everything() if not one.needs}
    assert not ALWAYS - {one.name for one in everything()}, "no such option any more"
    assert not ALWAYS - free, "no longer always"


def test_conditions_name_options_values_and_facts_that_exist():
    known = options.options(Preset)
    inner = {one.name for one in everything()} | set(known)
    for one in everything():
        for condition in one.needs:
            for part in conditions.parse(condition):
                if part.name.startswith("@"):
                    assert part.name[1:] in conditions.FACTS, (one.name, part)
                    continue
                name = conditions.absolute(part.name, one.path)
                assert name in inner and name != one.name, (one.name, part)
                choices = options.choices(Preset, name) if name in known else ()
                assert all(value in choices for value in part.values if choices), (one.name, part)
    used = {part.name[1:] for one in everything() for text in one.needs for part in conditions.parse(text)}
    assert set(conditions.FACTS) <= used, "facts that no option needs"


BARE = {"family": "sdxl", "adapter": {"method": "lora"}}
KNOWN = {"diffusion": True, "flow": False, "validation": False, "single_file": False, "text_layers": False,
         "decayed": True, "scaled": False, "magnitudes": False, "output_magnitudes": False,
         "kernels": False,
         "objective.density": "uniform"}

IDLE = [
    ({"data.keep_tokens": 3}, "data.keep_tokens 3 has no effect without data.shuffle or data.part_dropout"),
    ({"data.separator": ";"},
     "data.separator ';' has no effect without data.shuffle, data.part_dropout or data.trigger"),
    ({"training.final_lr": 0.2, "training.schedule": "constant"},
     "training.final_lr 0.2 has no effect with training.schedule constant; set training.schedule to "
     "linear, cosine, cosine_with_restarts, polynomial, warmup_stable_decay or rex"),
    ({"training.final_lr": 0, "training.schedule": "constant"},
     "training.final_lr 0 has no effect with training.schedule constant; set training.schedule to "
     "linear, cosine, cosine_with_restarts, polynomial, warmup_stable_decay or rex"),
    ({"training.warmup": 7, "training.warmup_share": 0.1},
     "training.warmup 7 has no effect with training.warmup_share 0.1; set training.warmup_share to null"),
    ({"training.cycles": 3, "training.schedule": "rex"},
     "training.cycles 3 has no effect with training.schedule rex; set training.schedule to cosine or "
     "cosine_with_restarts"),
    ({"data.max_aspect": 3, "data.buckets": False}, "data.max_aspect 3 has no effect without data.buckets"),
    ({"data.cache_folder": "there", "data.cache": False}, "data.cache_folder there has no effect without data.cache"),
    ({"targets.text_encoder_lr_scale": 0.1},
     "targets.text_encoder_lr_scale 0.1 has no effect without targets.text_encoders or targets.include"),
    ({"targets.text_encoders": True},
     "targets.text_encoders true has no effect because no layer of a text encoder is adapted"),
    ({"training.steps": 300, "training.epochs": 5},
     "training.steps 300 has no effect with training.epochs 5; set training.epochs to null"),
    ({"base.config": "folder"}, "base.config folder has no effect with a base that is no single-file checkpoint"),
    ({"validation.every": 50}, "validation.every 50 has no effect without validation pictures"),
    ({"validation.draws": 2}, "validation.draws 2 has no effect without validation pictures"),
    ({"samples.every": 100, "samples.enabled": False}, "samples.every 100 has no effect without samples.enabled"),
    ({"samples.every_unit": "minutes", "samples.every": 0},
     "samples.every_unit minutes has no effect without samples.every"),
    ({"samples.negative": "blurry", "samples.guidance": 1},
     "samples.negative blurry has no effect with samples.guidance 1; set samples.guidance to more than 1"),
    ({"saving.keep_exports": 2}, "saving.keep_exports 2 has no effect without saving.export_every"),
    ({"saving.keep_best": True}, "saving.keep_best true has no effect without validation pictures"),
    ({"export.comfyui_norm": "adapted"},
     "export.comfyui_norm adapted has no effect without output-axis magnitudes in the file"),
    ({"adapter.method": "lokr", "adapter.step_size": "raw", "adapter.alpha": 4},
     "adapter.alpha 4 has no effect because the factors of all layers are full matrices"),
    ({"adapter.method": "oft", "adapter.rotation": {"kind": "blocks", "conv": "kernel"}},
     "adapter.rotation.conv kernel has no effect because no adapted layer is a convolution with a kernel"),
    ({"adapter.method": "oft", "adapter.rotation": {"kind": "blocks", "conv": "kernel"}, "adapter.side": "output"},
     "adapter.rotation.conv kernel has no effect with adapter.side output; set adapter.side to input"),
    ({"adapter.skip_unknown": True}, "adapter.skip_unknown true has no effect without adapter.start_from"),
]


def preset_of(given: dict) -> Preset:
    values = json.loads(json.dumps(BARE))
    for name, value in given.items():
        renames.place(values, name, value)
    return Preset.model_validate(values)


@pytest.mark.parametrize("given, sentence", IDLE)
def test_an_option_without_effect_is_one_sentence(given, sentence):
    assert effects.notes(preset_of(given), KNOWN) == [sentence]


HELD = [
    {"data.keep_tokens": 3, "data.shuffle": True},
    {"data.keep_tokens": 3, "data.part_dropout": 0.1},
    {"training.final_lr": 0.2},
    {"data.buckets": False},
    {"samples.enabled": False},
    {"saving.keep_exports": 2, "saving.export_every": 1},
    {"adapter.method": "wora", "adapter.learn_weights": False},
]


@pytest.mark.parametrize("given", HELD)
def test_what_has_an_effect_or_asks_for_nothing_gives_no_note(given):
    assert effects.notes(preset_of(given), KNOWN) == []


def test_what_only_the_check_knows_is_taken_as_given_until_then():
    given = {"validation.every": 50, "base.config": "folder", "targets.text_encoders": True}
    assert effects.notes(preset_of(given), {}) == []
    assert len(effects.notes(preset_of(given), KNOWN)) == 3
    known = {**KNOWN, "validation": True, "single_file": True, "text_layers": True}
    assert effects.notes(preset_of(given), known) == []


def test_a_default_that_was_given_is_noted_too_and_a_complete_preset_gives_nothing(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**BARE, "training": {"schedule": "constant", "final_lr": 0.05}}))
    given = files.resolve(str(path)).given
    assert given == {"family", "adapter.method", "training.schedule", "training.final_lr"}
    said = ["training.final_lr 0.05 has no effect with training.schedule constant; set training.schedule to linear, "
            "cosine, cosine_with_restarts, polynomial, warmup_stable_decay or rex"]
    assert effects.notes(files.resolve(str(path)).preset, KNOWN, given) == said
    run = tmp_path / "run" / "preset.json"
    run.parent.mkdir()
    run.write_text(files.to_json(files.resolve(str(path)).preset))
    assert files.resolve(str(run)).given == frozenset()
    resolved = files.resolve(str(run), [("data.keep_tokens", "1")])
    assert resolved.given == {"data.keep_tokens"}
    assert [note.split()[0] for note in effects.notes(resolved.preset, KNOWN, resolved.given)] == ["data.keep_tokens"]


@pytest.mark.parametrize("name", shipped.NAMES)
def test_shipped_presets_set_nothing_without_effect(name):
    resolved = shipped.resolved(name)
    flow = resolved.preset.objective.min_snr_gamma is None
    facts = {**KNOWN, "diffusion": not flow, "flow": flow, "objective.density": "logit_normal" if flow else "uniform"}
    del facts["validation"]  # some of them have a folder
    assert effects.notes(resolved.preset, facts, resolved.given) == []


@pytest.mark.parametrize("given, words", [
    ({"rank": 4}, "rank 4 has no effect with form auto; set form to compact or svd, or set it to null"),
    ({"host": "kohya", "computes_in": "float16"},
     "computes_in float16 has no effect with host kohya; set host to comfyui, or leave computes_in at auto"),
])  # fmt: skip
def test_where_it_is_an_error_the_section_alone_says_so(given, words):
    with pytest.raises(ValueError, match=words):
        Export.model_validate(given)


def test_the_manual_and_the_schema_say_it():
    manual = (files.FOLDER.parent / "docs" / "preset-reference.md").read_text(encoding="utf-8")
    row = next(line for line in manual.splitlines() if line.startswith("| `data.keep_tokens`"))
    assert row.endswith("Only with data.shuffle or data.part_dropout. |")
    schema = json.loads((files.FOLDER.parent / "configs" / "preset.schema.json").read_text(encoding="utf-8"))
    tokens = schema["$defs"]["Data"]["properties"]["keep_tokens"]
    assert tokens["needs"] == [
        "data.shuffle or data.folders[].shuffle or data.part_dropout or data.folders[].part_dropout"
    ]
    assert tokens["only_with"] == "Only with data.shuffle or data.part_dropout."
