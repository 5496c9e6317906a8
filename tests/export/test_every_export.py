"""Every method on every family for every host: what is written is exact, or it is refused with what to do instead."""

import re

import pytest

from modules.files.distance import TOLERANCE
from tests import export_matrix
from tests.export import every

ALL = [(family, label) for family in every.FAMILIES for label in every.VARIANTS]
IN_TURN = [(list(every.FAMILIES)[n % len(every.FAMILIES)], label) for n, label in enumerate(every.VARIANTS)]
"""Every variant with one family in turn."""
FEW = IN_TURN[::2]
"""The test of the whole page, with --all, has all of all."""
LABELS = ("LoRA", "DOFT in planes")
"""Variants for tests of all families, which that test repeats for each."""
LIMITS = {"float32": 1e-5, "float16": 2e-3}


def test_limits_are_those_of_the_exporter():
    assert {dtype: TOLERANCE[dtype] for dtype in LIMITS} == LIMITS


@pytest.mark.parametrize("family, label", FEW)
def test_exact_or_refused_with_what_to_do(family, label):
    found = every.outcomes(family, label)
    assert found.keys() == {(host, dtype) for host in every.HOSTS for dtype in every.DTYPES}
    for (host, dtype), outcome in found.items():
        where = f"{family}, {label}, {host}, {dtype}"
        if outcome.refusal:
            for reason, advice in every.reasons(outcome):
                assert reason and re.search(r"export\.(host|form)|adapter\.axis", advice), where
                assert outcome.refusal.startswith(f"export.host {host}: "), where
            continue
        assert not outcome.approximate, where
        assert outcome.forms and outcome.error <= LIMITS[dtype], where


@pytest.mark.parametrize("family, label", FEW)
def test_what_is_advised_works(family, label):
    """Each alternative that a refusal names is tried: another host, another axis, an approximation."""
    found = every.outcomes(family, label)
    for host in every.HOSTS:
        outcome = found[host, "float32"]
        advice = " ".join(advice for _, advice in every.reasons(outcome))
        for other in re.findall(r"export\.host (\w+)", advice):
            assert not found[other, "float32"].refusal, (host, other)
        for axis in re.findall(r"adapter\.axis (\w+)", advice):
            other = label.replace("input", axis)
            assert other != label and not every.outcomes(family, other)[host, "float32"].refusal, (host, other)
        for form in re.findall(r"export\.form (\w+)", advice):
            tried = every.instead(family, label, host=host, form=form)
            assert not tried.refusal and tried.forms, (host, form, tried.refusal)


@pytest.mark.full
@pytest.mark.parametrize("label", LABELS)
def test_comfyui_and_its_node_hold_everything(label):
    """What the refusals' best alternative is."""
    for family in every.FAMILIES:
        found = every.outcomes(family, label)
        assert not any(found[host, "float32"].refusal for host in ("comfyui", "comfyui_node"))


@pytest.mark.full
@pytest.mark.short("SDXL", "FLUX")
@pytest.mark.parametrize("family", every.FAMILIES)
def test_a_plain_lora_is_held_by_all_hosts(family):
    """With form svd every method is one."""
    for label in ("LoRA", "DOFT in blocks"):
        for host in every.HOSTS:
            tried = every.instead(family, label, host=host, form="svd", rank=2)
            assert all(form.startswith("LoRA") for form in tried.forms) and tried.forms, (label, host, tried)


def numberless(text: str) -> str:
    """Without the numbers of footnotes, which depend on the rows above."""
    return re.sub(r"\(\d+\)", "(n)", text)


@pytest.mark.full
@pytest.mark.parametrize("label", LABELS)
def test_the_page_has_the_forms_of_each_method(label):
    cells = [export_matrix.form_cell(label, host, export_matrix.Footnotes()) for host in export_matrix.PROGRAMS]
    assert numberless(f"| {' | '.join([label, *cells])} |\n") in numberless(export_matrix.PAGE.read_text("utf-8"))


def test_the_page_names_the_versions():
    text = export_matrix.PAGE.read_text(encoding="utf-8")
    assert export_matrix.settled(export_matrix.heading()) in export_matrix.settled(text)


@pytest.mark.full
def test_the_whole_page_is_fresh_and_all_of_it_is_exact_or_refused():
    for family, label in ALL:
        test_exact_or_refused_with_what_to_do(family, label)
    for family, label in IN_TURN:
        test_what_is_advised_works(family, label)
    for label in every.VARIANTS:
        test_comfyui_and_its_node_hold_everything(label)
    text = export_matrix.PAGE.read_text(encoding="utf-8")
    page = export_matrix.page(width=512)  # errors are left out, and with a layer of 1280 they take ten times as long
    assert export_matrix.settled(text) == export_matrix.settled(page)


def test_errors_are_rounded_up():
    assert [export_matrix.limit(e) for e in (0, 3.2e-4, 1e-7, 9.3e-8, 2e-3)] == ["0", "4e-4", "1e-7", "1e-7", "2e-3"]
