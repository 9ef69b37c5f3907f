"""Where a sequence repeats itself."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from skiplora_fx.passes.repetitions import Run, repetitions

FEWEST, SMALLEST = 3, 4


def found(labels: Sequence[object]) -> list[tuple[int, int, int]]:
    return [(run.start, run.stop, run.period) for run in repetitions(labels, FEWEST, SMALLEST)]


def one_by_one(labels: Sequence[int], start: int, stop: int) -> Iterator[Run]:
    """Yield the same runs by comparing each label with that a period further on, for each period, in each part left."""
    candidates = []
    for period in range(SMALLEST, (stop - start) // FEWEST + 1):
        place = start
        for equal, group in groupby(labels[at] == labels[at + period] for at in range(start, stop - period)):
            length = len(list(group))
            if equal and length >= (FEWEST - 1) * period:
                candidates.append(Run(place, place + length + period, period))
            place += length
    if not candidates:
        return
    best = max(candidates, key=lambda run: (run.saved, -run.period, run.stop - run.start, -run.start))
    yield from one_by_one(labels, start, best.start)
    yield best
    yield from one_by_one(labels, best.stop, stop)


def test_a_run_is_as_long_as_it_can_be() -> None:
    assert found("xyz" + "abcd" * 3 + "ab" + "z") == [(3, 17, 4)]


def test_what_repeats_too_seldom_or_too_closely_is_none() -> None:
    assert found("abcd" * 2) == []
    assert found("abc" * 3) == []
    assert found("abc" * 6) == [(0, 18, 6)]


def test_the_run_that_saves_most_comes_first_and_others_have_what_is_left() -> None:
    assert found("abcd" * 3 + "abce" * 9) == [(0, 12, 4), (12, 48, 4)]
    assert found("abcde" * 4 + "." + "pqrs" * 3) == [(0, 20, 5), (21, 33, 4)]


_BLOCKS = st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.integers(1, 6)), max_size=6)


@given(_BLOCKS)
def test_runs_are_those_found_by_trying_each_period(blocks: list[tuple[list[int], int]]) -> None:
    labels = [label for block, times in blocks for label in block * times]
    assert list(repetitions(labels, FEWEST, SMALLEST)) == list(one_by_one(labels, 0, len(labels)))


class Label:
    """A number that counts how often one is compared or hashed."""

    asked = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        type(self).asked += 1
        return isinstance(other, Label) and self.number == other.number

    def __hash__(self) -> int:
        type(self).asked += 1
        return self.number


def questions(layers: int) -> int:
    """Return how many comparisons are made for layers of 30 labels each, of which few stand once in a layer."""
    layer = random.Random(0).choices(range(8), k=30)
    labels = [Label(number) for number in layer * layers]
    Label.asked = 0
    assert found(labels) == [(0, 30 * layers, 30)]
    return Label.asked


def test_labels_are_compared_about_as_often_as_there_are_labels() -> None:
    assert questions(32) < 2.1 * questions(16)
