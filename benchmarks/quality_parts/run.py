"""What a run has shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


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
        extra_forwards: those outside of steps, each of as many rows as a step has.
        repeats: those of updates that were kept, in each search for how many; see :class:`.repeating.FastForward`.
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
    extra_forwards: int = 0
    repeats: list[int] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        return asdict(self)


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
