"""Policies that compare each ratio with a threshold."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .base import OPEN, Observation, Policy, SiteHistory
from .checks import check_count, check_share


@dataclass(eq=False)
class Threshold(Policy):
    """The rule of SkipLoRA: a gate is shut where ``M < τ``, with τ from the option ``threshold``."""

    needs_history = False

    def decide(self, observation: Observation) -> list[float]:
        """Return each site's own τ."""
        return [site.threshold for site in observation.sites]


@dataclass(eq=False)
class Quantile(Policy):
    """Each site has a τ of its own, which follows its ratios, so that it is shut in a stated share of the steps.

    τ is that quantile of the site's last ratios. They are measured in every forward, with the gate shut as well.

    Attributes:
        share: of the steps in which a site is shut, from 0 to 1.
        window: number of ratios that the quantile is taken over. Below a quarter of it the gate stays open.
    """

    share: float = 0.5
    window: int = 64
    _ratios: dict[str, deque[float]] = field(default_factory=dict, init=False, repr=False)
    _seen: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_share(self, share=self.share)
        check_count(self, window=self.window)

    def decide(self, observation: Observation) -> list[float]:
        """Return the quantile of each site's ratios."""
        return [self._threshold(site) for site in observation.sites]

    def _threshold(self, site: SiteHistory) -> float:
        ratios = self._ratios.setdefault(site.id, deque(maxlen=self.window))
        if site.backwards > self._seen.get(site.id, 0) and math.isfinite(site.ratio):
            ratios.append(site.ratio)
            self._seen[site.id] = site.backwards
        if 4 * len(ratios) < self.window:
            return OPEN
        return _quantile(sorted(ratios), self.share)

    def state_dict(self) -> dict[str, Any]:
        """Return the ratios in each window."""
        return {"ratios": {name: list(ratios) for name, ratios in self._ratios.items()}, "seen": dict(self._seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Fill the windows."""
        self._ratios = {name: deque(ratios, maxlen=self.window) for name, ratios in state["ratios"].items()}
        self._seen = dict(state["seen"])


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile between neighbours (Hyndman and Fan, "Sample quantiles", 1996, definition 7)."""
    below, rest = divmod(share * (len(ordered) - 1), 1)
    low, high = ordered[int(below)], ordered[min(int(below) + 1, len(ordered) - 1)]
    return low + rest * (high - low)
