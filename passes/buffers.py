"""Which values of an aten-level forward may lie in the same memory once Inductor has lowered it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import fx

from .._torch_compat import OpOverload, schema_of
from .memory import connected
from .operators import is_number, is_view, name_of

_MAY_BE_THEIR_INPUT = frozenset(
    [
        "aten.clone",
        "aten._to_copy",
        "aten.contiguous",
        "aten.cat",
        "aten.copy",
        "aten.copy_",
        "aten.constant_pad_nd",
        "aten.repeat",
        "aten.lift",
        "aten.lift_fresh",
        "prims.convert_element_type",
        "prims.device_put",
        "inductor_prims.force_stride_order",
        "getitem",
    ]
)
"""Operators of whose copy Inductor may make none, or which have their input lie in their result."""


def sharing_buffer(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that may lie in the memory of ``node``, itself included; rather too many than too few."""
    return connected(node, _neighbours)


def buffers_of(nodes: Iterable[fx.Node]) -> dict[fx.Node, frozenset[fx.Node]]:
    """Return for each node, and for each that may share its memory, :func:`sharing_buffer`: one set for each buffer."""
    found: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in nodes:
        if node not in found:
            shared = frozenset(sharing_buffer(node))
            found.update(dict.fromkeys(shared, shared))
    return found


def base_of(node: fx.Node) -> fx.Node:
    """Return the node that a view, or a view of one, is a view of; of any other the node itself."""
    while is_view(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _neighbours(node: fx.Node) -> Iterator[fx.Node]:
    if _may_share_with_inputs(node):
        yield from (source for source in node.all_input_nodes if not is_number(source))
    yield from (user for user in node.users if _may_share_with_inputs(user) and not is_number(user))


def _may_share_with_inputs(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    if is_view(node) or name_of(node) in _MAY_BE_THEIR_INPUT:
        return True
    # Others that write hand their inputs on, and of what is no operator nothing is known.
    return not isinstance(node.target, OpOverload) or (schema_of(node.target).is_mutable and not _is_ours(node))


def _is_ours(node: fx.Node) -> bool:
    return name_of(node).startswith("skiplora.")
