"""Make a gated graph complete in itself: it reads its thresholds, and tells its ratios, while it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from .._torch_compat import take_signature
from ..gate import GATE
from .insert_gates import GatedGraph
from .memory import sharing_memory, writes

_NAME = "skiplora_runtime"


@dataclass(frozen=True)
class RuntimeCalls:
    """The functions that a graph calls while it runs; each takes the runtime, a module, first.

    Attributes:
        thresholds: ``(runtime, trained, inputs) -> float32 [n]``, with what the sites train, and whatever else the
            graph is called with and does not train.
        gate: ``(runtime, x, open, sites, written) -> x``, the conditional detach; ``written`` says whether anybody
            writes into what it returns.
        truncate: ``(runtime, x, sites) -> None``, which stops x's gradient where that is of use to none of ``sites``.
        record: ``(runtime, ratios, opens) -> None``, at the end of a forward.
        shows_result: whether ``record`` takes the graph's result as well, as its last argument.
    """

    thresholds: Callable[..., Any]
    gate: Callable[..., Any]
    truncate: Callable[..., Any]
    record: Callable[..., Any]
    shows_result: bool = False


def attach_runtime(
    gated: GatedGraph, runtime: nn.Module, calls: RuntimeCalls, original: fx.Graph, trained: Collection[str] = ()
) -> fx.GraphModule:
    """Turn a gated graph's extra input and outputs into calls, in place.

    In:
        What ``insert_gates`` made of a graph that returns a tuple of one: what ``original`` returns. ``trained`` are
        the names of inputs that hold parameters which train, of sites or not.
    Out:
        Its module, which takes and returns what ``original`` does, and holds ``runtime`` as a submodule.
    Terms:
        Each ``skiplora::gate`` becomes ``calls.gate``.
    """
    graph = gated.gm.graph
    gated.gm.add_submodule(_NAME, runtime)
    with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
        reference = graph.get_attr(_NAME)
    _read_thresholds(graph, gated, reference, calls, trained)
    for node in graph.find_nodes(op="call_function", target=GATE):
        _replace_gate(graph, node, reference, calls)
    output = graph.output_node()
    results = output.args[0]
    assert isinstance(results, (tuple, list))
    result, ratios, opens = results
    with graph.inserting_before(output):
        call(graph, calls.record, reference, ratios, opens, *([result] if calls.shows_result else []))
    output.args = (result,)
    take_signature(graph, original)
    graph.lint()
    gated.gm.recompile()
    return gated.gm


def call(graph: fx.Graph, function: Callable[..., Any], *args: Any) -> fx.Node:
    """Write a call of one of the :class:`RuntimeCalls`, which another trace of the graph keeps as it is.

    A graph is traced again when it is unpickled.
    """
    node = graph.call_function(function, args)
    node.meta["is_wrapped"] = True  # what torch.fx.wrap notes: the graph's code then wraps the function itself
    return node


def _read_thresholds(
    graph: fx.Graph, gated: GatedGraph, reference: fx.Node, calls: RuntimeCalls, trained: Collection[str]
) -> None:
    with graph.inserting_before(reference.next):
        held: dict[Any, fx.Node] = {}
        for node in gated.trained:  # where the graph holds a parameter itself, it may read it only later
            if node.op == "get_attr" and node.target not in held:
                held[node.target] = graph.get_attr(str(node.target))
        keys = [held.get(node.target, node) for node in gated.trained]
        others = [node for node in graph.find_nodes(op="placeholder") if node.name not in trained]
        others.remove(gated.thresholds)
        read = call(graph, calls.thresholds, reference, keys, others)
    gated.thresholds.replace_all_uses_with(read)
    graph.erase_node(gated.thresholds)


def _replace_gate(graph: fx.Graph, node: fx.Node, reference: fx.Node, calls: RuntimeCalls) -> None:
    x, opened, sites = node.args
    aliases = sharing_memory(node)
    written = any(not aliases.isdisjoint(writes(user)) for alias in aliases for user in alias.users)
    with graph.inserting_before(node):
        gate = call(graph, calls.gate, reference, x, opened, sites, written)
    assert isinstance(x, fx.Node)
    gate.meta.update(x.meta)
    node.replace_all_uses_with(gate)
    graph.erase_node(node)
