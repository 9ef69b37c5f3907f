"""The paper's rule, and thresholds that follow a quantile."""

from __future__ import annotations

import random

import pytest
from sights import observed

from skiplora_fx.policy import Observation, Quantile, SiteHistory, Threshold


def test_threshold_gives_each_site_its_own() -> None:
    sites = tuple(SiteHistory(f"layer.{site}", threshold=tau) for site, tau in enumerate((0.1, 0.0, float("inf"))))
    assert Threshold().decide(Observation(0, sites)) == [0.1, 0.0, float("inf")]


@pytest.mark.parametrize("share", [0.25, 0.8])
def test_quantile_shuts_the_stated_share_of_the_steps_at_each_site(share: float) -> None:
    policy, draw = Quantile(share, window=50), random.Random(0)
    shut = [0, 0]
    ratios = [0.0, 0.0]
    for step in range(1500):
        sites = tuple(SiteHistory(f"l.{site}", ratio=ratio, backwards=step) for site, ratio in enumerate(ratios))
        thresholds = policy.decide(Observation(step, sites))
        ratios = [draw.gauss(1.0, 0.1), draw.gauss(100.0, 5.0)]  # no single τ would suit both
        shut = [count + (ratio < tau) for count, ratio, tau in zip(shut, ratios, thresholds, strict=True)]
    assert [count / 1500 for count in shut] == pytest.approx([share, share], abs=0.05)


def test_quantile_is_open_until_it_has_seen_something() -> None:
    policy = Quantile(window=8)
    found = [policy.decide(observed(step, [1.0], backwards=step))[0] for step in range(4)]
    assert found == [0.0, 0.0, 1.0, 1.0]


def test_quantile_counts_a_backward_once() -> None:
    policy = Quantile(window=8)
    for _ in range(5):
        policy.decide(observed(1, [1.0], backwards=1))
    assert policy.state_dict()["ratios"] == {"model.layers.0.linear_0": [1.0]}


def test_quantile_leaves_out_what_is_not_finite() -> None:
    policy = Quantile(window=4)
    policy.decide(observed(1, [float("nan"), float("inf")], backwards=1))
    assert all(ratios == [] for ratios in policy.state_dict()["ratios"].values())


def test_quantile_goes_on_from_its_state() -> None:
    draw = random.Random(1)
    ratios = [draw.random() for _ in range(20)]
    whole, first, second = Quantile(window=6), Quantile(window=6), Quantile(window=6)
    expected = [whole.decide(observed(step, [ratio], backwards=step)) for step, ratio in enumerate(ratios, 1)]
    for step, ratio in enumerate(ratios[:11], 1):
        first.decide(observed(step, [ratio], backwards=step))
    second.load_state_dict(first.state_dict())
    found = [second.decide(observed(step, [ratio], backwards=step)) for step, ratio in enumerate(ratios[11:], 12)]
    assert found == expected[11:]
