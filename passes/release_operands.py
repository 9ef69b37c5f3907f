"""Have what a ``cond`` reads last let go behind it, whichever branch ran."""

from __future__ import annotations

import math

from torch import Tensor, fx

from ..gate import RELEASE
from .operators import COND, is_view, readers_through_views

_SMALLEST = 1 / 4
"""Of the largest value: what is smaller, as what a rank's width has, is not worth a call."""


def release_operands(graph: fx.Graph) -> None:
    """Write a last reader behind each ``cond`` that is the last to read something large.

    In:
        A backward as ``predicate_backward`` left it, in an order in which it can run.
    Out:
        The same graph, with a ``skiplora::release`` behind such a ``cond``. Inductor lets a value go behind its last
        reader, and where that is a ``cond`` it does so in the branch that it writes first alone: when the other one
        ran, what it was given would be held until the backward's end. What the forward saved is not released: it is
        there when the backward begins, and the branch that runs lets go of it sooner than a reader behind it would.
    Terms:
        *large*: at least a quarter of the largest such value, as far as sizes are known.
    """
    last_read = _last_read(graph)
    smallest = _SMALLEST * max((_elements(value) for values in last_read.values() for value in values), default=0)
    for cond, values in last_read.items():
        large = [value for value in values if _elements(value) >= smallest]
        results = list(cond.users)
        if large:
            with graph.inserting_before(results[-1].next):
                graph.call_function(RELEASE, (large, min(results, key=_elements)))


def _last_read(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Return what the backward computes and a ``cond`` is the last to read, by that ``cond``."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    found: dict[fx.Node, list[fx.Node]] = {}
    for value in graph.nodes:
        readers = list(readers_through_views(value)) if _is_computed_here(value) else []
        if readers and (last := max(readers, key=order.__getitem__)).target is COND:
            found.setdefault(last, []).append(value)
    return found


def _is_computed_here(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.meta.get("val"), Tensor) and not is_view(node)


def _elements(value: fx.Node) -> int:
    """Return how many elements a value has, without the sizes that are known only when the graph runs."""
    return math.prod(size for size in value.meta["val"].shape if isinstance(size, int))
