"""The tables say what was measured, and the picture shows what fits beside full LoRA."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from quality_parts.curves import Timing, points
from quality_parts.estimates import Estimate
from quality_parts.report import is_in_sight, report, said, table
from quality_parts.run import Run
from quality_parts.store import Store
from quality_task import SETTINGS


def _run(arm: str, length: float = 1.0, seed: int = 0, loss: float = 0.5) -> Run:
    return Run(arm, length, seed, 4, {"loss": loss, "accuracy": 70.0}, ["a", "b"], ["01"], [0], [0.1, 0.1], [0.7])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, SETTINGS)


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_the_report_writes_its_tables_and_a_picture(store: Store) -> None:
    for length, loss in ((0.5, 0.9), (1.0, 0.5)):
        for seed in (0, 1):
            store.add(_run("full", length, seed, loss))
            store.add(_run("freeze", length, seed, loss + 0.1))
    for seed in (0, 1):
        store.add(_run("grow", 1.0, seed, 0.6))
    store.write("timing", {"arms": {arm: {"step": 0.8, "backward": 0.6} for arm in ("freeze", "grow")}})
    text = report(store)
    assert (store.folder / "table.md").read_text() == text + "\n"
    assert (store.folder / "curves.png").stat().st_size > 0
    measured, compared = map(_rows, text.split("\n\n"))
    assert dict(zip(measured[0], measured[-1], strict=True)) == {
        "arm": "grow",
        "what": "the depth grows over the run",
        "length": "1",
        "seeds": "2",
        "adapters shut": "50 %",
        "backward": "0.60",
        "time": "0.80",
        "accuracy %": "70.0 ± 0.0",
        "test loss": "0.600 ± 0.000",
    }
    assert dict(zip(compared[0], compared[-1], strict=True)) == {
        "arm": "grow",
        "length": "1",
        "time": "0.80",
        "accuracy, against full LoRA": "+0.0 ± 0.0",
        "loss, against full LoRA": "+0.100 ± 0.000",
        "accuracy, against fewer steps": "+0.0 ± 0.0",
        "loss, against fewer steps": "-0.060 ± 0.000",
        "verdict by accuracy": "level",
        "verdict by loss": "better",
        "loss, against freeze": "+0.000 ± 0.000",
    }


def test_exact_answers_are_reported_of_the_runs_that_have_them(store: Store) -> None:
    store.add(_run("full"))
    assert "exact" not in report(store)
    later = _run("micro")
    store.add(replace(later, scores={**later.scores, "exact": 12.5}))
    header, _, full, micro = _rows(report(store).split("\n\n")[0])
    assert [row[header.index("exact %")] for row in (full, micro)] == ["", "12.5"]


def test_columns_in_which_nothing_is_said_are_left_out() -> None:
    assert _rows(table(["a", "b"], [["1", ""], ["2", ""]]))[0] == ["a"]


def test_an_error_that_is_not_known_is_not_written() -> None:
    assert said(Estimate(1.0, math.nan, 1), "+.1f") == "+1.0"
    assert said(Estimate(math.nan, math.nan), "+.1f") == ""


@pytest.mark.parametrize(("loss", "seen"), [(1.0, True), (2.5, True), (2.51, False)])
def test_the_picture_leaves_out_what_would_squeeze_the_others(loss: float, seen: bool) -> None:
    found = points([_run("full", 0.5, 0, 0.9), _run("full", 1.0, 0, 0.5), _run("drift", 1.0, 0, loss)], Timing({}))
    assert is_in_sight(found[-1], found, "loss") is seen


def test_without_full_lora_all_is_in_the_picture() -> None:
    found = points([_run("drift", 1.0, 0, 99.0)], Timing({}))
    assert is_in_sight(found[0], found, "loss")
