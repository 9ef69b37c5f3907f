"""A policy that fits the backward into a budget."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from .base import OPEN, SHUT, Costs, Observation, Policy
from .checks import check_count, check_share


class _Choice(NamedTuple):
    fits: bool
    kept: float
    open: list[bool]


@dataclass(eq=False)
class Budget(Policy):
    """Keeps as much M as fits into a share of the backward's FLOPs.

    For each depth it shuts all sites below, then, where that does not suffice, those above that have the least M for
    the FLOPs that they save alone, and keeps the choice with the largest sum of M. FLOPs are the compiled graphs' own.
    If nothing fits, the one site of which the backward costs least is left open, and a warning says what that costs.

    M is looked at in one step and the choice holds from the next one on: a run that is resumed at that step, and knows
    the costs of no backward before it has compiled one, chooses the same.

    Attributes:
        target: share of the backward that may remain, from 0 to 1.
        every: steps for which a choice is held.
    """

    needs_costs = True
    target: float = 0.6
    every: int = 25
    _shut: list[str] = field(default_factory=list, init=False, repr=False)
    _next: list[str] | None = field(default=None, init=False, repr=False)
    _means: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _looked: int = field(default=-1, init=False, repr=False)

    def __post_init__(self) -> None:
        check_share(self, target=self.target)
        check_count(self, every=self.every)

    def decide(self, observation: Observation) -> list[float]:
        """Hold the last choice, or make another."""
        if observation.step > self._looked:
            self._choose(observation)
            self._shut, self._next = self._next if self._next is not None else self._shut, None
        means = {site.id: site.mean for site in observation.sites}
        if self._is_due(observation.step) and not any(map(math.isnan, means.values())):
            self._looked, self._means = observation.step, means
            self._choose(observation)
        return [SHUT if site.id in self._shut else OPEN for site in observation.sites]

    def _is_due(self, step: int) -> bool:
        return self._looked < 0 or step >= self._looked + self.every

    def _choose(self, observation: Observation) -> None:
        """Make the next choice by the means that were looked at, as soon as costs are known."""
        if not self._means or observation.costs is None:
            return
        # Of an adapter that was not there then nothing is known: it counts for nothing until the next look.
        ratios = [self._means.get(site.id, 0.0) for site in observation.sites]
        open = self.solve(ratios, observation.blocks(), observation.costs)
        self._next = [site.id for site, is_open in zip(observation.sites, open, strict=True) if not is_open]
        self._means = {}

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
        choices = []
        for depth in range(len(blocks)):
            above = sorted((site for block in blocks[depth:] for site in block), key=worth.__getitem__)
            open = self._fit(above, sites, costs)
            kept = math.fsum(ratio for ratio, is_open in zip(ratios, open, strict=True) if is_open)
            choices.append(_Choice(any(open), kept, open))
        best = max(choices, key=lambda choice: choice[:2])
        return best.open if best.fits else self._cheapest(sites, costs)

    def _cheapest(self, sites: int, costs: Costs) -> list[bool]:
        masks = [_open([site], sites) for site in range(sites)]
        left, site = min((left, site) for site, left in enumerate(costs.under(masks)))
        warnings.warn(
            f"policy Budget: no open gate fits into {self.target:.0%} of the backward. {left / costs.total:.0%} remain "
            "with one site open, which is kept; a target below that is never met.",
            stacklevel=2,
        )
        return masks[site]

    def _fit(self, above: Sequence[int], sites: int, costs: Costs) -> list[bool]:
        """Return decisions with as many of ``above`` open as fit, those that come last in it."""
        low, high = 0, len(above)
        while low < high:  # how many to shut: the cost falls with each
            shut = (low + high) // 2
            (left,) = costs.under([_open(above[shut:], sites)])
            low, high = (low, shut) if left <= self.target * costs.total else (shut + 1, high)
        return _open(above[low:], sites)

    def state_dict(self) -> dict[str, Any]:
        """Return the last choice, and the next one or the means by which it will be made."""
        return {name: getattr(self, f"_{name}") for name in self._STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a choice."""
        for name in self._STATE:
            setattr(self, f"_{name}", state[name])

    _STATE: ClassVar[tuple[str, ...]] = ("shut", "next", "means", "looked")


def _open(chosen: Sequence[int], sites: int) -> list[bool]:
    members = set(chosen)
    return [site in members for site in range(sites)]
