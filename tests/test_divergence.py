"""A run that diverges does not look like one that skips."""

from __future__ import annotations

import math
import warnings

import pytest
from torch import nn
from two_layers import compiled, step

import skiplora_fx
from skiplora_fx import DivergenceWarning, SiteState


def diverge(model: nn.Module, value: float = math.nan, part: str = "base") -> list[SiteState]:
    """Take two steps whose second layer, or its adapter, gives what is not finite, and return what is known then."""
    nn.init.constant_(getattr(model.upper, part).weight, value)
    step(model)
    step(model)  # decisions that are held are those of the last M
    return skiplora_fx.sites(model)


@pytest.mark.parametrize("decision", ["current", "previous"])
@pytest.mark.parametrize("options", [{"threshold": 1e9}, {"policy": "freeze", "policy_kwargs": {"share": 1.0}}])
@pytest.mark.parametrize(("part", "value"), [("base", math.nan), ("base", math.inf), ("b", math.inf)])
def test_what_is_not_finite_opens_its_gate_and_is_said_once(
    decision: str, options: dict[str, object], part: str, value: float
) -> None:
    model = compiled(decision=decision, **options)
    step(model)
    step(model)
    assert [site.skipped for site in skiplora_fx.sites(model)] == [True, True]
    with pytest.warns(DivergenceWarning, match="M of upper is not a number") as caught:
        found = diverge(model, value, part)
    assert len([one for one in caught if one.category is DivergenceWarning]) == 1
    assert [site.skipped for site in found] == [True, False]
    assert math.isnan(found[1].ratio)
    assert "nan" in skiplora_fx.report(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DivergenceWarning)
        step(model)
        skiplora_fx.sites(model)


def test_what_recovers_is_decided_for_again() -> None:
    model = compiled(decision="previous", threshold=1e9)
    step(model)
    with pytest.warns(DivergenceWarning):
        diverge(model)
    nn.init.ones_(model.upper.base.weight)
    step(model)
    step(model)
    assert [site.skipped for site in skiplora_fx.sites(model)] == [True, True]
