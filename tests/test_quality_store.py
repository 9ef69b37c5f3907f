"""What is in the folder of results is not made again, and is never half a run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.utils import ModulesToSaveWrapper
from quality import missing
from quality_parts.run import Run
from quality_parts.store import SettingsError, Store
from quality_task import SETTINGS, tiny_task


def _run(arm: str, length: float, seed: int) -> Run:
    return Run(arm, length, seed, 4, {"loss": 0.5, "accuracy": 70.0}, ["a"], ["1"], [0], [0.1], [0.7])


def test_a_run_that_is_there_is_not_asked_for_again(tmp_path: Path) -> None:
    args = argparse.Namespace(seeds=[0, 1], arms=["full", "micro"], full_lengths=[0.5, 1.0], lengths=[1.0])
    store = Store(tmp_path, SETTINGS)
    assert len(list(missing(args, store))) == 6
    store.add(_run("full", 1.0, 0))
    store.add(_run("micro", 1.0, 1))
    left = list(missing(args, Store(tmp_path, SETTINGS)))
    assert left == [("full", 0.5, 0), ("micro", 1.0, 0), ("full", 0.5, 1), ("full", 1.0, 1)]


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    run = _run("full", 0.5, 3)
    Store(tmp_path, SETTINGS).add(run)
    assert Store(tmp_path, SETTINGS).runs() == [run]


def test_a_run_of_before_there_were_extra_forwards_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    written = _run("full", 1.0, 0).to_json()
    del written["extra_forwards"], written["repeats"]
    store.write("run-full-1-0", written)
    assert store.runs() == [_run("full", 1.0, 0)]


def test_a_run_that_was_cut_off_while_writing_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    (tmp_path / "run-full-1-0.partial").write_text('{"arm": "fu')
    assert not store.has("full", 1.0, 0)
    assert store.runs() == []


def test_runs_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    Store(tmp_path, SETTINGS)
    with pytest.raises(SettingsError, match="'steps': 8"):
        Store(tmp_path, replace(SETTINGS, steps=9))


def test_runs_of_another_model_or_of_other_rows_are_not_mixed(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    task = tiny_task()
    first = task.digest()
    store.check_task(first)
    task.reset(seed=3)
    store.check_task(task.digest())  # what trains begins anew with each run
    head = next(module for module in task.loss.modules() if isinstance(module, ModulesToSaveWrapper))
    with torch.no_grad():
        head.original_module.weight += 1  # as of a model that comes without one
    store.check_task(task.digest())
    fewer = replace(task, train=tuple(column[1:] for column in task.train))
    with pytest.raises(SettingsError, match=first[:12]):
        store.check_task(fewer.digest())
    frozen = next(value for value in task.loss.parameters() if not value.requires_grad)
    with torch.no_grad():
        frozen.view(-1)[0] += 1
    with pytest.raises(SettingsError, match="another model or other data"):
        Store(tmp_path, SETTINGS).check_task(task.digest())
    assert store.read("task") == {"sha256": first}


def test_runs_of_which_the_task_was_never_noted_get_no_others(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    store.write("run-full-1-0", {})
    with pytest.raises(SettingsError, match="older than the digest"):
        store.check_task("0" * 64)
    assert store.read("task") is None
