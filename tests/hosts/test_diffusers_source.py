"""diffusers' conversion of names, run from its files alone, does what the package does; and inspect imports no package.
"""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_pipeline
from diffusers.utils import state_dict_utils
from torch.utils._pytree import tree_map

from modules.hosts.key_maps import diffusers_keys, diffusers_source
from tests.files import inspect_corpus

ROOT = Path(__file__).parents[2]
CONVERSIONS = ("convert_unet_state_dict_to_peft", "convert_state_dict_to_diffusers", "convert_state_dict_to_peft")

WATCHED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    heavy = {"diffusers", "transformers", "accelerate", "torch._dynamo", "modules.preset.schema"} & set(sys.modules)
    assert not heavy, heavy
"""


def converted(modules: tuple[Any, Any], family: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What each of diffusers' functions makes of a file's tensors, or the exception."""
    pipeline, states = modules
    mixin = vars(pipeline)[diffusers_keys.MIXINS[family]]
    more = {"unet_config": SimpleNamespace(layers_per_block=2)} if family == "sdxl" else {}
    found = {}
    for name, function in (("lora_state_dict", lambda given: mixin.lora_state_dict(given, **more)),
                           *((name, vars(states)[name]) for name in CONVERSIONS)):
        try:
            found[name] = tree_map(lambda one: one.tolist() if isinstance(one, torch.Tensor) else one,
                                   function(dict(tensors)))
        except Exception as error:  # whatever diffusers raises on a file
            found[name] = f"{type(error).__name__}: {error}"
    return found


@pytest.mark.short("sdxl")
@pytest.mark.parametrize("family", inspect_corpus.MODELS)
def test_names_are_converted_as_by_the_package(family):
    """Every third file of the corpus, with small tensors: the same names, values and exceptions."""
    cases = [case for case in inspect_corpus.cases() if case.family == family]
    assert len(cases) > 15
    for case in cases[::3]:
        tensors = {key: torch.arange(float(torch.Size(min(side, 6) for side in shape).numel())).reshape(
            [min(side, 6) for side in shape]) for key, shape in case.tensors.items()}
        alone = converted((diffusers_source.lora_pipeline(), diffusers_source.state_dicts()), family, tensors)
        package = converted((lora_pipeline, state_dict_utils), family, tensors)
        assert alone == package, case.name


@pytest.mark.full
def test_inspect_imports_no_models(tmp_path):
    """Importing diffusers takes longer than all that inspect does."""
    path = next(case for case in inspect_corpus.cases() if case.family == "sdxl").write(tmp_path)
    done = subprocess.run([sys.executable, "-c", WATCHED, str(ROOT / "scripts/inspect_adapter.py"), str(path)],
                          capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    assert "diffusers: loads" in done.stdout
