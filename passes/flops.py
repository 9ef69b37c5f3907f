"""FLOPs of a backward graph, and which decisions each of them waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..gate import EVALUATE_CONDITIONS
from . import operators
from .conditions import Condition, flatten
from .find_regions import Regions
from .flop_formulas import flops_of
from .liveness import Liveness, is_gate


@dataclass(frozen=True)
class Flops:
    """FLOPs of a backward, by what they wait for.

    Attributes:
        table, roots: the conditions under which something runs, as ``evaluate_conditions`` takes them.
        costs: for each condition how many run under it.
        uncounted: operators that no formula covers, by name, and how often they occur. Views and what touches
            each element once are not listed.
        borders: how many decisions there are behind those of the sites, each whether anything below is open.
    """

    table: str
    roots: str
    costs: tuple[int, ...]
    uncounted: Mapping[str, int]
    borders: int = 0

    @property
    def total(self) -> int:
        """The FLOPs of a backward with every gate open."""
        return sum(self.costs)

    def under(self, decisions: Sequence[Sequence[bool]]) -> list[int]:
        """Return the FLOPs that run under each of several sets of decisions, True where open."""
        costs = torch.tensor(self.costs, dtype=torch.int64)
        masks = (EVALUATE_CONDITIONS(torch.tensor(opens), self.table, self.roots) for opens in decisions)
        return [int(costs[mask].sum()) for mask in masks]


def flops(graph: fx.Graph, analysis: Liveness, found: Regions, borders: int = 0) -> Flops:
    """Count the FLOPs of each node of a backward by torch's own formulas, and when each runs.

    In:
        A partitioned backward graph, its gates still in it, its :func:`liveness` and its regions, and how many of the
        decisions are of borders. It is not changed.
    Out:
        :class:`Flops`. A multiplication and an addition count as two.
    """
    run = {node: region.condition for region in found.regions for node in region.nodes}
    by_condition: Counter[Condition] = Counter()
    uncounted: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op != "call_function" or is_gate(node):
            continue
        count = flops_of(node)
        if count is not None:
            by_condition[run.get(node, analysis.live[node])] += count
        elif not _is_cheap(node):
            uncounted[operators.name_of(node)] += 1
    table, roots = flatten(list(by_condition))
    return Flops(table, roots, tuple(by_condition.values()), dict(uncounted.most_common()), borders)


def _is_cheap(node: fx.Node) -> bool:
    return (
        operators.is_view(node)
        or operators.is_part(node)
        or operators.is_creation(node)
        or operators.is_pointwise(node)
        or not isinstance(node.meta.get("val"), (Tensor, tuple, list))
    )
