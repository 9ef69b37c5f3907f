"""Stop a gradient where nothing below could use it: truncation, in a graph that runs by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from .dataflow import Dataflow, is_floating, shape_of, value_of
from .linear_operators import is_in_place, operator_name
from .parameters import Lifted, Parameters

_Waits = frozenset[int] | None
"""Whose gates a gradient waits for: it is of use if any of them is open. None: always."""


def insert_truncations(
    gm: fx.GraphModule, lifted: Mapping[str, Lifted], gate: Callable[..., Any], truncate: Callable[..., Any]
) -> None:
    """Insert ``truncate(runtime, x, sites, copy)`` where the gradient of x is of use to fewer sites than what reads it.

    In:
        A graph with calls of ``gate(runtime, x, open, sites, …)``; for the names of its placeholders which
        hold parameters.
    Out:
        The same graph, edited. A truncation lets a gradient pass while the gate of any of its sites is open.
    Terms:
        A gradient is *of use* to a trained parameter that it reaches. Behind a gate only that gate's sites
        decide. Where a node reads x and something that is of use to more, autograd would run all that made x
        for the sake of the other: there stands a truncation. Where all that a node reads is of use to the
        same sites, whatever reads the node has one already. Outputs have one too. Whether an input of the
        graph requires a gradient is known only when it runs.
    """
    parameters = Parameters(gm, lifted)
    flow = Dataflow(gm.graph, parameters.seeds(gm.graph))
    waits = _find_waits(gm, flow, parameters, gate)
    gates = [node for node in gm.graph.nodes if node.target is gate]
    truncated: dict[fx.Node, fx.Node] = {}
    runtime = gates[0].args[0]

    def truncation(source: fx.Node, copy: bool) -> fx.Node:
        with gm.graph.inserting_after(source):
            call = gm.graph.call_function(truncate, (runtime, source, sorted(waits[source] or ()), copy))
        call.meta = dict(source.meta)
        return call

    for node in list(gm.graph.nodes):
        if node.op == "output":
            # With every gate shut not even the way down to the highest is run. The caller may write into what he gets.
            ends = [source for source in node.all_input_nodes if waits[source] and is_floating(source)]
            for source in ends:
                node.replace_input_with(source, truncation(source, copy=True))
            continue
        if node.target is gate or waits[node] == frozenset():
            continue
        for source in dict.fromkeys(node.all_input_nodes):
            sites = waits[flow.resolve(node, source)]
            if not sites or sites == waits[node] or not is_floating(source):
                continue
            if is_in_place(node) and node.args[0] is source and not _write_elsewhere(node, source):
                continue
            if source not in truncated:
                truncated[source] = truncation(source, copy=False)
            node.replace_input_with(source, truncated[source])
    gm.graph.lint()
    gm.recompile()


def _find_waits(
    gm: fx.GraphModule, flow: Dataflow, parameters: Parameters, gate: Callable[..., Any]
) -> dict[fx.Node, _Waits]:
    trained = set(parameters.trained(parameter.node for parameter in parameters))
    trained.update(node for root in list(trained) for node in parameters.nodes_of(root))
    waits: dict[fx.Node, _Waits] = {}
    for node in gm.graph.nodes:
        if node in trained or _holds_trained(gm, node):
            waits[node] = None
        elif node.target is gate:
            waits[node] = frozenset(node.args[3])
        elif operator_name(node) == "detach" or not _differentiable(node):
            waits[node] = frozenset()
        else:
            waits[node] = _union([waits[source] for source in flow.reads(node)])
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
        or is_in_place(node)
        or any(isinstance(part, torch.Tensor) and part.is_floating_point() for part in parts)
    )


def _write_elsewhere(join: fx.Node, base: fx.Node) -> bool:
    """Make an addition in place, onto what nobody else reads, an ordinary one; return whether that could be done."""
    if operator_name(join) != "add" or len(join.args) != 2 or set(base.users) - {join}:
        return False
    other = join.args[1]
    if not is_floating(other) or value_of(other).dtype is not value_of(base).dtype or shape_of(other) != shape_of(base):
        return False
    join.op, join.target = "call_function", torch.add
    return True
