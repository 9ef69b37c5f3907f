"""One run: an arm, a seed, a length; in eager mode, with the gates of ``skiplora_fx.apply``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import skiplora_fx
from skiplora_fx.policy import Schedule

from .arms import Arm, Plan
from .settings import Settings
from .tasks import Rows, Task

_MEMORY = 0.7
"""Decay of the mean update that drifting parameters move by."""


@dataclass(frozen=True)
class Run:
    """What a run has shown.

    Attributes:
        arm: its name.
        length: its steps as a share of those in the settings.
        seed: of first values, order of the rows, and draws.
        steps: optimizer steps.
        scores: on the test rows.
        sites: names of the gated adapters, in the order of the forward.
        masks: the different sets of decisions that there were, a 1 for each open gate, in the order of ``sites``.
        schedule: index into ``masks`` for each backward.
        ratios: mean M of each site at the end.
        losses: of each step, on its own batch.
    """

    arm: str
    length: float
    seed: int
    steps: int
    scores: dict[str, float]
    sites: list[str]
    masks: list[str]
    schedule: list[int]
    ratios: list[float]
    losses: list[float]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        return asdict(self)


class Watch(Protocol):
    """Looks on at each optimizer step of a run."""

    def before_step(self, ratios: Sequence[float], batch: Rows) -> None:
        """Look at the gradients of the parameters, and at M of each site."""

    def after_step(self) -> None:
        """Look at where the step has moved the parameters; they have to be there again afterwards."""


class Trainer:
    """Trains the runs of one task, one after the other; the model is exported once for each size of batch."""

    def __init__(self, task: Task, settings: Settings) -> None:
        self.task = task
        self.settings = settings
        self._exported: dict[int, Any] = {}

    def run(self, name: str, arm: Arm, length: float, seed: int, watches: Sequence[Watch] = ()) -> Run:
        """Train one run and judge it."""
        settings, task = self.settings, self.task
        steps = round(length * settings.steps)
        plan = Plan(steps, max(1, round(settings.warmup * steps)), seed)
        task.reset(seed)
        options = arm.options(plan, settings)
        gated = skiplora_fx.apply(self._program(settings.batch // arm.micro), **options)
        groups = _by_block(task.loss) if arm.anneals else {None: task.trained()}
        optimizer = torch.optim.AdamW(
            [{"params": group} for group in groups.values()], lr=settings.learning_rate, weight_decay=0.0
        )
        if arm.micro == 1:
            skiplora_fx.attach(gated, optimizer)
        blocks = len(groups) - (None in groups)
        ends = [steps if block is None else trained_until(options["policy"], block, blocks) for block in groups]
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimizer, [partial(_rate, warmup=plan.warmup, end=end) for end in ends]
        )
        drift = Drift(task.trained(), arm.drift)
        masks, losses = MaskLog(), []
        for _, batch in zip(range(steps), task.batches(seed, settings.batch), strict=False):
            optimizer.zero_grad(set_to_none=True)
            opened: list[int] = []
            losses.append(0.0)
            for part in _parts(batch, arm.micro):
                loss = gated(*part) / arm.micro
                loss.backward()
                losses[-1] += float(loss.detach())
                sites = skiplora_fx.sites(gated)
                opened = opened or [0] * len(sites)
                mask = [not site.skipped for site in sites]
                opened = [count + is_open for count, is_open in zip(opened, mask, strict=True)]
                masks.add(mask_of(mask))
            if arm.micro > 1:
                _scale(task.loss, [site.name for site in sites], opened, arm.micro)
            if arm.zeros:
                _fill_with_zeros(task.trained())
            drift.before_step()
            for watch in watches:
                watch.before_step([site.ratio for site in sites], batch)
            optimizer.step()
            drift.after_step()
            for watch in watches:
                watch.after_step()
            rate.step()
        sites = skiplora_fx.sites(gated)
        return Run(
            name,
            length,
            seed,
            steps,
            task.judge(),
            [site.name for site in sites],
            masks.masks,
            masks.schedule,
            [round(site.ratio, 5) for site in sites],
            [round(loss, 4) for loss in losses],
        )

    def _program(self, size: int) -> Any:
        if size not in self._exported:
            examples = tuple(column[:size] for column in self.task.train)
            self._exported[size] = torch.export.export(self.task.loss, examples)
        return self._exported[size]


@dataclass
class MaskLog:
    """The decisions of each backward, each different set of them once."""

    masks: list[str] = field(default_factory=list)
    schedule: list[int] = field(default_factory=list)

    def add(self, mask: str) -> None:
        """Note the decisions of one backward."""
        if mask not in self.masks:
            self.masks.append(mask)
        self.schedule.append(self.masks.index(mask))


def mask_of(opens: Sequence[bool]) -> str:
    """Return decisions as a mask."""
    return "".join("1" if is_open else "0" for is_open in opens)


class Drift:
    """Moves parameters that rest by a share of their mean update (linear drift: Vlaar and Leimkuhler, ICML 2022).

    Args:
        parameters: all that train.
        share: of the update; 0 does nothing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        self._parameters = parameters if share else []
        self._share = share
        self._updates: dict[nn.Parameter, Tensor] = {}
        self._before: dict[nn.Parameter, Tensor] = {}

    def before_step(self) -> None:
        """Remember where those stand that are about to move."""
        moving = [parameter for parameter in self._parameters if parameter.grad is not None]
        self._before = {parameter: parameter.detach().clone() for parameter in moving}

    @torch.no_grad()
    def after_step(self) -> None:
        """Learn from those that moved, and move those that rest."""
        for parameter in self._parameters:
            if parameter in self._before:
                update = parameter - self._before[parameter]
                known = self._updates.get(parameter, update)
                self._updates[parameter] = _MEMORY * known + (1 - _MEMORY) * update
            elif parameter in self._updates:
                parameter += self._share * self._updates[parameter]


def _rate(step: int, warmup: int, end: int) -> float:
    """Return the share of the learning rate: up in the warm-up, then linearly down to 0 at ``end``."""
    if step < warmup:
        return (step + 1) / warmup
    return max(end - step, 0) / (end - warmup)


def trained_until(policy: Schedule, block: int, blocks: int) -> int:
    """Return the step at which a depth that grows reaches a block, and it is trained no more."""
    return next((step for step in range(policy.steps) if policy.depth(step, blocks) > block), policy.steps)


def block_number(name: str) -> int | None:
    """Return the number of the repeated layer that something lies in; None if in none."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _by_block(model: nn.Module) -> dict[int | None, list[nn.Parameter]]:
    """Return what trains, by the number of its repeated layer; by None what lies in none."""
    groups: dict[int | None, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(block_number(name), []).append(parameter)
    return groups


def _parts(batch: Rows, parts: int) -> list[Rows]:
    return list(zip(*(column.chunk(parts) for column in batch), strict=True))


def _fill_with_zeros(parameters: Sequence[nn.Parameter]) -> None:
    """Give what has no gradient one of zeros."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _scale(model: nn.Module, names: Sequence[str], opened: Sequence[int], parts: int) -> None:
    """Scale gradients that come from a part of the rows to what all rows would have given in the mean."""
    for name, count in zip(names, opened, strict=True):
        if 0 < count < parts:
            for parameter in model.get_submodule(name).parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(parts / count)
