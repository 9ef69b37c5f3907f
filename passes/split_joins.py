"""Take joins apart that are fused with the product before them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .._torch_compat import take_signature
from .copying import GraphCopy
from .dataflow import Dataflow, is_floating, value_of
from .linear_operators import is_in_place, operands, operator_name
from .parameters import Parameters

_PRODUCTS = {"addmm": torch.mm, "addmv": torch.mv, "baddbmm": torch.bmm}


def split_joins(gm: fx.GraphModule, parameters: Parameters) -> fx.GraphModule:
    """Write ``addmm(h, p, q, alpha=s)`` as ``h + s * (p @ q)``, and ``add(h, d, alpha=s)`` as ``h + s * d``.

    In:
        A forward graph. It is not changed.
    Out:
        The same graph if nothing in it is to be split, else a copy in which Δh is a node of its own.
    Terms:
        Only what adds to an activation is split; ``addmm(bias, x, w)`` is a linear and stays. The sum is
        rounded once more than in the fused operator.
    """
    flow = Dataflow(gm.graph, parameters.seeds(gm.graph))
    fused = [node for node in gm.graph.nodes if _is_fused_join(flow, node)]
    if not fused:
        return gm
    copy = GraphCopy.of(gm)
    take_signature(copy.gm.graph, gm.graph)
    for node in fused:
        _split(copy.gm.graph, copy.nodes[node])
    copy.gm.graph.lint()
    copy.gm.recompile()
    return copy.gm


def _is_fused_join(flow: Dataflow, node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    name, (base, *others) = operator_name(node), operands(node) or (None,)
    if not is_floating(base):
        return False
    if name in _PRODUCTS:
        return flow.is_activation(flow.resolve(node, base))
    return name == "add" and node.kwargs.get("alpha", 1) != 1 and is_floating(others[0])


def _split(graph: fx.Graph, node: fx.Node) -> None:
    name = operator_name(node)
    base, *factors = operands(node)
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    with graph.inserting_before(node):
        delta: Any = _call(graph, node, _PRODUCTS[name], *factors) if name in _PRODUCTS else factors[0]
        if alpha != 1:
            delta = _call(graph, node, torch.mul, delta, alpha)
        if is_in_place(node):
            if beta != 1:
                base = _call(graph, node, torch.Tensor.mul_, base, beta)
            joined = _call(graph, node, torch.Tensor.add_, base, delta)
        else:
            if beta != 1:
                base = _call(graph, node, torch.mul, base, beta)
            joined = _call(graph, node, torch.add, base, delta)
    node.replace_all_uses_with(joined)
    graph.erase_node(node)


def _call(graph: fx.Graph, fused: fx.Node, target: Any, *args: Any) -> fx.Node:
    if getattr(target, "__name__", "").endswith("_"):
        new = graph.call_method(target.__name__, args)
    else:
        new = graph.call_function(target, args)
    new.meta = dict(fused.meta)
    # The join's own value will do for its parts: shape and type are the same.
    assert value_of(new) is not None
    return new
