"""Sums in a backward: what they are of, and which addend costs less than a branch that would leave it out."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, fx

from . import operators
from .alike import layout
from .flop_formulas import flops_of, number_of

_BALANCE = 32
"""FLOPs in the time in which an element comes from memory: of one core of a server's CPU; on a GPU they are more."""

_PRODUCTS = frozenset(("aten.mm", "aten.bmm"))

_SCALINGS = frozenset(("aten.mul", "aten.neg", "aten.clone", "aten._to_copy", "prims.convert_element_type"))


def is_plain_sum(node: fx.Node) -> bool:
    """Return whether the node is ``a + b`` of two tensors that look just like the sum."""
    if node.op != "call_function" or node.target is not torch.ops.aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return False
    if not all(isinstance(addend, fx.Node) for addend in node.args):
        return False
    return all(_same_layout(addend.meta["val"], node.meta["val"]) for addend in addends(node))


def addends(node: fx.Node) -> list[fx.Node]:
    """Return the two operands of a sum."""
    return cast(list[fx.Node], list(node.args))


def made_for(addend: fx.Node) -> tuple[fx.Node, ...]:
    """Return a product and what scales or casts it, where all of it is for one addend; else nothing.

    If a factor of the product is zero, so is the addend. Views are left out.
    """
    if len(addend.users) != 1 or addend.op != "call_function":
        return ()
    name = operators.name_of(addend)
    if name in _PRODUCTS:
        return (addend,)
    is_view = operators.is_view(addend)
    if not is_view and name not in _SCALINGS:
        return ()
    before = next(filter(None, map(made_for, operators.tensor_inputs(addend))), ())
    return before if is_view or not before else (*before, addend)


def is_worth_a_branch(addend: tuple[fx.Node, ...], total: fx.Node) -> bool:
    """Return whether leaving out an addend can save more than it costs to be able to.

    A branch stands between the sum and what would be fused with it, so that the sum is written and read once more. A
    product with an adapter's rank inside often costs less than that. What is not of low rank is no adapter's: the inner
    dimension is at most half of the sum's last one.

    Args:
        addend: as :func:`made_for` gives it.
        total: the sum.
    """
    shape = [number_of(size) for size in total.meta["val"].shape]
    inner = sum(flops_of(node) or 0 for node in addend) / max(2 * math.prod(shape), 1)
    return inner > min([_BALANCE, *(size / 2 for size in shape[-1:])])


def _same_layout(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and layout(a) == layout(b)
