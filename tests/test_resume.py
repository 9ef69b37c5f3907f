"""A Trainer run that is stopped and resumed from its checkpoint decides and ends as the one that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from test_training import arguments, rows
from torch import Tensor
from transformers import Trainer, TrainerCallback

import skiplora_fx
from skiplora_fx.integrations.transformers import SkipLoraCallback
from skiplora_fx.policy import Observation, Policy
from skiplora_fx.read_log import read_log

STEPS, HALF = 8, 4

OPTIONS: dict[str, dict[str, Any]] = {
    "quantile, by the last ratio": {
        "policy": "quantile",
        "policy_kwargs": {"window": 4},
        "decision": "previous",
        "skipped_grad": "none",
    },
    "prefix": {"policy": "prefix", "decision": "previous", "skipped_grad": "none", "min_active": 1},
    "progressive": {"policy": "progressive", "policy_kwargs": {"window": 2, "bound": 0.9}, "decision": "previous"},
    "budget": {"policy": "budget", "policy_kwargs": {"target": 0.6, "every": 2}, "decision": "previous"},
    "threshold": {"threshold": 6.0},
}


class Kept(TrainerCallback):
    """Keeps what each step decided."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[float, bool]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps.append([(site.ratio, site.skipped) for site in skiplora_fx.sites(model)])


def trained(
    directory: Path,
    options: dict[str, Any],
    resume: Path | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    **overrides: Any,
) -> tuple[list[Any], dict[str, Tensor]]:
    """Train; return what each step decided, and what was learnt."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = models.with_lora(models.llama(2))
    kept = Kept()
    trainer = Trainer(
        model=model,
        args=arguments(directory, **{"max_steps": STEPS, "seed": 3, **overrides}),
        train_dataset=rows(40),
        callbacks=[kept, SkipLoraCallback(warmup_steps=1, probe_every=3, **options), *callbacks],
    )
    trainer.train(resume_from_checkpoint=str(resume) if resume is not None else None)
    return kept.steps, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def change_state(checkpoint: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Have ``change`` at what a checkpoint keeps of callbacks."""
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text())
    change(state["stateful_callbacks"])
    file.write_text(json.dumps(state))


@pytest.fixture(
    scope="module",
    # Its two tests run where it is: another worker would train it again.
    params=[pytest.param(name, marks=pytest.mark.xdist_group(f"resume: {name}")) for name in OPTIONS],
    ids=lambda name: name.split(",")[0],
)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return options, the folder of an uninterrupted run that saved half-way, what it decided, and what it learnt."""
    directory = tmp_path_factory.mktemp("whole")
    options = OPTIONS[request.param]
    return options, directory, *trained(directory, options, save_strategy="steps", save_steps=HALF)


def test_a_resumed_run_repeats_the_whole_one_step_for_step(whole: Any, tmp_path: Path) -> None:
    options, directory, steps, learnt = whole
    resumed_steps, resumed = trained(tmp_path, options, directory / f"checkpoint-{HALF}")
    assert any(skipped for step in steps[HALF:] for _, skipped in step), "nothing to tell the runs apart by"
    assert resumed_steps == steps[HALF:]
    torch.testing.assert_close(resumed, learnt, rtol=0, atol=0)


def test_without_the_saved_state_the_run_would_be_another(whole: Any, tmp_path: Path) -> None:
    """That the test above can fail: the same checkpoint, with what it says of skiplora taken out."""
    options, directory, steps, _ = whole
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for file in (directory / f"checkpoint-{HALF}").iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    change_state(checkpoint, lambda callbacks: callbacks.pop("SkipLoraCallback"))
    resumed_steps, _ = trained(tmp_path / "out", options, checkpoint)
    assert resumed_steps != steps[HALF:]


class KilledLater(TrainerCallback):
    """Ends the process as ``kill -9`` does, a step after the one that was saved."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == HALF + 1:
            os.kill(os.getpid(), signal.SIGKILL)


def _part_of_a_run(directory: Path, options: dict[str, Any], killed: bool) -> None:
    """Train until it is killed, or from the checkpoint to the end."""
    torch.set_num_threads(1)  # as the tests do
    if killed:
        trained(directory, options, callbacks=(KilledLater(),), save_strategy="steps", save_steps=HALF)
    else:
        trained(directory, options, directory / f"checkpoint-{HALF}")


def test_a_run_that_was_killed_goes_on_as_one_that_was_not(tmp_path: Path) -> None:
    options, logs = OPTIONS["quantile, by the last ratio"], (tmp_path / "killed.jsonl", tmp_path / "whole.jsonl")
    for killed, exit_code in ((True, -signal.SIGKILL), (False, 0)):
        arguments = (tmp_path, {**options, "log": logs[0]}, killed)
        process = multiprocessing.get_context("spawn").Process(target=_part_of_a_run, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == exit_code
        assert killed == (read_log(logs[0]).steps[-1] < STEPS - 1)
    trained(tmp_path / "whole", {**options, "log": logs[1]})
    found, right = map(read_log, logs)
    assert (found.runs, found.steps, found.sites) == (1, list(range(STEPS)), right.sites)
    assert not bool(right.open[HALF:].all()), "nothing to tell the runs apart by"
    for name in ("ratio", "threshold", "open"):
        torch.testing.assert_close(getattr(found, name), getattr(right, name), rtol=0, atol=0, equal_nan=True)


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no attributes": (lambda kept: kept.pop("attributes"), r"SkipLoraCallback in its stateful_callbacks is not what"),
    "no state": (lambda kept: kept["attributes"].update(saved=[]), r"this is not what .* returns: it is a list"),
    "cut off": (lambda kept: kept["attributes"]["saved"].pop("controllers"), r"this is not what .* returns: it holds"),
    "a policy's": (
        lambda kept: kept["attributes"]["saved"]["controllers"][0].update(state={}),
        r"its state of policy Quantile cannot be loaded \(KeyError: ",
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint."""
    directory = tmp_path_factory.mktemp("saved")
    trained(directory, OPTIONS["quantile, by the last ratio"], max_steps=1, save_strategy="steps", save_steps=1)
    return directory / "checkpoint-1"


@pytest.mark.parametrize("what", SPOILT)
def test_a_checkpoint_that_was_spoilt_is_refused_by_its_name(what: str, saved: Path, tmp_path: Path) -> None:
    spoil, reason = SPOILT[what]
    checkpoint = Path(shutil.copytree(saved, tmp_path / "checkpoint"))
    change_state(checkpoint, lambda callbacks: spoil(callbacks["SkipLoraCallback"]))
    with pytest.raises(skiplora_fx.ConfigError, match=f"^trainer_state.json of the checkpoint at step 1: {reason}"):
        trained(tmp_path, OPTIONS["quantile, by the last ratio"], checkpoint)


def test_callbacks_made_anew_by_the_trainer(tmp_path: Path) -> None:
    options = OPTIONS["progressive"]
    _, learnt = trained(tmp_path, options, save_strategy="steps", save_steps=HALF)
    checkpoint = tmp_path / f"checkpoint-{HALF}"
    again = {"restore_callback_states_from_checkpoint": True}
    _, resumed = trained(tmp_path / "out", options, checkpoint, **again)
    torch.testing.assert_close(resumed, learnt, rtol=0, atol=0)


class Own(Policy):
    def decide(self, observation: Observation) -> list[float]:
        return [0.0] * len(observation.sites)


def test_an_own_policy_cannot_be_made_anew_by_the_trainer(tmp_path: Path) -> None:
    with pytest.raises(skiplora_fx.UsageError, match=r"restore_callback_states_from_checkpoint .* policy=<"):
        trained(tmp_path, {"policy": Own()}, restore_callback_states_from_checkpoint=True)


def test_another_policy_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    trained(tmp_path, OPTIONS["threshold"], save_strategy="steps", save_steps=HALF)
    with pytest.raises(skiplora_fx.ConfigError, match="made under policy Threshold, and this run has Prefix"):
        trained(tmp_path / "out", OPTIONS["prefix"], tmp_path / f"checkpoint-{HALF}")


def test_a_logged_run_has_a_line_for_each_step_and_the_losses(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    callback = SkipLoraCallback(log=path, policy="multirate", policy_kwargs={"every": 2}, warmup_steps=0, probe_every=0)
    logs: list[dict[str, float]] = []

    class Watcher(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            found.append(dict(logs))

    found = logs
    torch.compiler.reset()
    trainer = Trainer(
        model=models.with_lora(models.llama(2)),
        args=arguments(tmp_path, max_grad_norm=1e-3),
        train_dataset=rows(40),
        callbacks=[Watcher(), callback],
    )
    trainer.train()
    run = read_log(path)
    assert run.steps == list(range(6))
    assert list(run.losses) == [1, 3, 5]  # logged after every second step
    assert [row[0] for row in run.open.tolist()] == [1.0, 0.0] * 3
    norms = [entry["skiplora/grad_norm"] for entry in logs if "loss" in entry]
    assert norms == pytest.approx([1e-3] * 3, rel=1e-2)  # after clipping
    assert all(entry["grad_norm"] > 1e-2 for entry in logs if "loss" in entry)


def test_a_resumed_run_goes_on_in_its_log_and_another_stands_beside_it(tmp_path: Path) -> None:
    log = {"log": tmp_path / "log.jsonl"}
    trained(tmp_path, log, save_strategy="steps", save_steps=HALF)
    trained(tmp_path / "other", log, max_steps=2)
    assert [read_log(log["log"], run=number).steps for number in (1, 2)] == [list(range(STEPS)), [0, 1]]
    trained(tmp_path / "out", log, tmp_path / f"checkpoint-{HALF}", max_steps=STEPS + 1)
    run = read_log(log["log"])
    assert (run.number, run.runs, run.steps) == (1, 2, list(range(STEPS + 1)))


def test_a_log_that_cannot_be_written_is_refused_when_the_callback_is_made(tmp_path: Path) -> None:
    with pytest.raises(skiplora_fx.UsageError, match=r"log='.*' cannot be written: Is a directory"):
        SkipLoraCallback(log=tmp_path)


def test_of_several_processes_the_first_writes(tmp_path: Path) -> None:
    class Second(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            state.is_world_process_zero = False
            callback.on_train_begin(args, state, control, **kwargs)

    callback = SkipLoraCallback(log=tmp_path / "log.jsonl")
    torch.compiler.reset()
    trainer = Trainer(
        model=models.with_lora(models.llama(1)),
        args=arguments(tmp_path, max_steps=2),
        train_dataset=rows(40),
        callbacks=[callback, Second()],
    )
    trainer.train()
    assert (tmp_path / "log.jsonl").read_bytes() == b""


def test_evaluation_in_a_run_changes_nothing(tmp_path: Path) -> None:
    def losses(**overrides: Any) -> dict[str, Tensor]:
        torch.compiler.reset()
        torch.manual_seed(0)
        model = models.with_lora(models.llama(1))
        callback = SkipLoraCallback(warmup_steps=0, probe_every=0, **OPTIONS["quantile, by the last ratio"])
        args = arguments(tmp_path, **overrides)
        Trainer(model=model, args=args, train_dataset=rows(40), eval_dataset=rows(4), callbacks=[callback]).train()
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    torch.testing.assert_close(losses(eval_strategy="steps", eval_steps=1), losses(), rtol=0, atol=0)
