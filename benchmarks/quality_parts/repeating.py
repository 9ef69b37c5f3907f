"""Updates that are made again, as long as a held-out loss falls."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .resting import Updates
from .tasks import Rows


@dataclass(frozen=True)
class Repeats:
    """What is repeated, and when (Fast Forward: Rahamim et al., EMNLP 2024, arXiv 2409.04206).

    The authors' code checks 32 rows beside batches of 512, so that a check costs it far less of a step than here. It
    takes the first repeat unasked, keeps the one that raised the loss, and has a learning rate that does not fall.

    Attributes:
        memory: decay of the mean update that is repeated; 0 for the last update alone, which is the paper's.
        interval: optimizer steps from one search to the next; the first search is so many after the warm-up.
        most: repeats in one search.
        batches: of rows that the loss is checked on, taken out of those that are trained on.
    """

    memory: float = 0.0
    interval: int = 6
    most: int = 10
    batches: int = 2


class FastForward:
    """Repeats updates: a line search by whole updates, of which the one that no longer lowers the loss is undone.

    Parameters that rested in the last step stay where they are. The optimizer's moments know nothing of it.

    Args:
        parameters: all that train.
        loss: mean loss of a batch.
        held_out: the batches that the loss is checked on.
        warmup: optimizer steps before the first interval begins.
        how: what is repeated, and when; None for nothing and never.

    Attributes:
        kept: repeats that were kept in each search so far.
        forwards: batches that were checked so far.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        loss: Callable[..., Tensor],
        held_out: Sequence[Rows],
        warmup: int,
        how: Repeats | None,
    ) -> None:
        self._loss = loss
        self._held_out = held_out
        self._warmup = warmup
        self._how = how
        self._updates = Updates(parameters if how else [], how.memory if how else 0.0)
        self._steps = 0
        self.kept: list[int] = []
        self.forwards = 0

    def before_step(self) -> None:
        """Remember where those stand that are about to move."""
        self._updates.before_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Learn from those that moved, and repeat their updates if it is time."""
        self._updates.after_step()
        self._steps += 1
        since = self._steps - self._warmup
        if self._how and since > 0 and since % self._how.interval == 0:
            self.kept.append(self._search(self._how.most))

    def _search(self, most: int) -> int:
        """Move on along the line while the loss falls, and return how many repeats that were."""
        updates = {parameter: self._updates.means[parameter] for parameter in self._updates.moved}
        starts = {parameter: parameter.clone() for parameter in updates}

        def move(repeats: int) -> None:
            for parameter, update in updates.items():
                torch.add(starts[parameter], update, alpha=repeats, out=parameter)

        lowest = self._check()
        for repeats in range(1, most + 1):
            move(repeats)
            loss = self._check()
            if not loss < lowest:  # nor if it is NaN
                move(repeats - 1)
                return repeats - 1
            lowest = loss
        return most

    def _check(self) -> float:
        """Return the mean loss of the held-out batches."""
        self.forwards += len(self._held_out)
        return statistics.fmean(float(self._loss(*batch)) for batch in self._held_out)
