"""Which value each node of a forward graph really reads, and from which parameters it is computed.

Writes in place are followed: who reads a tensor after ``y.add_(z)`` or ``y[mask] = z`` reads what that wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from .linear_operators import Role, data_inputs, is_in_place, is_metadata, names, operator_name, role_of
from .memory import writes

Roots = tuple[fx.Node, ...]
"""The parameters of the whole graph, as nodes of its root, that something static is computed from; in order."""
Trains = Callable[[Iterable[fx.Node]], Roots]
"""Which of some parameters train."""

_VIEWS = names(
    "view view_as reshape _unsafe_view flatten unflatten permute transpose t swapaxes swapdims movedim squeeze "
    "unsqueeze select slice narrow getitem expand chunk split split_with_sizes unbind alias detach"
)


def value_of(node: object) -> Any:
    """Return the fake value that Dynamo, ``make_fx`` or ``torch.export`` noted for a node, or None."""
    if not isinstance(node, fx.Node):
        return None
    value = node.meta.get("example_value")
    return node.meta.get("val") if value is None else value


def is_tensor(node: object) -> bool:
    """Return whether a node's value is a tensor."""
    return isinstance(value_of(node), Tensor)


def is_floating(node: object) -> bool:
    """Return whether a node's value is a floating tensor."""
    value = value_of(node)
    return isinstance(value, Tensor) and value.is_floating_point()


def shape_of(node: object) -> tuple[Any, ...]:
    """Return the shape of a node's value; empty if that is no tensor."""
    value = value_of(node)
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def is_view(node: fx.Node) -> bool:
    """Return whether a node may share its input's memory."""
    return node.op in ("call_function", "call_method") and operator_name(node) in _VIEWS


class Dataflow:
    """The values that move through one graph.

    Args:
        graph: is not changed.
        seeds: for each placeholder and each ``get_attr`` the parameters that it stands for; None if it is an
            activation.
    """

    def __init__(self, graph: fx.Graph, seeds: Mapping[fx.Node, Roots | None]) -> None:
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self._reads: dict[fx.Node, dict[fx.Node, fx.Node]] = {}
        self._readers: dict[fx.Node, dict[fx.Node, None]] = {node: {} for node in graph.nodes}
        self._roots: dict[fx.Node, Roots | None] = {}
        current: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            inputs = () if is_metadata(node) else data_inputs(node)
            if node.op == "output":
                inputs = tuple(node.all_input_nodes)
            self._reads[node] = {raw: current.get(raw, raw) for raw in inputs if _holds_tensors(raw)}
            self._roots[node] = seeds.get(node, ()) if not self._reads[node] else self._union(node)
            for written in writes(node):
                current.update(dict.fromkeys(_through_views(written), node))
        for node in _alive(graph):
            for source in self._reads[node].values():
                self._readers[source][node] = None

    def _union(self, node: fx.Node) -> Roots | None:
        merged: dict[fx.Node, None] = {}
        for source in self._reads[node].values():
            roots = self._roots[source]
            if roots is None:
                return None
            merged.update(dict.fromkeys(roots))
        return tuple(merged)

    def resolve(self, node: fx.Node, raw: fx.Node) -> fx.Node:
        """Return the node that wrote last what ``node`` reads as ``raw``."""
        return self._reads[node].get(raw, raw)

    def reads(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return what ``node`` reads: nodes whose values, not only their shapes, reach it."""
        return tuple(self._reads[node].values())

    def named_reads(self, node: fx.Node) -> tuple[tuple[fx.Node, fx.Node], ...]:
        """Return what ``node`` reads, each by the name that it has there and as the node that wrote it last."""
        return tuple(self._reads[node].items())

    def readers(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return who reads the value of ``node`` and is of any use."""
        return tuple(self._readers[node])

    def is_activation(self, node: fx.Node) -> bool:
        """Return whether the node depends on more than parameters, buffers, constants and random numbers."""
        return self._roots[node] is None

    def roots(self, node: fx.Node) -> Roots:
        """Return the parameters that a static node is computed from; empty for an activation."""
        return self._roots[node] or ()

    def activations(self, node: fx.Node) -> list[fx.Node]:
        """Return what ``node`` reads and is an activation."""
        return [source for source in self.reads(node) if self.is_activation(source)]

    def static_reads(self, node: fx.Node) -> list[fx.Node]:
        """Return what ``node`` reads and is none."""
        return [source for source in self.reads(node) if not self.is_activation(source)]

    def role(self, node: fx.Node) -> Role:
        """Return what ``node``, an activation, does to the activations it reads."""
        raw = [raw for raw, source in self._reads[node].items() if self.is_activation(source)]
        return role_of(node, raw)

    def sorted(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """Return ``nodes`` in the order of the graph."""
        return sorted(nodes, key=self.order.__getitem__)


def _holds_tensors(node: fx.Node) -> bool:
    value = value_of(node)
    if isinstance(value, (tuple, list)):
        return any(isinstance(part, Tensor) for part in value)
    return isinstance(value, Tensor) or is_in_place(node) or (value is None and node.op == "get_attr")


def _through_views(node: fx.Node) -> Iterator[fx.Node]:
    """Yield ``node`` and what it is a view, or the written result, of: all of it is another value after a write."""
    yield node
    while (is_view(node) or is_in_place(node)) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        yield node


def _alive(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that are of any use: tracing leaves calls behind whose results nobody reads."""
    alive: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        removable = node.op in ("call_function", "call_method") and not writes(node)
        if not removable or any(user in alive for user in node.users):
            alive.add(node)
    return [node for node in graph.nodes if node in alive]
