"""The two branches of a region's ``cond``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import sympy
import torch
from torch import Tensor, fx

from .._torch_compat import LazyGraphModule
from ..gate import CARRY
from . import operators
from .conditions import Condition
from .find_regions import Filler, Region
from .liveness import is_gate
from .sizes import Sizes, symbols_of


@dataclass(frozen=True)
class Branches:
    """The two branches of a region, and the nodes of the outer graph that both take, in this order."""

    true: fx.GraphModule
    false: fx.GraphModule
    operands: tuple[fx.Node, ...]


def build_branches(
    region: Region,
    open_gates: frozenset[fx.Node],
    carried: fx.Node | None,
    symbol: Callable[[sympy.Symbol], fx.Node],
) -> Branches:
    """Build what a region's ``cond`` runs, and what it gives instead.

    In:
        A region; the gates that stand for their input; the node that holds its :func:`carried_conditions`, bool
        ``[k]`` on the CPU, if there are any; how to get the node that holds a symbolic size.
    Out:
        :class:`Branches`. Both return the region's outputs, in order, with the strides of the original.
    """
    return _Builder(region, open_gates, carried, symbol).build()


def carried_conditions(region: Region) -> tuple[Condition, ...]:
    """Return the conditions by which the fillers of a region choose what they carry, each once."""
    carried = (condition for filler in region.outputs.values() for _, condition in filler.carried)
    return tuple(dict.fromkeys(carried))


class _Builder:
    """The state of one call of ``build_branches``."""

    def __init__(
        self,
        region: Region,
        open_gates: frozenset[fx.Node],
        carried: fx.Node | None,
        symbol: Callable[[sympy.Symbol], fx.Node],
    ) -> None:
        self._region = region
        self._symbol = symbol
        self._carried = carried
        self._places = {condition: place for place, condition in enumerate(carried_conditions(region))}
        self._open_gates = open_gates
        self._inside = set(region.nodes)
        self._repeated = self._find_repeated()

    def build(self) -> Branches:
        operands = tuple(self._operands())
        return Branches(self._true(operands), self._false(operands), operands)

    def _find_repeated(self) -> dict[fx.Node, None]:
        """Return the views, creations and open gates that the region reads, sources first."""
        repeated: dict[fx.Node, None] = {}
        for node in self._region.nodes:
            self._repeat_sources(node, repeated)
        return repeated

    def _repeat_sources(self, node: fx.Node, repeated: dict[fx.Node, None]) -> None:
        for source in node.all_input_nodes:
            if source not in repeated and source not in self._inside and self._is_repeatable(source):
                self._repeat_sources(source, repeated)
                repeated[source] = None

    def _is_repeatable(self, node: fx.Node) -> bool:
        return operators.is_view(node) or operators.is_creation(node) or node in self._open_gates

    def _operands(self) -> list[fx.Node]:
        read = dict.fromkeys(
            source
            for node in (*self._repeated, *self._region.nodes)
            for source in node.all_input_nodes
            if source not in self._inside and source not in self._repeated and not _is_decisions(node, source)
        )
        # Inductor gives a branch the symbols in its inputs' sizes only where an input is just that symbol.
        read.update(dict.fromkeys(self._symbol(symbol) for symbol in symbols_of((*read, *self._region.outputs))))
        if self._carried is not None:
            # Last, as Inductor takes the device of a cond from its first operand and this one is on the CPU.
            read[self._carried] = None
        return list(read)

    def _true(self, operands: Sequence[fx.Node]) -> fx.GraphModule:
        graph, inner = _with_placeholders(operands)
        order = [*self._repeated, *self._region.nodes]
        for node in _in_order(order, inner):
            inner[node] = self._copy(graph, node, inner)
        graph.output(tuple(inner[node] for node in self._region.outputs))
        return LazyGraphModule(torch.nn.Module(), graph)

    def _copy(self, graph: fx.Graph, node: fx.Node, inner: dict[fx.Node, fx.Node]) -> fx.Node:
        if not is_gate(node):
            return graph.node_copy(node, inner.__getitem__)
        source = inner[cast(fx.Node, node.args[0])]
        if node in self._open_gates:
            return source
        clone = graph.call_function(torch.ops.aten.clone.default, (source,))  # a branch may not return its input
        clone.meta = dict(node.meta)
        return clone

    def _false(self, operands: Sequence[fx.Node]) -> fx.GraphModule:
        graph, inner = _with_placeholders(operands)
        sizes = Sizes(graph)
        for node in self._repeated:
            if not all(source in inner or _is_decisions(node, source) for source in node.all_input_nodes):
                continue  # a view of something that only the true branch computes
            inner[node] = self._copy(graph, node, inner)
        fillers = [self._fill(graph, sizes, inner, node, filler) for node, filler in self._region.outputs.items()]
        graph.output(tuple(fillers))
        graph.eliminate_dead_code()
        return LazyGraphModule(torch.nn.Module(), graph)

    def _fill(
        self, graph: fx.Graph, sizes: Sizes, inner: dict[fx.Node, fx.Node], node: fx.Node, filler: Filler
    ) -> fx.Node:
        value = node.meta["val"]
        if filler.carried:
            assert self._carried is not None
            copies = [inner[addend] for addend, _ in filler.carried]
            which = [self._places[condition] for _, condition in filler.carried]
            filled = graph.call_function(CARRY, (copies, inner[self._carried], which, filler.zero))
        elif filler.zero:
            filled = _zeros(graph, value, sizes)
        else:
            filled = _uninitialised(graph, value, sizes)
        filled.meta["val"] = value
        return filled


def _is_decisions(node: fx.Node, source: fx.Node) -> bool:
    """Return whether ``source`` is what a gate decides by; inside a region the decision is made already."""
    return is_gate(node) and source is node.args[1]


def _with_placeholders(operands: Sequence[fx.Node]) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    graph = fx.Graph()
    inner: dict[fx.Node, fx.Node] = {}
    for position, operand in enumerate(operands):
        inner[operand] = graph.placeholder(f"arg{position}_{operand.name}")
        inner[operand].meta = dict(operand.meta)
    return graph, inner


def _in_order(nodes: Sequence[fx.Node], known: Mapping[fx.Node, fx.Node]) -> Iterator[fx.Node]:
    """Yield ``nodes`` so that each follows what it reads; the region's own views lie between its nodes."""
    waiting = dict.fromkeys(nodes)
    for node in nodes:
        yield from _after_sources(node, waiting, known)


def _after_sources(node: fx.Node, waiting: dict[fx.Node, None], known: Mapping[fx.Node, fx.Node]) -> Iterator[fx.Node]:
    if node not in waiting:
        return
    del waiting[node]
    for source in node.all_input_nodes:
        if source not in known:
            yield from _after_sources(source, waiting, known)
    yield node


def _zeros(graph: fx.Graph, value: Tensor, sizes: Sizes) -> fx.Node:
    """Write zeros in the memory order of ``value``, as the branches of a cond must agree in that."""
    options = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
    order = list(value.dim_order())
    shape = sizes.of([value.shape[dim] for dim in order])
    zeros = graph.call_function(torch.ops.aten.full.default, (shape, 0), options)
    zeros.meta["val"] = value.permute(order)
    if order == sorted(order):
        return zeros
    return graph.call_function(
        torch.ops.aten.permute.default, (zeros, [order.index(dim) for dim in range(value.dim())])
    )


def _uninitialised(graph: fx.Graph, value: Tensor, sizes: Sizes) -> fx.Node:
    options = {"dtype": value.dtype, "layout": value.layout, "device": value.device, "pin_memory": False}
    shape, stride = sizes.of(value.shape), sizes.of(value.stride())
    return graph.call_function(torch.ops.aten.empty_strided.default, (shape, stride), options)
