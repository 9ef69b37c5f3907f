"""Conditions: Boolean functions of the gates' decisions, in a canonical form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from dd import autoref

Condition: TypeAlias = Any  # dd.autoref.Function; dd comes without types
"""A Boolean function of the decisions. Equal functions are equal objects and hash alike; ``<=`` is implication."""


class Conditions:
    """Builds conditions as reduced ordered binary decision diagrams (Bryant, 1986), with the library ``dd``.

    A canonical form is what keeps this small: with the layer scope the residual additions join two sides
    either of which may be zero, and sets of clauses for that grow exponentially with the layers.

    Args:
        sites: number of sites; decision ``i`` is that of site ``i``.
    """

    def __init__(self, sites: int) -> None:
        self._diagrams = autoref.BDD()
        self._diagrams.configure(reordering=False)
        # The last site on top: what a node of the backward waits for is "any site below me", and in this
        # order the diagrams of all these share one chain.
        self._diagrams.declare(*(_variable(site) for site in reversed(range(sites))))
        self.true: Condition = self._diagrams.true
        self.false: Condition = self._diagrams.false

    def open(self, sites: Iterable[int]) -> Condition:
        """Return the condition that any of ``sites`` is open."""
        return self.any(self._diagrams.var(_variable(site)) for site in sites)

    def any(self, conditions: Iterable[Condition]) -> Condition:
        """Return the disjunction; of none, false."""
        result = self.false
        for condition in conditions:
            if condition == self.true:
                return condition
            if condition != result:
                result = result | condition
        return result

    def all(self, conditions: Iterable[Condition]) -> Condition:
        """Return the conjunction; of none, true."""
        result = self.true
        for condition in conditions:
            if condition == self.false:
                return condition
            if condition != result:
                result = result & condition
        return result

    def text(self, condition: Condition) -> str:
        """Return the condition as a formula over ``s0``, ``s1``, …, the decisions."""
        return str(self._diagrams.to_expr(condition))

    @staticmethod
    def support(condition: Condition) -> frozenset[int]:
        """Return the sites on whose decisions the condition depends."""
        return frozenset(int(name[1:]) for name in condition.support)


def flatten(conditions: Sequence[Condition]) -> tuple[list[int], list[int]]:
    """Return ``(table, roots)`` for ``skiplora::evaluate_conditions``: one diagram for all ``conditions``."""
    rows: list[int] = []
    numbers: dict[Condition, int] = {}
    for condition in conditions:
        _number(condition, numbers, rows)
    return rows, [numbers[condition] for condition in conditions]


def _number(condition: Condition, numbers: dict[Condition, int], rows: list[int]) -> None:
    """Append the rows of ``condition`` that are not there yet, children before parents."""
    stack = [condition]  # no recursion: a chain is as long as there are sites
    while stack:
        top = stack[-1]
        if top.var is None:
            numbers[top] = int(not top.negated)
        elif top not in numbers:
            children = _children(top)
            waiting = [child for child in children if child not in numbers]
            if waiting:
                stack.extend(waiting)
                continue
            rows.extend((int(top.var[1:]), *(numbers[child] for child in children)))
            numbers[top] = len(rows) // 3 + 1
        stack.pop()


def _children(condition: Condition) -> tuple[Condition, Condition]:
    # dd shares a node between a function and its negation, and marks the reference.
    low, high = condition.low, condition.high
    return (~low, ~high) if condition.negated else (low, high)


def _variable(site: int) -> str:
    return f"s{site}"
