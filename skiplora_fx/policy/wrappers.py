"""What is put around a policy: warm-up, probing, a choice of sites, and a least number of open ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from .base import OPEN, Costs, Observation, Policy, needs


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


@dataclass(eq=False)
class Only(Wrapper):
    """Leaves it to the policy inside which of some sites may shut; it sees no others, and those are open.

    Attributes:
        inner: the policy.
        globs: over site names: the sites that any of them matches.
    """

    globs: Sequence[str] = ()

    def decide(self, observation: Observation) -> Sequence[float]:
        """Ask about the chosen sites, and open the rest."""
        places = self.places([site.name for site in observation.sites])
        sites = tuple(observation.sites[place] for place in places)
        costs = (
            CostsOfSome(observation.costs, places, len(observation.sites)) if observation.costs is not None else None
        )
        thresholds = [OPEN] * len(observation.sites)
        said = self.inner.decide(replace(observation, sites=sites, costs=costs))
        for place, threshold in zip(places, said, strict=True):
            thresholds[place] = threshold
        return thresholds

    def places(self, names: Sequence[str]) -> list[int]:
        """Return which of the sites called ``names`` are chosen."""
        return [place for place, name in enumerate(names) if any(fnmatchcase(name, glob) for glob in self.globs)]


@dataclass(frozen=True)
class CostsOfSome:
    """What a backward costs under decisions for some of its sites, the others being open.

    Attributes:
        whole: the costs under decisions for all sites.
        places: of those that are decided for.
        sites: number of all sites.
    """

    whole: Costs
    places: Sequence[int]
    sites: int

    @property
    def total(self) -> int:
        """FLOPs with every gate open."""
        return self.whole.total

    def under(self, decisions: Sequence[Sequence[bool]]) -> list[int]:
        """Return the FLOPs that remain under each of several sets of decisions, True where a gate is open."""
        return self.whole.under([self._filled(opens) for opens in decisions])

    def _filled(self, opens: Sequence[bool]) -> list[bool]:
        shut = {place for place, is_open in zip(self.places, opens, strict=True) if not is_open}
        return [place not in shut for place in range(self.sites)]


def _known(mean: float) -> float:
    return -math.inf if math.isnan(mean) else mean
