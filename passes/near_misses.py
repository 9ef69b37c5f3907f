"""Why a parameter that trains belongs to no site: what becomes of it, step by step."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from torch import fx

from .._torch_compat import HigherOrderOperator
from .dataflow import Dataflow, Trains, shape_of
from .linear_operators import Role, operator_name
from .match_branch import weight_space_reason, weight_space_sum


class NearMiss(NamedTuple):
    """A family of :data:`~skiplora_fx.site.FAMILIES`, the reason in words, and the node where the search stopped."""

    family: str
    reason: str
    node: fx.Node


def near_miss(flow: Dataflow, parameter: fx.Node, bodies: Collection[object], trains: Trains) -> NearMiss | None:
    """Follow ``parameter`` forward to the first thing that keeps it from being part of a branch.

    In:
        The flow of a graph in which ``parameter`` is a placeholder or ``get_attr``; operators whose bodies
        are searched for themselves, which tell nothing here; which parameters train.
    Out:
        A :class:`NearMiss`; None if nothing in this graph reads it.
    """
    uses = list(_uses(flow, parameter, bodies))
    if not uses:
        return None
    misses = [_follow(flow, source, user, trains) for source, user in uses]
    return min(misses, key=lambda miss: _PRECEDENCE.index(miss.family))


_PRECEDENCE = ("already gated", "opaque", "weight-space", "routed", "multiplicative", "non-linear", "shared", "no join")
"""Which family a parameter is put in that is used in several ways: the one that says most comes first."""


def _uses(flow: Dataflow, parameter: fx.Node, bodies: Collection[object]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield where something static that is made of ``parameter`` meets an activation, and what is static there."""
    waiting, seen = [parameter], {parameter}
    while waiting:
        node = waiting.pop(0)
        for reader in flow.readers(node):
            if reader.op == "output" or flow.is_activation(reader):
                if reader.target not in bodies:
                    yield node, reader
            elif reader not in seen:
                seen.add(reader)
                waiting.append(reader)


def _follow(flow: Dataflow, static: fx.Node, user: fx.Node, trains: Trains) -> NearMiss:
    if user.op == "output":
        return NearMiss("no join", _CUT_OFF, user)
    role, name = flow.role(user), operator_name(user)
    if role is Role.OPAQUE:
        return NearMiss("opaque", f"trains inside {_opaque_name(user)}", user)
    if role is Role.SCALE:
        return NearMiss("multiplicative", f"multiplies an activation (at {user.name}), so it adds no Δh", user)
    if role is Role.SUM:
        return NearMiss("no join", f"is added to an activation as it is (at {user.name}): no low-rank branch", user)
    if role is not Role.FACTOR:
        return NearMiss("no join", f"trains, but is part of no low-rank branch: read by {name}", user)
    adds_to = weight_space_sum(flow, static, trains)
    if adds_to is not None:
        return NearMiss("weight-space", weight_space_reason(adds_to, user), adds_to)
    if _multiplies_weight(flow, static, trains):
        return NearMiss("multiplicative", f"multiplies a frozen weight before {user.name} uses it", user)
    return _downstream(flow, user, trains)


_CUT_OFF = "trains, but this graph only returns what is made of it: a graph break may have cut it off from its use"


def _multiplies_weight(flow: Dataflow, static: fx.Node, trains: Trains) -> bool:
    """Return whether a composed weight is made of a frozen one of its own shape."""
    frozen = set(flow.roots(static)) - set(trains(flow.roots(static)))
    return any(sorted(map(str, shape_of(root))) == sorted(map(str, shape_of(static))) for root in frozen)


def _downstream(flow: Dataflow, node: fx.Node, trains: Trains) -> NearMiss:
    """Follow the output of a factor to what keeps it from being a Δh."""
    factors = 1
    while True:
        readers = flow.readers(node)
        gates = [reader for reader in readers if operator_name(reader) in _GATES]
        if gates:
            return NearMiss("already gated", f"its output goes into {gates[0].name}, a gate of skiplora", gates[0])
        if len(readers) > 1 and all(operator_name(reader) == "getitem" for reader in readers):
            readers = readers[:1]  # parts of what was split: one stands for all
        if len(readers) != 1:
            names = ", ".join(reader.name for reader in readers) or "nobody"
            return NearMiss("shared", f"{node.name}, inside the branch, has several readers: {names}", node)
        (reader,) = readers
        stopped = _stop(flow, reader, factors, trains)
        if stopped is not None:
            return stopped
        factors += flow.role(reader) is Role.FACTOR
        node = reader


def _stop(flow: Dataflow, reader: fx.Node, factors: int, trains: Trains) -> NearMiss | None:
    if reader.op == "output":
        return NearMiss("no join", "trains, but its output is not added to anything in this graph", reader)
    role, name = flow.role(reader), operator_name(reader)
    if role is Role.PRODUCT and len(flow.activations(reader)) > 1:
        reason = f"its output is multiplied by another activation (at {reader.name}): a gate or a router decides on it"
        return NearMiss("routed", reason, reader)
    if role is Role.OPAQUE:
        return NearMiss("opaque", f"its output goes into {_opaque_name(reader)}", reader)
    if role is Role.SUM:
        many = "its branch" if factors > 1 else "it is a single weight, which"
        return NearMiss("no join", f"{many} is added to something at {reader.name}, but is no low-rank branch", reader)
    if role is Role.FACTOR and not any(trains(flow.roots(read)) for read in flow.static_reads(reader)):
        reason = f"its output goes through a frozen weight (at {reader.name}) instead of being added"
        return NearMiss("multiplicative", reason, reader)
    if role in (Role.PASS, Role.SCALE, Role.FACTOR):
        return None
    reason = f"its output goes through {name}, which is not linear, before it is added to anything"
    return NearMiss("non-linear", reason, reader)


def _opaque_name(node: fx.Node) -> str:
    if isinstance(node.target, HigherOrderOperator):
        return f"the body of {operator_name(node)} ({node.name}), where no gate can be put"
    return f"{operator_name(node)} ({node.name}), which a graph pass cannot look into"


_GATES = ("gate", "skiplora_gate", "skiplora_truncate")
