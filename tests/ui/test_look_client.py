"""The window's questions about pictures: answered, superseded, refused, and asked again after the process died."""

import sys
from pathlib import Path

import pytest

from ui.core.look import Look

FAKE = [sys.executable, str(Path(__file__).with_name("fake_look.py"))]


@pytest.fixture
def look(qapp):
    client = Look(command=FAKE)
    client.heard = []
    client.answered.connect(lambda kind, answer: client.heard.append((kind, answer)))
    client.refused.connect(lambda kind, sentence: client.heard.append((kind, sentence)))
    yield client
    client.close()


def sees(seed: int) -> dict:
    return {"preset": {}, "path": "a.png", "caption": "a cat", "seed": seed, "draws": 2}


def pictures(folder: Path) -> dict:
    return {"preset": {"data": {"folders": [str(folder)]}}, "which": "training"}


def test_an_answer_comes_with_its_kind(look, qtbot):
    with qtbot.waitSignal(look.answered) as answer:
        look.ask("sees", sees(5))
    kind, facts = answer.args
    assert kind == "sees" and [draw["prompt"] for draw in facts["draws"]] == ["a cat 5", "a cat 5"]
    assert not look.is_busy("sees")


def test_only_the_newest_question_of_a_kind_is_answered(look, qtbot):
    for seed in range(6):
        look.ask("sees", sees(seed))
    qtbot.waitUntil(lambda: not look.is_busy("sees"), timeout=20000)
    assert [answer["draws"][0]["prompt"] for _, answer in look.heard] == ["a cat 5"]


def test_progress_is_told(look, qtbot, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with qtbot.waitSignals([look.progressed, look.answered]):
        look.ask("pictures", pictures(tmp_path))


def test_a_refusal_is_a_sentence_and_does_not_end_the_process(look, qtbot, tmp_path):
    look.ask("pictures", pictures(tmp_path / "refused"))
    qtbot.waitUntil(lambda: bool(look.heard), timeout=20000)
    assert look.heard == [("pictures", "data.folders: not today")]
    with qtbot.waitSignal(look.answered):
        look.ask("sees", sees(1))


def test_a_death_is_told_once_for_each_open_question_and_the_next_question_starts_anew(look, qtbot, tmp_path):
    look.ask("pictures", pictures(tmp_path / "deadly"))
    look.ask("sees", sees(0))
    qtbot.waitUntil(lambda: len(look.heard) == 2, timeout=20000)
    assert {kind for kind, _ in look.heard} == {"pictures", "sees"}
    assert all("ended with code 3: MemoryError: too much" in sentence for _, sentence in look.heard)
    with qtbot.waitSignal(look.answered):
        look.ask("sees", sees(1))


def test_a_program_that_is_not_there_is_a_sentence(qtbot, tmp_path):
    client = Look(command=[str(tmp_path / "nothing")])
    with qtbot.waitSignal(client.refused) as refusal:
        client.ask("sees", sees(0))
    assert "nothing cannot be started" in refusal.args[1]
    client.close()


def test_a_closed_client_says_nothing_more(look, qtbot):
    look.ask("sees", sees(0))
    look.close()
    qtbot.wait(100)
    assert look.heard == []
