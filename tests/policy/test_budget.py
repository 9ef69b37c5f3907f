"""As much M as fits."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sights import LinearCosts, observed, shut

from skiplora_fx.policy import Budget


def test_everything_is_open_while_costs_or_ratios_are_unknown() -> None:
    assert shut(Budget(0.1).decide(observed())) == "........"
    assert shut(Budget(0.1).decide(observed(means=[math.nan] * 8, costs=LinearCosts([100] * 8)))) == "........"


def test_it_truncates_where_that_is_what_costs() -> None:
    assert shut(Budget(0.5).decide(observed(costs=LinearCosts([100] * 8)))) == "####...."


def test_it_shuts_single_sites_where_those_cost() -> None:
    means = [4.0, 1.0, 3.0, 2.0]
    assert shut(Budget(0.5).decide(observed(means=means, costs=LinearCosts([0] * 4)))) == ".#.#"


@given(
    st.lists(st.tuples(st.floats(0.01, 10.0), st.integers(0, 50)), min_size=1, max_size=6),
    st.floats(0.05, 1.0),
)
def test_what_it_chooses_fits_and_no_prefix_keeps_more(layers: list[tuple[float, int]], target: float) -> None:
    means, sizes = [mean for mean, _ in layers], [size for _, size in layers]
    costs = LinearCosts(sizes)
    opens = [threshold == 0.0 for threshold in Budget(target).decide(observed(means=means, costs=costs))]
    assert costs.under([opens])[0] <= target * costs.total
    kept = math.fsum(itertools.compress(means, opens))
    for depth in range(len(means)):
        prefix = [site >= depth for site in range(len(means))]
        if costs.under([prefix])[0] <= target * costs.total:
            assert kept >= math.fsum(itertools.compress(means, prefix)) - 1e-9


def test_a_choice_is_held() -> None:
    policy = Budget(0.5, every=3)
    costs = LinearCosts([0] * 4)
    first, second = [4.0, 3.0, 1.0, 1.0], [1.0, 1.0, 3.0, 4.0]
    assert [shut(policy.decide(observed(step, first, costs=costs))) for step in (1, 2)] == ["..##", "..##"]
    assert [shut(policy.decide(observed(step, second, costs=costs))) for step in (3, 4)] == ["..##", "##.."]


def test_it_goes_on_from_its_state() -> None:
    first, second = Budget(0.5, every=3), Budget(0.5, every=3)
    costs = LinearCosts([0] * 4)
    first.decide(observed(1, [4.0, 3.0, 1.0, 1.0], costs=costs))
    second.load_state_dict(first.state_dict())
    assert shut(second.decide(observed(2, [1.0, 1.0, 3.0, 4.0], costs=costs))) == "..##"


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_extremes(target: float) -> None:
    assert shut(Budget(target).decide(observed(costs=LinearCosts([5] * 8)))) == ("." if target else "#") * 8
