"""Stop a gradient where nothing below could use it: truncation, in a graph that runs by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from .attach_runtime import call
from .dataflow import Dataflow, is_floating, value_of
from .linear_operators import operator_name
from .memory import sharing_memory, writes
from .parameters import Lifted, Parameters

_Waits = frozenset[int] | None
"""Whose gates a gradient waits for: it is of use if any of them is open. None: always."""


def insert_truncations(
    gm: fx.GraphModule, lifted: Mapping[str, Lifted], gate: Callable[..., Any], truncate: Callable[..., Any]
) -> None:
    """Insert ``truncate(runtime, x, sites)`` where the gradient of x is of use to fewer sites than what reads it.

    In:
        A graph with calls of ``gate(runtime, x, open, sites, …)``; for the names of its placeholders which
        hold parameters.
    Out:
        The same graph, edited. A truncation lets a gradient pass while the gate of any of its sites is open. It stands
        right behind what makes x, before anybody can write into it.
    Terms:
        A gradient is *of use* to a trained parameter that it reaches. Behind a gate only that gate's sites
        decide. Where a node reads x and something that is of use to more, autograd would run all that made x
        for the sake of the other: there stands a truncation. Where all that a node reads is of use to the
        same sites, whatever reads the node has one already. Outputs have one too: with every gate shut not even the
        way down to the highest is run. Whether an input of the graph requires a gradient is known only when it runs.
    """
    parameters = Parameters(gm, lifted)
    flow = Dataflow(gm.graph, parameters.seeds(gm.graph))
    waits = _find_waits(gm, flow, parameters, gate)
    gates = [node for node in gm.graph.nodes if node.target is gate]
    for source in _truncated(gm.graph, flow, waits, gate):
        with gm.graph.inserting_after(source):
            call(gm.graph, truncate, gates[0].args[0], _result(source), sorted(waits[source] or ()))
    gm.graph.lint()
    gm.recompile()


def _truncated(
    graph: fx.Graph, flow: Dataflow, waits: Mapping[fx.Node, _Waits], gate: Callable[..., Any]
) -> list[fx.Node]:
    """Return the nodes behind which a truncation stands."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.target is gate or (waits[node] == frozenset() and node.op != "output"):
            continue
        for source in flow.reads(node):
            if waits[source] and is_floating(_result(source)) and (node.op == "output" or waits[source] != waits[node]):
                found[source] = None
    return list(found)


def _result(node: fx.Node) -> fx.Node:
    """Return the node whose value ``node`` leaves behind: an assignment itself returns nothing."""
    written = writes(node)
    return written[0] if written and not is_floating(node) else node


def _find_waits(
    gm: fx.GraphModule, flow: Dataflow, parameters: Parameters, gate: Callable[..., Any]
) -> dict[fx.Node, _Waits]:
    trained = set(parameters.trained(parameter.node for parameter in parameters))
    trained.update(node for root in list(trained) for node in parameters.nodes_of(root))
    waits: dict[fx.Node, _Waits] = {}
    stains: dict[fx.Node, _Waits] = {}  # what was written into memory, which a view reads by another name
    for node in gm.graph.nodes:
        if node in trained or _holds_trained(gm, node):
            waits[node] = None
        elif node.target is gate:
            waits[node] = frozenset(node.args[3])
        elif operator_name(node) == "detach" or not _differentiable(node):
            waits[node] = frozenset()
        else:
            stained = [stains[source] for source in node.all_input_nodes if source in stains]
            waits[node] = _union([*(waits[source] for source in flow.reads(node)), *stained])
        for written in writes(node):
            for alias in sharing_memory(written):
                stains[alias] = _union([stains.get(alias, frozenset()), waits[node]])
    return waits


def _union(waits: list[_Waits]) -> _Waits:
    return None if None in waits else frozenset().union(*(sites for sites in waits if sites is not None))


def _holds_trained(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    return any(parameter.requires_grad for parameter in gm.get_submodule(str(node.target)).parameters())


def _differentiable(node: fx.Node) -> bool:
    value = value_of(node)
    parts = value if isinstance(value, (tuple, list)) else [value]
    return (
        node.op == "output"
        or bool(writes(node))
        or any(isinstance(part, torch.Tensor) and part.is_floating_point() for part in parts)
    )
