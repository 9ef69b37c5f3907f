"""What of a backward remains when some gates are shut, by the conditions that were compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import UsageError
from .records import GraphRecord, Snapshot


@dataclass(frozen=True)
class GraphWhatIf:
    """What one call of a graph's backward runs.

    Attributes:
        graph: its number.
        names: of its sites in this call.
        opens: for each site whether its gate is open.
        regions: for each region, by its number, whether it runs.
        flops: that run.
        total: that run with every gate open.
    """

    graph: int
    names: tuple[str, ...]
    opens: tuple[bool, ...]
    regions: Mapping[int, bool]
    flops: int
    total: int


@dataclass(frozen=True)
class WhatIf:
    """What the backwards of a model run; ``graphs`` has one entry for each call of each graph."""

    graphs: tuple[GraphWhatIf, ...]

    @property
    def flops(self) -> int:
        """FLOPs that run."""
        return sum(graph.flops for graph in self.graphs)

    @property
    def total(self) -> int:
        """FLOPs with every gate open."""
        return sum(graph.total for graph in self.graphs)

    @property
    def share(self) -> float:
        """Share of the backward's FLOPs that remain, from 0 to 1."""
        return self.flops / self.total if self.total else 1.0


Decisions = Sequence[bool] | Mapping[str, bool]
"""True where a gate is open: for each site in order, or by globs over names; the first match wins, no match is open."""


def site_names(snapshot: Snapshot) -> tuple[str, ...]:
    """Return the names of the sites of all calls, in the order in which :func:`what_if` takes decisions."""
    return tuple(name for _, names in _calls(snapshot) for name in names)


def what_if(snapshot: Snapshot, decisions: Decisions) -> WhatIf:
    """Return what the backward of a model runs under some decisions.

    Args:
        snapshot: of the model.
        decisions: see :data:`Decisions`.

    Raises:
        UsageError: there are not as many decisions as sites, or a glob matches no site.
    """
    opens = _opens(site_names(snapshot), decisions)
    found, begin = [], 0
    for graph, names in _calls(snapshot):
        found.append(_of_call(graph, names, opens[begin : begin + len(names)]))
        begin += len(names)
    return WhatIf(tuple(found))


def _calls(snapshot: Snapshot) -> list[tuple[GraphRecord, tuple[str, ...]]]:
    unnamed = {graph.number: (tuple(site.name for site in graph.sites),) for graph in snapshot.graphs}
    return [(graph, names) for graph in snapshot.graphs for names in graph.calls or unnamed[graph.number]]


def _opens(names: Sequence[str], decisions: Decisions) -> tuple[bool, ...]:
    if isinstance(decisions, Mapping):
        lost = [glob for glob in decisions if not any(fnmatchcase(name, glob) for name in names)]
        if lost:
            raise UsageError(f"what_if: {lost[0]!r} matches no site; there are: {', '.join(names) or 'none'}")
        return tuple(
            next((open for glob, open in decisions.items() if fnmatchcase(name, glob)), True) for name in names
        )
    if len(decisions) != len(names):
        raise UsageError(f"what_if: {len(decisions)} decisions, but {len(names)} sites: one for each, or globs")
    return tuple(map(bool, decisions))


def _of_call(graph: GraphRecord, names: tuple[str, ...], opens: tuple[bool, ...]) -> GraphWhatIf:
    stage = graph.stage("predicated") or graph.stage("backward")
    if stage is None:
        return GraphWhatIf(graph.number, names, opens, {}, 0, 0)
    always = sum(node.flops or 0 for node in stage.nodes if node.region is None)
    total = sum(node.flops or 0 for node in stage.nodes)
    holds = stage.conditions.under(opens) if stage.regions and stage.conditions else []
    runs = {region.number: holds[region.condition] for region in stage.regions}
    flops = always + sum(region.flops for region in stage.regions if runs[region.number])
    return GraphWhatIf(graph.number, names, opens, runs, flops, total)
