"""What is trained under an arm is what its policy says."""

from __future__ import annotations

import pytest
import torch
from quality_parts.arms import ARMS, Arm
from quality_parts.near import near, near_mask
from quality_parts.timing import MOST_MASKS, Sample, chosen_masks, kind_of, summary
from quality_parts.training import Drift, Run, Trainer, _rate
from quality_parts.trials import Schedule, Stairs
from quality_task import SETTINGS, tiny_task

from skiplora_fx.policy import Freeze, Observation, SiteHistory


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
        ("multirate", [0, 0, 3, 3, 0, 3, 3, 3]),
        ("micro", [0] * 9 + [3, 3, 3] + [0, 3, 3, 3] * 5),
        ("stairs", [0] * 9 + [2, 3, 5] + [0, 2, 3, 5] * 5),
        ("grow", [0, 0, 0, 1, 2, 3, 4, 5]),
        ("freezeout", [0, 0, 0, 1, 2, 3, 4, 5]),
        ("open", [5, 5, 4, 3, 2, 2, 1, 0]),
    ],
)
def test_masks_are_the_policys(trainer: Trainer, arm: str, depths: list[int]) -> None:
    assert _depths(trainer.run(arm, ARMS[arm], 1.0, seed=0)) == depths


def test_a_run_can_be_repeated(trainer: Trainer) -> None:
    first = trainer.run("random", ARMS["random"], 1.0, seed=1)
    trainer.run("full", ARMS["full"], 1.0, seed=0)
    assert trainer.run("random", ARMS["random"], 1.0, seed=1) == first


def test_near_steps_take_turns_after_the_warm_up(trainer: Trainer) -> None:
    run = trainer.run("near", ARMS["near"], 1.0, seed=0)
    whole, close = "1" * len(run.sites), near_mask(near(), run.sites)
    assert [run.masks[index] for index in run.schedule] == [whole] * 3 + [close, whole, close, whole, close]
    assert {name.split(".")[-1] for name, sign in zip(run.sites, close, strict=True) if sign == "i"} == {
        "query",
        "key",
        "value",
        "dense",  # of intermediate
    }
    assert close.count("i") == 4 * 6
    assert kind_of(ARMS["near"], close, run.sites, SETTINGS).near == near()
    assert kind_of(ARMS["near"], whole, run.sites, SETTINGS).near == ()


def test_in_a_near_step_all_adapters_train_and_only_the_residual_stream_goes_down(trainer: Trainer) -> None:
    batch = tuple(column[: SETTINGS.batch] for column in trainer.task.train)
    trainer.task.reset(0)
    gradients = []
    for run in (trainer.near_program(near()), trainer.task.loss):
        for parameter in trainer.task.trained():
            parameter.grad = None
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
        run(*batch).backward()
        gradients.append([parameter.grad.clone() for parameter in trainer.task.trained()])
    close, whole = gradients
    assert all(bool(gradient.any()) for gradient in close)
    same = [float((one - other).norm() / other.norm()) < 1e-3 for one, other in zip(close, whole, strict=True)]
    names = [name for name, parameter in trainer.task.loss.named_parameters() if parameter.requires_grad]
    top = [name for name, alike in zip(names, same, strict=True) if alike]
    assert all(".5." in name or "encoder" not in name for name in top)
    assert any(".5.output" in name for name in top)


def test_what_is_frozen_does_not_move(trainer: Trainer) -> None:
    trainer.run("freeze", ARMS["freeze"], 0.5, seed=0)
    moved = {
        name.split(".layer.")[1][0]: bool(parameter.any())
        for name, parameter in trainer.task.loss.named_parameters()
        if "lora_B" in name and "query" in name
    }
    assert moved == {"0": False, "1": False, "2": False, "3": True, "4": True, "5": True}


def test_micro_batches_that_are_all_open_give_the_whole_batch(trainer: Trainer) -> None:
    whole = trainer.run("full", ARMS["full"], 0.5, seed=0)
    parts = trainer.run("full", Arm("", lambda plan: Freeze(share=0.0), micro=4), 0.5, seed=0)
    torch.testing.assert_close(torch.tensor(parts.losses), torch.tensor(whole.losses), atol=2e-4, rtol=0)


def _observation(step: int) -> Observation:
    return Observation(step, tuple(SiteHistory(f"layer.{block}.q") for block in range(4)))


def test_a_schedule_moves_by_equal_stages() -> None:
    def depths(policy: Schedule) -> list[int]:
        return [sum(map(bool, policy.decide(_observation(step)))) for step in range(10)]

    assert depths(Schedule(0, 3, begin=2, steps=10)) == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert depths(Schedule(3, 0, begin=2, steps=10)) == [3, 3, 3, 3, 2, 2, 1, 1, 0, 0]


def test_a_block_is_trained_until_the_depth_reaches_it() -> None:
    policy = Schedule(0, 3, begin=2, steps=10)
    assert [policy.trained_until(block) for block in range(4)] == [4, 6, 8, 10]


@pytest.mark.parametrize(("step", "share"), [(0, 0.5), (1, 1.0), (2, 1.0), (4, 0.5), (6, 0.0), (7, 0.0)])
def test_a_learning_rate_falls_to_nothing_at_its_end(step: int, share: float) -> None:
    assert _rate(step, warmup=2, end=6) == share


def test_stairs_take_turns() -> None:
    policy = Stairs((0, 2, 3))
    assert [sum(map(bool, policy.decide(_observation(step)))) for step in range(4)] == [0, 2, 3, 0]


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


def test_masks_to_be_timed_are_weighted_by_their_share() -> None:
    run = Run("x", 1.0, 0, 4, {}, ["a"], ["1", "0"], [0, 1, 1, 1], [], [])
    assert chosen_masks(run) == {"1": 0.25, "0": 0.75}
    costs = summary(chosen_masks(run), {"1": Sample(0.5, 0.5), "0": Sample(0.25, 0.1)}, micro=2)
    assert costs == {"step": 0.625, "backward": 0.4, "masks": 2}


def test_of_many_masks_some_are_timed() -> None:
    masks = [f"{number:06b}" for number in range(40)]
    chosen = chosen_masks(Run("x", 1.0, 0, 40, {}, ["a"] * 6, masks, list(range(40)), [], []))
    assert len(chosen) == MOST_MASKS
    assert sum(chosen.values()) == pytest.approx(1.0)
