"""What the decisions that were made in training cost, compiled, against full LoRA under Inductor."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from speed_parts.rows import machine
from torch import nn

import skiplora_fx
from skiplora_fx.config import scope_options
from skiplora_fx.live import live_sites
from skiplora_fx.registry import flush

from .arms import ARMS, Arm, Plan
from .run import Run
from .settings import Settings
from .store import Store
from .tasks import Rows, Task

MOST_MASKS = 24
"""Of an arm with more different masks than this, so many are timed, evenly drawn from those of all seeds' backwards."""

DECIDED = 25
"""Steps of which the decisions are timed: as many as the arms' budgets hold a choice for."""

LOOKED_ON = 32
"""Steps before those, in which costs get known and the arms' windows of ratios fill."""


class Kind(NamedTuple):
    """What has to be compiled by itself."""

    scope: str
    rows: int


class Sample(NamedTuple):
    """Seconds of a forward and a backward together, and of the backward alone; or ratios of them."""

    step: float
    backward: float


@dataclass(eq=False)
class Runner:
    """A compiled model on one batch."""

    model: nn.Module
    batch: Rows
    forced: str = ""
    samples: dict[str, list[tuple[Sample, Sample]]] = field(default_factory=dict)
    """For each mask, what it took in each round, and what full LoRA took beside it."""

    def step(self) -> Sample:
        """Run a forward and a backward; what is decided before it is not in its time."""
        self.model.zero_grad(set_to_none=True)
        for site in live_sites(self.model):
            site.controller.threshold(site)
        start = _now()
        loss = self.model(*self.batch)
        middle = _now()
        loss.backward()
        end = _now()
        return Sample(end - start, end - middle)

    def force(self, mask: str, names: Sequence[str]) -> None:
        """Have gates open where ``mask`` has a 1."""
        for name, wanted, present in zip(names, mask, self.forced or "-" * len(mask), strict=True):
            if wanted != present:
                skiplora_fx.set_threshold(self.model, 0.0 if wanted == "1" else math.inf, name)
        self.forced = mask


def time_masks(task: Task, store: Store, settings: Settings, rounds: int, arms: Collection[str]) -> None:
    """Time the masks of ``arms`` that are in the store, and write them to ``timing`` there: see :func:`summary`.

    Beside each arm stands what its step takes with every gate open. What was timed before of other arms stays: all are
    ratios to full LoRA beside them. Of arms without gates nothing is timed, as they are full LoRA.

    Raises:
        ValueError: the store has no run of ``arms``.
    """
    runs = longest_runs(store.runs(), arms)
    if not runs:
        raise ValueError(f"no run of {', '.join(sorted(arms))} is in {store.folder}: train them before they are timed")
    gated = [arm for arm in runs if ARMS[arm].gated]
    chosen = {arm: chosen_masks(runs[arm]) for arm in gated}
    kinds = {arm: kind_of(ARMS[arm], settings) for arm in runs}
    names = next(iter(runs.values()))[0].sites
    everything = "1" * len(names)
    masks: dict[Kind, dict[str, None]] = {}
    for arm, kind in kinds.items():
        masks.setdefault(kind, {everything: None}).update(dict.fromkeys(chosen.get(arm, ())))
    task.reset(0)
    runners = run_rounds(task, settings, masks, names, rounds)
    program = torch.export.export(task.loss, _batch(task, 1))
    deciding = {arm: seconds_to_decide(task, program, ARMS[arm], settings) for arm in gated}
    full = [pair[1] for runner in runners.values() for pairs in runner.samples.values() for pair in pairs]
    reference = Sample(*map(statistics.median, zip(*full, strict=True)))
    medians = {
        kind: {mask: median_ratio(pairs) for mask, pairs in runner.samples.items()} for kind, runner in runners.items()
    }
    circumstances = {"rounds": rounds, "machine": machine(settings.device), "threads": torch.get_num_threads()}

    def told(arm: str) -> dict[str, Any]:
        own = medians[kinds[arm]]
        return {
            **circumstances,
            "seeds": [run.seed for run in runs[arm]],
            "policy_s": deciding[arm],
            "open": own[everything]._asdict(),
            **summary(chosen[arm], own, ARMS[arm].micro, deciding[arm] / reference.step),
        }

    before = (store.read("timing") or {"arms": {}})["arms"]
    plain = {arm: {"step": 1.0, "backward": 1.0, "masks": 0} for arm in runs if not ARMS[arm].gated}
    store.write(
        "timing",
        {
            "reference": {"step_s": reference.step, "backward_s": reference.backward},
            "arms": before | plain | {arm: told(arm) for arm in gated},
        },
    )


def longest_runs(runs: Sequence[Run], arms: Collection[str]) -> dict[str, list[Run]]:
    """Return of each of ``arms`` the runs of its greatest length, by seed."""
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.arm in arms:
            found.setdefault(run.arm, []).append(run)
    longest = {arm: max(run.length for run in same) for arm, same in found.items()}
    return {arm: [run for run in same if run.length == longest[arm]] for arm, same in found.items()}


def run_rounds(
    task: Task, settings: Settings, masks: Mapping[Kind, Collection[str]], names: Sequence[str], rounds: int
) -> dict[Kind, Runner]:
    """Run each mask of each kind once in every round, and full LoRA under Inductor on a whole batch beside it.

    One of the two comes first in even rounds, the other in odd ones.

    Args:
        task: its model is copied as it is.
        settings: of the runs.
        masks: a 1 for each open gate, in the order of ``names``.
        names: of the gated adapters.
        rounds: how many.
    """
    reference = Runner(_compiled(task.loss, "inductor", {}), _batch(task, settings.batch))
    runners = {kind: _runner(task, kind) for kind in masks}
    for runner in (reference, *runners.values()):
        for _ in range(3):
            runner.step()
    for turn in range(rounds):
        for kind, runner in runners.items():
            for mask in masks[kind]:
                runner.force(mask, names)
                in_order = (runner, reference) if turn % 2 == 0 else (reference, runner)
                taken = {one: one.step() for one in in_order}
                runner.samples.setdefault(mask, []).append((taken[runner], taken[reference]))
    return runners


def seconds_to_decide(task: Task, program: Any, arm: Arm, settings: Settings) -> float:
    """Return the CPU seconds of the host that an arm's decisions take in a step.

    What is measured is all that comes before a forward of the arm: M of the last backward is read, the policy is shown
    every site (with FLOPs, if it asks for them), and its thresholds are kept for the gates; for each micro-batch. Not
    measured are gradient norms, which are taken at the optimizer's step for the policies that ask for them.

    It is the mean over :data:`DECIDED` steps of the arm's training, in eager mode and with one row in a micro-batch, as
    the number of rows has no part in it. A median would leave out what a policy does in one of many steps only. It is
    the CPU time of the thread, so that what else runs on a busy machine is not in it; full LoRA's step, of which it
    becomes a share, is measured as it passes.

    Args:
        task: what is trained, in place.
        program: its exported loss, for one row.
        arm: whose decisions.
        settings: of the runs.
    """
    plan = Plan(settings.steps, max(1, round(settings.warmup * settings.steps)), seed=0)
    gated = skiplora_fx.apply(program, **arm.options(plan, settings))
    optimizer = torch.optim.AdamW(task.trained(), lr=1e-3)
    if arm.micro == 1:
        skiplora_fx.attach(gated, optimizer)
    first, *_ = live_sites(gated)
    seconds = []
    for step, rows in zip(range(LOOKED_ON + DECIDED), task.batches(0, 1), strict=False):
        for _ in range(arm.micro):
            start = time.thread_time()
            flush()
            first.controller.threshold(first)
            seconds.append((time.thread_time() - start) if step >= LOOKED_ON else 0.0)
            gated(*rows).backward()
        optimizer.step()
        optimizer.zero_grad()
    return math.fsum(seconds) / DECIDED


def kind_of(arm: Arm, settings: Settings) -> Kind:
    """Return what has to be compiled for an arm."""
    return Kind(arm.scope, settings.batch // arm.micro)


def chosen_masks(runs: Sequence[Run]) -> dict[str, float]:
    """Return masks of an arm's runs to be timed, each with its share of the backwards of all of them.

    Where some are drawn, it is from all backwards in the order of how many adapters are truncated, and then of how many
    are shut: from what a backward costs, nearly.
    """
    schedule = [run.masks[index] for run in runs for index in run.schedule]
    if len(set(schedule)) > MOST_MASKS:
        schedule.sort(key=lambda mask: (len(mask) - len(mask.lstrip("0")), mask.count("0"), mask))
        schedule = [schedule[(2 * place + 1) * len(schedule) // (2 * MOST_MASKS)] for place in range(MOST_MASKS)]
    return {mask: schedule.count(mask) / len(schedule) for mask in dict.fromkeys(schedule)}


def summary(
    weights: Mapping[str, float], medians: Mapping[str, Sample], micro: int, policy: float = 0.0
) -> dict[str, Any]:
    """Return the mean backward and step of a run, as ratios to full LoRA under Inductor on a whole batch.

    Args:
        weights: each mask's share of the backwards.
        medians: each mask's ratios, see :func:`median_ratio`.
        micro: backwards in a step.
        policy: what deciding takes in a step, as a share of full LoRA's step; it is added to the step.
    """
    return {
        "step": policy + micro * math.fsum(weight * medians[mask].step for mask, weight in weights.items()),
        "backward": micro * math.fsum(weight * medians[mask].backward for mask, weight in weights.items()),
        "masks": len(weights),
    }


def median_ratio(pairs: Sequence[tuple[Sample, Sample]]) -> Sample:
    """Return the medians of the ratios of step and backward, each taken between neighbours in time."""
    step = statistics.median(mine.step / full.step for mine, full in pairs)
    return Sample(step, statistics.median(mine.backward / full.backward for mine, full in pairs))


def _runner(task: Task, kind: Kind) -> Runner:
    options = {"threshold": 0.0, "warmup_steps": 0, "probe_every": 0, **scope_options(kind.scope)}
    return Runner(_compiled(task.loss, "skiplora", options), _batch(task, kind.rows))


def _compiled(loss: nn.Module, backend: str, options: dict[str, Any]) -> nn.Module:
    model = copy.deepcopy(loss)
    model.compile(backend=backend, options=options, dynamic=False)
    return model


def _batch(task: Task, rows: int) -> Rows:
    return tuple(column[:rows] for column in task.train)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
