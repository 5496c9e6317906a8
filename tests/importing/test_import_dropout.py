"""Dropout and the largest norm of other trainers' plain LoRAs."""

import pytest

from tests.importing.test_import_aitoolkit import job
from tests.importing.test_import_kohya import FLUX
from tests.importing.test_import_onetrainer import SDXL


def onetrainer(**changes):
    return {**SDXL, "lora_rank": 48, "lora_alpha": 24, **changes}


def kohya(module="networks.lora_flux", more="", rest=""):
    return FLUX.replace("networks.lora_flux", module).format(more=f"--network_dropout 0.1 {rest}--network_args "
                                                             f"rank_dropout=0.2 module_dropout=0.3 {more}")


REGULARISED = {
    "kohya": ((kohya(rest="--scale_weight_norms 1.5 "), "txt"),
              {"dropout": 0.1, "dropout_of": "inner", "rank_dropout": 0.2, "module_dropout": 0.3, "max_norm": 1.5}),
    "OneTrainer": ((onetrainer(peft_type="LORA", dropout_probability=0.1), "json"),
                   {"dropout": 0.1, "dropout_of": "inner"}),
    "ai-toolkit": ((job(network={"dropout": 0.1}), "yaml"), {"dropout": 0.1, "dropout_of": "inner"}),
}


@pytest.mark.parametrize("name", REGULARISED)
def test_dropout_of_a_plain_lora(imported, name):
    (values, ending), expected = REGULARISED[name]
    adapter = imported(values, ending).preset.adapter.model_dump()
    assert {key: adapter[key] for key in expected} == expected and adapter["method"] == "lora"


def test_a_batch_leaves_out_a_layer_together_there(imported, of):
    found = imported(kohya(rest="--train_batch_size 2 "), "txt")
    assert found.preset.adapter.module_dropout == 0.3
    assert "for single samples here" in of(found.found, "network_args.module_dropout").sentence


@pytest.mark.parametrize("values, ending, key", [
    (kohya("lycoris.kohya", "algo=loha"), "txt", "network_dropout"),
    (onetrainer(peft_type="LORA", lora_decompose=True, dropout_probability=0.1), "json", "dropout_probability"),
])
def test_other_methods_dropout_is_not_taken(imported, of, values, ending, key):
    found = imported(values, ending)
    assert not {"dropout", "rank_dropout"} & {name for name, value in found.preset.adapter if value}
    assert "only the dropout of a plain LoRA has one" in of(found.found, key).sentence


def test_lycoris_leaves_out_layers_with_every_method(imported):
    found = imported(kohya("lycoris.kohya", "algo=loha"), "txt").preset.adapter
    assert found.method == "loha" and found.module_dropout == 0.3
