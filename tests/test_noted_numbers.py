"""What ``note`` takes, and what it refuses by name."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from step_logs import ROWS, lines

from skiplora_fx import UsageError
from skiplora_fx.read_log import read_log
from skiplora_fx.step_log import StepLog


def noted(path: Path, **numbers: Any) -> dict[str, Any]:
    """Note numbers of a step; return the line without the step and the run."""
    log = StepLog(path)
    log.step(0, ROWS)
    log.note(0, numbers)
    log.close()
    return {name: value for name, value in lines(path)[-1].items() if name not in ("step", "run")}


@pytest.mark.parametrize(
    "value",
    [
        2,
        2.0,
        torch.tensor(2.0, requires_grad=True),
        torch.tensor([[2]]),
        torch.tensor(2.0, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.tensor(2.0)),
        np.float32(2),
        np.int64(2),
        np.array(2.0),
        np.array([2.0]),
        Decimal(2),
    ],
    ids=repr,
)
def test_whatever_is_one_number(tmp_path: Path, value: Any) -> None:
    assert noted(tmp_path / "log.jsonl", loss=value) == {"loss": 2.0}
    assert read_log(tmp_path / "log.jsonl").losses == {0: 2.0}


def test_counts_are_kept_to_the_last_digit(tmp_path: Path) -> None:
    assert noted(tmp_path / "log.jsonl", tokens=123_456_789_012) == {"tokens": 123_456_789_012}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3), r"note\(loss=\.\.\.\): Tensor of 3 elements, .* one number"),
        (torch.zeros(0), "Tensor of 0 elements"),
        (np.zeros((2, 2)), "ndarray of 4 elements"),
        (torch.zeros((), device="meta"), "Tensor .*meta"),
        (torch.tensor(1j), r"note\(loss=\.\.\.\): complex is no number"),
        (1j, "complex is no number"),
        ("2.3", "str is no number"),
        (np.str_("2.3"), "str_? is no number"),
        (None, "NoneType is no number"),
        ([2.3], "list is no number"),
        (10**400, "int .*too large"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_number_is_refused_by_name_and_type(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        noted(tmp_path / "log.jsonl", good=1.0, loss=value)
    assert len(lines(tmp_path / "log.jsonl")) == 2  # the run's first line, and the step


@pytest.mark.parametrize("name", ["step", "ratio", "open", "threshold", "sites", "run", "grad_norm", "policy"])
def test_names_that_the_log_uses_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"note\({name}=\.\.\.\): .*the log's own: format, version, run, .*ratio"):
        noted(tmp_path / "log.jsonl", loss=1.0, **{name: 1.0})
    run = read_log(tmp_path / "log.jsonl")
    assert (run.steps, run.losses) == ([0], {})


def test_what_is_not_finite_is_strict_json_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = StepLog(path)
    log.step(0, [("a", math.nan, math.inf, False)], grad_norm=math.inf)
    for step, loss in enumerate([math.nan, math.inf, -math.inf, torch.tensor(math.inf)]):
        log.note(step, {"loss": loss})
    log.close()
    assert [line["loss"] for line in lines(path) if "loss" in line] == [None, "inf", "-inf", "inf"]
    run = read_log(path)
    assert math.isnan(run.losses[0])
    assert list(run.losses.values())[1:] == [math.inf, -math.inf, math.inf]
    assert run.grad_norm == [math.inf]


def test_nothing_noted_is_no_line(tmp_path: Path) -> None:
    assert "ratio" in noted(tmp_path / "log.jsonl")
