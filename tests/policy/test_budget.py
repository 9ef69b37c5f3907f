"""As much M as fits."""

from __future__ import annotations

import itertools
import json
import math
import random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sights import LinearCosts, observed, shut

from skiplora_fx.policy import Budget


def test_everything_is_open_while_costs_or_ratios_are_unknown() -> None:
    assert shut(Budget(0.1).decide(observed())) == "........"
    assert shut(Budget(0.1).decide(observed(means=[math.nan] * 8, costs=LinearCosts([100] * 8)))) == "........"


def chosen(policy: Budget, **seen: Any) -> list[float]:
    """Return what a policy decides in the step after the one in which it looked."""
    assert shut(policy.decide(observed(**seen))).strip(".") == "", "it looks before it shuts anything"
    return policy.decide(observed(1, **seen))


def test_it_truncates_where_that_is_what_costs() -> None:
    assert shut(chosen(Budget(0.5), costs=LinearCosts([100] * 8))) == "####...."


def test_it_shuts_single_sites_where_those_cost() -> None:
    means = [4.0, 1.0, 3.0, 2.0]
    assert shut(chosen(Budget(0.5), means=means, costs=LinearCosts([0] * 4))) == ".#.#"


@given(
    st.lists(st.tuples(st.floats(0.01, 10.0), st.integers(0, 50)), min_size=1, max_size=6),
    st.floats(0.05, 1.0),
)
def test_what_it_chooses_fits_and_no_prefix_keeps_more(layers: list[tuple[float, int]], target: float) -> None:
    means, sizes = [mean for mean, _ in layers], [size for _, size in layers]
    costs = LinearCosts(sizes)
    assume(target * costs.total >= 1)  # the highest site alone
    opens = [threshold == 0.0 for threshold in chosen(Budget(target), means=means, costs=costs)]
    assert any(opens)
    assert costs.under([opens])[0] <= target * costs.total
    kept = math.fsum(itertools.compress(means, opens))
    for depth in range(len(means)):
        prefix = [site >= depth for site in range(len(means))]
        if costs.under([prefix])[0] <= target * costs.total:
            assert kept >= math.fsum(itertools.compress(means, prefix)) - 1e-9


def test_a_choice_is_held_and_follows_the_step_that_was_looked_at() -> None:
    policy = Budget(0.5, every=3)
    costs = LinearCosts([0] * 4)
    first, second = [4.0, 3.0, 1.0, 1.0], [1.0, 1.0, 3.0, 4.0]
    found = [shut(policy.decide(observed(step, first if step < 4 else second, costs=costs))) for step in range(1, 7)]
    assert found == ["....", "..##", "..##", "..##", "##..", "##.."]


@pytest.mark.parametrize("stopped", range(1, 7))
def test_it_goes_on_from_its_state_without_costs_in_the_first_step(stopped: int) -> None:
    """A resumed run has compiled no backward yet when its first step is decided."""
    costs = LinearCosts([0] * 4)
    draw = random.Random(0)
    means = [[draw.random() for _ in range(4)] for _ in range(10)]
    whole, before, after = Budget(0.5, every=2), Budget(0.5, every=2), Budget(0.5, every=2)
    wanted = [shut(whole.decide(observed(step, means[step], costs=costs))) for step in range(10)]
    assert len(set(wanted)) > 2
    found = [shut(before.decide(observed(step, means[step], costs=costs))) for step in range(stopped)]
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for step in range(stopped, 10):
        found.append(shut(after.decide(observed(step, means[step], costs=costs if step > stopped else None))))
    assert found == wanted


def test_everything_fits() -> None:
    assert shut(chosen(Budget(1.0), costs=LinearCosts([5] * 8))) == "." * 8


def test_what_cannot_be_met_is_said_and_leaves_one_site_open() -> None:
    with pytest.warns(UserWarning, match=r"no open gate fits into 1% of the backward. 2% remain with one site open"):
        assert shut(chosen(Budget(0.01), costs=LinearCosts([5] * 8))) == "#######."
