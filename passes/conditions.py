"""Conditions: Boolean functions of the gates' decisions, in a canonical form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, TypeAlias

from dd import autoref, bdd

Condition: TypeAlias = Any  # dd.autoref.Function; dd comes without types
"""A Boolean function of the decisions. Equal functions are equal objects and hash alike; ``<=`` is implication."""


class _Manager(bdd.BDD):
    """Diagrams that may go in any order.

    ``dd`` raises, into the void, when they go before the last function that refers to them. Python's collector
    of cycles knows no order.
    """

    def __del__(self) -> None:
        pass


class Conditions:
    """Builds conditions as reduced ordered binary decision diagrams (Bryant, 1986), with the library ``dd``.

    A canonical form is what keeps this small: with the layer scope the residual additions join two sides
    either of which may be zero, and sets of clauses for that grow exponentially with the layers.

    Args:
        decisions: how many there are. Decision ``i`` is that of site ``i``; behind them come those of borders.
    """

    def __init__(self, decisions: int) -> None:
        self._diagrams = autoref.BDD()
        self._diagrams._bdd = _Manager()
        self._diagrams.vars = self._diagrams._bdd.vars
        self._diagrams.configure(reordering=False)
        # The last site on top: what a node of the backward waits for is "any site below me", and in this
        # order the diagrams of all these share one chain.
        self._diagrams.declare(*(_variable(index) for index in reversed(range(decisions))))
        self.true: Condition = self._diagrams.true
        self.false: Condition = self._diagrams.false

    def open(self, decisions: Iterable[int]) -> Condition:
        """Return the condition that any of ``decisions`` is open."""
        return self.any(self._diagrams.var(_variable(index)) for index in decisions)

    def any(self, conditions: Iterable[Condition]) -> Condition:
        """Return the disjunction; of none, false."""
        parts = []
        for condition in dict.fromkeys(conditions):
            if condition == self.true:
                return condition
            if condition != self.false:
                parts.append(condition)
        # In pairs: the diagrams of n readers in n layers share one chain, of which a running disjunction would walk
        # the part between first and last n times.
        while len(parts) > 1:
            last = parts[len(parts) - len(parts) % 2 :]
            parts = [one | other for one, other in zip(parts[::2], parts[1::2], strict=False)] + last
        return parts[0] if parts else self.false

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
        """Return the condition in words over ``s0``, ``s1``, …, the decisions."""
        if condition in (self.true, self.false):
            return "always" if condition == self.true else "never"
        needed = sorted(site for site in self.support(condition) if condition <= self.open([site]))
        rest = self._diagrams.let({_variable(site): True for site in needed}, condition)
        return " and ".join([_variable(site) for site in needed] + ([] if rest == self.true else [self._rest(rest)]))

    def _rest(self, condition: Condition) -> str:
        """Return the text of a condition that needs none of its sites."""
        sites = self.support(condition)
        if condition != self.open(sites):
            return f"({self._diagrams.to_expr(condition)})"
        spans = groupby(enumerate(sorted(sites)), key=lambda pair: pair[1] - pair[0])
        return "any of " + ", ".join(_span([site for _, site in span]) for _, span in spans)

    @staticmethod
    def support(condition: Condition) -> frozenset[int]:
        """Return the sites on whose decisions the condition depends."""
        return frozenset(int(name[1:]) for name in condition.support)


def flatten(conditions: Sequence[Condition]) -> tuple[str, str]:
    """Return ``(table, roots)`` for ``skiplora::evaluate_conditions``: one diagram for all ``conditions``."""
    rows: list[int] = []
    numbers: dict[Condition, int] = {}
    for condition in conditions:
        _number(condition, numbers, rows)
    return _words(rows), _words(numbers[condition] for condition in conditions)


def _words(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


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


def _span(sites: Sequence[int]) -> str:
    ends = dict.fromkeys((_variable(sites[0]), _variable(sites[-1])))
    return "…".join(ends) if len(sites) > 2 else ", ".join(ends)


def _variable(site: int) -> str:
    return f"s{site}"
