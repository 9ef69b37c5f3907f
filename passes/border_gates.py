"""Gate the inputs of a graph that other graphs have computed: below them there may be nothing left to train."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, fx

from ..gate import GATE
from .copying import GraphCopy
from .dataflow import is_floating, value_of
from .memory import sharing_memory, writes


def find_borders(graph: fx.Graph, carried: Collection[int], trained: Collection[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the inputs that can be gated as borders.

    Args:
        graph: of the forward, as Dynamo captured it.
        carried: positions of inputs that want a gradient and were computed outside.
        trained: nodes that hold what a site trains.

    Returns:
        Of those inputs the ones that nobody writes into, by whatever name, and that the graph does not give back:
        AOTAutograd has to see that such a value is an input, and behind a gate it would not.
    """
    inputs = graph.find_nodes(op="placeholder")
    wanted = [node for place, node in enumerate(inputs) if place in carried and node not in trained]
    written = {_storage(node) for node in inputs if _is_written(node)}
    return tuple(node for node in wanted if is_floating(node) and _storage(node) not in written and not _returned(node))


def _storage(node: fx.Node) -> object:
    """Return what tells whether two inputs lie in the same memory: their storage, as Dynamo's fake values have it."""
    value = value_of(node)
    return value.untyped_storage() if isinstance(value, Tensor) else node


def _is_written(node: fx.Node) -> bool:
    alike = sharing_memory(node)
    read_by = {user for alias in alike for user in alias.users}
    return any(not alike.isdisjoint(writes(user)) or _writes_inside(user) for user in read_by)


def _writes_inside(call: fx.Node) -> bool:
    """Return whether anything is written in the body of a call, such as a checkpoint's."""
    owner = call.graph.owning_module
    names = [str(part.target) for part in call.all_input_nodes if part.op == "get_attr"]
    bodies = [getattr(owner, name, None) for name in names]
    return any(
        writes(node) or _writes_inside(node)
        for body in bodies
        if isinstance(body, fx.GraphModule)
        for node in body.graph.nodes
    )


def _returned(node: fx.Node) -> bool:
    return any(user.op == "output" for alias in sharing_memory(node) for user in alias.users)


def write_border_gates(copy: GraphCopy, borders: Iterable[fx.Node], opens: Mapping[int, fx.Node]) -> None:
    """Have all that reads ``borders`` read them through gates.

    In:
        The copy of a graph, some of the original's inputs, and for each, in their order, its decision by index, a node
        that comes before all of what the graph computes.
    Out:
        The copy, edited. A gate is open where its gradient is of use to something below.
    """
    graph = copy.gm.graph
    for border, (index, open) in zip(borders, opens.items(), strict=True):
        value = copy.nodes[border]
        with graph.inserting_after(open):
            gate = graph.call_function(GATE, (value, open, [index]))
        value.replace_all_uses_with(gate, delete_user_cb=lambda user, gate=gate: user is not gate)
