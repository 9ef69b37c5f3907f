"""Policies that shut a prefix."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sights import observed, shut

from skiplora_fx.policy import Freeze, Multirate, Prefix, Progressive, Schedule


def is_prefix(marks: str) -> bool:
    return "#" not in marks.lstrip("#")


@pytest.mark.parametrize(
    ("share", "marks"), [(0.0, "........"), (0.5, "####...."), (0.99, "#######."), (1.0, "########")]
)
def test_freeze_rounds_down(share: float, marks: str) -> None:
    assert shut(Freeze(share).decide(observed())) == marks


def test_a_block_is_shut_as_a_whole() -> None:
    assert shut(Freeze(0.5).decide(observed(means=[1.0] * 4, each=3))) == "######......"


def test_multirate_opens_the_lower_part_every_kth_step() -> None:
    policy = Multirate(share=0.25, every=3)
    assert [shut(policy.decide(observed(step))) for step in range(4)] == [
        "........",
        "##......",
        "##......",
        "........",
    ]


@pytest.mark.parametrize(
    ("first", "last", "depths"),
    [
        (0.0, 0.75, [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 3]),
        (0.75, 0.0, [3, 3, 3, 3, 2, 2, 1, 1, 0, 0, 0]),
        (0.25, 0.99, [1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3]),  # rounded down, stages as equal as whole steps allow
        (0.5, 0.5, [2] * 11),
    ],
)
def test_a_schedule_moves_by_equal_stages(first: float, last: float, depths: list[int]) -> None:
    policy = Schedule(first, last, begin=2, steps=10)
    marks = [shut(policy.decide(observed(step, [1.0] * 4, each=2))) for step in range(11)]
    assert all(map(is_prefix, marks))
    assert [mark.count("#") for mark in marks] == [2 * depth for depth in depths]


@given(st.integers(1, 40), st.integers(1, 300), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_schedule_goes_block_by_block_from_the_first_to_the_last(
    blocks: int, steps: int, first: float, last: float
) -> None:
    policy = Schedule(first, last, steps=steps)
    depths = [policy.depth(step, blocks) for step in range(steps + 1)]
    assert (depths[0], depths[-1]) == (int(first * blocks), int(last * blocks))
    assert depths == sorted(depths, reverse=last < first)
    if steps > blocks:
        assert all(abs(after - before) <= 1 for before, after in itertools.pairwise(depths))


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=12), st.floats(0.0, 1.0), st.floats(0.001, 0.5))
def test_prefix_rates_rise_and_have_the_mean_asked_for(impacts: list[float], share: float, least: float) -> None:
    rates = Prefix(share, least).rates(impacts)
    assert rates == sorted(rates)
    assert rates[-1] == 1.0
    assert min(rates) >= least
    if all(impact > 1e-3 for impact in impacts) and share < 1.0 - 1.0 / len(impacts):
        resting = [1.0 - rate for rate in Prefix(share, 0.0).rates(impacts)]
        assert math.fsum(resting) / len(resting) == pytest.approx(share, abs=1e-6)


def test_prefix_trains_every_block_lower_ones_more_rarely() -> None:
    policy = Prefix(0.5)
    open_steps: Counter[int] = Counter()
    for step in range(2000):
        marks = shut(policy.decide(observed(step)))
        assert is_prefix(marks)
        open_steps.update(block for block, mark in enumerate(marks) if mark == ".")
    rates = policy.rates([1.0] * 8)
    assert [open_steps[block] / 2000 for block in range(8)] == pytest.approx(rates, abs=0.04)


def test_prefix_depth_follows_where_the_impact_lies() -> None:
    def below_the_middle(impacts: list[float]) -> float:
        return math.fsum(Prefix().rates(impacts)[:4])

    assert (
        below_the_middle([8.0] * 4 + [1.0] * 4) > below_the_middle([1.0] * 8) > below_the_middle([1.0] * 4 + [8.0] * 4)
    )


def test_prefix_draws_by_the_step_alone() -> None:
    steps = [3, 1, 2, 3]
    drawn = [shut(Prefix(seed=5).decide(observed(step))) for step in steps]
    assert drawn[0] == drawn[3]
    assert len({shut(Prefix(seed=seed).decide(observed(0))) for seed in range(20)}) > 2


def run(policy: Progressive, ratios: list[list[float]], begin: int = 1) -> list[int]:
    """Return the depth after each step of which these are the blocks' ratios."""
    depths = []
    for step, means in enumerate(ratios, begin):
        marks = shut(policy.decide(observed(step, means)))
        assert is_prefix(marks)
        depths.append(marks.count("#"))
    return depths


def test_progressive_shuts_what_has_settled_from_below() -> None:
    policy = Progressive(window=2, bound=0.05)
    settled_below = [[1.0, 1.0, 2.0**step, 1.0] for step in range(6)]
    # Two windows are needed to see a change; the block above the one that moves has settled too, and stays open.
    assert run(policy, settled_below) == [0, 0, 0, 2, 2, 2]


def test_progressive_stops_at_the_deepest() -> None:
    assert run(Progressive(window=1, deepest=0.5), [[1.0] * 8] * 4) == [0, 4, 4, 4]


def test_progressive_opens_what_a_probe_has_moved() -> None:
    policy = Progressive(window=1, bound=0.05, reopen=0.25, deepest=1.0)
    assert run(policy, [[1.0] * 4] * 2) == [0, 4]
    assert run(policy, [[1.0, 1.2, 1.0, 1.0]], 3) == [4]  # by less than a quarter
    assert run(policy, [[1.0, 1.0, 2.0, 1.0]], 4) == [2]


def test_progressive_counts_a_step_once() -> None:
    policy = Progressive(window=2)
    for _ in range(10):
        policy.decide(observed(1))
    assert policy.state_dict()["counted"] == 1


def test_progressive_waits_for_all_ratios() -> None:
    policy = Progressive(window=1)
    assert run(policy, [[math.nan, 1.0]] * 5) == [0] * 5


def test_progressive_goes_on_from_its_state() -> None:
    ratios = [[1.0, 1.0, 1.0 + 0.3 * step, 1.0] for step in range(12)]
    whole = run(Progressive(window=2), ratios)
    first, second = Progressive(window=2), Progressive(window=2)
    run(first, ratios[:5])
    second.load_state_dict(first.state_dict())
    assert run(second, ratios[5:], 6) == whole[5:]
