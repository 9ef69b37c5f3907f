"""When does each node of a backward have to run?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, fx

from ..gate import GATE_BACKWARD
from . import operators
from .conditions import Condition, Conditions


@dataclass(frozen=True)
class Liveness:
    """For each node of a backward graph three conditions on the gates' decisions.

    Attributes:
        conditions: where those conditions were built.
        nonzero: the node's value may differ from zero.
        demanded: somebody that runs, or the graph's output, reads the node.
        live: both, so the node has to run. Where it is demanded but not live its value is zero, and
            where it is not demanded nobody looks.
    """

    conditions: Conditions
    nonzero: Mapping[fx.Node, Condition]
    demanded: Mapping[fx.Node, Condition]
    live: Mapping[fx.Node, Condition]


def liveness(graph: fx.Graph, decisions: int, conditions: Conditions | None = None) -> Liveness:
    """Work out under which decisions each node of the backward is zero, and is needed.

    In:
        A backward graph, functional and aten-level, whose gates are ``gate_backward(grad, opens, sites)``;
        how many decisions there are; or conditions over them, to compare with others. The graph is not changed.
    Out:
        A :class:`Liveness` over every node but the output.
    Terms:
        *nonzero* runs forwards: a shut gate's result is zero, and zeros pass through operators as the
        tables in ``operators.py`` say; what they do not list makes a value that is never known to be zero.
        *demand* runs backwards: a node is demanded where one of its readers is live, and a gate reads
        nothing while it is shut. What has side effects is always live.
    """
    conditions = Conditions(decisions) if conditions is None else conditions
    nonzero = _nonzero(graph, conditions)
    demanded, live = _demand(graph, conditions, nonzero)
    return Liveness(conditions, nonzero, demanded, live)


def gate_sites(gate: fx.Node) -> list[int]:
    """Return the decisions that a ``gate_backward`` node waits for: those of its sites, or a border's."""
    return list(cast(list[int], gate.args[2]))


def is_gate(node: fx.Node) -> bool:
    """Return whether the node is a ``gate_backward``."""
    return node.op == "call_function" and node.target is GATE_BACKWARD


def _nonzero(graph: fx.Graph, conditions: Conditions) -> dict[fx.Node, Condition]:
    nonzero: dict[fx.Node, Condition] = {}
    for node in graph.nodes:
        if node.op != "output":
            nonzero[node] = _nonzero_of(node, conditions, nonzero)
    return nonzero


def _nonzero_of(node: fx.Node, conditions: Conditions, nonzero: Mapping[fx.Node, Condition]) -> Condition:
    inputs = operators.tensor_inputs(node) if node.op == "call_function" else []
    if all(nonzero[source] == conditions.true for source in inputs) and not is_gate(node):
        return conditions.true
    if is_gate(node):
        return conditions.all((nonzero[_first(node)], conditions.open(gate_sites(node))))
    name = operators.name_of(node)
    if operators.is_part(node) or operators.is_view(node) or name in operators.ZERO_IF_FIRST:
        return nonzero[_first(node)]
    if name in operators.ZERO_IF_ANY:
        return conditions.all(nonzero[source] for source in inputs)
    if name in operators.ZERO_IF_ALL and not _adds_a_number(node):
        return conditions.any(nonzero[source] for source in operators.floating(inputs))
    if name in operators.ZERO_IF_BOTH_TERMS:
        terms = operators.ZERO_IF_BOTH_TERMS[name]
        return conditions.any(conditions.all(_at(node, nonzero, position) for position in term) for term in terms)
    return conditions.true


def _first(node: fx.Node) -> fx.Node:
    return cast(fx.Node, node.args[0])


def _at(node: fx.Node, nonzero: Mapping[fx.Node, Condition], position: int) -> Condition:
    return nonzero[cast(fx.Node, node.args[position])]


def _adds_a_number(node: fx.Node) -> bool:
    """Return whether one of the addends, or of the values to choose from, is a number."""
    candidates = {"aten.add": (0, 1), "aten.sub": (0, 1), "aten.where": (1, 2)}.get(operators.name_of(node), ())
    return any(not isinstance(node.args[position], fx.Node) for position in candidates)


def _demand(
    graph: fx.Graph, conditions: Conditions, nonzero: Mapping[fx.Node, Condition]
) -> tuple[dict[fx.Node, Condition], dict[fx.Node, Condition]]:
    demanded: dict[fx.Node, Condition] = {}
    live: dict[fx.Node, Condition] = {}
    for node in reversed(graph.nodes):
        if node.op == "output":
            continue
        if _always_demanded(node):
            demanded[node] = conditions.true
        else:
            readers = (conditions.true if user.op == "output" else live[user] for user in node.users)
            demanded[node] = conditions.any(dict.fromkeys(readers))
        live[node] = conditions.all((demanded[node], nonzero[node]))
    return demanded, live


def _always_demanded(node: fx.Node) -> bool:
    if node.op != "call_function":
        return True
    # Sizes are numbers: they cost nothing, and a cond cannot return them.
    is_number = "val" in node.meta and not isinstance(node.meta["val"], (Tensor, tuple, list))
    return is_number or operators.must_always_run(node)
