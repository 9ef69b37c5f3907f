"""Updates are repeated while a held-out loss falls, and what that costs is counted."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from quality_parts.arms import ARMS, Arm
from quality_parts.repeating import FastForward, Repeats
from quality_parts.tasks import Task
from quality_parts.training import Trainer
from quality_task import SETTINGS, tiny_task
from torch import Tensor, nn

from skiplora_fx.policy import Freeze

HELD_OUT = [(torch.zeros(1),), (torch.zeros(1),)]


def _stepped(
    parameter: nn.Parameter, loss: Callable[[Tensor], Tensor], how: Repeats, updates: list[float], warmup: int = 0
) -> tuple[FastForward, list[float]]:
    """Make SGD move a parameter by ``updates``, and return where it stood after each and its repeats."""
    fast = FastForward([parameter], loss, HELD_OUT, warmup, how)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    stood = []
    for update in updates:
        parameter.grad = torch.full_like(parameter, -update)
        fast.before_step()
        optimizer.step()
        fast.after_step()
        stood.append(parameter.item())
    return fast, stood


@pytest.mark.parametrize(
    ("best", "stands", "kept", "checks"),
    [
        (3.4, 3.0, 2, 4),  # from 1 to 2 and 3; 4 is further off
        (1.1, 1.0, 0, 2),
        (1.5, 1.0, 0, 2),  # 2 is as far off: no lower
        (99.0, 4.0, 3, 4),  # as often as it may
        (math.nan, 1.0, 0, 2),
    ],
)
def test_the_last_update_is_repeated_while_the_loss_falls(best: float, stands: float, kept: int, checks: int) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    fast, stood = _stepped(parameter, lambda _: (parameter - best).abs(), Repeats(interval=1, most=3), [1.0])
    assert stood == [stands]
    assert fast.kept == [kept]
    assert fast.forwards == checks * len(HELD_OUT)


def test_what_is_undone_leaves_no_trace() -> None:
    parameter = nn.Parameter(torch.tensor(0.1))
    moved = parameter.detach() - torch.tensor(-0.7)
    _stepped(parameter, lambda _: parameter, Repeats(interval=1), [0.7])
    assert torch.equal(parameter, moved)


def test_a_search_follows_each_interval_after_the_warm_up() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    fast, stood = _stepped(parameter, lambda _: -parameter, Repeats(interval=3, most=2), [1.0] * 9, warmup=2)
    assert stood == [1.0, 2.0, 3.0, 4.0, 7.0, 8.0, 9.0, 12.0, 13.0]
    assert fast.kept == [2, 2]


def test_the_mean_update_is_repeated_and_does_not_count_repeats() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    _, stood = _stepped(parameter, lambda _: -parameter, Repeats(memory=0.7, interval=1, most=1), [2.0, -4.0])
    assert stood == pytest.approx([2 + 2, 4 - 4 + 0.7 * 2 - 0.3 * 4])


def test_what_rested_in_the_last_step_stays() -> None:
    moving, resting = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    fast = FastForward([moving, resting], lambda _: -moving - resting, HELD_OUT, 0, Repeats(interval=2, most=1))
    optimizer = torch.optim.SGD([moving, resting], lr=1.0)
    for gradient in (torch.tensor([-1.0]), None):
        moving.grad, resting.grad = torch.tensor([-1.0]), gradient
        fast.before_step()
        optimizer.step()
        fast.after_step()
    assert (moving.item(), resting.item()) == (3.0, 1.0)


def test_the_moments_of_the_optimizer_stay() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    fast = FastForward([parameter], lambda _: -parameter.sum(), HELD_OUT, 0, Repeats(interval=1))
    parameter.grad = -torch.ones(3)
    fast.before_step()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    stood = parameter.detach().clone()
    fast.after_step()
    assert fast.kept == [10]
    torch.testing.assert_close(parameter.detach(), 11 * stood)
    torch.testing.assert_close(optimizer.state_dict(), before, atol=0, rtol=0)


ARM = Arm("", lambda plan: Freeze(share=0.0), repeats=Repeats(interval=2))


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    torch.manual_seed(0)
    return Trainer(tiny_task(), SETTINGS)


def _last_rows(task: Task) -> set[tuple[int, ...]]:
    return {tuple(row) for row in task.train[0][-8:].tolist()}


def test_held_out_rows_are_the_last_and_not_trained_on(trainer: Trainer) -> None:
    rest, held_out = trainer.task.without_last(2, 4)
    assert {tuple(row) for batch in held_out for row in batch[0].tolist()} == _last_rows(trainer.task)
    assert [len(column) for batch in held_out for column in batch] == [4] * 6
    seen = [tuple(row) for batch in itertools.islice(rest.batches(0, 4), 4) for row in batch[0].tolist()]
    assert set(seen) == {tuple(row) for row in trainer.task.train[0][:8].tolist()}
    assert rest.test is trainer.task.test


def test_too_few_rows_to_hold_some_out_are_refused(trainer: Trainer) -> None:
    with pytest.raises(ValueError, match="16 rows are too few to hold out 16 and train on batches of 4"):
        trainer.task.without_last(4, 4)


class _Stood:
    """Notes where a run's parameters stand before each step and after it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.befores: list[Tensor] = []
        self.afters: list[Tensor] = []

    def before_step(self, *_: object) -> None:
        self.befores.append(self._now())

    def after_step(self) -> None:
        self.afters.append(self._now())

    def _now(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.task.trained()).detach().clone()


def test_a_run_goes_on_from_where_repeats_have_led(trainer: Trainer) -> None:
    stood = _Stood(trainer.task)
    run = trainer.run("x", ARM, 1.0, 0, [stood])
    assert len(run.repeats) == 3
    assert any(run.repeats)
    repeats = dict(zip((3, 5, 7), run.repeats, strict=True))
    found = [*stood.befores[1:], stood._now()]
    for step, (before, after, then) in enumerate(zip(stood.befores, stood.afters, found, strict=True)):
        torch.testing.assert_close(then, after + repeats.get(step, 0) * (after - before), atol=1e-6, rtol=0)


def test_each_check_of_a_run_is_counted(trainer: Trainer) -> None:
    run = trainer.run("x", ARM, 1.0, 0)
    checks = [1 + kept + (kept < 10) for kept in run.repeats]
    assert run.extra_forwards == 2 * sum(checks)


def test_other_runs_have_no_extra_forwards(trainer: Trainer) -> None:
    run = trainer.run("full", ARMS["full"], 0.5, 0)
    assert (run.extra_forwards, run.repeats) == (0, [])


def test_test_rows_decide_nothing(trainer: Trainer) -> None:
    task = replace(trainer.task, test=tuple(column.flip(0)[:2] for column in trainer.task.test))
    one, other = (each.run("x", ARM, 1.0, 0) for each in (trainer, Trainer(task, SETTINGS)))
    assert one.scores != other.scores
    assert (one.losses, one.repeats) == (other.losses, other.repeats)


def test_held_out_rows_decide_and_are_not_learnt(trainer: Trainer) -> None:
    ids, mask, labels = trainer.task.train
    changed = replace(trainer.task, train=(ids, mask, torch.cat([labels[:8], 1 - labels[8:]])))
    one, other = (each.run("x", ARM, 1.0, 0) for each in (trainer, Trainer(changed, SETTINGS)))
    assert one.losses[:4] == other.losses[:4]  # the first search follows the fourth step
    assert one.repeats != other.repeats


@pytest.mark.parametrize("arm", ["fast-forward", "fast-forward-mean", "grow-fast-forward"])
def test_arms_search_once_in_six_steps(trainer: Trainer, arm: str) -> None:
    run = trainer.run(arm, ARMS[arm], 2.0, 0)
    assert (run.steps, len(run.repeats)) == (16, 2)
