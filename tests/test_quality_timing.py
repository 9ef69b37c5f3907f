"""What is timed is what was decided in training, in the runs of all seeds, and what deciding takes is added to it."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from quality_parts.arms import ARMS, Arm
from quality_parts.curves import Timing, points
from quality_parts.run import Run
from quality_parts.store import Store
from quality_parts.tasks import Task
from quality_parts.timing import (
    DECIDED,
    LOOKED_ON,
    MOST_MASKS,
    Kind,
    Runner,
    Sample,
    chosen_masks,
    kind_of,
    longest_runs,
    run_rounds,
    seconds_to_decide,
    summary,
    time_masks,
)
from quality_task import SETTINGS, tiny_task

import skiplora_fx
from skiplora_fx.policy import SHUT, Observation, Policy

SHARES_COMPILED = True  # what all of these tests look at is compiled once
pytestmark = pytest.mark.xdist_group("quality_timing")

SITES = 6
OPEN = "1" * SITES
MASKS = [OPEN, "010101", "001000"]
KIND = Kind("adapter", SETTINGS.batch)


def _run(arm: str, seed: int, masks: Sequence[str], schedule: Sequence[int], length: float = 1.0) -> Run:
    sites = [f"site.{number}" for number in range(len(masks[0]))]
    return Run(
        arm, length, seed, len(schedule), {"accuracy": 50.0, "loss": 0.5}, sites, list(masks), list(schedule), [], []
    )


def test_masks_are_weighted_by_their_share() -> None:
    chosen = chosen_masks([_run("x", 0, ["1", "0"], [0, 1, 1, 1])])
    assert chosen == {"1": 0.25, "0": 0.75}
    costs = summary(chosen, {"1": Sample(0.5, 0.5), "0": Sample(0.25, 0.1)}, micro=2)
    assert costs == {"step": 0.625, "backward": 0.4, "masks": 2}


def test_what_deciding_takes_is_in_the_step_and_not_in_the_backward() -> None:
    costs = summary({"1": 1.0}, {"1": Sample(0.5, 0.25)}, micro=2, policy=0.125)
    assert costs == {"step": 1.125, "backward": 0.5, "masks": 1}


def test_masks_are_those_of_all_seeds() -> None:
    """The same decisions have other indices in the run of another seed."""
    runs = [_run("x", 0, ["11", "10"], [0, 1]), _run("x", 1, ["00", "10"], [0, 0, 1, 0, 1, 1])]
    assert chosen_masks(runs) == {"11": 1 / 8, "10": 4 / 8, "00": 3 / 8}


def test_of_many_masks_as_many_of_each_depth_are_timed_as_there_were() -> None:
    """In whatever order they came."""
    depths = [depth for depth in range(12) for _ in range(5)]
    runs = []
    for seed in range(3):
        draws = random.Random(seed)
        masks = ["0" * depth + "1" + "".join(draws.choices("01", k=19 - depth)) for depth in draws.sample(depths, 60)]
        runs.append(_run("x", seed, masks, list(range(60))))
    chosen = chosen_masks(runs)
    assert set(chosen.values()) == {1 / MOST_MASKS}
    assert Counter(map(_truncated, chosen)) == dict.fromkeys(range(12), MOST_MASKS // 12)


def _truncated(mask: str) -> int:
    return len(mask) - len(mask.lstrip("0"))


def test_seeds_that_share_few_masks_are_timed_whole() -> None:
    masks = [f"{number:04b}" for number in range(MOST_MASKS)]
    runs = [_run("x", seed, masks, list(range(MOST_MASKS))) for seed in range(3)]
    assert chosen_masks(runs) == dict.fromkeys(masks, pytest.approx(1 / MOST_MASKS))


def test_only_the_longest_runs_of_an_arm_are_timed() -> None:
    runs = [_run("x", seed, ["1"], [0], length) for seed, length in ((1, 1.0), (0, 0.5), (0, 1.0), (2, 0.5))]
    found = longest_runs([*runs, _run("y", 3, ["1"], [0], 0.5), _run("z", 0, ["1"], [0])], ["x", "y"])
    assert {arm: [(run.seed, run.length) for run in same] for arm, same in found.items()} == {
        "x": [(0, 1.0), (1, 1.0)],
        "y": [(3, 0.5)],
    }


def test_kinds_are_scopes_and_sizes_of_the_batch() -> None:
    assert kind_of(ARMS["micro"], SETTINGS) == Kind("adapter", 1)
    assert kind_of(ARMS["near"], SETTINGS) == Kind("input", 4)


@pytest.fixture(scope="module")
def task() -> Iterator[Task]:
    """Return the task; what was compiled of it is forgotten afterwards."""
    torch.manual_seed(0)
    yield tiny_task(layers=1)
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def names(task: Task) -> list[str]:
    """Return the adapted layers in the order of the forward."""
    program = torch.export.export(task.loss, task.train)
    return [site.name for site in skiplora_fx.sites(skiplora_fx.apply(program, policy="freeze"))]


@pytest.fixture(scope="module")
def runner(task: Task, names: Sequence[str]) -> Runner:
    """Return the runner of one round of all masks."""
    task.reset(0)
    return run_rounds(task, SETTINGS, {KIND: MASKS}, names, 1)[KIND]


def _open_sites(runner: Runner, names: Sequence[str]) -> str:
    """Return for each site whether B, which is zero and so the only one to have a gradient, has one."""
    weights = dict(runner.model.named_parameters())
    gradients = [weights[f"{name}.lora_B.default.weight"].grad for name in names]
    return "".join("1" if gradient is not None and gradient.any() else "0" for gradient in gradients)


def test_a_round_runs_every_mask(runner: Runner, names: Sequence[str]) -> None:
    assert len(names) == SITES
    assert list(runner.samples) == MASKS
    assert runner.forced == MASKS[-1] == _open_sites(runner, names)
    for place, site in enumerate(sorted(skiplora_fx.sites(runner.model), key=lambda site: names.index(site.name))):
        assert site.backwards == 3 + len(MASKS)
        assert round(site.skip_rate * site.backwards) == [mask[place] for mask in MASKS].count("0")


@pytest.mark.parametrize("mask", [MASKS[1], OPEN, "100110"])
def test_what_is_forced_is_what_runs(runner: Runner, names: Sequence[str], mask: str) -> None:
    runner.force(mask, names)
    sample = runner.step()
    assert _open_sites(runner, names) == runner.forced == mask
    assert 0 < sample.backward < sample.step < math.inf


def test_a_mask_for_other_sites_is_refused(runner: Runner, names: Sequence[str]) -> None:
    with pytest.raises(ValueError, match="zip"):
        runner.force("1" * (SITES + 1), names)


def test_arms_without_a_run_are_named(task: Task, tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS)
    store.add(_run("full", 0, [OPEN], [0]))
    with pytest.raises(ValueError, match=r"no run of freeze, grow is in .*train them"):
        time_masks(task, store, SETTINGS, 1, ["grow", "freeze"])


@pytest.fixture(scope="module")
def timed(task: Task, names: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store in which an arm was timed long ago, and two others now."""
    store = Store(tmp_path_factory.mktemp("timed"), SETTINGS)
    store.write("timing", {"reference": {"step_s": 9.0}, "arms": {"full": OLD, "freeze": OLD}})
    for arm, seed, masks, length in (
        ("freeze", 1, MASKS[1:], 1.0),
        ("freeze", 0, MASKS[:2], 1.0),
        ("freeze", 2, ["110011"], 0.5),
        ("prefix", 0, [OPEN], 1.0),
        ("random", 0, [OPEN], 1.0),
        ("fast-forward", 0, [OPEN], 1.0),
    ):
        store.add(replace(_run(arm, seed, masks, range(len(masks)), length), sites=list(names)))
    time_masks(task, store, SETTINGS, 1, ["freeze", "prefix", "fast-forward"])
    return store


OLD = {"step": 0.8, "backward": 0.6, "masks": 1}
"""What was written before deciding was timed."""


def test_what_is_written_is_of_all_seeds_and_beside_what_was_there(timed: Store) -> None:
    timing = timed.read("timing")
    assert set(timing["arms"]) == {"full", "freeze", "prefix", "fast-forward"}
    assert timing["arms"]["full"] == OLD
    freeze, prefix = timing["arms"]["freeze"], timing["arms"]["prefix"]
    assert (freeze["seeds"], freeze["masks"], freeze["rounds"]) == ([0, 1], 3, 1)
    assert timing["arms"]["fast-forward"] == {"step": 1.0, "backward": 1.0, "masks": 0}
    assert freeze["open"] == prefix["open"]
    assert prefix["open"]["backward"] == prefix["backward"]
    assert (prefix["seeds"], prefix["masks"]) == ([0], 1)
    step = timing["reference"]["step_s"]
    assert 0 < timing["reference"]["backward_s"] < step < 9.0
    for arm in (freeze, prefix):
        assert all(0 < arm[name] < math.inf for name in ("step", "backward", "policy_s"))
        assert arm["step"] > arm["policy_s"] / step


def test_an_arm_without_gates_can_be_timed_alone(task: Task, names: Sequence[str], tmp_path: Path) -> None:
    """What a step takes is measured for its extra forwards."""
    store = Store(tmp_path, SETTINGS)
    store.add(replace(_run("fast-forward", 0, [OPEN], [0]), sites=list(names)))
    time_masks(task, store, SETTINGS, 1, ["fast-forward"])
    timing = store.read("timing")
    assert set(timing["arms"]) == {"fast-forward"}
    assert 0 < timing["reference"]["backward_s"] < timing["reference"]["step_s"]


def test_arms_are_judged_with_times_old_and_new(timed: Store) -> None:
    arms = timed.read("timing")["arms"]
    found = {point.arm: point for point in points(timed.runs(), Timing.of({"arms": arms})) if point.length == 1.0}
    assert (found["freeze"].time, found["prefix"].time) == (arms["freeze"]["step"], arms["prefix"]["step"])
    assert math.isnan(found["random"].time)
    (old,) = (
        point for point in points(timed.runs(), Timing({"freeze": OLD})) if (point.arm, point.length) == ("freeze", 1.0)
    )
    assert (old.time, old.backward) == (0.8, 0.6)


@dataclass(eq=False)
class Asked(Policy):
    """Notes what it is shown."""

    needs_history = False
    observations: list[Observation] = field(default_factory=list)

    def decide(self, observation: Observation) -> list[float]:
        self.observations.append(observation)
        return [SHUT] * len(observation.sites)


@pytest.mark.parametrize("micro", [1, 2])
def test_deciding_is_timed_once_for_each_backward_with_all_ratios_read(task: Task, micro: int) -> None:
    policy = Asked()
    arm = Arm("", lambda plan: policy, decision="current", micro=micro)
    seconds = seconds_to_decide(task, _program(task), arm, SETTINGS)
    backwards = list(range(micro * (LOOKED_ON + DECIDED)))
    assert [observation.step for observation in policy.observations] == backwards
    assert [{site.backwards for site in observation.sites} for observation in policy.observations] == [
        {count} for count in backwards
    ]
    assert 0 < seconds < math.inf


@pytest.mark.parametrize("arm", ["best-rate", "near-halves"])
def test_deciding_by_costs_and_norms_or_at_inputs_is_timed(task: Task, arm: str) -> None:
    assert 0 < seconds_to_decide(task, _program(task), ARMS[arm], SETTINGS) < math.inf


def _program(task: Task) -> torch.export.ExportedProgram:
    return torch.export.export(task.loss, tuple(column[:1] for column in task.train))
