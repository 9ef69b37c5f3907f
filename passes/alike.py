"""When are two graphs the same program?"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg

_ALIGNMENT = 16
"""Bytes: at a multiple of so many begins what Inductor compiles wide accesses for on a GPU."""


def structure(graph: fx.Graph, modules: Mapping[str, Hashable]) -> Hashable:
    """Return what a graph computes, whatever its nodes are called: equal for graphs that may stand for each other.

    Args:
        graph: a functional graph without calls of modules.
        modules: for each submodule that the graph reads, by its target, what it computes.
    """
    places = {node: place for place, node in enumerate(graph.nodes)}
    return tuple(_step(node, places, modules) for node in graph.nodes)


def layout(value: Tensor) -> Hashable:
    """Return the dtype, device, sizes and strides of a tensor."""
    # As text: comparing symbolic sizes would make torch guard on the answer.
    return (value.dtype, value.device, str(tuple(value.shape)), str(tuple(value.stride())))


def is_aligned(value: Tensor) -> bool:
    """Return whether Inductor takes a tensor for aligned that it is given as an input, as far as its offset is known.

    What it compiles for one that is may fail on one that is not: only at the inputs of a whole graph it looks again
    when they come. An offset that is not known counts as not aligned, and is not guarded on, as in
    ``torch._inductor.utils.tensor_is_aligned``.
    """
    return statically_known_true(value.storage_offset() * value.element_size() % _ALIGNMENT == 0)


@dataclass(frozen=True)
class Read:
    """What stands for a node among arguments.

    Attributes:
        what: equal where one node may stand for the other.
    """

    what: Hashable


def _step(node: fx.Node, places: Mapping[fx.Node, int], modules: Mapping[str, Hashable]) -> Hashable:
    arguments = map_arg((node.args, node.kwargs), lambda source: Read(places[source]))
    return (_operator(node, modules), hashable(arguments), kind_of(node.meta.get("val")))


def _operator(node: fx.Node, modules: Mapping[str, Hashable]) -> Hashable:
    if node.op == "get_attr":
        return modules.get(str(node.target), node.target)
    return (node.op, None if node.op == "placeholder" else node.target)


def hashable(value: Any) -> Hashable:
    """Return arguments in a form in which they can be compared, each node in them as a :class:`Read`."""
    if isinstance(value, Read):
        return value
    if isinstance(value, Mapping):
        return tuple((key, hashable(item)) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(hashable, value))
    return (type(value), str(value))  # 1 is not 1.0, and a NaN is itself


def kind_of(value: Any) -> Hashable:
    """Return what can be told of a node's value without running it: each tensor's layout, and whether it is aligned."""
    if isinstance(value, Tensor):
        return (layout(value), is_aligned(value))
    if isinstance(value, Iterable):
        return tuple(map(kind_of, value))
    return (type(value), str(value))
