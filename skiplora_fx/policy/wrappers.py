"""What is put around a policy: warm-up, probing, and a least number of open sites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .base import OPEN, Observation, Policy, needs


@dataclass(eq=False)
class Wrapper(Policy):
    """Passes everything on to the policy inside."""

    inner: Any

    def __post_init__(self) -> None:
        self.needs_history = needs(self.inner, "history")
        self.needs_gradients = needs(self.inner, "gradients")
        self.needs_costs = needs(self.inner, "costs")

    def decide(self, observation: Observation) -> Sequence[float]:
        """Return what the policy inside does."""
        return self.inner.decide(observation)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the policy inside."""
        return self.inner.state_dict() if hasattr(self.inner, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the policy inside."""
        if hasattr(self.inner, "load_state_dict"):
            self.inner.load_state_dict(state)


@dataclass(eq=False)
class WarmUp(Wrapper):
    """Keeps every gate open for the first steps. The policy inside is asked all the same, so that it may look on.

    Attributes:
        inner: the policy.
        steps: how many.
    """

    steps: int = 0

    def decide(self, observation: Observation) -> Sequence[float]:
        """Open everything in the warm-up."""
        thresholds = self.inner.decide(observation)
        return [OPEN] * len(observation.sites) if observation.step < self.steps else thresholds


@dataclass(eq=False)
class Probe(Wrapper):
    """Opens every gate for one step in so many: a shut adapter cannot change its own M.

    Attributes:
        inner: the policy.
        every: how many; 0 for never.
        after: steps after which this begins to count.
    """

    every: int = 0
    after: int = 0

    def decide(self, observation: Observation) -> Sequence[float]:
        """Open everything in a probing step."""
        thresholds = self.inner.decide(observation)
        probing = self.every > 0 and (observation.step - self.after + 1) % self.every == 0
        return [OPEN] * len(observation.sites) if probing else thresholds


@dataclass(eq=False)
class MinActive(Wrapper):
    """Keeps at least some sites open, whatever the policy inside says, so that something always has a gradient.

    Those that it opens are the ones of largest mean M; among equals, and while none is known, the last in the forward,
    where an open gate costs least.

    Attributes:
        inner: the policy.
        sites: how many.
    """

    sites: int = 0

    def decide(self, observation: Observation) -> Sequence[float]:
        """Open as many more as are missing."""
        thresholds = list(self.inner.decide(observation))
        surely = sum(threshold == OPEN for threshold in thresholds)
        others = [position for position, threshold in enumerate(thresholds) if threshold != OPEN]
        others.sort(key=lambda position: (_known(observation.sites[position].mean), position), reverse=True)
        for position in others[: max(0, self.sites - surely)]:
            thresholds[position] = OPEN
        return thresholds


def _known(mean: float) -> float:
    return -math.inf if math.isnan(mean) else mean
