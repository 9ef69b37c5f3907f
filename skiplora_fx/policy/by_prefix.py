"""Policies that shut a prefix: every site below some block, so that the backward is truncated there.

The gradients of what stays open are exact under all of these.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..errors import ConfigError
from .base import Observation, Policy
from .checks import check_count, check_positive, check_share


@dataclass(eq=False)
class Freeze(Policy):
    """The lowest blocks are never trained: PEFT's ``layers_to_transform``, as a baseline.

    Attributes:
        share: of the blocks, rounded down, from 0 to 1.
    """

    needs_history = False
    share: float = 0.5

    def __post_init__(self) -> None:
        check_share(self, share=self.share)

    def decide(self, observation: Observation) -> list[float]:
        """Shut the lowest blocks."""
        return observation.with_prefix(_depth(observation, self.share))


@dataclass(eq=False)
class Multirate(Policy):
    """The lower blocks are trained in every k-th step only (Vlaar and Leimkuhler, ICML 2022).

    Attributes:
        share: of the blocks that rest between, rounded down, from 0 to 1.
        every: k.
    """

    needs_history = False
    share: float = 0.5
    every: int = 4

    def __post_init__(self) -> None:
        check_share(self, share=self.share)
        check_count(self, every=self.every)

    def decide(self, observation: Observation) -> list[float]:
        """Open everything in one step of ``every``, else shut the lower blocks."""
        resting = self.share if observation.step % self.every else 0.0
        return observation.with_prefix(_depth(observation, resting))


@dataclass(eq=False)
class Schedule(Policy):
    """The depth follows a schedule: the share of blocks that rest moves from one value to another over the run.

    Growing, it is the schedule of FreezeOut (Brock et al. 2017) without its learning rates: lower blocks learn first,
    and are never trained again once the depth has reached them. A depth that shrinks opens downwards.

    Attributes:
        first: share of the blocks that rest at first, rounded down, from 0 to 1.
        last: the same at the end. The depth moves by one block at a time, and stays as long at each, the first
            and the last included.
        begin: the step from which on it moves. Where the policy is given by name, the end of the warm-up.
        steps: optimizer steps of the run. Where it is given by name, ``SkipLoraCallback`` fills in the Trainer's.
    """

    needs_history = False
    of_the_run = ("begin", "steps")
    first: float = 0.0
    last: float = 0.875
    begin: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        check_share(self, first=self.first, last=self.last)
        check_count(self, 0, begin=self.begin, steps=self.steps)
        if not self.steps:
            raise ConfigError(
                "policy Schedule: give steps, the number of optimizer steps of the run, as the depth moves over all of "
                "it. SkipLoraCallback fills in the Trainer's, if the policy is given by name."
            )
        if self.begin >= self.steps:
            raise ConfigError(
                "policy Schedule: begin, which is the warm-up's end unless it is given, must lie before "
                f"steps={self.steps}, got {self.begin}"
            )

    def decide(self, observation: Observation) -> list[float]:
        """Shut the blocks below the depth that the schedule has reached."""
        return observation.with_prefix(self.depth(observation.step, len(observation.blocks())))

    def depth(self, step: int, blocks: int) -> int:
        """Return how many of ``blocks`` blocks rest in a step."""
        first, last = math.floor(self.first * blocks), math.floor(self.last * blocks)
        stages = abs(last - first) + 1
        stage = min(max(step - self.begin, 0) * stages // (self.steps - self.begin), stages - 1)
        return first + (stage if last > first else -stage)


@dataclass(eq=False)
class Prefix(Policy):
    """The depth is drawn anew for each step: every block is trained, lower ones more rarely.

    The lowest block that is trained is drawn with a probability in proportion to its mean M, tilted by a factor
    ``e**(βb)`` for block b such that the mean share of resting blocks is the one asked for: of all distributions with
    that mean, the closest to where the impact lies (Csiszár, "I-divergence geometry", 1975). The highest block is
    always trained.

    Attributes:
        share: mean share of the blocks that rest in a step, from 0 to 1.
        least: the least probability with which a block is trained.
        seed: of the draws. That of a step depends on the step's number alone.
    """

    share: float = 0.5
    least: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        check_share(self, share=self.share, least=self.least)
        check_count(self, 0, seed=self.seed)

    def decide(self, observation: Observation) -> list[float]:
        """Draw the depth of a step."""
        drawn = random.Random(f"{self.seed}/{observation.step}").random()
        # One draw for all blocks: the probabilities rise with depth, so those that are trained are the upper ones.
        return observation.with_blocks([drawn < rate for rate in self.rates(observation.impacts())])

    def rates(self, impacts: Sequence[float]) -> list[float]:
        """Return for each block, lowest first, the probability with which it is trained.

        Args:
            impacts: mean M of each block.
        """
        resting = self.share * len(impacts)
        low, high = -_STEEPEST, _STEEPEST
        for _ in range(60):  # halving: the mean number of resting blocks grows with the tilt
            tilt = (low + high) / 2
            mean = math.fsum(block * chance for block, chance in enumerate(_tilted(impacts, tilt)))
            low, high = (tilt, high) if mean < resting else (low, tilt)
        trained = itertools.accumulate(_tilted(impacts, high))
        rates = [min(max(rate, self.least), 1.0) for rate in trained]
        return [*rates[:-1], *(1.0 for _ in rates[-1:])]


_STEEPEST = 50.0
"""The largest tilt: neighbouring blocks then differ beyond the precision of a float."""


def _tilted(weights: Sequence[float], tilt: float) -> list[float]:
    """Return ``weights[b] * e**(tilt * b)``, made to sum to 1; equal weights if all are 0."""
    if not any(weights):
        weights = [1.0] * len(weights)
    logs = [math.log(weight) + tilt * block if weight else -math.inf for block, weight in enumerate(weights)]
    largest = max(logs, default=0.0)
    tilted = [math.exp(log - largest) for log in logs]
    return [weight / math.fsum(tilted) for weight in tilted]


@dataclass(eq=False)
class Progressive(Policy):
    """A block is shut once it and all below it have settled: their M changes little from one window to the next.

    After AutoFreeze (Liu et al. 2021) and Egeria (Wang et al. 2023), which judge by the change of a statistic and not
    by its size. The depth only grows, unless a probe moves a shut block's M.

    Attributes:
        window: number of steps over which M is averaged.
        bound: relative change between two windows below which a block has settled.
        reopen: relative change of a shut block's M since it was shut, above which it is opened again.
        deepest: largest share of the blocks that may be shut, from 0 to 1.
    """

    window: int = 50
    bound: float = 0.05
    reopen: float = 0.25
    deepest: float = 0.75
    _depth: int = field(default=0, init=False, repr=False)
    _steps: int = field(default=0, init=False, repr=False)
    _sums: list[float] = field(default_factory=list, init=False, repr=False)
    _counted: int = field(default=0, init=False, repr=False)
    _before: list[float] = field(default_factory=list, init=False, repr=False)
    _when_shut: list[float] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        check_count(self, window=self.window)
        check_positive(self, bound=self.bound, reopen=self.reopen)
        check_share(self, deepest=self.deepest)

    def decide(self, observation: Observation) -> list[float]:
        """Shut the blocks that have settled."""
        if observation.step > self._steps and not any(math.isnan(site.mean) for site in observation.sites):
            self._steps = observation.step
            self._count(self._last_ratios(observation))
        return observation.with_prefix(self._depth)

    @staticmethod
    def _last_ratios(observation: Observation) -> list[float]:
        sites = observation.sites
        return [math.fsum(sites[position].ratio for position in block) / len(block) for block in observation.blocks()]

    def _count(self, ratios: list[float]) -> None:
        if len(ratios) != len(self._sums):  # the first step, or an adapter was added
            self._sums, self._counted, self._before = [0.0] * len(ratios), 0, []
        self._sums = [total + ratio for total, ratio in zip(self._sums, ratios, strict=True)]
        self._counted += 1
        if self._counted == self.window:
            self._close_window([total / self.window for total in self._sums])
            self._sums, self._counted = [0.0] * len(ratios), 0

    def _close_window(self, means: list[float]) -> None:
        moved = (
            block
            for block, (mean, shut) in enumerate(zip(means, self._when_shut, strict=False))
            if _change(mean, shut) > self.reopen
        )
        self._depth = min(self._depth, next(moved, self._depth))
        if self._before:
            limit = math.floor(self.deepest * len(means))
            while self._depth < limit and _change(means[self._depth], self._before[self._depth]) < self.bound:
                self._when_shut = [*self._when_shut[: self._depth], means[self._depth]]
                self._depth += 1
        self._when_shut = self._when_shut[: self._depth]
        self._before = means

    def state_dict(self) -> dict[str, Any]:
        """Return the depth, and the means by which it is judged."""
        return {name: getattr(self, f"_{name}") for name in self._STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a depth."""
        for name in self._STATE:
            setattr(self, f"_{name}", state[name])

    _STATE: ClassVar[tuple[str, ...]] = ("depth", "steps", "sums", "counted", "before", "when_shut")


def _change(now: float, before: float) -> float:
    """Return the relative change, from 0 to 1; of what is not a number, 1."""
    largest = max(abs(now), abs(before))
    if math.isnan(largest) or math.isnan(now) or math.isnan(before):
        return 1.0
    return abs(now - before) / largest if largest else 0.0


def _depth(observation: Observation, share: float) -> int:
    """Return how many blocks a share of them is, rounded down."""
    return math.floor(share * len(observation.blocks()))
