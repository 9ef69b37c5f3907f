"""What is trained under an arm is what its policy says."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from quality_parts.arms import ARMS, Arm
from quality_parts.rates import share_of_rate, trained_until
from quality_parts.resting import CatchUp, Drift
from quality_parts.run import Run
from quality_parts.training import Trainer
from quality_parts.trials import Stairs
from quality_task import SETTINGS, tiny_task
from torch import Tensor

from skiplora_fx.policy import Freeze, Observation, Schedule, SiteHistory
from skiplora_fx.policy.base import block_of


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    torch.manual_seed(0)
    return Trainer(tiny_task(), SETTINGS)


def _depths(run: Run) -> list[int]:
    """Return for each backward how many blocks from below were shut; every mask has to be a prefix."""
    found = []
    for index in run.schedule:
        mask = run.masks[index]
        shut = mask.count("0")
        assert mask == "0" * shut + "1" * (len(mask) - shut)
        found.append(6 * shut // len(mask))
    return found


@pytest.mark.parametrize(
    ("arm", "depths"),
    [
        ("full", [0] * 8),
        ("freeze", [3] * 8),
        ("freeze-less", [2] * 8),
        ("multirate", [0, 0, 3, 3, 0, 3, 3, 3]),
        ("multirate-catch-up", [0, 0, 3, 3, 0, 3, 3, 3]),
        ("micro", [0] * 9 + [3, 3, 3] + [0, 3, 3, 3] * 5),
        ("stairs", [0] * 9 + [2, 3, 5] + [0, 2, 3, 5] * 5),
        ("grow", [0, 0, 0, 1, 2, 3, 4, 5]),
        ("freezeout", [0, 0, 0, 1, 2, 3, 4, 5]),
        ("open", [5, 5, 4, 3, 2, 2, 1, 0]),
        ("grow-multirate", [0, 0, 0, 1, 2, 0, 4, 5]),
        ("grow-fast-forward", [0, 0, 0, 1, 2, 3, 4, 5]),
    ],
)
def test_masks_are_the_policys(trainer: Trainer, arm: str, depths: list[int]) -> None:
    assert _depths(trainer.run(arm, ARMS[arm], 1.0, seed=0)) == depths


def test_a_run_can_be_repeated(trainer: Trainer) -> None:
    first = trainer.run("random", ARMS["random"], 1.0, seed=1)
    trainer.run("full", ARMS["full"], 1.0, seed=0)
    assert trainer.run("random", ARMS["random"], 1.0, seed=1) == first


@pytest.mark.parametrize("arm", ["budget-norm", "budget-norm-layer"])
def test_gradient_norms_reach_the_policies_that_look_at_them(trainer: Trainer, arm: str) -> None:
    """While any is unknown, a budget by norms shuts nothing."""
    run = trainer.run(arm, ARMS[arm], 1.0, seed=0)
    assert ["0" in run.masks[index] for index in run.schedule] == [False] * 2 + [True] * 6


@pytest.mark.parametrize(
    ("arm", "shut"),
    [
        ("near", ["", "", "", "012345", "", "012345", "", "012345"]),
        ("near-halves", ["", "", "345", "012", "345", "012", "345", "012"]),
        ("near-high", ["", ""] + ["345"] * 6),
        ("near-high-2", ["", "", "", "345", "", "345", "", "345"]),
        ("near-most", ["", ""] + ["2345"] * 6),
        ("near-all", ["", ""] + ["012345"] * 6),
    ],
)
def test_near_arms_detach_inputs_in_some_blocks(trainer: Trainer, arm: str, shut: list[str]) -> None:
    run = trainer.run(arm, ARMS[arm], 1.0, seed=0)
    found = []
    for index in run.schedule:
        closed = [name for name, sign in zip(run.sites, run.masks[index], strict=True) if sign == "0"]
        assert all(name.endswith(("query", "key", "value", "intermediate.dense")) for name in closed)
        numbers = [block_of(name).rpartition(".")[2] for name in closed]
        assert all(numbers.count(number) == 4 for number in numbers)
        found.append("".join(dict.fromkeys(numbers)))
    assert found == shut


def test_what_is_frozen_does_not_move(trainer: Trainer) -> None:
    trainer.run("freeze", ARMS["freeze"], 0.5, seed=0)
    moved = {
        name.split(".layer.")[1][0]: bool(parameter.any())
        for name, parameter in trainer.task.loss.named_parameters()
        if "lora_B" in name and "query" in name
    }
    assert moved == {"0": False, "1": False, "2": False, "3": True, "4": True, "5": True}


@pytest.mark.parametrize(("arm", "moves"), [("grow", False), ("grow-zeros", True)])
def test_zeros_move_what_rests_by_its_moments(trainer: Trainer, arm: str, moves: bool) -> None:
    task = trainer.task
    lowest = next(weight for name, weight in task.loss.named_parameters() if ".layer.0." in name and "lora_B" in name)
    seen: list[Tensor] = []

    class Watch:
        def before_step(self, *_: object) -> None: ...

        def after_step(self) -> None:
            seen.append(lowest.detach().clone())

    trainer.run(arm, ARMS[arm], 1.0, seed=0, watches=[Watch()])
    resting = seen[2:]  # from the third step on the depth is above the lowest block
    assert [not torch.equal(before, after) for before, after in itertools.pairwise(resting)] == [moves] * 5


def test_micro_batches_that_are_all_open_give_the_whole_batch(trainer: Trainer) -> None:
    whole = trainer.run("full", ARMS["full"], 0.5, seed=0)
    parts = trainer.run("full", Arm("", lambda plan: Freeze(share=0.0), micro=4), 0.5, seed=0)
    torch.testing.assert_close(torch.tensor(parts.losses), torch.tensor(whole.losses), atol=2e-4, rtol=0)


def _observation(step: int) -> Observation:
    return Observation(step, tuple(SiteHistory(f"layer.{block}.q") for block in range(4)))


def test_a_block_is_trained_until_the_depth_reaches_it() -> None:
    policy = Schedule(0.0, 0.75, begin=2, steps=10)
    assert [trained_until(policy, block, 4) for block in range(4)] == [4, 6, 8, 10]


@pytest.mark.parametrize(("step", "share"), [(0, 0.5), (1, 1.0), (2, 1.0), (4, 0.5), (6, 0.0), (7, 0.0)])
def test_a_learning_rate_falls_to_nothing_at_its_end(step: int, share: float) -> None:
    assert share_of_rate(step, warmup=2, end=6) == share


def test_stairs_take_turns() -> None:
    policy = Stairs((0.0, 0.5, 0.8))
    assert [sum(map(bool, policy.decide(_observation(step)))) for step in range(4)] == [0, 2, 3, 0]


def test_what_rested_catches_up_by_a_step_as_many_times_as_large() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    catch_up = CatchUp([parameter])
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for gradient, expected in ((-2.0, 2.0), (None, 2.0), (None, 2.0), (-1.0, 5.0), (-1.0, 6.0), (None, 6.0)):
        parameter.grad = None if gradient is None else torch.tensor([gradient])
        catch_up.before_step()
        optimizer.step()
        catch_up.after_step()
        torch.testing.assert_close(parameter.detach(), torch.tensor([expected]))


def test_only_a_schedule_says_when_learning_rates_end(trainer: Trainer) -> None:
    arm = replace(ARMS["multirate"], anneals=True)
    with pytest.raises(TypeError, match="an arm that anneals follows a Schedule, and not a Multirate"):
        trainer.run("x", arm, 1.0, seed=0)


def test_drift_moves_what_rests_by_its_mean_update() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    drift = Drift([parameter], 0.5)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for gradient, expected in ((-2.0, 2.0), (None, 3.0), (-4.0, 7.0), (None, 8.3)):
        parameter.grad = None if gradient is None else torch.tensor([gradient])
        drift.before_step()
        optimizer.step()
        drift.after_step()
        torch.testing.assert_close(parameter.detach(), torch.tensor([expected]))
