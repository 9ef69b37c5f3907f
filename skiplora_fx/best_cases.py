"""What each policy can leave out of a backward, as far as that does not depend on the training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Any

from .policy import (
    POLICIES,
    SHUT,
    Costs,
    Observation,
    Policy,
    Progressive,
    Quantile,
    SiteHistory,
    Threshold,
    make_policy,
    with_run,
)

_STEPS = 100


def best_cases(
    sites: Sequence[SiteHistory], costs: Costs, options: Mapping[Any, Mapping[str, Any]]
) -> dict[str, float]:
    """Return for each policy that has a name the share of backward FLOPs that it leaves out, from 0 to 1.

    ``threshold``, ``quantile`` and ``progressive`` shut what has a small M, or one that has settled: of these it is the
    most that their own bounds allow. Of the others it is the mean of 100 steps in which every M is the same. Without
    sites there is nothing to decide, so the result is empty.

    Args:
        sites: the model's, in the order of the forward; of these only the names are read.
        costs: of the model's backward.
        options: by a policy's name, options that differ from its defaults.
    """
    if not sites:
        return {}
    made = {name: make_policy(name, with_run(name, options.get(name, {}), steps=_STEPS)) for name in POLICIES}
    return {name: share_left_out(_decisions(policy, sites, costs), costs) for name, policy in made.items()}


def share_left_out(decisions: Sequence[Sequence[bool]], costs: Costs) -> float:
    """Return the mean share of backward FLOPs that some steps leave out.

    Args:
        decisions: for each step and site whether its gate is open.
        costs: of the model's backward.
    """
    times = Counter(tuple(opens) for opens in decisions)
    left = sum(many * flops for many, flops in zip(times.values(), costs.under(list(times)), strict=True))
    return 1.0 - left / (costs.total * len(decisions)) if costs.total else 0.0


@singledispatch
def _decisions(policy: Policy, sites: Sequence[SiteHistory], costs: Costs) -> list[list[bool]]:
    """Return what a policy decides in each of some steps, True where a gate is open; in the first it may only look."""
    return [_decided(policy, sites, costs, step) for step in range(_STEPS + 1)][1:]


def _decided(policy: Policy, sites: Sequence[SiteHistory], costs: Costs, step: int) -> list[bool]:
    alike = tuple(replace(site, ratio=1.0, mean=1.0, backwards=step) for site in sites)
    return [threshold <= 1.0 for threshold in policy.decide(Observation(step, alike, costs))]


@_decisions.register
def _(policy: Threshold, sites: Sequence[SiteHistory], costs: Costs) -> list[list[bool]]:
    return [[False] * len(sites)]


@_decisions.register
def _(policy: Quantile, sites: Sequence[SiteHistory], costs: Costs) -> list[list[bool]]:
    """Return the best that can happen: the same steps for all sites."""
    return [[step >= policy.share * _STEPS] * len(sites) for step in range(_STEPS)]


@_decisions.register
def _(policy: Progressive, sites: Sequence[SiteHistory], costs: Costs) -> list[list[bool]]:
    """Return the deepest that it goes."""
    observation = Observation(0, tuple(sites))
    blocks = len(observation.blocks())
    deepest = observation.with_prefix(int(policy.deepest * blocks))
    return [[threshold != SHUT for threshold in deepest]]
