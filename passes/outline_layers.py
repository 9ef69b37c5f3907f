"""Have layers that are alike call one function, so that it is compiled once."""

from __future__ import annotations

import operator
from typing import cast

import torch
from torch import Tensor, fx

from .._torch_compat import INVOKE_SUBGRAPH, LazyGraphModule, keep_output_strides, stable_topological_sort
from .find_layers import Layer, Layers


def outline_layers(graph: fx.Graph, found: tuple[Layers, ...]) -> None:
    """Replace each stretch that ``find_layers`` found by a call of a function, one for all that are alike.

    In:
        A graph as Inductor is about to lower it, with the stretches found in it; an owning module to hang the functions
        on.
    Out:
        The same graph, edited. Each stretch is one ``torch.ops.higher_order.invoke_subgraph``, which stands where the
        last step did. Inductor lowers a function once, fuses what is in it, and writes it once, however many calls
        there are. What a function returns has the strides that the step had.
    Terms:
        *function*: a submodule of the graph's module, with a stretch's operands as its placeholders.
    """
    owner = graph.owning_module
    assert owner is not None
    moved: dict[fx.Node, fx.Node] = {}
    for number, layers in enumerate(found):
        name = f"skiplora_layer_{number}"
        owner.add_submodule(name, _function(owner, layers))
        for layer in layers.alike:
            moved |= _call(graph, name, layer, layers.results, moved)
    stable_topological_sort(graph)
    graph.eliminate_dead_code()
    _drop_unread_modules(graph, owner)


def _function(owner: fx.GraphModule, layers: Layers) -> fx.GraphModule:
    """Return a module that computes what the first of the layers does."""
    first = layers.alike[0]
    root, graph = torch.nn.Module(), fx.Graph()
    inner: dict[fx.Node, fx.Node] = {}
    for position, operand in enumerate(first.operands):
        inner[operand] = graph.placeholder(f"arg{position}_{operand.name}")
        inner[operand].meta = dict(operand.meta)

    def copied(node: fx.Node) -> fx.Node:
        if node not in inner:
            for source in node.all_input_nodes:
                copied(source)
            if node.op == "get_attr":
                root.add_module(str(node.target), owner.get_submodule(str(node.target)))
            inner[node] = graph.node_copy(node, inner.__getitem__)
        return inner[node]

    for step in first.steps:
        copied(step)
    results = []
    for place, part in layers.results:
        result = copied(first.steps[place])
        results.append(result if part is None else _part(graph, result, part))
    output = graph.output(tuple(results))
    keep_output_strides(output)
    return LazyGraphModule(root, graph)


def _call(
    graph: fx.Graph, name: str, layer: Layer, results: tuple[tuple[int, int | None], ...], moved: dict[fx.Node, fx.Node]
) -> dict[fx.Node, fx.Node]:
    """Replace a layer by a call; return what now gives what its steps gave.

    Args:
        moved: the same of the layers before it.
    """
    with graph.inserting_after(layer.steps[-1]):
        function = graph.get_attr(name)
    with graph.inserting_after(function):
        call = graph.call_function(
            INVOKE_SUBGRAPH, (function, name, *(moved.get(operand, operand) for operand in layer.operands))
        )
    call.meta["val"] = tuple(_value(layer.steps[place], part) for place, part in results)
    given: dict[fx.Node, fx.Node] = {}
    for position, (place, part) in enumerate(results):
        with graph.inserting_after(call):
            new = _part(graph, call, position)
        for old in _named(layer.steps[place], part):
            new.meta = dict(old.meta)
            old.replace_all_uses_with(new)
            given[old] = new
    for step in reversed(layer.steps):
        _erase(graph, step)
    return given


def _named(step: fx.Node, part: int | None) -> list[fx.Node]:
    """Return the nodes that hold a step's result, or one part of it."""
    if part is None:
        return [step]
    return [user for user in step.users if user.target is operator.getitem and user.args[1] == part]


def _value(step: fx.Node, part: int | None) -> Tensor:
    value = step.meta["val"]
    return cast(Tensor, value if part is None else value[part])


def _part(graph: fx.Graph, whole: fx.Node, position: int) -> fx.Node:
    part = graph.call_function(operator.getitem, (whole, position))
    part.meta["val"] = whole.meta["val"][position]
    return part


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node, and before it what is left of its parts and names, which nobody reads any more."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def _drop_unread_modules(graph: fx.Graph, owner: fx.GraphModule) -> None:
    read = {node.target for node in graph.find_nodes(op="get_attr")}
    for name, _ in list(owner.named_children()):
        if name.startswith("skiplora_region") and name not in read:
            owner.delete_submodule(name)
