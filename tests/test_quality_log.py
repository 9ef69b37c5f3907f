"""The log has a row for each trial in each setting, and the document has the log of the runs that are committed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from quality_parts.run import Run
from quality_parts.store import Store
from quality_task import SETTINGS
from tried import log_of

ROOT = Path(__file__).parent.parent


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
    """After new runs: benchmarks/tried.py, and its output into docs/policies.md."""
    assert log_of(ROOT / "benchmarks/results/quality") in (ROOT / "docs/policies.md").read_text()


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]
