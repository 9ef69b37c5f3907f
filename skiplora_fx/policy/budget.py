"""A policy that fits the backward into a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .base import OPEN, SHUT, Costs, Observation, Policy
from .checks import check_count, check_share


class _Choice(NamedTuple):
    kept: float
    open: list[bool]


@dataclass(eq=False)
class Budget(Policy):
    """Keeps as much M as fits into a share of the backward's FLOPs.

    For each depth it shuts all sites below, then, where that does not suffice, those above that have the least M for
    the FLOPs that they save alone, and keeps the choice with the largest sum of M. FLOPs are the compiled graphs' own.

    Attributes:
        target: share of the backward that may remain, from 0 to 1.
        every: steps for which a choice is held.
    """

    needs_costs = True
    target: float = 0.6
    every: int = 25
    _shut: list[str] = field(default_factory=list, init=False, repr=False)
    _solved: int = field(default=-1, init=False, repr=False)

    def __post_init__(self) -> None:
        check_share(self, target=self.target)
        check_count(self, every=self.every)

    def decide(self, observation: Observation) -> list[float]:
        """Hold the last choice, or make another."""
        known = observation.costs is not None and not any(math.isnan(site.mean) for site in observation.sites)
        if known and (self._solved < 0 or observation.step >= self._solved + self.every):
            assert observation.costs is not None
            open = self.solve([site.mean for site in observation.sites], observation.blocks(), observation.costs)
            self._shut = [site.id for site, is_open in zip(observation.sites, open, strict=True) if not is_open]
            self._solved = observation.step
        return [SHUT if site.id in self._shut else OPEN for site in observation.sites]

    def solve(self, ratios: Sequence[float], blocks: Sequence[Sequence[int]], costs: Costs) -> list[bool]:
        """Return for each site whether its gate is open.

        Args:
            ratios: mean M of each site.
            blocks: the sites of each block.
            costs: of the backward under any decisions.
        """
        sites = len(ratios)
        alone = costs.under([[other != site for other in range(sites)] for site in range(sites)])
        worth = [ratio / max(costs.total - left, 1) for ratio, left in zip(ratios, alone, strict=True)]
        best = _Choice(-1.0, [False] * sites)
        for depth in range(len(blocks)):
            above = sorted((site for block in blocks[depth:] for site in block), key=worth.__getitem__)
            open = self._fit(above, sites, costs)
            kept = math.fsum(ratio for ratio, is_open in zip(ratios, open, strict=True) if is_open)
            best = max(best, _Choice(kept, open), key=lambda choice: choice.kept)
        return best.open

    def _fit(self, above: Sequence[int], sites: int, costs: Costs) -> list[bool]:
        """Return decisions with as many of ``above`` open as fit, those that come last in it."""
        low, high = 0, len(above)
        while low < high:  # how many to shut: the cost falls with each
            shut = (low + high) // 2
            (left,) = costs.under([_open(above[shut:], sites)])
            low, high = (low, shut) if left <= self.target * costs.total else (shut + 1, high)
        return _open(above[low:], sites)

    def state_dict(self) -> dict[str, Any]:
        """Return the last choice and its step."""
        return {"shut": self._shut, "solved": self._solved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a choice."""
        self._shut, self._solved = list(state["shut"]), state["solved"]


def _open(chosen: Sequence[int], sites: int) -> list[bool]:
    members = set(chosen)
    return [site in members for site in range(sites)]
