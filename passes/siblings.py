"""Which adapters read the same input, so that one product can serve all of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from torch import fx

from ..site import Site
from .dataflow import Dataflow, value_of
from .linear_operators import names, operator_name
from .memory import sharing_memory, writes

_CASTS = names("to type float half bfloat16 double _to_copy")
_CONTEXTS = names("_enter_autocast _exit_autocast _set_grad_enabled _enter_inference_mode _exit_inference_mode")


class Linear(NamedTuple):
    """The operands of a ``linear``."""

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None


@dataclass(frozen=True)
class Siblings:
    """First linears of adapters that read the same values.

    Attributes:
        body: of which graph they are nodes, as :attr:`Site.body <skiplora_fx.site.Site.body>`.
        linears: two or more, in the order of the graph; no two have the same weight.
        parameters: the nodes of the root graph that hold their weights and biases.
    """

    body: tuple[str, ...]
    linears: tuple[fx.Node, ...]
    parameters: frozenset[fx.Node]


def find_siblings(gm: fx.GraphModule, sites: Sequence[Site]) -> tuple[Siblings, ...]:
    """Find the adapters whose first linears can be one product.

    In:
        The graph that ``find_lora`` searched, and the sites it found there. It is not changed.
    Out:
        The groups, each of two linears or more.
    Terms:
        *Siblings* read the same values: one node, or casts of it that are alike, and nobody writes into it in between;
        with a dropout of its own each adapter reads other values. Their weights are inputs of the graph, of one dtype
        and device, all of them train or none does, and all have a bias or none. Autocast, and whether gradients are
        recorded, is not switched between them. Nobody writes into what they return, as that becomes a part of a
        larger tensor.
    """
    found: list[Siblings] = []
    for body, members in groupby(sorted(sites, key=lambda site: site.body), key=lambda site: site.body):
        frames = _frames(gm, body)
        flow = Dataflow(frames[-1].gm.graph, {})
        contexts = _contexts(frames[-1].gm.graph)
        groups: dict[Hashable, dict[fx.Node, fx.Node]] = {}
        for node in flow.sorted({site.factors[0] for site in members if len(site.factors) > 1}):
            linear = linear_of(node)
            if linear is not None and _may_merge(flow, node, linear):
                key = (_values(flow, node, linear.x), *map(_kind, linear[1:]), contexts[node])
                groups.setdefault(key, {}).setdefault(linear.weight, node)
        found += [_siblings(frames, body, tuple(group.values())) for group in groups.values() if len(group) > 1]
    return tuple(found)


def linear_of(node: fx.Node) -> Linear | None:
    """Return the operands of a ``linear``, or None if the node is none, or computes them otherwise."""
    if node.op != "call_function" or operator_name(node) != "linear" or len(node.args) < 2:
        return None
    x, weight, *rest = node.args
    bias = rest[0] if rest else node.kwargs.get("bias")
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or not isinstance(bias, fx.Node | None):
        return None
    return Linear(x, weight, bias)


def _may_merge(flow: Dataflow, node: fx.Node, linear: Linear) -> bool:
    """Return whether a linear may be a part of another one: its weights are there early, its result stays its own."""
    weights = [part for part in linear[1:] if part is not None]
    given = all(part.op == "placeholder" and flow.resolve(node, part) is part for part in weights)
    ranks = all(isinstance(size, int) for part in weights for size in value_of(part).shape)
    return given and ranks and value_of(linear.weight).dim() == 2 and not _is_written(node)


def _is_written(node: fx.Node) -> bool:
    aliases = sharing_memory(node)
    return any(not aliases.isdisjoint(writes(user)) for alias in aliases for user in alias.users)


def _values(flow: Dataflow, reader: fx.Node, raw: fx.Node) -> Hashable:
    """Return what tells the values that ``reader`` reads as ``raw`` from others."""
    node = flow.resolve(reader, raw)
    if node.op not in ("call_function", "call_method") or operator_name(node) not in _CASTS or writes(node):
        return node
    source, *rest = node.args
    if not isinstance(source, fx.Node) or len(node.all_input_nodes) != 1:
        return node
    return operator_name(node), str(rest), str(node.kwargs), _values(flow, node, source)


def _kind(weight: fx.Node | None) -> Hashable:
    if weight is None:
        return None
    value = value_of(weight)
    return value.dtype, value.device, value.requires_grad


def _contexts(graph: fx.Graph) -> dict[fx.Node, int]:
    """Return for each node how many switches of a context come before it."""
    switches, contexts = 0, {}
    for node in graph.nodes:
        switches += node.op == "call_function" and operator_name(node) in _CONTEXTS
        contexts[node] = switches
    return contexts


class _Frame(NamedTuple):
    """A graph and, for a checkpoint's body, what its inputs are called around it."""

    gm: fx.GraphModule
    given: dict[fx.Node, fx.Node]


def _frames(gm: fx.GraphModule, body: tuple[str, ...]) -> list[_Frame]:
    """Return the frames from the root to the graph of ``body``."""
    frames = [_Frame(gm, {})]
    for name in body:
        outer = frames[-1].gm
        call = next(node for node in outer.graph.nodes if node.name == name)
        reference, *passed = call.args
        assert isinstance(reference, fx.Node)
        inner = outer.get_submodule(str(reference.target))
        assert isinstance(inner, fx.GraphModule)
        inputs = zip(inner.graph.find_nodes(op="placeholder"), passed, strict=False)
        frames.append(_Frame(inner, {node: arg for node, arg in inputs if isinstance(arg, fx.Node)}))
    return frames


def _siblings(frames: list[_Frame], body: tuple[str, ...], nodes: tuple[fx.Node, ...]) -> Siblings:
    operands = (linear_of(node) for node in nodes)
    parameters = [part for linear in operands if linear is not None for part in linear[1:] if part is not None]
    for frame in reversed(frames):
        parameters = [frame.given.get(node, node) for node in parameters]
    return Siblings(body, nodes, frozenset(parameters))
