"""The trial policies of the quality benchmark that look at gradients, or at what others say."""

from __future__ import annotations

import math
from dataclasses import replace

from quality_parts.trials import BestRate, ByGradient, Either
from sights import LinearCosts, observed, shut

from skiplora_fx.policy import Budget, Freeze, Observation, Threshold

COSTS = LinearCosts([24] * 4)


def with_norms(norms: list[float], seen: Observation) -> Observation:
    """Return what is seen of sites with these gradient norms."""
    sites = (replace(site, gradient_norm=norm) for site, norm in zip(seen.sites, norms, strict=True))
    return replace(seen, sites=tuple(sites))


def best_rate(norms: list[float], forward: float = 1.0) -> str:
    return shut(BestRate(forward).decide(with_norms(norms, observed(means=[1.0] * 4, costs=COSTS))))


def test_nothing_is_truncated_where_all_blocks_are_worth_the_same() -> None:
    assert best_rate([1.0, 1.0, 1.0, 1.0]) == "...."


def test_blocks_that_are_worth_less_than_the_time_to_reach_them_are_truncated() -> None:
    assert best_rate([0.0, 0.0, 1.0, 1.0]) == "##.."
    assert best_rate([0.1, 0.1, 1.0, 1.0]) == "##.."


def test_a_lowest_block_that_is_worth_much_keeps_the_way_to_it_open() -> None:
    assert best_rate([1.0, 0.0, 0.0, 0.1]) == "...."


def test_a_forward_that_costs_more_makes_truncation_worth_less() -> None:
    assert best_rate([0.1, 0.1, 1.0, 1.0], forward=9.0) == "...."


def test_everything_is_open_while_gradients_or_costs_are_unknown() -> None:
    assert best_rate([0.0, math.nan, 1.0, 1.0]) == "...."
    without_costs = with_norms([0.0, 0.0, 1.0, 1.0], observed(means=[1.0] * 4))
    assert shut(BestRate().decide(without_costs)) == "...."


def test_a_policy_by_gradient_takes_norms_for_m() -> None:
    policy = ByGradient(Budget(0.5))
    assert policy.needs_gradients
    assert policy.needs_costs
    seen = [
        with_norms([1.0, 4.0, 2.0, 3.0], observed(step, means=[9.0, 1.0, 1.0, 1.0], costs=LinearCosts([0] * 4)))
        for step in range(2)
    ]
    assert [shut(policy.decide(step)) for step in seen] == ["....", "#.#."]


def test_either_shuts_what_any_does() -> None:
    policy = Either((Freeze(share=0.5), Threshold(), Budget()))
    assert (policy.needs_history, policy.needs_gradients, policy.needs_costs) == (True, False, True)
    seen = observed(means=[1.0] * 4, threshold=3.0)
    assert Either((Freeze(share=0.5), Threshold())).decide(seen) == [math.inf, math.inf, 3.0, 3.0]
