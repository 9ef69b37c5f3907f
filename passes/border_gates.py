"""Gate the inputs of a graph that other graphs have computed: below them there may be nothing left to train."""

from __future__ import annotations

import operator
from collections.abc import Collection

import torch
from torch import fx

from ..gate import GATE
from .copying import GraphCopy
from .dataflow import is_floating
from .memory import sharing_memory, writes


def find_borders(graph: fx.Graph, carried: Collection[int], trained: Collection[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the inputs that can be gated as borders.

    Args:
        graph: of the forward, as Dynamo captured it.
        carried: positions of inputs that want a gradient and were computed outside.
        trained: nodes that hold what a site trains.

    Returns:
        Of those inputs the ones that nobody writes into and that the graph does not give back: AOTAutograd has to see
        that such a value is an input, and behind a gate it would not.
    """
    inputs = graph.find_nodes(op="placeholder")
    wanted = [node for place, node in enumerate(inputs) if place in carried and node not in trained]
    return tuple(node for node in wanted if is_floating(node) and _only_read(node))


def _only_read(node: fx.Node) -> bool:
    alike = sharing_memory(node)
    read_by = {user for alias in alike for user in alias.users}
    return not any(user.op == "output" or not alike.isdisjoint(writes(user)) for user in read_by)


def write_border_gates(copy: GraphCopy, borders: Collection[fx.Node], thresholds: fx.Node, first: int) -> None:
    """Have all that reads ``borders`` read them through gates.

    In:
        The copy of a graph, some of the original's inputs, the copy's thresholds, and the number of the first one's
        decision. Decisions are taken before the forward.
    Out:
        The copy, edited. A gate is open where its threshold is 0: its gradient is of use to something below.
    """
    graph = copy.gm.graph
    with graph.inserting_before(graph.find_nodes(op="placeholder")[-1].next):
        for number, border in enumerate(borders, first):
            value = copy.nodes[border]
            threshold = graph.call_function(operator.getitem, (thresholds, number))
            open = graph.call_function(torch.eq, (threshold, 0))
            gate = graph.call_function(GATE, (value, open, [number]))
            value.replace_all_uses_with(gate, delete_user_cb=lambda user, gate=gate: user is not gate)
