"""On the demo's base a new token learns what the word of a drawing style means: pictures in that style, which the base
drew itself, have the token in place of the word."""

from pathlib import Path

import pytest
import torch

from modules.preset.files import resolve
from modules.training import new_tokens, setup, stored
from modules.training.command import main
from scripts.demo_data import made_up_words

BASE = Path(__file__).parents[2] / "demo/base"
SHOWN, HELD = ("red apple", "owl", "rocket", "cat face"), ("hamburger", "penguin", "guitar")
TOKEN, WORD = "<way>", made_up_words()[0][3]
GUIDANCE, SIZE = 4.0, 64


@torch.no_grad()
def distance(model, prompts: list[str], meant: list[str]) -> float:
    """How far the base's predictions for some prompts are from those for others: root mean square."""
    shape = (len(prompts), model.latent_channels, SIZE // model.latent_factor, SIZE // model.latent_factor)
    noisy = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sizes, found = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * len(prompts)), []
    for level in (0.6, 0.8, 0.95):
        times = model.process.times(torch.full((len(prompts),), level, dtype=torch.float64), SIZE)
        one, other = (model.predict(noisy, times, model.encode_texts(texts), sizes) for texts in (prompts, meant))
        found.append((one - other).float().square().mean())
    return float(torch.stack(found).mean().sqrt())


def said(word: str, subjects: tuple[str, ...]) -> list[str]:
    return [f"{one}, {word} style" for one in subjects]


@pytest.mark.full
@pytest.mark.usefixtures("forget_accelerate")
def test_a_new_token_learns_the_word_of_a_style(tmp_path):
    tokens = f'[{{"token": "{TOKEN}", "text": "noto", "lr_scale": 1}}]'
    given = [
        ("name", "way"), ("targets.layers", "none"), ("targets.tokens", tokens), ("training.steps", "60"),
        ("training.batch_size", "4"), ("training.learning_rate", "0.02"), ("samples.enabled", "false"),
        ("data.folders", f'["{tmp_path / "pictures"}"]'), ("data.cache_folder", f"{tmp_path / 'cache'}"),
        ("saving.folder", f"{tmp_path}"), ("saving.state_every", "0"),
    ]  # fmt: skip
    preset = resolve("lora_demo", given).preset
    model, _ = setup.load_and_attach(preset, torch.device("cpu"))
    (tmp_path / "pictures").mkdir()
    drawn = model.sample(said(WORD, SHOWN), "", SIZE, SIZE, 15, GUIDANCE, 0)
    for subject, picture, caption in zip(SHOWN, drawn, said(TOKEN, SHOWN), strict=True):
        picture.save(tmp_path / "pictures" / f"{subject}.png")
        (tmp_path / "pictures" / f"{subject}.txt").write_text(caption)
    before = distance(model, said(TOKEN, HELD), said(WORD, HELD))

    words = [word for name, value in given for word in (f"--{name}", value)]
    assert main(["--preset", "lora_demo", *words]) == 0
    with stored.loaded(tmp_path / "way" / "adapter.safetensors", preset, torch.device("cpu")) as (model, layers, _):
        assert not layers and new_tokens.vectors(model, preset.targets).keys() == {TOKEN}
        after = distance(model, said(TOKEN, HELD), said(WORD, HELD))
    assert after < 0.4 * before  # 0.18 when this was written
