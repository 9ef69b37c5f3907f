"""Have the forward give back what it saved for a part of the backward that will not run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx

from .._torch_compat import global_inductor_option, stable_topological_sort
from ..errors import InternalError
from ..gate import EVALUATE_CONDITIONS, LET_GO
from .buffers import base_of, buffers_of
from .conditions import Condition, Conditions, flatten
from .find_regions import Regions, find_regions
from .flop_formulas import flops_of, number_of
from .liveness import Liveness, is_gate, liveness
from .operators import is_view, name_of
from .read_conditions import read_conditions

_SMALLEST = 1 / 64
"""Of the largest value: what is smaller is not worth the microseconds."""

_CALLS = 16
"""How many calls are written at most, so that a forward that gives back nothing loses no time to speak of."""


_REDUCTIONS = ("aten.sum", "aten.mean", "aten.amax", "aten.amin", "aten.linalg_vector_norm", "aten.var", "aten.prod")

_WRITTEN_OUT = 8
"""Terms of a reduction up to which Inductor writes it as pointwise, if it is not told to go further."""

_PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm")


@dataclass(frozen=True)
class Released:
    """What a forward gives back.

    Attributes:
        conditions: where the conditions were built.
        read: for each value, by name, when the backward reads it; else it is given back.
        which: for each such output of the forward its condition's number.
    """

    conditions: Conditions
    read: Mapping[str, Condition]
    which: Mapping[int, int]


@dataclass(frozen=True)
class _Value:
    """A buffer to give back: its condition, its size in bytes as it was traced, and the last node that reads it."""

    base: fx.Node
    read: Condition
    size: int
    last: fx.Node


def release_saved(forward: fx.Graph, backward: fx.Graph, outputs: int, decisions: int) -> Released | None:
    """Write into a forward what gives back values that the backward will not read.

    In:
        Forward and backward as the partitioner cut them, functional and aten-level, the backward with its gates, whose
        decisions are taken before the forward; how many of the forward's outputs are the user's, and how many decisions
        there are.
    Out:
        The forward, edited: ``skiplora::evaluate_conditions`` behind the decisions, and behind the last readers of what
        is given back a few ``skiplora::let_go``. What was planned; None if there is nothing to give back.
    Terms:
        *given back*: the tensor that is saved has other memory from there on, which is nobody's. Not given back: what
        may lie in the memory of an input or of an output of the user's, what is read in any case, and what is small.
        A value is read when a region that reads it runs, which is more often than it is live.
    """
    analysis = liveness(backward, decisions)
    read = read_conditions(backward, analysis, find_regions(backward, analysis))
    values = _worth_it(_values(forward, backward, outputs, analysis.conditions, read))
    if not values:
        return None
    kept = {value.base: value.read for value in values}
    numbers = {condition: number for number, condition in enumerate(dict.fromkeys(kept.values()))}
    _write(forward, outputs, _decisions(forward, backward), values, numbers)
    given = [
        (place, node.name, kept[base_of(node)]) for place, node in _saved(forward, outputs) if base_of(node) in kept
    ]
    return Released(
        analysis.conditions,
        {name: condition for _, name, condition in given},
        {place: numbers[condition] for place, _, condition in given},
    )


def check_released(graph: fx.Graph, released: Released, analysis: Liveness, found: Regions) -> None:
    """Raise if a backward reads what its forward gives back.

    Args:
        graph: the backward that is about to be predicated.
        released: the plan; its conditions are those of ``analysis``.
        analysis, found: what the analyses made of the graph.

    Raises:
        InternalError: it does.
    """
    read = read_conditions(graph, analysis, found)
    wrong = [name for name, kept in released.read.items() if name not in read or not read[name] <= kept]
    if wrong:
        raise InternalError(f"the backward reads what the forward gave back: {', '.join(wrong)}")


def settle_released(graph: fx.Graph, released: Released) -> None:
    """Put each ``let_go`` behind all that reads its values, after Inductor's passes over the forward.

    What has come to lie in the memory of an input, or of another output, since is no longer given back.
    """
    stable_topological_sort(graph)  # as Inductor will: from then on the order is that in which it comes to each node
    order = {node: place for place, node in enumerate(graph.nodes)}
    calls = graph.find_nodes(op="call_function", target=LET_GO)
    buffers = buffers_of(value for call in calls for value in _values_of(call))
    read_by = _read_by(graph, buffers, released)
    for call in calls:
        _, read, opens, which, size, following, _ = call.args
        assert isinstance(which, (list, tuple))
        given = zip(_values_of(call), which, strict=True)
        kept = [(value, number) for value, number in given if read_by[buffers[value]] <= {number}]
        if not kept:
            graph.erase_node(call)
            continue
        bases = [base_of(value) for value, _ in kept]
        made = sorted(_made_of(node for base in bases for node in buffers[base]), key=order.__getitem__)
        last = made[-1]
        given_back = frozenset(bases)
        after = [node for node in made if node not in given_back and _is_kept(node) and _is_dense(node)]
        call.args = (bases, read, opens, [number for _, number in kept], size, following, after)
        if order[last] > order[call]:
            last.append(call)


def _values_of(call: fx.Node) -> Sequence[fx.Node]:
    values = call.args[0]
    assert isinstance(values, (list, tuple))
    return cast(Sequence[fx.Node], values)


def _read_by(
    graph: fx.Graph, buffers: Mapping[fx.Node, frozenset[fx.Node]], released: Released
) -> Mapping[frozenset[fx.Node], set[int | None]]:
    """Return the numbers of the conditions under which what lies in each buffer is read; None: in any case."""
    found: dict[frozenset[fx.Node], set[int | None]] = {
        shared: {None} if _holds_input(shared) else set() for shared in buffers.values()
    }
    for place, node in _outputs(graph):
        if node in buffers:
            found[buffers[node]].add(released.which.get(place))
    return found


def _values(
    forward: fx.Graph, backward: fx.Graph, outputs: int, conditions: Conditions, read: Mapping[str, Condition]
) -> Iterator[_Value]:
    users = {node for place, node in _outputs(forward) if place < outputs}
    saved = {node: place for place, node in _saved(forward, outputs)}
    decisions = _decisions(forward, backward)
    last_made = _last_made(forward)
    order = {node: place for place, node in enumerate(forward.nodes)}
    buffers = buffers_of(saved)
    for shared in dict.fromkeys(buffers[node] for node in saved):
        if shared & users or decisions in shared or _holds_input(shared):
            continue
        together = sorted((node for node in shared if node in saved), key=saved.__getitem__)
        condition = conditions.any(read.get(other.name, conditions.true) for other in together)
        if condition == conditions.true or not all(map(_is_dense, together)):
            continue
        last = max((last_made[node] for node in shared), key=order.__getitem__)
        for base in dict.fromkeys(map(base_of, together)):
            if _is_dense(base):
                yield _Value(base, condition, _bytes(base), last)


def _worth_it(values: Iterator[_Value]) -> list[_Value]:
    found = list(values)
    smallest = _SMALLEST * max((value.size for value in found), default=0)
    return [value for value in found if value.size >= smallest]


def _write(
    graph: fx.Graph, outputs: int, decisions: fx.Node, values: Sequence[_Value], numbers: Mapping[Condition, int]
) -> None:
    _first_of_all(decisions)
    table, roots = flatten(list(numbers))
    with graph.inserting_after(decisions):
        evaluated = graph.call_function(EVALUATE_CONDITIONS, (decisions, table, roots))
    with decisions.meta["val"].fake_mode:
        evaluated.meta["val"] = torch.empty(len(numbers), dtype=torch.bool, device="cpu")
    order = {node: place for place, node in enumerate(graph.nodes)}
    largest = max(_bytes(value.base, varying=False) for value in values)
    for group in _groups(sorted(values, key=lambda value: order[value.last])):
        last = max((evaluated, group[-1].last), key=order.__getitem__)
        which = [numbers[value.read] for value in group]
        following = _next_product(graph, last, order, outputs)
        with graph.inserting_after(*(following or [last])):
            bases = [value.base for value in group]
            call = graph.call_function(LET_GO, (bases, evaluated, decisions, which, largest, following, []))
        call.meta["val"] = None


def _first_of_all(decisions: fx.Node) -> None:
    """Take the decisions as soon as the forward begins: where they were folded is its end."""
    first = next(node for node in decisions.graph.nodes if node.op not in ("placeholder", "get_attr"))
    if first is not decisions and all(source.op == "placeholder" for source in decisions.all_input_nodes):
        first.prepend(decisions)


def _next_product(graph: fx.Graph, node: fx.Node, order: Mapping[fx.Node, int], outputs: int) -> list[fx.Node]:
    """Return the next product behind a node, or none: a saved one, which is fused with nothing that follows."""
    products = [other for other in graph.nodes if order.get(other, 0) > order[node] and name_of(other) in _PRODUCTS]
    saved = {base_of(other) for _, other in _saved(graph, outputs)}
    return [product for product in products if product in saved][:1] or products[:1]


def _groups(values: Sequence[_Value]) -> Iterator[list[_Value]]:
    """Yield values that are given back together, about as many bytes each time."""
    enough = sum(value.size for value in values) / _CALLS
    group: list[_Value] = []
    size = 0
    for value in values:
        group.append(value)
        size += value.size
        if size >= enough:
            yield group
            group, size = [], 0
    if group:
        yield group


def _decisions(forward: fx.Graph, backward: fx.Graph) -> fx.Node:
    names = {gate.args[1].name for gate in backward.nodes if is_gate(gate) and isinstance(gate.args[1], fx.Node)}
    found = [node for node in forward.nodes if node.name in names and node.op == "call_function"]
    if len(found) != 1:
        raise InternalError(f"expected the decisions of the backward's gates in the forward, found {found}")
    return found[0]


def _last_made(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Return for each node the last of the graph that :func:`_made_of` gives for it."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    found: dict[fx.Node, fx.Node] = {}
    for node in reversed(graph.nodes):
        users = (user for user in node.users if user.op != "output")
        made = (user if _is_computed_for_itself(user) else found[user] for user in users)
        found[node] = max((node, *made), key=order.__getitem__)
    return found


def _made_of(shared: Iterable[fx.Node]) -> dict[fx.Node, None]:
    """Return the nodes of buffers and those that may be computed from them when Inductor has written its kernels.

    What is pointwise is computed with whoever reads it, as far as something that is kept, or a product, or a reduction.
    """
    found: dict[fx.Node, None] = dict.fromkeys(shared)
    ahead = list(found)
    while ahead:
        for user in ahead.pop().users:
            if user in found or user.op == "output" or user.target is LET_GO:
                continue
            found[user] = None
            if not _is_computed_for_itself(user):
                ahead.append(user)
    return found


def _is_computed_for_itself(node: fx.Node) -> bool:
    """Return whether Inductor writes a node's value to memory when it comes to it, or can be made to at no cost."""
    # Of a view Inductor makes nothing, kept or not.
    return (_is_kept(node) and not is_view(node)) or _is_product(node) or _is_reduction(node)


def _is_product(node: fx.Node) -> bool:
    """Return whether a node is a product, or the like, and not one of vectors, which Inductor writes as a sum."""
    if flops_of(node) is None:
        return False
    value = node.meta.get("val")
    return not (isinstance(value, Tensor) and name_of(node) == "aten.bmm" and 1 in value.shape[-2:])


def _is_kept(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _is_reduction(node: fx.Node) -> bool:
    """Return whether a node adds up, or compares, more than Inductor would write out term by term."""
    value = node.meta.get("val")
    if name_of(node) not in _REDUCTIONS or not isinstance(value, Tensor):
        return False
    terms = max(_WRITTEN_OUT, global_inductor_option("unroll_reductions_threshold"))
    read = node.all_input_nodes[0].meta["val"]
    return math.prod(map(number_of, read.shape)) > terms * max(math.prod(map(number_of, value.shape)), 1)


def _outputs(graph: fx.Graph) -> list[tuple[int, fx.Node]]:
    given = graph.output_node().args[0]
    assert isinstance(given, (list, tuple))
    return [(place, node) for place, node in enumerate(given) if isinstance(node, fx.Node)]


def _saved(graph: fx.Graph, outputs: int) -> list[tuple[int, fx.Node]]:
    return [(p, n) for p, n in _outputs(graph) if p >= outputs and isinstance(n.meta.get("val"), Tensor)]


def _holds_input(shared: Iterable[fx.Node]) -> bool:
    return any(node.op != "call_function" for node in shared)


def _is_dense(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.layout == torch.strided


def _bytes(node: fx.Node, varying: bool = True) -> int:
    """Return the size of a value, with the sizes that it was traced with where they may vary, or without those."""
    value = node.meta["val"]
    shape = [number_of(size) for size in value.shape if varying or isinstance(size, int)]
    return int(math.prod(shape) * value.itemsize)
