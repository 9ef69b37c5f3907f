"""Policies that are on trial: what wins moves into the library, what does not stays here as a row of the log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from skiplora_fx.policy import Observation, Policy


@dataclass(eq=False)
class Schedule(Policy):
    """The number of lowest blocks that rest moves from one value to another, over the run.

    Attributes:
        first: blocks that rest at the start.
        last: blocks that rest at the end.
        begin: step at which it begins to move.
        steps: of the run.
    """

    needs_history = False
    first: int = 0
    last: int = 0
    begin: int = 0
    steps: int = 1

    def decide(self, observation: Observation) -> list[float]:
        """Shut the blocks below the depth that the schedule has reached."""
        done = min(max(observation.step - self.begin, 0) / max(self.steps - self.begin, 1), 1.0)
        moved = min(math.floor(done * self._stages()), self._stages() - 1)
        depth = self.first + (moved if self.last > self.first else -moved)
        return observation.with_blocks([block >= depth for block in range(len(observation.blocks()))])

    def trained_until(self, block: int) -> int:
        """Return the step at which a depth that grows reaches ``block``, and it is trained no more."""
        if block >= self.last:
            return self.steps
        return math.ceil(self.begin + (self.steps - self.begin) * (block - self.first + 1) / self._stages())

    def _stages(self) -> int:
        return abs(self.last - self.first) + 1


@dataclass(eq=False)
class Stairs(Policy):
    """Backwards take turns in how deep they go.

    With a step for each backward of several micro-batches, lower blocks see fewer rows of a batch, and no fewer steps.

    Attributes:
        depths: blocks that rest in each of as many backwards in turn.
    """

    needs_history = False
    depths: Sequence[int] = (0,)

    def decide(self, observation: Observation) -> list[float]:
        """Shut the blocks below the depth whose turn it is."""
        depth = self.depths[observation.step % len(self.depths)]
        return observation.with_blocks([block >= depth for block in range(len(observation.blocks()))])


@dataclass(eq=False)
class UpperBlocks(Policy):
    """The uppermost blocks are shut, but for every k-th step; for gates of inputs, behind which all adapters train.

    Attributes:
        share: of the blocks, rounded down.
        every: k; 1 for no step that opens them.
    """

    needs_history = False
    share: float = 0.5
    every: int = 1

    def decide(self, observation: Observation) -> list[float]:
        """Shut the upper blocks."""
        blocks = len(observation.blocks())
        resting = 0 if self.every > 1 and observation.step % self.every == 0 else math.floor(self.share * blocks)
        return observation.with_blocks([block < blocks - resting for block in range(blocks)])
