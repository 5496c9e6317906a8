"""The runs page keeps what is looked at: jobs end, lists are filtered, messages are being read."""

from dataclasses import replace

from tests.ui.test_runs_page import add_events, made_run, messages, names, page, shown, three  # noqa: F401  fixtures
from ui.core.runs import launch
from ui.core.runs.states import Glance, State, Status
from ui.pages.runs.controls import ENDED


def test_who_watches_a_job_goes_on_watching_its_run_when_the_job_has_ended(three, tmp_path, qtbot):  # noqa: F811
    made_run(tmp_path / "runs/two", "good")
    qtbot.waitUntil(lambda: len(names(three.side.runs)) == 2)
    three.side.jobs.setCurrentRow(1)
    assert three.live.folder == tmp_path / "runs/two"
    three.queue._forget(three.queue.job(three.side.jobs.current().job))
    three.queue.changed.emit()
    assert three.live.folder == tmp_path / "runs/two" and three.side.runs.current().name == "two"


def test_a_filter_hides_runs_but_not_the_one_that_is_looked_at(page, tmp_path, qtbot):  # noqa: F811
    for name in ("one", "two"):
        made_run(tmp_path / "runs" / name, "good")
    page = shown(page(), qtbot, tmp_path / "runs/one")
    page.side.filter.setText("two")
    page.library.changed.emit()
    assert names(page.side.runs) == ["two"] and page.live.folder == tmp_path / "runs/one"
    page.side.filter.setText("")
    page.library.changed.emit()
    assert page.side.runs.current().name == "one"


def test_another_run_does_not_show_the_messages_of_the_one_before(page, tmp_path, qtbot):  # noqa: F811
    page = shown(page(), qtbot, made_run(tmp_path / "runs/bad", "failed"))
    qtbot.waitUntil(lambda: bool(messages(page)))
    page.show_run(made_run(tmp_path / "runs/new", "good"))
    assert not messages(page) and page.live.tabs.tabText(2) == "Messages"


def test_a_message_that_is_read_stays_chosen_while_the_run_goes_on(page, tmp_path, qtbot):  # noqa: F811
    run = made_run(tmp_path / "runs/odd", "good", alive=True)
    add_events(run, {"event": "weather"})
    page = shown(page(), qtbot, run)
    view = page.live.messages.list
    qtbot.waitUntil(lambda: any("weather" in text for text in messages(page)))
    view.setCurrentItem(view.topLevelItem(view.topLevelItemCount() - 1))
    page.live.on_grew()
    assert view.currentItem() is not None and "weather" in page.live.messages.detail.toPlainText()


def test_a_job_that_still_cleans_up_cannot_be_resumed_yet(three, tmp_path):  # noqa: F811
    controls, job = three.live.controls, three.queue.jobs[0]
    glance = Glance(job.folder, "one", Status(State.STOPPED, "."), resumable=True)
    process = launch.Process(1, 1.0, launch.HOST)
    controls.show_subject(
        replace(controls.subject, state=State.STOPPED, glance=glance, job=replace(job, process=process))
    )
    assert controls.resume.isVisible() and not controls.resume.isEnabled()
    controls.show_subject(replace(controls.subject, job=None))
    assert controls.resume.isEnabled()


def test_stopping_what_has_not_begun_says_that_nothing_is_saved(three, monkeypatch):  # noqa: F811
    job = replace(three.queue.jobs[0], process=launch.Process(999999999, 1.0, launch.HOST))
    three.queue._put(job)
    said = []
    three.live.controls.said.connect(said.append)
    three.live.controls.subject = replace(three.live.controls.subject, folder=job.folder, job=job)
    three.live.controls.ask("stop")
    assert said == [ENDED]
