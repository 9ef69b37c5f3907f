"""Watches a run of full LoRA, and takes its steps apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from quality_parts.arms import ARMS
from quality_parts.tasks import Loss, Rows, Task, unpadded
from quality_parts.training import Trainer
from torch import Tensor, nn
from torch.nn import functional

from .record import Costs, Drops, Probe, Record
from .site_statistics import Statistics


class Moved(NamedTuple):
    """A parameter, and its values on both sides of a step."""

    parameter: nn.Parameter
    before: Tensor
    after: Tensor


def watched(trainer: Trainer, seed: int, every: int, rows: int) -> Record:
    """Train one run of full LoRA, as ``quality.py`` does, and look at every so manyth of its steps.

    Args:
        trainer: of a task.
        seed: of the run.
        every: steps from one that is taken apart to the next.
        rows: of the test rows, on which a step's worth is measured; evenly drawn from them, which are in the order of
            their length.
    """
    task = trainer.task
    costs = Costs.of(task, tuple(column[: trainer.settings.batch] for column in task.train))
    watcher = Watcher(task, costs, every, rows)
    run = trainer.run("full", ARMS["full"], 1.0, seed, [watcher])
    assert run.sites == costs.sites, "explain and apply order the sites alike"
    return Record(seed, costs, watcher.probes, run.losses)


class Watcher:
    """Looks at each step, and takes some of them apart.

    A part of a step is the optimizer's update of some sites: only that is applied to what was there before the step,
    and the loss measured, on held-out rows and on the step's own batch. Then the whole step is put back.

    Attributes:
        probes: what was found.
    """

    def __init__(self, task: Task, costs: Costs, every: int, rows: int) -> None:
        self.probes: list[Probe] = []
        self._loss = task.loss
        self._every = every
        self._blocks = costs.blocks()
        self._sites = [
            [parameter for parameter in task.loss.get_submodule(name).parameters() if parameter.requires_grad]
            for name in costs.sites
        ]
        mine = {id(parameter) for site in self._sites for parameter in site}
        self._others = [parameter for parameter in task.trained() if id(parameter) not in mine]
        step = max(len(task.test[0]) // rows, 1)
        self._held_out = unpadded(tuple(column[::step][:rows] for column in task.test))
        self._statistics = Statistics(self._sites)
        self._last: dict[str, list[float]] = {}
        self._now: dict[str, list[float]] = {}
        self._batch: Rows = ()
        self._before: dict[nn.Parameter, Tensor] = {}
        self._steps = 0

    def before_step(self, ratios: Sequence[float], batch: Rows) -> None:
        """Look at the gradients, and remember where the parameters stand."""
        self._last, self._now = self._now, self._statistics.of_step(ratios)
        self._batch = unpadded(batch)
        self._before = {
            parameter: parameter.detach().clone() for group in (*self._sites, self._others) for parameter in group
        }

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the step apart, if it is its turn."""
        sites = [[self._moved(parameter) for parameter in site] for site in self._sites]
        updates = [torch.cat([(part.after - part.before).flatten() for part in site]) for site in sites]
        self._now["promise"] = self._statistics.promise(updates)
        self._steps += 1
        if self._steps % self._every == 0:
            self.probes.append(self._take_apart(sites))

    def _moved(self, parameter: nn.Parameter) -> Moved:
        return Moved(parameter, self._before[parameter], parameter.detach().clone())

    def _take_apart(self, sites: Sequence[Sequence[Moved]]) -> Probe:
        others = [self._moved(parameter) for parameter in self._others]
        _put(others, after=False)
        start = self._losses(sites, ())
        depths = range(1, len(self._blocks) + 1)
        below = [_joined(self._blocks[:depth]) for depth in depths]
        above = [_joined(self._blocks[depth:]) for depth in depths]
        parts = [[[site] for site in range(len(sites))], self._blocks, below, above]
        found = [[self._losses(sites, part) for part in kind] for kind in parts]
        for group in (*sites, others):
            _put(group, after=True)
        held_out, own = (
            Drops(*([start[batch] - losses[batch] for losses in kind] for kind in found)) for batch in range(2)
        )
        return Probe(self._steps - 1, self._now, self._last, held_out, own)

    def _losses(self, sites: Sequence[Sequence[Moved]], part: Collection[int]) -> tuple[float, float]:
        """Return the losses on both batches after a part of the step."""
        for number, site in enumerate(sites):
            _put(site, after=number in part)
        return _precise(self._loss, self._held_out), _precise(self._loss, self._batch)


def _joined(blocks: Sequence[Sequence[int]]) -> list[int]:
    return [site for block in blocks for site in block]


def _precise(loss: Loss, rows: Rows) -> float:
    """Return the mean loss, added up in double precision: one site's part of it is small."""
    logits, wanted = loss.predictions(*rows)
    return float(functional.cross_entropy(logits.double(), wanted))


def _put(group: Sequence[Moved], after: bool) -> None:
    for part in group:
        part.parameter.copy_(part.after if after else part.before)
