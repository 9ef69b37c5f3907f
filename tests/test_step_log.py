"""A run is written as lines of JSON, and what cannot be written is refused before it is trained."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_modules import batch
from step_logs import ROWS, lines, written
from two_layers import Two, compiled, sgd, skipped

import skiplora_fx
from skiplora_fx import UsageError
from skiplora_fx.read_log import read_log
from skiplora_fx.registry import owners_in, sites_of, trained_parameters
from skiplora_fx.step_log import StepLog


def test_what_the_lines_are(tmp_path: Path) -> None:
    found = lines(written(tmp_path / "deep" / "log.jsonl", 1))
    run = found[0]["run"]
    assert found == [
        {
            "format": "skiplora-log",
            "version": 2,
            "run": run,
            "start": 0,
            "continues": False,
            "policy": None,
            "sites": ["layers.0", "layers.1"],
        },
        {
            "run": run,
            "step": 0,
            "ratio": [0.25, None],
            "threshold": ["inf", 0.1],
            "open": [0, 1],
            "grad_norm": 1.5,
            "backward_seconds": 0.01,
        },
        {"run": run, "step": 0, "loss": 2.0},
    ]


def test_every_run_begins_with_a_line_of_its_own(tmp_path: Path) -> None:
    path = written(written(tmp_path / "log.jsonl"))
    written(path, 1, start=2)
    begun = [line for line in lines(path) if "format" in line]
    assert [(line["start"], line["continues"]) for line in begun] == [(0, False), (0, False), (2, True)]
    assert len({line["run"] for line in begun}) == 3


def test_a_log_that_was_closed_goes_on_without_another_first_line(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.step(0, ROWS)
    log.close()
    log.step(1, ROWS)
    log.close()
    assert sum("format" in line for line in lines(log.path)) == 1
    log.path.unlink()
    log.step(2, ROWS)
    log.close()
    assert read_log(log.path).steps == [2]


def test_sites_are_named_again_where_they_change(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.note(0, {"loss": 1.0})
    log.step(0, ROWS)
    log.step(1, ROWS)
    log.step(2, ROWS[:1])
    log.close()
    both, one = ["layers.0", "layers.1"], ["layers.0"]
    assert [line["sites"] for line in lines(log.path) if "sites" in line] == [[], both, one]
    run = read_log(log.path)
    assert run.sites == both
    assert torch.isnan(run.open[2]).tolist() == [False, True]


def train(path: Path, steps: int, **options: Any) -> tuple[list[list[bool]], list[list[float]]]:
    """Train a few logged steps; return which sites were skipped, and the ratios, step by step."""
    torch.manual_seed(0)
    model = compiled(**options)
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer, log=path)
    shut, ratios = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(batch()).sum()
        loss.backward()
        shut.append(skipped(model))
        ratios.append([site.ratio for site in skiplora_fx.sites(model)])
        optimizer.step()
        attachment.note(loss=float(loss.detach()))
    attachment.remove()
    return shut, ratios


def test_a_run_as_it_was(tmp_path: Path) -> None:
    shut, ratios = train(tmp_path / "log.jsonl", 5, policy="multirate", policy_kwargs={"every": 2})
    run = read_log(tmp_path / "log.jsonl")
    assert (run.sites, run.steps) == (["lower", "upper"], [0, 1, 2, 3, 4])
    assert (run.open == 0).tolist() == shut
    torch.testing.assert_close(run.ratio, torch.tensor(ratios, dtype=torch.float64), rtol=1e-5, atol=0)
    assert run.threshold[1].tolist() == [math.inf, 0.0]
    assert all(seconds > 0 for seconds in run.backward_seconds)
    assert all(norm > 0 for norm in run.grad_norm)
    assert list(run.losses) == run.steps


def test_open_means_open_in_any_micro_batch(tmp_path: Path) -> None:
    model = compiled()
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer, log=tmp_path / "log.jsonl")
    model(batch()).sum().backward()
    skiplora_fx.set_threshold(model, 0.0, sites="lower")
    model(batch()).sum().backward()
    optimizer.step()
    attachment.remove()
    assert read_log(tmp_path / "log.jsonl").open.tolist() == [[1.0, 0.0]]


def test_a_run_in_the_log_names_its_policy(tmp_path: Path) -> None:
    train(tmp_path / "log.jsonl", 1, policy="freeze")
    assert read_log(tmp_path / "log.jsonl").policy == "Freeze"


def attached(path: Path) -> tuple[Any, Any, Any]:
    model = compiled()
    optimizer = sgd(model)
    return model, optimizer, skiplora_fx.attach(model, optimizer, log=path)


def take_steps(model: Any, optimizer: Any, count: int) -> None:
    for _ in range(count):
        model(batch()).sum().backward()
        optimizer.step()


def test_runs_of_new_models_are_separate_and_one_with_a_runs_state_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    model, optimizer, attachment = attached(path)
    take_steps(model, optimizer, 3)
    attachment.remove()
    state = attachment.state_dict()
    model, optimizer, attachment = attached(path)
    take_steps(model, optimizer, 2)
    attachment.remove()
    model, optimizer, attachment = attached(path)
    attachment.load_state_dict(state)
    take_steps(model, optimizer, 1)
    attachment.remove()
    assert [read_log(path, run=number).steps for number in (1, 2)] == [[0, 1, 2, 3], [0, 1]]
    assert read_log(path).number == 1


def test_a_state_from_before_there_was_a_log_goes_on_with_the_last_run(tmp_path: Path) -> None:
    model, optimizer, attachment = attached(tmp_path / "log.jsonl")
    take_steps(model, optimizer, 2)
    attachment.remove()
    state = {**attachment.state_dict(), "run": None}
    model, optimizer, attachment = attached(tmp_path / "log.jsonl")
    attachment.load_state_dict(state)
    take_steps(model, optimizer, 1)
    attachment.remove()
    run = read_log(tmp_path / "log.jsonl")
    assert (run.steps, run.runs) == ([0, 1, 2], 1)


def test_a_log_that_cannot_be_written_is_refused_before_anything_is_attached(tmp_path: Path) -> None:
    model = compiled()
    with pytest.raises(UsageError, match="cannot be written: Is a directory"):
        skiplora_fx.attach(model, sgd(model), log=tmp_path)
    model(batch()).sum().backward()
    found = sites_of(trained_parameters(model), owners_in(model))
    assert [site.clock.attached for site in found] == [False, False]


def test_notes_are_checked_as_they_are_made(tmp_path: Path) -> None:
    model, optimizer, attachment = attached(tmp_path / "log.jsonl")
    take_steps(model, optimizer, 1)
    attachment.note(loss=torch.tensor(2.0))
    for wrong in ({"step": 7}, {"ratio": 1.0}, {"loss": "low"}, {"loss": torch.zeros(2)}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            attachment.note(**wrong)
    attachment.remove()
    run = read_log(tmp_path / "log.jsonl")
    assert (run.steps, run.losses) == ([0], {0: 2.0})


KILLED = """
import sys, os, signal
sys.path.insert(0, {tests!r})
from pathlib import Path
from step_logs import ROWS
from skiplora_fx.step_log import StepLog
log = StepLog({path!r})
for step in range(1000):
    log.step(step, ROWS)
    if step == 50:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode < 0
    assert path.read_text().endswith("\n")
    assert read_log(path).steps == list(range(51))


def test_a_model_that_is_not_logged_is_not_timed() -> None:
    model = Two()
    model.compile(backend="skiplora", options={"warmup_steps": 0})
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer)
    model(batch()).sum().backward()
    optimizer.step()
    assert attachment.clock.backward_seconds == 0.0
    assert math.isnan(attachment.grad_norm())
