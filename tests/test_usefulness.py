"""What a step's gradient is worth: steps are taken apart as said, and a statistic is judged by what it tells."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from quality_parts.arms import ARMS
from quality_parts.tasks import Rows, Task
from quality_parts.training import Trainer
from quality_task import SETTINGS, tiny_task
from torch import Tensor
from usefulness_parts.correlation import spearman
from usefulness_parts.predictors import (
    PREDICTORS,
    Predictor,
    When,
    among_depths,
    among_sites,
    over_the_run,
    share_error,
    shares,
    whens,
)
from usefulness_parts.record import Costs, Drops, Probe, Record
from usefulness_parts.report import report
from usefulness_parts.site_statistics import Statistics
from usefulness_parts.watching import Watcher, watched

pytestmark = pytest.mark.xdist_group("usefulness")  # most tests look at one run


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    torch.manual_seed(0)
    return Trainer(tiny_task(), SETTINGS)


@pytest.fixture(scope="module")
def seen(trainer: Trainer) -> Record:
    """Return a watched run."""
    return watched(trainer, seed=0, every=4, rows=4)


class StepSeen:
    """Remembers the model on both sides of the last step, and its batch."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.batch: Rows = ()
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}

    def before_step(self, ratios: Sequence[float], batch: Rows) -> None:
        self.batch, self.before = batch, copy.deepcopy(self.task.loss.state_dict())

    def after_step(self) -> None:
        self.after = copy.deepcopy(self.task.loss.state_dict())

    def drop(self, *starts: str) -> float:
        """Return by how much the batch's loss falls where only what lies under some names makes its step."""
        model = copy.deepcopy(self.task.loss)
        losses = []
        for moving in ((), starts):
            names = {name for name in self.before if name.startswith(tuple(moving))} if moving else set()
            model.load_state_dict({name: (self.after if name in names else self.before)[name] for name in self.before})
            losses.append(float(model.double()(*self.batch).detach()))
        return losses[0] - losses[1]


def test_parts_of_a_step_are_worth_what_they_are_when_nothing_else_moves(trainer: Trainer, seen: Record) -> None:
    step = StepSeen(trainer.task)
    watcher = Watcher(trainer.task, seen.costs, every=8, rows=4)
    trainer.run("full", ARMS["full"], 1.0, 0, [watcher, step])
    (probe,) = watcher.probes
    assert probe.step == 7
    sites = seen.costs.sites
    blocks = [sites[6 * block].split("attention")[0] for block in range(6)]
    own = probe.own
    found = [own.site[2], own.site[20], own.block[2], own.below[2], own.above[2]]
    wanted = [step.drop(f"{sites[2]}."), step.drop(f"{sites[20]}."), step.drop(blocks[2])]
    wanted += [step.drop(*blocks[:3]), step.drop(*blocks[3:])]
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=5e-10)  # the model itself is in single precision
    assert min(wanted) > 5e-9


def test_to_first_order_a_part_is_worth_what_the_gradient_promises(seen: Record) -> None:
    promise, drops = (
        torch.tensor(values) for values in (seen.probes[-1].statistics["promise"], seen.probes[-1].own.site)
    )
    assert (promise - drops).norm() < 0.05 * drops.norm()


def test_a_run_that_is_watched_goes_as_one_that_is_not(trainer: Trainer, seen: Record) -> None:
    assert seen.losses == trainer.run("full", ARMS["full"], 1.0, 0).losses


def test_a_record_comes_back_as_it_was(seen: Record) -> None:
    told = seen.to_json()
    assert Record.from_json(json.loads(json.dumps(told))).to_json() == told


def test_statistics_are_of_whole_sites() -> None:
    site = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    statistics = Statistics([site])

    def step(*gradient: float) -> dict[str, list[float]]:
        site[0].grad, site[1].grad = torch.tensor(gradient[:2]), torch.tensor(gradient[2:])
        return statistics.of_step([0.5])

    first, second = step(3.0, 0.0, 4.0), step(-3.0, 0.0, 4.0)
    assert (first["norm"], first["cosine"], first["change"]) == ([5.0], [0.0], [0.0])
    assert second["cosine"] == pytest.approx([7 / 25])
    assert statistics.promise([torch.tensor([1.0, 0.0, -1.0])]) == [7.0]


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ([1.0, 2.0, 3.0], [10.0, 20.0, 1000.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, -1.0], -1.0),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], 0.8),
        ([1.0, 1.0, 2.0], [1.0, 2.0, 3.0], math.sqrt(3) / 2),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], math.nan),
    ],
)
def test_rank_correlation(one: list[float], other: list[float], found: float) -> None:
    assert spearman(one, other) == pytest.approx(found, nan_ok=True)


NORM = next(predictor for predictor in PREDICTORS if predictor.what == "norm of the gradient")
SAME, _, NEXT, _ = whens(10)


def record(norms: list[list[float]], worth: list[list[float]]) -> Record:
    """Return a run of four blocks of one site with these norms and drops at each of its probes."""
    costs = Costs([f"layers.{block}.q" for block in range(4)], [1, 1, 1, 1], [10, 10, 10, 5], 40)
    names = ("promise", "cosine", "ratio", "change")
    probes = []
    for number, (norm, drops) in enumerate(zip(norms, worth, strict=True)):
        depths = range(1, 5)
        found = Drops(drops, drops, [sum(drops[:depth]) for depth in depths], [sum(drops[depth:]) for depth in depths])
        statistics = {"norm": norm} | {name: [1.0, 1.0, 1.0, 1.0] for name in names}
        probes.append(Probe(10 * number + 9, statistics, statistics, found, found))
    return Record(0, costs, probes, [1.0])


def lost(probe: Probe) -> list[float]:
    return probe.held_out.lost()


RISING, FALLING = [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize(("when", "found"), [(SAME, -1.0), (NEXT, 1.0)])
def test_a_statistic_is_judged_by_the_drops_that_come_after_it(when: When, found: float) -> None:
    told = record([RISING, FALLING, RISING], [FALLING, RISING, FALLING])
    assert among_sites(told, NORM, when, lambda probe: probe.held_out) == pytest.approx(found)
    assert among_depths(told, NORM, when, lost) == pytest.approx(found)


def test_over_the_run_each_site_is_judged_by_itself() -> None:
    told = record([[1.0, 9.0, 1.0, 1.0], [2.0, 8.0, 2.0, 2.0]], [[5.0, 0.2, 5.0, 5.0], [6.0, 0.1, 6.0, 6.0]])
    assert over_the_run(told, NORM, SAME) == pytest.approx(1.0)


def test_depths_are_judged_by_what_is_lost_for_each_flop() -> None:
    """All norms alike lose the same below each depth for each FLOP, and say nothing."""
    nothing = Predictor("", "")
    told = record([RISING], [RISING])
    assert math.isnan(among_depths(told, nothing, SAME, lost))
    assert share_error(told, NORM, SAME, lost) == pytest.approx(0.0)
    assert share_error(told, nothing, SAME, lost) == pytest.approx((0.15 + 0.2 + 0.15) / 3)


def test_a_truncation_loses_what_the_rest_of_a_step_does_not_bring() -> None:
    drops = Drops([], [3.0, 3.0], [3.0, 4.0], [3.0, 0.0])  # two blocks that do much the same
    assert drops.lost() == [1.0, 4.0]


def test_what_a_truncation_loses_and_saves() -> None:
    told = record([RISING] * 3, [RISING, RISING, FALLING])
    assert told.costs.truncated() == [10, 20, 30, 35]
    whole = [share.mean for share in shares([told, told], lost)]
    assert whole == pytest.approx([6 / 30, 13 / 30, 21 / 30, 1.0])
    last = [share.mean for share in shares([told], lost, third=2)]
    assert last == pytest.approx([0.4, 0.7, 0.9, 1.0])


def test_the_report_writes_tables_and_a_picture(tmp_path: Path) -> None:
    told = record([RISING] * 3, [RISING, FALLING, RISING])
    text = report(tmp_path, [told, told], every=10)
    half = next(line for line in text.splitlines() if line.startswith("| 2 "))
    assert [cell.strip() for cell in half.split("|")][-2] == f"{(1 - 0.4333) / 0.75:.2f} ± 0.00"
    assert (tmp_path / "table.md").read_text() == text + "\n"
    assert "| norm of the gradient " in text
    assert "| 2                  | 0.50 " in text
    assert (tmp_path / "drops.png").stat().st_size > 0
