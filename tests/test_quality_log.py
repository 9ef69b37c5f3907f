"""The log has a row for each trial in each setting; it, the tables and the times are of the runs that are committed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from quality_parts.arms import ARMS
from quality_parts.report import points_of, tables
from quality_parts.run import Run
from quality_parts.store import Store
from quality_parts.tasks import TASKS
from quality_parts.timing import chosen_masks, longest_runs
from quality_task import SETTINGS
from tried import log_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/quality"
DOCUMENT = ROOT / "docs/policies.md"
SETTINGS_OF_RUNS = sorted(str(path.parent.relative_to(RESULTS)) for path in RESULTS.rglob("table.md"))


def _run(arm: str, length: float, loss: float) -> Run:
    return Run(arm, length, 0, 4, {"loss": loss, "accuracy": 70.0}, ["a", "b"], ["01"], [0], [0.1, 0.1], [0.7])


def test_each_trial_in_each_setting_has_a_row(tmp_path: Path) -> None:
    for name, rate in (("mrpc", 1e-3), ("fast/mrpc", 1e-2)):
        store = Store(tmp_path / name, replace(SETTINGS, learning_rate=rate))
        store.add(_run("full", 1.0, 0.5))
        store.add(_run("grow", 0.7, 0.9))
        store.add(_run("grow", 1.0, 0.6))
    store.add(_run("freeze", 0.7, 0.8))
    settings, log = log_of(tmp_path).split("\n\n")
    assert [_cells(line)[0] for line in settings.splitlines()[2:]] == ["fast/mrpc", "mrpc"]
    rows = [_cells(line) for line in log.splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        ["the lower half is never trained", "freeze", "fast/mrpc"],
        ["the depth grows over the run", "grow", "fast/mrpc"],
        ["", "grow", "mrpc"],
    ]
    assert "nan" not in log  # nothing was timed
    assert [row[5] for row in rows] == ["+0.300", "+0.100", "+0.100"]  # of grow's two lengths, the whole


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"settings\.json"):
        log_of(tmp_path)


def test_the_document_has_the_log_of_the_runs() -> None:
    """After new runs: benchmarks/tried.py, and its output into tried.md and docs/policies.md."""
    log = log_of(RESULTS)
    assert log in DOCUMENT.read_text()
    assert log == (RESULTS / "tried.md").read_text().rstrip("\n")


@pytest.mark.parametrize("setting", SETTINGS_OF_RUNS)
def test_a_table_is_of_the_runs_beside_it(setting: str) -> None:
    """After new runs: the phase "report"; the tables of the two tasks also into docs/policies.md."""
    told = tables(points_of(Store.found(RESULTS / setting)))
    assert (RESULTS / setting / "table.md").read_text() == told + "\n"
    if setting in TASKS:
        assert told in DOCUMENT.read_text()


@pytest.mark.parametrize("task", TASKS)
def test_times_are_of_the_runs_beside_them(task: str) -> None:
    """After new runs: the phase "time"."""
    store = Store.found(RESULTS / task)
    arms = store.read("timing")["arms"]
    runs = longest_runs(store.runs(), arms)
    assert {arm: (told["seeds"], told["masks"]) for arm, told in arms.items() if told["masks"]} == {
        arm: ([run.seed for run in same], len(chosen_masks(same))) for arm, same in runs.items() if ARMS[arm].gated
    }


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]
