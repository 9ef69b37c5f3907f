"""Which parts of a backward can be left out together, and what has to stand in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, fx

from . import operators
from .conditions import Condition
from .liveness import Liveness, is_gate
from .sums import addends, is_plain_sum, is_worth_a_branch, made_for


@dataclass(frozen=True)
class Filler:
    """What an output of a region is worth when the region does not run.

    Attributes:
        zero: somebody that runs reads it, so it must be a real zero; else it may be anything.
        carried: for a sum of which some addends may be worth something all the same: those addends, each
            with the condition under which it is the sum.
    """

    zero: bool
    carried: tuple[tuple[fx.Node, Condition], ...] = ()


@dataclass(frozen=True)
class Region:
    """Nodes that run under one condition and can run in one go.

    Attributes:
        condition: when to run: at least whenever one of the nodes is live.
        nodes: in the graph's order. Views are not listed: each region repeats those that it reads.
        outputs: the nodes that others read, each with its filler.
    """

    condition: Condition
    nodes: tuple[fx.Node, ...]
    outputs: Mapping[fx.Node, Filler]


@dataclass(frozen=True)
class Regions:
    """The regions of a graph, and the gates that need no node of their own."""

    regions: tuple[Region, ...]
    open_gates: frozenset[fx.Node]
    """Gates that every reader sees open whenever it runs: it can read their input instead."""


def find_regions(graph: fx.Graph, liveness: Liveness) -> Regions:
    """Group the nodes of a backward into regions.

    In:
        The graph that ``liveness`` looked at. It is not changed.
    Out:
        :class:`Regions`. A node that is always live is in none; one that is never demanded is in none either.
    Terms:
        *run condition*: that a node is live; for a sum that it is live and no addend is zero, since a sum
        with one zero addend is the other. A pointwise node takes the wider condition of a node that it reads,
        if everything it reads is there by then: one region then does for several. An addend that costs less than the
        branch that could leave it out (``sums.py``) is computed, from zeros if need be, whenever the sum is live.
        *level*: how often the condition changes, at most, on a path that leads to the node. A region is the nodes of
        one condition and one level: a path that leaves it and comes back would have changed condition twice, so
        regions never wait for each other in a circle.
    """
    return _Grouping(graph, liveness).regions()


class _Grouping:
    """The state of one call of ``find_regions``."""

    def __init__(self, graph: fx.Graph, liveness: Liveness) -> None:
        self._graph = graph
        self._liveness = liveness
        self._conditions = liveness.conditions
        self._run = {node: self._run_condition(node) for node in graph.nodes if node.op != "output"}
        self._there = dict(liveness.live)
        self._join_cheap_addends()
        self._widen_pointwise()
        self._open_gates = frozenset(node for node in graph.nodes if is_gate(node) and self._seen_open(node))
        self._levels: dict[fx.Node, int] = {}

    def regions(self) -> Regions:
        placed = [n for n in self._graph.nodes if n.op == "call_function" and not self._is_transparent(n)]
        for node in placed:
            self._levels[node] = self._lowest_level(node)
        for node in reversed(placed):
            self._sink(node)
        groups: dict[tuple[int, Condition], list[fx.Node]] = {}
        for node in placed:
            if self._is_predicated(node):
                groups.setdefault((self._levels[node], self._run[node]), []).append(node)
        found = tuple(Region(key[1], tuple(nodes), self._outputs(nodes)) for key, nodes in groups.items())
        return Regions(found, self._open_gates)

    def _run_condition(self, node: fx.Node) -> Condition:
        if operators.is_part(node):
            return self._run_condition(cast(fx.Node, node.args[0]))
        live = self._liveness.live[node]
        if not is_plain_sum(node):
            return live
        return self._conditions.all((live, *(self._liveness.nonzero[addend] for addend in addends(node))))

    def _join_cheap_addends(self) -> None:
        """Let an addend that is not worth a branch run whenever its sum is live.

        Where it did not have to, a factor in it is zero, and is there as real zeros.
        """
        for node in filter(is_plain_sum, filter(self._is_predicated, self._run)):
            live = self._liveness.live[node]
            parts = {addend: made_for(addend) for addend in addends(node)}
            joined = {addend for addend, made in parts.items() if made and not is_worth_a_branch(made, node)}
            for addend in joined:
                self._run.update(dict.fromkeys(parts[addend], live))
                self._there.update(dict.fromkeys(parts[addend], live))
            others = (self._liveness.nonzero[addend] for addend in addends(node) if addend not in joined)
            self._run[node] = self._conditions.all((live, *others))

    def _widen_pointwise(self) -> None:
        """Let pointwise nodes run whenever one that they read does, and note when each value is there."""
        ready: list[fx.Node] = []
        for node in self._run:
            sources = operators.tensor_inputs(node)
            there = self._conditions.all(self._there[source] for source in sources)
            if operators.is_view(node) or operators.is_part(node) or operators.is_creation(node):
                self._there[node] = there
            elif not self._may_widen(node):
                continue
            elif there == self._conditions.true:
                self._there[node] = there  # what is recomputed from saved values alone: there for whoever asks
                ready.append(node)
            else:
                self._run[node] = self._there[node] = self._widest(node, sources, there)
        for node in reversed(ready):
            asked = (self._run[reader] for reader in operators.readers_through_views(node))
            self._run[node] = self._there[node] = self._conditions.any((self._run[node], *asked))

    def _may_widen(self, node: fx.Node) -> bool:
        # A sum that may be one of its addends runs under less than its own liveness; it stays as it is.
        return (
            operators.is_pointwise(node) and self._is_predicated(node) and self._run[node] == self._liveness.live[node]
        )

    def _widest(self, node: fx.Node, sources: list[fx.Node], there: Condition) -> Condition:
        """Return when one of the ``sources`` is there, if ``node`` can run whenever it is, else when it has to."""
        own = self._run[node]
        wider = (self._there[source] for source in sources)
        return next((c for c in wider if c != self._conditions.true and own <= c <= there), own)

    def _is_predicated(self, node: fx.Node) -> bool:
        return self._run[node] != self._conditions.true and self._liveness.demanded[node] != self._conditions.false

    def _is_transparent(self, node: fx.Node) -> bool:
        return operators.is_view(node) or operators.is_creation(node) or node in self._open_gates

    def _seen_open(self, gate: fx.Node) -> bool:
        """Return whether each reader, whenever it runs, finds ``gate`` worth its input."""
        nonzero = self._liveness.nonzero[gate]
        return all(
            reader.op != "output" and self._run[reader] <= nonzero for reader in operators.readers_through_views(gate)
        )

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the nodes that compute something from ``node``, seen through views and open gates."""
        for user in node.users:
            if user.op != "output" and self._is_transparent(user):
                yield from self._readers(user)
            else:
                yield user

    def _sources(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the nodes that ``node`` computes from, seen through views and open gates."""
        for source in node.all_input_nodes:
            if self._is_transparent(source):
                yield from self._sources(source)
            else:
                yield source

    def _lowest_level(self, node: fx.Node) -> int:
        # Parts of one result stay with the operator that gives them, whatever each is for.
        if operators.is_part(node):
            return self._levels[cast(fx.Node, node.args[0])]
        sources = (source for source in self._sources(node) if source in self._levels)  # the others are inputs
        return max((self._levels[source] + self._distance(source, node) for source in sources), default=0)

    def _sink(self, node: fx.Node) -> None:
        """Raise the level of ``node`` to that of a reader under the same condition, if no other reader minds.

        What is recomputed for one reader would else make a region of its own, far ahead of that reader.
        """
        if operators.is_part(node) or not self._is_predicated(node):
            return
        parts = [user for user in node.users if operators.is_part(user)]
        readers = [(source, reader) for source in (parts or [node]) for reader in self._readers(source)]
        if not readers or any(reader.op == "output" for _, reader in readers):
            return
        highest = min(self._levels[reader] - self._distance(source, reader) for source, reader in readers)
        if any(self._run[reader] == self._run[node] and self._levels[reader] == highest for _, reader in readers):
            self._levels.update(dict.fromkeys([node, *parts], highest))

    def _distance(self, source: fx.Node, reader: fx.Node) -> int:
        """Return by how many levels ``reader`` must be above ``source``: 0 if one region may hold both."""
        # What a sum carries is read while the sum's region does not run, so it must come from another one.
        carried = any(addend is source or source in self._sources(addend) for addend, _ in self._carried(reader))
        return int(carried or self._run[source] != self._run[reader])

    def _outputs(self, nodes: list[fx.Node]) -> dict[fx.Node, Filler]:
        inside = set(nodes)
        return {
            node: self._filler(node)
            for node in nodes
            if isinstance(node.meta["val"], Tensor) and any(reader not in inside for reader in self._readers(node))
        }

    def _filler(self, node: fx.Node) -> Filler:
        # A reader that runs while this is not there has found it zero; else it would be demanded, so live.
        # Asked once of all readers together, as a node may have some in every layer.
        read = self._conditions.any(map(self._reading, self._readers(node)))
        return Filler(not read <= self._there[node], self._carried(node))

    def _carried(self, node: fx.Node) -> tuple[tuple[fx.Node, Condition], ...]:
        """Return the addends that a sum may be worth when it does not run, each with when it is."""
        if not is_plain_sum(node):
            return ()
        live = self._liveness.live[node]
        worth = ((addend, self._conditions.all((live, self._liveness.nonzero[addend]))) for addend in addends(node))
        return tuple((addend, condition) for addend, condition in worth if not condition <= self._run[node])

    def _reading(self, reader: fx.Node) -> Condition:
        return self._conditions.true if reader.op == "output" else self._run[reader]
