"""When does a backward read what it is given?"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from . import operators
from .conditions import Condition
from .find_regions import Regions
from .liveness import Liveness


def read_conditions(graph: fx.Graph, liveness: Liveness, found: Regions) -> dict[str, Condition]:
    """Return for each input of a backward, by name, the condition under which something that runs reads it.

    A region may run more often than what it holds is live, and what is then read has to be there: a zero times
    anything that is no number is none.

    Args:
        graph: a backward, its gates in it.
        liveness, found: what the analyses made of it.
    """
    run = {node: region.condition for region in found.regions for node in region.nodes}
    reading = _Reading(liveness, found, run)
    return {node.name: reading.of(node) for node in graph.find_nodes(op="placeholder")}


class _Reading:
    """The state of one call of ``read_conditions``."""

    def __init__(self, liveness: Liveness, found: Regions, run: Mapping[fx.Node, Condition]) -> None:
        self._conditions = liveness.conditions
        self._open_gates = found.open_gates
        self._run = run
        self._carried: dict[fx.Node, list[Condition]] = {}
        for region in found.regions:
            for filler in region.outputs.values():
                for addend, condition in filler.carried:
                    self._carried.setdefault(addend, []).append(condition)

    def of(self, value: fx.Node) -> Condition:
        """Return when a node's value is read, by the name of a view of it too."""
        return self._conditions.any([*self._carried.get(value, ()), *map(self._through, value.users)])

    def _through(self, user: fx.Node) -> Condition:
        if operators.is_view(user) or user in self._open_gates:
            return self.of(user)
        return self._run.get(user, self._conditions.true)
