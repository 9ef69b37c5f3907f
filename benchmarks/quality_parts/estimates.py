"""Means over seeds, and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and its standard error: NaN of a single seed, both NaN of none.

    Attributes:
        seeds: how many; 0 if that is not known.
    """

    mean: float
    error: float
    seeds: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """The confidence interval of the mean, by Student's t: of few seeds it is wide. NaN of fewer than two."""
        if self.seeds < 2:
            return math.nan, math.nan
        half = float(student.ppf((1 + CONFIDENCE) / 2, self.seeds - 1)) * self.error
        return self.mean - half, self.mean + half


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and standard error of the numbers among ``values``."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Estimate(math.nan, math.nan)
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return Estimate(statistics.fmean(known), error, len(known))


def paired(differences: Sequence[float]) -> Estimate:
    """Return the mean difference over all seeds; NaN if one of them is unknown, as the others may not stand for it."""
    return estimate([]) if any(map(math.isnan, differences)) else estimate(differences)
