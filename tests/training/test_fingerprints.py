"""What a run is made from: a changed base is refused, changed pictures and versions are said, nothing is read twice."""

import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from modules.training import fingerprints, state
from modules.training.fingerprints import MARGIN, Record
from modules.training.state import load_state, states
from tests.training import pair
from tests.training.runs import Place, ask, draw_pictures
from tests.training.test_faults_state import KEEP, flip_a_bit, steps, warnings


def change_a_weight(file: Path) -> None:
    """One bit of one weight; size and times as before."""
    before = file.stat()
    flip_a_bit(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_a_hash_is_remembered_and_made_anew_when_the_file_may_have_changed(tmp_path, monkeypatch):
    file, record = tmp_path / "weights", tmp_path / "cache" / "record.json"
    file.write_bytes(bytes(1000))
    read: list[Path] = []
    monkeypatch.setattr(fingerprints, "checksum", lambda path: read.append(path) or state.checksum(path))

    def hashed() -> str:
        found = Record(record)
        sha = found.sha256(file)
        assert found.sha256(file) == sha  # once
        found.keep()
        return sha

    first = hashed()
    assert first == state.checksum(file) and read == [file]
    assert hashed() == first and len(read) == 2  # as young as its hash: not trusted
    real = fingerprints.time.time_ns
    monkeypatch.setattr(fingerprints.time, "time_ns", lambda: real() + MARGIN)
    assert hashed() == first and len(read) == 3
    assert hashed() == first and len(read) == 3  # remembered
    change_a_weight(file)
    monkeypatch.setattr(fingerprints.time, "time_ns", lambda: real() + 2 * MARGIN)
    assert hashed() == state.checksum(file) != first and len(read) == 4
    flipped = record.read_bytes().replace(b'sha256": "', b'sha256": "0')
    for damage in (b"", b"[]", b'{"files": 3, "sha256": 4}', flipped):
        record.write_bytes(damage)
        assert hashed() == state.checksum(file)


def test_a_file_that_is_swapped_for_another_of_its_size_and_times_is_noticed(tmp_path, monkeypatch):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a" * 100)
    other.write_bytes(b"b" * 100)
    for path in (one, other):
        os.utime(path, (1000, 1000))
    real = fingerprints.time.time_ns
    monkeypatch.setattr(fingerprints.time, "time_ns", lambda: real() + 2 * MARGIN)
    record = Record(tmp_path / "record")
    first = record.sha256(one)
    record.keep()
    other.replace(one)
    assert Record(tmp_path / "record").sha256(one) == state.checksum(one) != first


@pytest.fixture
def own(stage: Path, tmp_path: Path) -> Place:
    """A base and pictures that a test may change, and a run `held` on them that was stopped after two steps."""
    place = Place(tmp_path / "stage", tmp_path / "runs")
    for part in ("base", "validation"):
        shutil.copytree(stage / part, place.stage / part)
    draw_pictures(place.stage / "pictures", 5, 0)
    place.runs.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        ask(patch, place, "held", "stop", at=2)
        assert place.train("held", saving=KEEP) == 130
    return place


@pytest.mark.short("unet")
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder_2"])
def test_a_base_that_has_changed_is_refused(own: Place, part, capsys):
    file = next((own.stage / "base" / part).glob("*.safetensors"))
    change_a_weight(file)
    capsys.readouterr()
    assert own.train("held", saving=KEEP) == 2
    said = capsys.readouterr().err
    assert f"{part}/{file.name}" in said and "--saving.resume_changed" in said and "Traceback" not in said
    assert len(states(own.runs / "held")) == 2
    assert own.train("held", "--saving.resume_changed", "true", saving=KEEP) == 0
    assert f"{part}/{file.name}" in capsys.readouterr().err and f"{part}/{file.name}" in warnings(own)
    assert steps(own) == [1, 2, 3, 4]


def test_other_files_beside_the_base_are_not_the_base(own: Place, capsys):
    """Weights that are not read, and files that were only touched or copied."""
    base = own.stage / "base"
    unet = next((base / "unet").glob("*.safetensors"))
    shutil.copy(unet, unet.with_name(f"{unet.stem}.fp16.safetensors"))
    unet.with_suffix(".bin").write_bytes(b"x")
    (base / "README.md").write_text("x")
    shutil.copy(unet, base / "copy")
    (base / "copy").replace(unet)
    capsys.readouterr()
    assert own.train("held", saving=KEEP) == 0
    assert "warning" not in capsys.readouterr().err and warnings(own) == ""


def test_pictures_and_captions_that_have_changed_are_listed(own: Place, capsys):
    pictures = own.stage / "pictures"
    (pictures / "0.png").unlink()
    (pictures / "0.txt").unlink()
    (pictures / "1.txt").write_text("blue heart")
    shutil.copy(pictures / "3.png", pictures / "2.png")
    draw_pictures(own.stage / "more", 1, 9)
    for end in ("png", "txt"):
        shutil.move(own.stage / "more" / f"0.{end}", pictures / f"new.{end}")
    (own.stage / "validation" / "0.txt").write_text("red apple")
    capsys.readouterr()
    assert own.train("held", saving=KEEP) == 0
    said = capsys.readouterr().err
    for words in (said, warnings(own)):
        for part in ("1 added (new.png)", "1 removed (0.png)", "1 with changed pixels (2.png)",
                     "1 with a changed caption (1.png)"):
            assert part in words, part
        assert "validation pictures have changed since the run's last state: 1 with a changed caption (0.png)" in words
    assert steps(own) == [1, 2, 3, 4]
    made = fingerprints.of_text(load_state(states(own.runs / "held")[-1]).texts)
    assert made is not None and len(made["pictures"]) == 5


def test_many_changes_are_counted():
    before = {f"{n}.png": ["a", "b", 1] for n in range(30)}
    (said,) = fingerprints._pictures_changed("pictures", before, {})
    assert "30 removed (0.png, 1.png" in said and said.endswith("9.png and 20 more)")


@pytest.mark.full
def test_other_versions_are_said(own: Place, monkeypatch, capsys):
    found = fingerprints.versions()
    monkeypatch.setattr(fingerprints, "versions", lambda: {**found, "torch": "9.9", "gimbal": "8.8"})
    with own.session("held", saving=KEEP) as session:
        assert session.step == 2
    said = capsys.readouterr().err
    assert f"torch {found['torch']} -> 9.9" in said and f"gimbal {found['gimbal']} -> 8.8" in said
    assert "torch" in warnings(own)


@pytest.mark.full
def test_the_file_that_a_run_began_with_is_guarded_too(place: Place, monkeypatch, capsys):
    adapter = {"method": "lora", "rank": 2}
    assert place.train("first", "--training.steps", "1", adapter=adapter) == 0
    file = place.runs / "file.safetensors"
    shutil.copy(place.runs / "first" / "first.safetensors", file)
    adapter = {**adapter, "start_from": str(file)}
    with monkeypatch.context() as patch:
        ask(patch, place, "held", "stop", at=1)
        assert place.train("held", adapter=adapter) == 130
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file)
    capsys.readouterr()
    assert place.train("held", adapter=adapter) == 2
    assert "adapter.start_from" in (said := capsys.readouterr().err) and "--saving.resume_changed" in said


def test_check_reads_no_weights(place: Place, monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(fingerprints, "checksum", fail)
    assert place.train("held", "--check") == 0


@pytest.mark.full
def test_two_processes_refuse_together_and_go_back_together(own: Place):
    def go_on(*more: str) -> tuple[list[int], str]:
        return pair.train(own.command("held", *more, saving=KEEP), own.runs)

    change_a_weight(next((own.stage / "base" / "unet").glob("*.safetensors")))
    codes, said = go_on()
    assert all(codes) and said.count("Cannot start:") == said.count("--saving.resume_changed") == 1, said
    assert steps(own) == [1, 2] and "modules/" not in said
    flip_a_bit(own.runs / "held" / "state" / "step-000002" / "adapter.safetensors")
    codes, said = go_on("--saving.resume_changed", "true")
    assert codes == [0, 0] and said.count("step-000002 is damaged") == 1, said
    assert steps(own) == [1, 2, 2, 3, 4]
    assert (own.runs / "held" / "state" / "step-000002.unusable").is_dir()
