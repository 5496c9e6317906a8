"""The layers page: the list, its totals and warnings, and excluding from it."""

import fnmatch

import pytest
from PySide6.QtCore import QItemSelectionModel, Qt
from PySide6.QtWidgets import QLabel, QPushButton

from ui.core.check import Check, Findings
from ui.pages.layers.block_tree import LayerModel, block_of
from ui.pages.layers.layers_page import EXCLUDE, LayersPage

NAMES = (
    "unet.conv_in",
    "unet.time_embedding.linear_1",
    *(f"unet.down_blocks.{n}.attentions.0.attn1.{p}" for n in (0, 1, 10) for p in ("to_q", "to_k", "to_out.0")),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1",
)


def layer(name: str) -> dict:
    kind, kernel = ("conv", 9) if "conv" in name else ("linear", 1)
    return {"name": name, "kind": kind, "out_features": 64, "channels": 32, "kernel": kernel, "parameters": 1000}


LAYERS = tuple(layer(name) for name in NAMES)


def findings(*problems: str, layers=LAYERS) -> Findings:
    return Findings(
        problems=problems,
        layers=layers,
        trainable_layers=178,
        parameters=1000 * len(layers),
        file_bytes=3 * 2**20,
        forms={"LoRA": len(layers)},
    )


@pytest.fixture
def check(qapp, tmp_path):
    return Check(tmp_path)


@pytest.fixture
def page(qtbot, document, check):
    page = LayersPage(document, check)
    qtbot.addWidget(page)
    page.resize(900, 660)
    page.show()
    return page


def rows(page) -> list[tuple[str, list[str]]]:
    model = page.model
    result = []
    for row in range(model.rowCount()):
        top = model.index(row, 0)
        result.append((model.data(top), [model.data(model.index(n, 0, top)) for n in range(model.rowCount(top))]))
    return result


def select(page, *names: str) -> None:
    """Select layers by their whole name, or blocks."""
    model, selection = page.model, page.tree.selectionModel()
    selection.clear()
    for row in range(model.rowCount()):
        top = model.index(row, 0)
        for index in [top, *(model.index(n, 0, top) for n in range(model.rowCount(top)))]:
            if model.data(index, Qt.ItemDataRole.ToolTipRole) in names:
                selection.select(
                    index, QItemSelectionModel.SelectionFlag.Select | QItemSelectionModel.SelectionFlag.Rows
                )


def sentences(page) -> list[str]:
    return [label.text() for label in page.problems.findChildren(QLabel) if label.isVisible()]


def test_layers_are_listed_by_block_with_shape_and_parameters(page, check):
    check.finished.emit(findings())
    listed = dict(rows(page))
    assert listed["unet"] == ["conv_in"]
    assert listed["unet.down_blocks.1"] == [f"attentions.0.attn1.{p}" for p in ("to_q", "to_k", "to_out.0")]
    assert sum(len(layers) for layers in listed.values()) == len(NAMES)
    model, top = page.model, page.model.index(0, 0)
    assert [model.data(model.index(0, column, top)) for column in range(4)] == [
        "conv_in",
        "conv",
        "64 × 32 × 9",
        "1,000",
    ]
    assert page.totals.text() == "12 of 178 layers  ·  12,000 parameters  ·  file about 3.0 MiB (12 LoRA)"
    assert not page.state.isVisible()


@pytest.mark.parametrize(
    "name, block",
    [
        ("unet.conv_in", "unet"),
        ("unet.time_embedding.linear_1", "unet.time_embedding"),
        ("unet.down_blocks.1.attentions.0.proj_in", "unet.down_blocks.1"),
        ("unet.mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0"),
        ("text_encoder.encoder.layers.3.mlp.fc1", "text_encoder.encoder.layers.3"),
        ("unet.head.0", "unet.head"),
        ("proj", ""),
    ],
)
def test_blocks(name, block):
    assert block_of(name) == block


def test_the_model_is_a_sound_tree(qapp, qtmodeltester):
    model = LayerModel()
    model.set_layers(LAYERS, "")
    qtmodeltester.check(model)


def test_the_filter_finds_names_and_kinds(page, check):
    check.finished.emit(findings())
    page.filter.setText("blocks.1. TO_Q")
    assert rows(page) == [("unet.down_blocks.1", ["attentions.0.attn1.to_q"])]
    page.filter.setText("conv")
    assert rows(page) == [("unet", ["conv_in"])]


def test_a_layer_is_excluded_by_its_name_and_that_can_be_undone(page, check, document):
    check.finished.emit(findings())
    assert not page.exclude_layers.isEnabled()
    select(page, "unet.conv_in")
    assert not page.exclude_block.isEnabled()  # the whole network is not a block
    page.exclude_layers.trigger()
    assert document.value(EXCLUDE) == ["unet.conv_in"] and "unet.conv_in" in page.excluded.text()
    select(page, "unet.time_embedding.linear_1", "unet.down_blocks.0.attentions.0.attn1.to_q")
    assert page.exclude_layers.text() == "Exclude these layers"
    page.exclude_layers.trigger()
    assert len(document.value(EXCLUDE)) == 3
    document.undo.undo()
    assert document.value(EXCLUDE) == ["unet.conv_in"]


def test_the_pattern_of_a_block_matches_its_layers_and_no_others(page, check, document):
    check.finished.emit(findings())
    for name, _ in rows(page):
        select(page, name)
        if not page.exclude_block.isEnabled():
            continue
        document.set(EXCLUDE, [])
        page.exclude_block.trigger()
        (pattern,) = document.value(EXCLUDE)
        assert fnmatch.filter(NAMES, pattern) == [layer for layer in NAMES if block_of(layer) == name], pattern


def test_patterns_without_a_match_stand_above_with_a_way_to_the_field(page, check, qtbot):
    check.finished.emit(
        findings("targets.exclude: 'unet.conv_inn' matches no layer; layer names look like unet.conv_in")
    )
    assert sentences(page) == ["Exclude: 'unet.conv_inn' matches no layer; layer names look like unet.conv_in"]
    assert rows(page), "layers that do match are still listed"
    with qtbot.waitSignal(page.show_field) as shown:
        page.problems.findChild(QPushButton).click()
    assert shown.args == [EXCLUDE]
    check.finished.emit(findings())
    assert not page.problems.isVisible()


def test_problems_elsewhere_are_not_repeated_here(page, check):
    check.finished.emit(findings("data.folders is empty; give the folder with the pictures"))
    assert sentences(page) == []


def test_many_problems_leave_room_for_the_list(page, check):
    check.finished.emit(findings(*(f"targets.include: '{n}' matches no layer" for n in range(30))))
    assert len(sentences(page)) == 6 and sentences(page)[-1] == "… and 25 problems more"
    assert page.tree.height() > page.height() // 3


def test_no_layers_say_why(page, check):
    check.finished.emit(findings("base.path: nowhere: there is no such folder", layers=()))
    assert sentences(page) == ["Model: nowhere: there is no such folder"]
    assert page.state.text() == "No layers match" and page.totals.text() == "" and rows(page) == []


def test_states_checking_stale_and_failed(page, check):
    assert page.state.text() == "Not checked"
    check.started.emit()
    assert page.state.text() == "Checking…"
    check.finished.emit(findings())
    check.started.emit()
    assert "Out of date" in page.state.text() and rows(page)
    check.finished.emit(Findings(failed="no memory"))
    assert page.state.text() == "Check failed: no memory" and rows(page)


def test_what_was_unfolded_stays_so(page, check):
    many = tuple(layer(f"unet.blocks.{n}.{k}.to_q") for n in range(5) for k in range(20))
    check.finished.emit(findings(layers=many))
    assert not page.tree.isExpanded(page.model.index(2, 0))
    page.tree.expand(page.model.index(2, 0))
    check.finished.emit(findings(layers=many[1:]))
    assert [page.tree.isExpanded(page.model.index(row, 0)) for row in range(5)] == [False, False, True, False, False]
