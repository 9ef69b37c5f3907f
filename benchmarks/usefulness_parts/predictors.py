"""How well a statistic of a step tells what parts of that step, or of later ones, are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quality_parts.estimates import Estimate, estimate

from .correlation import spearman
from .record import Drops, Probe, Record

Told = Callable[[Probe], Sequence[float]]
"""What a step's statistics say of each site, or are of the step before."""


@dataclass(frozen=True)
class Predictor:
    """A statistic that may tell what a site is worth.

    Attributes:
        what: in a few words.
        of: a value for each site; of several sites together the values add up.
        name: of the statistic; empty for none.
    """

    what: str
    name: str
    of: Callable[[float], float] = float

    def values(self, statistics: dict[str, Sequence[float]], sites: int) -> list[float]:
        """Return a value for each site."""
        return [self.of(value) for value in statistics[self.name]] if self.name else [1.0] * sites


PREDICTORS = (
    Predictor("promise, minus gradient · update", "promise"),
    Predictor("norm of the gradient", "norm"),
    Predictor("its square", "norm", lambda norm: norm * norm),
    Predictor("cosine with the step before", "cosine"),
    Predictor("M", "ratio"),
    Predictor("change of M", "change"),
    Predictor("nothing: each site counts the same", ""),
)


@dataclass(frozen=True)
class When:
    """How old a statistic is when it is used.

    Attributes:
        what: in words.
        probes: by which it is older than the step.
        step: whether it is older by one step instead.
    """

    what: str
    probes: int = 0
    step: bool = False


def whens(every: int) -> tuple[When, ...]:
    """Return the ages that are looked at, of probes that are ``every`` steps apart."""
    return (When("same step"), When("1 step old", step=True), When(f"{every} old", 1), When(f"{3 * every} old", 3))


def pairs(record: Record, predictor: Predictor, when: When) -> Iterator[tuple[list[float], Probe]]:
    """Yield the value of each site as it is known, and the probe whose drops it is to tell."""
    sites = len(record.costs.sites)
    for place in range(when.probes, len(record.probes)):
        probe, known = record.probes[place], record.probes[place - when.probes]
        statistics = probe.before if when.step else known.statistics
        if statistics:
            yield predictor.values(dict(statistics), sites), probe


def among_sites(record: Record, predictor: Predictor, when: When, of: Callable[[Probe], Drops]) -> float:
    """Return the rank correlation of value and drop over the sites of a step, the mean over the steps."""
    return _mean([spearman(values, of(probe).site) for values, probe in pairs(record, predictor, when)])


def per_flop(record: Record, predictor: Predictor, when: When) -> float:
    """Return the same of value and held-out drop for each FLOP that the site's gate saves alone."""
    saves = record.costs.saves
    return _mean(
        [
            spearman(_divided(values, saves), _divided(probe.held_out.site, saves))
            for values, probe in pairs(record, predictor, when)
        ]
    )


def over_the_run(record: Record, predictor: Predictor, when: When) -> float:
    """Return the rank correlation of value and held-out drop over the steps of a site, the mean over the sites."""
    found = list(pairs(record, predictor, when))
    return _mean(
        [
            spearman([values[site] for values, _ in found], [probe.held_out.site[site] for _, probe in found])
            for site in range(len(record.costs.sites))
        ]
    )


def among_depths(record: Record, predictor: Predictor, when: When, of: Callable[[Probe], Sequence[float]]) -> float:
    """Return the mean over the steps of the rank correlation over the depths of a truncation, for each FLOP saved.

    What is told is the sum of the values below. The depth at which everything is shut is left out.

    Args:
        record: of a run.
        predictor: what is told.
        when: how old it is.
        of: gives what is measured at each depth.
    """
    saved = record.costs.truncated()[:-1]
    return _mean(
        [
            spearman(_divided(_below(record, values)[:-1], saved), _divided(of(probe)[:-1], saved))
            for values, probe in pairs(record, predictor, when)
        ]
    )


def share_error(record: Record, predictor: Predictor, when: When, of: Callable[[Probe], Sequence[float]]) -> float:
    """Return by how much the told share of what is measured at a depth is off, the mean over depths.

    Shares are those of the whole run: sums over its steps, as one step's drop may be next to nothing, or a rise.
    """
    found = list(pairs(record, predictor, when))
    told = _added([_below(record, values) for values, _ in found])
    seen = _added([of(probe) for _, probe in found])
    return _mean([abs(one / told[-1] - other / seen[-1]) for one, other in zip(told[:-1], seen[:-1], strict=True)])


def shares(
    records: Sequence[Record], of: Callable[[Probe], Sequence[float]], third: int | None = None
) -> list[Estimate]:
    """Return what is seen at each depth as a share of what is seen at the last.

    Args:
        records: of all seeds.
        of: gives a value for each depth; those of a run's steps are added up.
        third: of the run: 0, 1 or 2; None for all of it.
    """
    found = []
    for record in records:
        added = _added([of(probe) for probe in _third(record.probes, third)])
        found.append([value / added[-1] for value in added])
    return [estimate(column) for column in zip(*found, strict=True)]


def _third(probes: Sequence[Probe], third: int | None) -> Sequence[Probe]:
    if third is None:
        return probes
    return probes[third * len(probes) // 3 : (third + 1) * len(probes) // 3]


def _below(record: Record, values: Sequence[float]) -> list[float]:
    blocks = [math.fsum(values[site] for site in block) for block in record.costs.blocks()]
    return [math.fsum(blocks[: depth + 1]) for depth in range(len(blocks))]


def _added(rows: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) for column in zip(*rows, strict=True)]


def _divided(values: Sequence[float], by: Sequence[int]) -> list[float]:
    return [value / flops for value, flops in zip(values, by, strict=True)]


def _mean(values: Sequence[float]) -> float:
    """Return the mean of those that are numbers."""
    return estimate(values).mean
