"""What each policy can leave out, over a backward whose costs are known by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from skiplora_fx.best_cases import best_cases, share_left_out
from skiplora_fx.policy import POLICIES, SiteHistory

SITES = [SiteHistory(f"layers.{layer}.q") for layer in range(8)]


class Stack:
    """A backward of eight equal layers that goes down to the lowest open one."""

    total = 800

    def under(self, decisions: Sequence[Sequence[bool]]) -> list[int]:
        return [100 * (8 - list(opens).index(True)) if any(opens) else 0 for opens in decisions]


def test_each_policy_has_a_share_that_its_options_tell() -> None:
    shares = best_cases(SITES, Stack(), {})
    assert shares.keys() == POLICIES.keys()
    assert shares["threshold"] == 1.0
    assert shares["quantile"] == 0.5  # of the steps
    assert shares["progressive"] == 0.75  # of the depth
    assert shares["freeze"] == 0.5
    assert shares["multirate"] == pytest.approx(3 / 4 * 0.5)
    assert shares["schedule"] == pytest.approx(3.5 / 8, abs=0.01)  # depths of 0 to 7, for as many steps each
    assert shares["budget"] == 0.5  # five layers are more than the 60 % that may remain, four are not
    assert shares["prefix"] == pytest.approx(0.5, abs=0.1)
    assert shares["random"] < 0.2  # the lowest open layer is near the bottom


def test_the_options_of_a_policy() -> None:
    shares = best_cases(SITES, Stack(), {"freeze": {"share": 0.25}, "multirate": {"every": 2}})
    assert (shares["freeze"], shares["multirate"]) == (0.25, 0.25)


def test_without_sites_there_is_no_share() -> None:
    assert best_cases([], Stack(), {}) == {}


def test_a_share_is_the_mean_over_steps() -> None:
    shut, open = [False] * 8, [True] * 8
    assert share_left_out([shut, open, open, open], Stack()) == 0.25
