"""Warm-up, probing, and a least number of open sites."""

from __future__ import annotations

import math
from typing import Any

import pytest
from sights import observed, shut

from skiplora_fx.policy import Freeze, MinActive, Observation, Only, Policy, Probe, Quantile, SiteHistory, WarmUp, needs


class Shut(Policy):
    """Shuts everything, and remembers when it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def decide(self, observation: Observation) -> list[float]:
        self.asked.append(observation.step)
        return [math.inf] * len(observation.sites)

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: Any) -> None:
        self.asked = list(state["asked"])


def test_warm_up_opens_the_first_steps_and_lets_the_policy_look_on() -> None:
    inner = Shut()
    assert [shut(WarmUp(inner, 2).decide(observed(step, [1.0]))) for step in range(4)] == [".", ".", "#", "#"]
    assert inner.asked == [0, 1, 2, 3]


def test_probe_opens_one_step_in_so_many_counted_from_the_warm_up() -> None:
    policy = Probe(Shut(), every=3, after=4)
    found = "".join(shut(policy.decide(observed(step, [1.0]))) for step in range(4, 13))
    assert found == "##.##.##."


@pytest.mark.parametrize(
    ("means", "sites", "marks"),
    [
        ([1.0, 3.0, 2.0], 1, "#.#"),
        ([1.0, 3.0, 2.0], 2, "#.."),
        ([1.0, 1.0, 1.0], 1, "##."),
        ([math.nan] * 3, 1, "##."),
        ([1.0, 3.0, 2.0], 9, "..."),
    ],
)
def test_min_active_opens_those_of_largest_mean(means: list[float], sites: int, marks: str) -> None:
    assert shut(MinActive(Shut(), sites).decide(observed(means=means))) == marks


def test_min_active_adds_nothing_where_enough_is_open() -> None:
    assert shut(MinActive(Freeze(0.5), 4).decide(observed())) == "####...."


def test_min_active_trusts_no_threshold_that_a_ratio_still_has_to_pass() -> None:
    class Between(Policy):
        def decide(self, observation: Observation) -> list[float]:
            return [0.5] * len(observation.sites)

    assert MinActive(Between(), 1).decide(observed(means=[1.0, 2.0])) == [0.5, 0.0]


def test_needs_and_state_are_those_of_the_inside() -> None:
    assert needs(WarmUp(Probe(Quantile(), 2), 1), "history")
    assert not needs(WarmUp(Freeze(), 1), "history")
    inner = Shut()
    WarmUp(inner, 1).load_state_dict({"asked": [7]})
    assert WarmUp(inner, 1).state_dict() == {"asked": [7]}


def test_an_object_that_only_decides_is_a_policy() -> None:
    class Bare:
        def decide(self, observation: Observation) -> list[float]:
            return [math.inf]

    wrapped = WarmUp(Bare(), 0)
    assert wrapped.decide(observed(means=[1.0])) == [math.inf]
    assert wrapped.state_dict() == {}
    wrapped.load_state_dict({})
    assert (needs(Bare(), "history"), needs(Bare(), "costs"), needs(Bare(), "gradients")) == (True, False, False)


class _Counted:
    """Costs of three sites, of which each that is open costs what its place says."""

    total = 111

    def under(self, decisions: Any) -> list[int]:
        return [sum(10**place for place, is_open in enumerate(opens) if is_open) for opens in decisions]


class _Sees(Policy):
    def decide(self, observation: Observation) -> list[float]:
        assert observation.costs is not None
        self.names = [site.name for site in observation.sites]
        self.left = observation.costs.under([[False, True], [True, False], [False, False]])
        self.total = observation.costs.total
        return [math.inf, 0.5]


def test_only_shows_some_sites_and_opens_the_rest() -> None:
    inner = _Sees()
    sites = tuple(SiteHistory(name) for name in ("0.q", "0.o", "1.q"))
    assert Only(inner, ["*.q"]).decide(Observation(0, sites, _Counted())) == [math.inf, 0.0, 0.5]
    assert (inner.names, inner.total) == (["0.q", "1.q"], 111)
    assert inner.left == [110, 11, 10]
