"""Policies that pick blocks by chance or in turn: the rules of other methods, as baselines.

Where a block is shut above one that is open, the gradient goes on through it. With ``scope="layer"`` it is cut in the
adapted layers as well, which is what these methods do.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from .base import Observation, Policy
from .checks import check_count, check_share


@dataclass(eq=False)
class RandomBlocks(Policy):
    """Each block is shut with the same probability in each step (DropBP, Woo et al. 2024, at a uniform rate).

    Attributes:
        rate: that probability.
        seed: of the draws. Those of a step depend on the step's number alone.
    """

    needs_history = False
    rate: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_share(self, rate=self.rate)
        check_count(self, 0, seed=self.seed)

    def decide(self, observation: Observation) -> list[float]:
        """Draw for each block."""
        draws = random.Random(f"{self.seed}/{observation.step}")
        return observation.with_blocks([draws.random() >= self.rate for _ in observation.blocks()])


@dataclass(eq=False)
class CyclicBlocks(Policy):
    """A window of neighbouring blocks is open, and moves on after some steps (LCSB, 2026).

    Attributes:
        share: of the blocks that are open, at least one, from 0 to 1.
        hold: steps for which the window stays.
    """

    needs_history = False
    share: float = 0.5
    hold: int = 1

    def __post_init__(self) -> None:
        check_share(self, share=self.share)
        check_count(self, hold=self.hold)

    def decide(self, observation: Observation) -> list[float]:
        """Open the window of a step."""
        blocks = len(observation.blocks())
        size = max(1, math.floor(self.share * blocks))
        first = observation.step // self.hold * size
        window = {(first + offset) % blocks for offset in range(size)} if blocks else set()
        return observation.with_blocks([block in window for block in range(blocks)])
