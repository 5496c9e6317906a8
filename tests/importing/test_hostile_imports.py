"""Files that no trainer has written: refused in a sentence with their name, or described, within seconds."""

import json
import time

import pytest
import yaml

from modules.importing import import_file, report
from modules.importing.base import Wishes
from tests.importing.test_import_aitoolkit import FLUX as JOB
from tests.importing.test_import_kohya import FLUX, GUI, toml
from tests.importing.test_import_onetrainer import SDXL

DEEP = 100_000
BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))])

FILES = {
    "deep.json": '{"training_method": ' + "[" * DEEP,
    "deep.toml": "network_args = " + "[" * DEEP,
    "keys.toml": "network_dim" + ".a" * DEEP + " = 1",
    "deep.yaml": "job: " + "[" * DEEP,
    "bomb.yaml": f"{yaml.safe_dump(JOB)}\n{BOMB}",
    "self.yaml": "job: &a\n  config: *a",
    "digits.yaml": "job: " + ":".join(["10"] * DEEP),
    "object.yaml": "job: !!python/object/apply:os.system [ls]",
    "twice.yaml": "job: a\njob: b",
    "twice.json": '{"LoRA_type": "Standard", "LoRA_type": "Kohya LoCon"}',
    "many.json": json.dumps({**GUI, **{f"key{n}": n for n in range(200_000)}}),
    "many.txt": FLUX.format(more=" ".join(f"--key{n} {n}" for n in range(30_000))),
    "concepts.json": json.dumps({**SDXL, "concepts": [{"path": f"/{n}"} for n in range(20_000)]}),
    "nul.json": "{\0}",
    "no_size.json": json.dumps({**SDXL, "resolution": []}),
    "nan.json": json.dumps({**GUI, "network_dim": float("nan")}),
    "infinite.json": json.dumps({**GUI, "network_dim": float("inf")}),
    "huge.json": json.dumps({**GUI, "network_dim": 10**400}),
}


@pytest.mark.parametrize("name", FILES)
def test_it_is_one_sentence_and_soon(tmp_path, name):
    path = tmp_path / name
    path.write_text(FILES[name])
    begun = time.monotonic()
    with pytest.raises(ValueError) as caught:
        import_file(path, Wishes("", "sdxl"))
    assert time.monotonic() - begun < 10
    said = str(caught.value)
    assert str(path) in said and "\n" not in said and len(said) < 1000


def test_settings_that_name_each_other_come_to_an_end(tmp_path):
    (tmp_path / "a.toml").write_text(toml() .replace("network_dim", 'config_file = "b.toml"\nnetwork_dim'))
    (tmp_path / "b.toml").write_text('config_file = "a.toml"\nlearning_rate = 2e-4')
    assert import_file(tmp_path / "a.toml", Wishes("", "sdxl")).values


@pytest.mark.parametrize("steers", ["\x1b[2J", "\x9b31m", "\u202e", "a\nb: owned", "\x07"])
def test_nothing_of_the_file_steers_the_terminal(tmp_path, steers):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**GUI, f"no_{steers}": steers, "output_name": steers, "sample_prompts": steers}))
    found = import_file(path, Wishes("", "sdxl"))
    text = report.text(found)
    assert steers not in text
