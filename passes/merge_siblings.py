"""Multiply the input that adapters share by all their A at once."""

from __future__ import annotations

import operator
from collections.abc import Collection

import torch
from torch import fx

from .dataflow import value_of
from .insert_gates import GatedGraph
from .siblings import Siblings, linear_of


def merge_siblings(gated: GatedGraph, groups: Collection[Siblings]) -> None:
    """Write the first linears of siblings as one linear with their weights on top of each other.

    In:
        What ``insert_gates`` made, and the groups that ``find_siblings`` found in the graph it was made of.
    Out:
        The same graph, edited: ``split(linear(x, cat(A_1, A_2, …)))`` in place of each group. Autograd then writes one
        product for all dA and one for the group's dX.
    Terms:
        Gates stay where they are, one for each site. A shut one makes its columns of the merged gradient zeros; where
        all of a group are shut the merged products are zeros too, and nobody needs them. Products may be rounded
        differently than by themselves.
    """
    for siblings in groups:
        copy = gated.copies[siblings.body]
        _merge(copy.gm.graph, [copy.nodes[node] for node in siblings.linears])
        copy.gm.graph.lint()
        copy.gm.recompile()
    if groups:
        gated.gm.recompile()


def _merge(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    linears = [linear for node in nodes if (linear := linear_of(node)) is not None]
    with graph.inserting_before(nodes[0]):
        weight = graph.call_function(torch.cat, ([linear.weight for linear in linears],))
        biases = [linear.bias for linear in linears if linear.bias is not None]
        bias = graph.call_function(torch.cat, (biases,)) if biases else None
        product = graph.call_function(torch.nn.functional.linear, (linears[0].x, weight, bias))
        sizes = [value_of(linear.weight).shape[0] for linear in linears]
        parts = graph.call_function(torch.ops.aten.split_with_sizes.default, (product, sizes, -1))
        for place, node in enumerate(nodes):
            part = graph.call_function(operator.getitem, (parts, place))
            part.meta = dict(node.meta)
            node.replace_all_uses_with(part)
    for node in nodes:
        graph.erase_node(node)
