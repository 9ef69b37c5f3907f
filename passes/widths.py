"""How many features a factor of a branch reads, and how many it makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import fx

from .dataflow import Dataflow, shape_of, value_of
from .linear_operators import factor_kind, operator_name


class Widths(NamedTuple):
    """Features that go in and come out; of a convolution its channels, those of one group going in."""

    read: Any
    made: Any


def weight_of(flow: Dataflow, factor: fx.Node) -> fx.Node | None:
    """Return what a factor contracts with: of its static operands the one of most dimensions."""
    static = [node for node in flow.static_reads(factor) if value_of(node) is not None]
    return max(static, key=lambda node: len(shape_of(node)), default=None)


def widths_of(flow: Dataflow, factor: fx.Node) -> Widths:
    """Return how many features a factor reads, and how many it makes."""
    (x,) = flow.activations(factor)
    kind, weight = factor_kind(factor), weight_of(flow, factor)
    if kind == "pooling" or weight is None:
        made = shape_of(factor)[-1]
        return Widths(math.prod(shape_of(x)) // max(math.prod(shape_of(factor)), 1) * made, made)
    return _WIDTHS[kind](factor, x, weight)


def _linear_widths(factor: fx.Node, x: fx.Node, weight: fx.Node) -> Widths:
    on_the_left = operator_name(factor) in ("matmul", "mm", "mv") and factor.args[0] is not x
    if on_the_left and len(shape_of(x)) > 1 and factor.args[1] is x:
        return Widths(shape_of(x)[-2], shape_of(factor)[-2])
    return Widths(shape_of(x)[-1], shape_of(factor)[-1])


def _conv_widths(factor: fx.Node, x: fx.Node, weight: fx.Node) -> Widths:
    spatial = len(shape_of(weight)) - 2
    return Widths(shape_of(weight)[1], shape_of(factor)[-spatial - 1])


def _embedding_widths(factor: fx.Node, x: fx.Node, weight: fx.Node) -> Widths:
    return Widths(shape_of(weight)[0], shape_of(factor)[-1])


def _einsum_widths(factor: fx.Node, x: fx.Node, weight: fx.Node) -> Widths:
    if operator_name(factor) == "einsum":
        return _equation_widths(factor, weight)
    blocks = shape_of(weight)[0] if value_of(weight).stride(0) else 1  # a weight that is expanded has no blocks
    return Widths(blocks * shape_of(weight)[-2], blocks * shape_of(weight)[-1])


def _equation_widths(factor: fx.Node, weight: fx.Node) -> Widths:
    """Return the widths of ``einsum("bim,inm->bin", x, w)``: all letters of the weight that x, or the result, has."""
    inputs, output = str(factor.args[0]).replace(" ", "").split("->")
    operands = list(factor.all_input_nodes)
    terms = dict(zip(operands, inputs.split(","), strict=False))
    sizes: dict[str, Any] = {}
    for operand, term in terms.items():
        sizes.update(zip(reversed(term.replace("...", "")), reversed(shape_of(operand)), strict=False))
    in_weight = set(terms.get(weight, ""))
    others = {letter for operand, term in terms.items() if operand is not weight for letter in term}
    read = math.prod(sizes[letter] for letter in in_weight if letter in others)
    return Widths(read, math.prod(sizes[letter] for letter in in_weight if letter in output))


_WIDTHS: dict[str, Callable[[fx.Node, fx.Node, fx.Node], Widths]] = {
    "linear": _linear_widths,
    "conv": _conv_widths,
    "embedding": _embedding_widths,
    "einsum": _einsum_widths,
}
