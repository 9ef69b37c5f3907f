"""Observations for tests of policies: sites of layers, as a policy sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skiplora_fx.policy import Costs, Observation, SiteHistory


def observed(
    step: int = 0, means: Sequence[float] = (1.0,) * 8, each: int = 1, costs: Costs | None = None, **known: Any
) -> Observation:
    """Return what is seen of blocks with these mean ratios, ``each`` sites in every one."""
    sites = [
        SiteHistory(f"model.layers.{block}.linear_{site}", mean=mean, ratio=mean, **known)
        for block, mean in enumerate(means)
        for site in range(each)
    ]
    return Observation(step, tuple(sites), costs)


def shut(thresholds: Sequence[float]) -> str:
    """Return a mark for each site: ``#`` where it is surely shut, ``.`` where open, ``?`` where its ratio decides."""
    return "".join({0.0: ".", float("inf"): "#"}.get(threshold, "?") for threshold in thresholds)


class LinearCosts:
    """A backward in which each site costs 1, and a layer of its own size has to be passed to reach what lies below.

    Args:
        layers: FLOPs of passing each site's layer, lowest first.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = list(layers)

    @property
    def total(self) -> int:
        return self.under([[True] * len(self._layers)])[0]

    def under(self, decisions: Sequence[Sequence[bool]]) -> list[int]:
        return [self._under(opens) for opens in decisions]

    def _under(self, opens: Sequence[bool]) -> int:
        lowest = opens.index(True) if any(opens) else len(opens)
        return sum(opens) + sum(self._layers[lowest + 1 :])
