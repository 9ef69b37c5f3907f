"""The graphs of one model: which sites lie in them, in which order, and what their backwards cost."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .costs import ModelCosts
from .live_site import LiveSite
from .passes.flops import Flops

FlopsOf = Callable[[], "Flops | None"]
"""Returns what a backward costs; None as long as it is not compiled."""


@dataclass(frozen=True)
class _Graph:
    known: tuple[weakref.ref[LiveSite], ...]
    flops: FlopsOf

    def sites(self) -> list[LiveSite | None]:
        return [site() for site in self.known]


class ModelGraphs:
    """The graphs of one model, of which each may have been compiled more than once."""

    def __init__(self) -> None:
        self._graphs: list[_Graph] = []
        self._costs: ModelCosts | None = None

    def add(self, sites: Sequence[LiveSite], flops: FlopsOf) -> None:
        """Take a graph in, which stands for its sites from now on instead of the graphs that held them before."""
        graph = _Graph(tuple(map(weakref.ref, sites)), flops)
        alive = (other for other in self._graphs if other.known != graph.known and any(other.sites()))
        self._graphs = [*alive, graph]

    def sites(self) -> list[LiveSite]:
        """Return the sites that live, train or not, in the order of the forward.

        Within a graph that is the graph's own order; graphs come in the order of the model's parameters.
        """
        return [site for _, members in self._in_order() for site in members]

    def _in_order(self) -> list[tuple[_Graph, list[LiveSite]]]:
        found: list[tuple[_Graph, list[LiveSite]]] = []
        taken: set[LiveSite] = set()
        for graph in reversed(self._graphs):
            members = [site for site in graph.sites() if site is not None and site not in taken and not site.replaced]
            members = list(dict.fromkeys(members))  # a tied layer is used twice
            taken.update(members)
            if members:
                found.insert(0, (graph, members))
        return sorted(found, key=lambda entry: min(site.position for site in entry[1]))

    def costs(self, sites: Sequence[LiveSite]) -> ModelCosts | None:
        """Return the costs of all graphs; None while one of them is not known.

        Args:
            sites: those that train, in the order of the forward.
        """
        positions = {site: position for position, site in enumerate(sites)}
        parts: list[tuple[Flops, tuple[int | None, ...]]] = []
        for graph, members in self._in_order():
            if not any(site in positions for site in members):
                continue
            flops = graph.flops()
            if flops is None:
                return None
            parts.append((flops, tuple(positions.get(site) if site is not None else None for site in graph.sites())))
        found = ModelCosts(tuple(parts), len(sites))
        if found != self._costs:
            self._costs = found  # keeps what it has counted
        return self._costs
