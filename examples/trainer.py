"""The Hugging Face Trainer of every phase: quiet, and with a clock on each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments, default_data_collator


@dataclass(frozen=True)
class StepTime:
    """When a step began, when its loss was known, and when its gradients were: seconds on one clock."""

    start: float
    loss: float
    gradients: float


class Pace(NamedTuple):
    """Median seconds of a step's backward, and from the start of a step to that of the next."""

    backward: float
    step: float


class TimedTrainer(Trainer):
    """A Trainer that keeps a :class:`StepTime` for each step in ``times``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=default_data_collator, **kwargs)
        self.times: list[StepTime] = []
        self._loss_known = 0.0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the Trainer does, and note when it is there."""
        loss = super().compute_loss(*args, **kwargs)
        self._loss_known = _now()
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward as the Trainer does, and note when they began and ended."""
        start = _now()
        loss = super().training_step(*args, **kwargs)
        self.times.append(StepTime(start, self._loss_known, _now()))
        return loss


def pace(times: Sequence[StepTime]) -> Pace:
    """Return the medians over ``times``; NaN if these are too few to tell."""
    if len(times) < 2:
        return Pace(nan, nan)
    steps = [after.start - before.start for before, after in pairwise(times)]
    return Pace(median(time.gradients - time.loss for time in times), median(steps))


def arguments(folder: Path, seed: int, **others: Any) -> TrainingArguments:
    """Return arguments for a Trainer that shows its progress, saves nothing by itself and reports to nobody."""
    return TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,  # there are none, and a PEFT model's signature names only some of the used ones
        label_names=["labels"],
        **others,
    )


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()
