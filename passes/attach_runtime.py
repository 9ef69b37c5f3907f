"""Make a gated graph complete in itself: it reads its thresholds, and tells its ratios, while it runs."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..gate import GATE
from .insert_gates import GatedGraph
from .linear_operators import is_in_place

_NAME = "skiplora_runtime"


@dataclass(frozen=True)
class RuntimeCalls:
    """The functions that a graph calls while it runs; each takes the runtime, a module, first.

    Attributes:
        thresholds: ``(runtime, trained, inputs) -> float32 [n]``, with what the sites train, and whatever else the
            graph is called with.
        gate: ``(runtime, x, open, sites, copy) -> x``, the conditional detach.
        truncate: ``(runtime, x, sites, copy) -> x``, which stops a gradient that is of use to none of ``sites``.
        record: ``(runtime, ratios, opens) -> None``, at the end of a forward.
    """

    thresholds: Callable[..., Any]
    gate: Callable[..., Any]
    truncate: Callable[..., Any]
    record: Callable[..., Any]


def attach_runtime(gated: GatedGraph, runtime: nn.Module, calls: RuntimeCalls, original: fx.Graph) -> fx.GraphModule:
    """Turn a gated graph's extra input and outputs into calls, in place.

    In:
        What ``insert_gates`` made of a graph that returns a tuple of one: what ``original`` returns.
    Out:
        Its module, which takes and returns what ``original`` does, and holds ``runtime`` as a submodule.
    Terms:
        Each ``skiplora::gate`` becomes ``calls.gate``. Who writes into a gate's output gets a copy, as
        autograd allows no write into a view that a function of ours returned.
    """
    graph = gated.gm.graph
    gated.gm.add_submodule(_NAME, runtime)
    thresholds = graph.find_nodes(op="placeholder")[-1]
    with graph.inserting_after(thresholds):
        reference = graph.get_attr(_NAME)
    _read_thresholds(graph, gated, thresholds, reference, calls)
    for node in graph.find_nodes(op="call_function", target=GATE):
        _replace_gate(graph, node, reference, calls)
    output = graph.output_node()
    results = output.args[0]
    assert isinstance(results, (tuple, list))
    result, ratios, opens = results
    with graph.inserting_before(output):
        graph.call_function(calls.record, (reference, ratios, opens))
    output.args = (result,)
    graph._codegen = original._codegen
    graph.lint()
    gated.gm.recompile()
    return gated.gm


def _read_thresholds(
    graph: fx.Graph, gated: GatedGraph, thresholds: fx.Node, reference: fx.Node, calls: RuntimeCalls
) -> None:
    with graph.inserting_before(reference.next):
        held: dict[Any, fx.Node] = {}
        for node in gated.trained:  # where the graph holds a parameter itself, it may read it only later
            if node.op == "get_attr" and node.target not in held:
                held[node.target] = graph.get_attr(str(node.target))
        trained = [held.get(node.target, node) for node in gated.trained]
        inputs = [node for node in graph.find_nodes(op="placeholder") if node not in (thresholds, *gated.trained)]
        read = graph.call_function(calls.thresholds, (reference, trained, inputs))
    thresholds.replace_all_uses_with(read)
    graph.erase_node(thresholds)


def _replace_gate(graph: fx.Graph, node: fx.Node, reference: fx.Node, calls: RuntimeCalls) -> None:
    x, opened, sites = node.args
    written = any(_writes_into(user, node) for user in node.users)
    with graph.inserting_before(node):
        gate = graph.call_function(calls.gate, (reference, x, opened, sites, written))
    assert isinstance(x, fx.Node)
    gate.meta = dict(x.meta)
    node.replace_all_uses_with(gate)
    graph.erase_node(node)


def _writes_into(user: fx.Node, node: fx.Node) -> bool:
    if user.op == "call_module":
        owner = user.graph.owning_module
        return owner is not None and bool(getattr(owner.get_submodule(str(user.target)), "inplace", False))
    if user.kwargs.get("inplace") or user.target is operator.setitem:
        return True
    return is_in_place(user) and user.args[0] is node
