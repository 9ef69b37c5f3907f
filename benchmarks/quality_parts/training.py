"""One run: an arm, a seed, a length; in eager mode, with the gates of ``skiplora_fx.apply``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

import skiplora_fx
from skiplora_fx.policy import Schedule

from .arms import Arm, Plan
from .rates import by_block, scheduled, trained_until
from .repeating import FastForward
from .resting import CatchUp, Drift, fill_with_zeros, scale_to_all_rows
from .run import MaskLog, Run, mask_of
from .settings import Settings
from .tasks import Rows, Task


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
        held_out: Sequence[Rows] = ()
        if arm.repeats is not None:
            task, held_out = task.without_last(arm.repeats.batches, settings.batch)
        steps = round(length * settings.steps)
        plan = Plan(steps, max(1, round(settings.warmup * steps)), seed)
        task.reset(seed)
        training = Training(task, arm, plan, settings, self._program(settings.batch // arm.micro), held_out)
        for _, batch in zip(range(steps), task.batches(seed, settings.batch), strict=False):
            training.step(batch, watches)
        return Run(
            name,
            length,
            seed,
            steps,
            task.judge(),
            [site.name for site in training.sites],
            training.masks.masks,
            training.masks.schedule,
            [round(site.ratio, 5) for site in training.sites],
            [round(loss, 4) for loss in training.losses],
            training.fast_forward.forwards,
            training.fast_forward.kept,
        )

    def _program(self, size: int) -> Any:
        if size not in self._exported:
            examples = tuple(column[:size] for column in self.task.train)
            self._exported[size] = torch.export.export(self.task.loss, examples)
        return self._exported[size]


class Training:
    """A run under way.

    Args:
        task: what is trained.
        arm: how.
        plan: how long.
        settings: with what.
        program: the exported loss, for as many rows as are in a micro-batch.
        held_out: batches of an arm that repeats updates.

    Attributes:
        masks: the decisions of each backward so far.
        losses: those of each step so far, on its own batch.
        fast_forward: what repeats updates, if the arm does.
    """

    def __init__(
        self, task: Task, arm: Arm, plan: Plan, settings: Settings, program: Any, held_out: Sequence[Rows] = ()
    ) -> None:
        self.task = task
        self.arm = arm
        self.masks = MaskLog()
        self.losses: list[float] = []
        options = arm.options(plan, settings)
        if arm.anneals and not isinstance(options["policy"], Schedule):
            raise TypeError(f"an arm that anneals follows a Schedule, and not a {type(options['policy']).__name__}")
        self._gated = skiplora_fx.apply(program, **options)
        groups = by_block(task.loss) if arm.anneals else {"": task.trained()}
        blocks = [block for block in groups if block]
        ends = [
            trained_until(options["policy"], blocks.index(block), len(blocks)) if block else plan.steps
            for block in groups
        ]
        self._optimizer = torch.optim.AdamW(
            [{"params": group} for group in groups.values()], lr=settings.learning_rate, weight_decay=0.0
        )
        if arm.micro == 1:
            skiplora_fx.attach(self._gated, self._optimizer)
        self._rate = scheduled(self._optimizer, plan.warmup, ends)
        self._movers = (Drift(task.trained(), arm.drift), CatchUp(task.trained() if arm.catches_up else []))
        self.fast_forward = FastForward(task.trained(), task.loss, held_out, plan.warmup, arm.repeats)

    @property
    def sites(self) -> list[Any]:
        """The states of the gated adapters, in the order of the forward."""
        return skiplora_fx.sites(self._gated)

    def step(self, batch: Rows, watches: Sequence[Watch] = ()) -> None:
        """Train on a batch."""
        self._optimizer.zero_grad(set_to_none=True)
        self._backward(batch)
        if self.arm.zeros:
            fill_with_zeros(self.task.trained())
        for mover in (*self._movers, self.fast_forward):
            mover.before_step()
        for watch in watches:
            watch.before_step([site.ratio for site in self.sites], batch)
        self._optimizer.step()
        for mover in self._movers:
            mover.after_step()
        for watch in watches:
            watch.after_step()
        self.fast_forward.after_step()
        self._rate.step()

    def _backward(self, batch: Rows) -> None:
        """Run forward and backward, by micro-batches."""
        parts = self.arm.micro
        masks: list[list[bool]] = []
        self.losses.append(0.0)
        for part in zip(*(column.chunk(parts) for column in batch), strict=True):
            loss = self._gated(*part) / parts
            loss.backward()
            self.losses[-1] += float(loss.detach())
            masks.append([not site.skipped for site in self.sites])
            self.masks.add(mask_of(masks[-1]))
        if parts > 1:
            opened = [sum(opens) for opens in zip(*masks, strict=True)]
            scale_to_all_rows(self.task.loss, [site.name for site in self.sites], opened, parts)
