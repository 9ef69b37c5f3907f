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
from torch import nn

import skiplora_fx
from skiplora_fx.config import scope_options

from .arms import ARMS, Arm
from .run import Run
from .settings import Settings
from .store import Store
from .tasks import Rows, Task

MOST_MASKS = 10
"""Of an arm with more different masks than this, so many are timed, evenly drawn from its schedule."""


class Kind(NamedTuple):
    """What has to be compiled by itself."""

    scope: str
    rows: int


class Sample(NamedTuple):
    """Seconds of a forward and a backward together, and of the backward alone; or ratios of them."""

    step: float
    backward: float


@dataclass
class Runner:
    """A compiled model on one batch."""

    model: nn.Module
    batch: Rows
    forced: str = ""
    samples: dict[str, list[tuple[Sample, Sample]]] = field(default_factory=dict)
    """For each mask, what it took in each round, and what full LoRA took beside it."""

    def step(self) -> Sample:
        """Run a forward and a backward."""
        self.model.zero_grad(set_to_none=True)
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

    What was timed before of other arms stays: all are ratios to full LoRA beside them.
    """
    runs = {run.arm: run for run in sorted(store.runs(), key=lambda run: (run.length, -run.seed)) if run.arm in arms}
    chosen = {arm: chosen_masks(run) for arm, run in runs.items()}
    names = next(iter(runs.values())).sites
    kinds = {(arm, mask): kind_of(ARMS[arm], settings) for arm, weights in chosen.items() for mask in weights}
    task.reset(0)
    reference = Runner(_compiled(task.loss, "inductor", {}), _batch(task, settings.batch))
    runners = {kind: _runner(task, kind) for kind in dict.fromkeys(kinds.values())}
    for runner in (reference, *runners.values()):
        for _ in range(3):
            runner.step()
    for _ in range(rounds):
        for kind, mask in dict.fromkeys((kind, mask) for (_, mask), kind in kinds.items()):
            runner = runners[kind]
            runner.force(mask, names)
            runner.samples.setdefault(mask, []).append((runner.step(), reference.step()))
    medians = {key: median_ratio(runners[kind].samples[key[1]]) for key, kind in kinds.items()}
    full = [pair[1] for runner in runners.values() for pairs in runner.samples.values() for pair in pairs]
    how = {"rounds": rounds, "threads": torch.get_num_threads(), "torch": torch.__version__}
    store.write(
        "timing",
        {
            "reference": {
                "step_s": statistics.median(sample.step for sample in full),
                "backward_s": statistics.median(sample.backward for sample in full),
            },
            "arms": (store.read("timing") or {"arms": {}})["arms"]
            | {
                arm: how | summary(weights, {mask: medians[arm, mask] for mask in weights}, ARMS[arm].micro)
                for arm, weights in chosen.items()
            },
        },
    )


def kind_of(arm: Arm, settings: Settings) -> Kind:
    """Return what has to be compiled for an arm."""
    return Kind(arm.scope, settings.batch // arm.micro)


def chosen_masks(run: Run) -> dict[str, float]:
    """Return masks of a run to be timed, each with its share of the backwards."""
    schedule = run.schedule
    if len(run.masks) > MOST_MASKS:
        schedule = [schedule[(2 * place + 1) * len(schedule) // (2 * MOST_MASKS)] for place in range(MOST_MASKS)]
    return {run.masks[index]: schedule.count(index) / len(schedule) for index in dict.fromkeys(schedule)}


def summary(weights: Mapping[str, float], medians: Mapping[str, Sample], micro: int) -> dict[str, Any]:
    """Return the mean backward and step of a run, as ratios to full LoRA under Inductor on a whole batch.

    Args:
        weights: each mask's share of the backwards.
        medians: each mask's ratios, see :func:`median_ratio`.
        micro: backwards in a step.
    """
    return {
        "step": micro * math.fsum(weight * medians[mask].step for mask, weight in weights.items()),
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
