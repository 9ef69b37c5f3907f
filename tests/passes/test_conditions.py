"""Conditions are Boolean functions: equal if they mean the same, and flattened without changing their meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from aten import holds, masks
from hypothesis import given
from hypothesis import strategies as st

from skiplora_fx.passes.conditions import Condition, Conditions, flatten

SITES = 4
Formula = Any
"""A list of sites, any of which is open; or ``("any" | "all", [formulas])``."""

FORMULAS: st.SearchStrategy[Formula] = st.recursive(
    st.lists(st.integers(0, SITES - 1), max_size=3),
    lambda parts: st.tuples(st.sampled_from(["any", "all"]), st.lists(parts, max_size=4)),
    max_leaves=12,
)


def build(formula: Formula, conditions: Conditions) -> Condition:
    if isinstance(formula, list):
        return conditions.open(formula)
    join, parts = formula
    return getattr(conditions, join)(build(part, conditions) for part in parts)


def evaluate(formula: Formula, mask: Sequence[bool]) -> bool:
    if isinstance(formula, list):
        return any(mask[site] for site in formula)
    join, parts = formula
    chosen: Callable[..., bool] = {"any": any, "all": all}[join]
    return chosen(evaluate(part, mask) for part in parts)


@given(st.lists(FORMULAS, min_size=1, max_size=5))
def test_flattened_diagrams_mean_what_the_formulas_mean(formulas: list[Formula]) -> None:
    conditions = Conditions(SITES)
    table, roots = flatten([build(formula, conditions) for formula in formulas])
    for mask in masks(SITES):
        found = torch.ops.skiplora.evaluate_conditions(torch.tensor(mask), table, roots)
        assert found.tolist() == [evaluate(formula, mask) for formula in formulas]


@given(FORMULAS, FORMULAS)
def test_equal_if_and_only_if_they_mean_the_same(one: Formula, other: Formula) -> None:
    conditions = Conditions(SITES)
    first, second = build(one, conditions), build(other, conditions)
    same = all(evaluate(one, mask) == evaluate(other, mask) for mask in masks(SITES))
    implied = all(evaluate(one, mask) <= evaluate(other, mask) for mask in masks(SITES))
    assert (first == second) == same
    assert (first <= second) == implied
    assert len({first, second}) == (1 if same else 2)


@given(FORMULAS)
def test_support_is_what_it_depends_on(formula: Formula) -> None:
    def depends_on(site: int) -> bool:
        flipped = ((mask, (*mask[:site], not mask[site], *mask[site + 1 :])) for mask in masks(SITES))
        return any(evaluate(formula, mask) != evaluate(formula, other) for mask, other in flipped)

    found = Conditions.support(build(formula, Conditions(SITES)))
    assert found == {site for site in range(SITES) if depends_on(site)}


def test_negations_are_flattened_too() -> None:
    conditions = Conditions(2)
    condition = ~conditions.open([0, 1])
    table, roots = flatten([condition])
    for mask in masks(2):
        found = torch.ops.skiplora.evaluate_conditions(torch.tensor(mask), table, roots)
        assert found.item() == holds(condition, mask) == (not any(mask))


def test_constants() -> None:
    conditions = Conditions(1)
    assert conditions.any([]) == conditions.open([]) == conditions.false
    assert conditions.all([]) == conditions.true
    assert flatten([conditions.true, conditions.false]) == ("", "1 0")


def test_text() -> None:
    conditions = Conditions(2)
    assert conditions.text(conditions.true) == "always"
    assert conditions.text(conditions.open([1])) == "s1"
    assert conditions.text(conditions.all([conditions.open([0]), conditions.open([1])])) == "s0 and s1"


def test_a_chain_of_a_thousand_sites_shares_its_diagram() -> None:
    conditions = Conditions(1000)
    below = [conditions.open([0])]
    for site in range(1, 1000):
        below.append(conditions.any([below[-1], conditions.open([site])]))
    table, roots = flatten(below)
    assert len(table.split()) == 3 * 1000
    mask = torch.zeros(1000, dtype=torch.bool)
    mask[700] = True
    found = torch.ops.skiplora.evaluate_conditions(mask, table, roots)
    assert found.tolist() == [site >= 700 for site in range(1000)]
