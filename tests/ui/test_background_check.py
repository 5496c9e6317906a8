"""The trainer's check in the background: what it says reaches the fields that it is about."""

import json
from pathlib import Path

import pytest

from ui.core.check import Check, Findings, understood


def test_problems_go_to_the_settings_they_begin_with():
    findings = Findings(
        problems=(
            "data.folders x: there is no such folder",
            "adapter.rank: 0 is too small; at least 1",
            "targets.include: 'a' matches no layer",
            "something.else: is about nothing we know",
            "/pictures/a.png: is broken",
        )
    )
    found = findings.by_path(["data.folders", "adapter.rank", "targets.include", "data"])
    assert found["data.folders"] == ["x: there is no such folder"]
    assert found["adapter.rank"] == ["0 is too small; at least 1"]
    assert found["targets.include"] == ["'a' matches no layer"]
    assert found[""] == ["something.else: is about nothing we know", "/pictures/a.png: is broken"]


def test_an_answer_is_read_and_unknown_facts_are_left_alone():
    answer = {"problems": ["a"], "notes": [], "layers": [{"name": "x"}], "parameters": 3, "invented": 1}
    findings = understood(json.dumps(answer).encode(), "")
    assert findings == Findings(problems=("a",), layers=({"name": "x"},), parameters=3)


@pytest.mark.parametrize("output", [b"", b"not json"])
def test_a_check_that_breaks_says_its_last_words(output):
    assert understood(output, "it ended with code 1: MemoryError: no").failed.endswith("MemoryError: no)")


@pytest.mark.full
def test_the_real_check_answers_and_an_older_one_is_given_up(qtbot, document, tmp_path):
    check = Check(tmp_path)
    answers = []
    check.finished.connect(answers.append)
    check.look_at({**document.values, "family": "no such"}, at_once=True)
    qtbot.wait(300)
    values = {**document.values, "data": {**document.values["data"], "folders": ["no/such/folder"]}}
    with qtbot.waitSignal(check.finished, timeout=60_000):
        check.look_at(values, at_once=True)
    assert len(answers) == 1 and check.findings is answers[0] and not check.running
    found = answers[0].by_path(["data.folders"])
    assert "no/such/folder" in found["data.folders"][0] and not answers[0].failed
    assert answers[0].layers and answers[0].parameters > 0, "layers are listed although the data has a problem"


def test_two_windows_do_not_look_at_each_others_preset(qtbot, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("ui.core.program.QProcess.start", lambda self, program, arguments: started.append(arguments))
    one, other = Check(tmp_path), Check(tmp_path)
    for check, rank in ((one, 1), (other, 2)):
        check.look_at({"adapter": {"rank": rank}})
        check.on_quiet()
    files = [Path(arguments[arguments.index("--preset") + 1]) for arguments in started]
    assert [json.loads(file.read_text())["adapter"]["rank"] for file in files] == [1, 2]
    one.close()
    other.close()
    assert not list(tmp_path.iterdir())
