"""Which nodes of a forward graph may share memory, and which of them write into it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import fx

from .._torch_compat import OpOverload, schema_of
from .linear_operators import is_in_place, is_metadata, names, operator_name

_MAY_RETURN_THEIR_INPUT = names(
    "getitem getattr identity float double half bfloat16 type cpu cuda "
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout"
)
"""Operators that may give their input back, or a part of it, and whose schema, if they have one, does not say so."""


def writes(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the inputs of a node whose memory it writes into."""
    if node.op == "call_module":
        return tuple(node.all_input_nodes) if _works_in_place(node) else ()
    if node.op not in ("call_function", "call_method"):
        return ()
    written = [*_mutated_arguments(node), node.kwargs.get("out")]
    if is_in_place(node) or _inplace_argument(node):
        written += node.args[:1]
    return tuple(dict.fromkeys(part for part in written if isinstance(part, fx.Node)))


def _works_in_place(node: fx.Node) -> bool:
    owner = node.graph.owning_module
    called = owner.get_submodule(str(node.target)).modules() if owner is not None else ()
    return any(getattr(module, "inplace", False) for module in called)


def _mutated_arguments(node: fx.Node) -> list[Any]:
    if not isinstance(node.target, OpOverload) or not schema_of(node.target).is_mutable:
        return []
    arguments = schema_of(node.target).arguments
    positions = [place for place, arg in enumerate(arguments) if arg.alias_info is not None and arg.alias_info.is_write]
    given = [*node.args, *(node.kwargs.get(arg.name) for arg in arguments[len(node.args) :])]
    return [given[place] for place in positions]


def _inplace_argument(node: fx.Node) -> bool:
    """Return whether a function such as ``F.relu`` is told to work in place."""
    place = _position_of_inplace(node.target) if callable(node.target) else None
    if place is None:
        return False
    return bool(node.args[place] if place < len(node.args) else node.kwargs.get("inplace", False))


@cache
def _position_of_inplace(target: Callable[..., Any]) -> int | None:
    try:
        parameters = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):  # a built-in: those have a name of their own for it
        return None
    return parameters.index("inplace") if "inplace" in parameters else None


def sharing_memory(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that may share memory with ``node``, itself included; rather too many than too few."""
    return connected(node, _neighbours)


def connected(node: fx.Node, neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """Return the nodes that lead from neighbour to neighbour to ``node``, itself included."""
    found, ahead = {node}, [node]
    while ahead:
        for other in neighbours(ahead.pop()):
            if other not in found:
                found.add(other)
                ahead.append(other)
    return found


def _neighbours(node: fx.Node) -> Iterator[fx.Node]:
    yield from _may_alias(node)
    yield from (user for user in node.users if node in _may_alias(user))
    if node.op == "get_attr":
        yield from (other for other in node.graph.find_nodes(op="get_attr") if other.target == node.target)


def _may_alias(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the inputs of a node whose memory its result may be."""
    if node.op == "call_module":
        return tuple(node.all_input_nodes)
    if node.op not in ("call_function", "call_method") or is_metadata(node):
        return ()
    name, written = operator_name(node), writes(node)
    if isinstance(node.target, OpOverload):
        aliased = _returns_input(node.target) or name in _MAY_RETURN_THEIR_INPUT
    else:
        aliased = _may_return_input(name)
    return tuple(dict.fromkeys((*written, *(node.all_input_nodes[:1] if aliased else ()))))


@cache
def _may_return_input(name: str) -> bool:
    """Return whether an operator's result may be its first input; what torch does not know under this name may."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or name in _MAY_RETURN_THEIR_INPUT:
        return True
    return any(_returns_input(getattr(packet, overload)) for overload in packet.overloads())


def _returns_input(operator: OpOverload) -> bool:
    returned = [value.alias_info for value in schema_of(operator).returns]
    return any(alias is not None and not alias.is_write for alias in returned)
