"""Find where a sequence repeats itself."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, count

_Names = Sequence[Hashable]
"""For each place a name of the stretch that begins there: the same where stretches are the same."""


@dataclass(frozen=True)
class Run:
    """Labels that repeat: each is the one a period further on, up to the last period."""

    start: int
    stop: int
    period: int

    @property
    def periods(self) -> int:
        """How many whole periods there are."""
        return (self.stop - self.start) // self.period

    @property
    def saved(self) -> int:
        """How many labels there are in whole periods but the first."""
        return (self.periods - 1) * self.period

    def within(self, start: int, stop: int) -> Run:
        """Return the part of the run between two places, which may be shorter than a period."""
        return Run(max(self.start, start), min(self.stop, stop), self.period)


def repetitions(labels: Sequence[Hashable], fewest: int, smallest: int) -> Iterator[Run]:
    """Yield the runs of some labels that save most, disjoint, in the labels' order.

    Which saves most is chosen first, of several the one with the smallest period, and of these the longest and the
    first; then so on in what is left on either side. The work grows as n log n with the number of labels, apart from
    that of choosing, which grows with the number of runs.

    Args:
        labels: what repeats.
        fewest: whole periods in a run; 3 or more.
        smallest: labels in a period.
    """
    yield from _chosen(list(_runs(labels, fewest, smallest)), 0, len(labels), fewest)


def _chosen(runs: Sequence[Run], start: int, stop: int, fewest: int) -> Iterator[Run]:
    inside = [run for run in (run.within(start, stop) for run in runs) if run.periods >= fewest]
    best = max(inside, key=lambda run: (run.saved, -run.period, run.stop - run.start, -run.start), default=None)
    if best is not None:
        yield from _chosen(inside, start, best.start, fewest)
        yield best
        yield from _chosen(inside, best.stop, stop, fewest)


def _runs(labels: Sequence[Hashable], fewest: int, smallest: int) -> Iterator[Run]:
    """Yield every run that is part of no longer one of the same period.

    In one of three periods there is a multiple of the period from which on a whole period is that from the next
    multiple on. So these places alone are looked at, n / period of them.
    """
    names = _names(labels)
    for period in range(smallest, len(labels) // fewest + 1):
        sampled = names[period.bit_length() - 1][::period]
        reached = 0
        for place in compress(count(0, period), map(operator.eq, sampled, sampled[1:])):
            if place >= reached:
                reached = place + _same_ahead(names, place, place + period)
                run = Run(place - _same_before(names, place, place + period), reached + period, period)
                if run.periods >= fewest:
                    yield run


def _names(labels: Sequence[Hashable]) -> list[_Names]:
    """Return names of all stretches of 1, 2, 4, ... labels (Karp, Miller and Rosenberg, 1972)."""
    names: list[_Names] = [labels]
    while (length := 1 << len(names)) <= len(labels):
        halves = names[-1]
        numbers: dict[Hashable, int] = {}
        pairs = zip(halves, halves[length // 2 :], strict=False)
        names.append([numbers.setdefault(pair, len(numbers)) for pair in pairs])
    return names


def _same_ahead(names: Sequence[_Names], place: int, later: int) -> int:
    """Return how many labels from one place on are those from a later one on."""
    same = 0
    for level in reversed(range(len(names))):
        known = names[level]
        if later + same < len(known) and known[place + same] == known[later + same]:
            same += 1 << level
    return same


def _same_before(names: Sequence[_Names], place: int, later: int) -> int:
    """Return how many labels up to one place are those up to a later one."""
    same = 0
    for level in reversed(range(len(names))):
        length = 1 << level
        begin = place - same - length
        if begin >= 0 and names[level][begin] == names[level][later - same - length]:
            same += length
    return same
