"""How many features a factor of a branch reads, and how many it makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .dataflow import Dataflow, shape_of, value_of
from .equation import Equation
from .linear_operators import factor_kind, operands, operator_name


class Widths(NamedTuple):
    """Features that go in and come out; of a convolution its channels, those of all groups."""

    read: Any
    made: Any


def weight_of(flow: Dataflow, factor: fx.Node) -> fx.Node | None:
    """Return what a factor contracts with: of its static operands the one of most dimensions."""
    static = [node for node in flow.static_reads(factor) if value_of(node) is not None]
    return max(static, key=lambda node: len(shape_of(node)), default=None)


def widths_of(flow: Dataflow, factor: fx.Node, delta: fx.Node) -> Widths:
    """Return how many features a factor reads, and how many it makes.

    Args:
        flow: of the graph.
        factor: with a single weight.
        delta: the output of the branch that ``factor`` belongs to. It tells blocks of features, which count, from
            experts, of which each row has its own: a batch of products looks the same for both.
    """
    (x,) = flow.activations(factor)
    kind, weight = factor_kind(factor), weight_of(flow, factor)
    if kind == "pooling" or weight is None:
        made = shape_of(factor)[-1]
        return Widths(math.prod(shape_of(x)) // max(math.prod(shape_of(factor)), 1) * made, made)
    return _WIDTHS[kind](factor, x, weight, math.prod(shape_of(delta)[:-1]))


def groups_of(flow: Dataflow, factor: fx.Node) -> int:
    """Return into how many groups a convolution divides its channels; 1 for any other factor."""
    weight = weight_of(flow, factor)
    if factor_kind(factor) != "conv" or weight is None:
        return 1
    read, made = widths_of(flow, factor, factor)
    transposed = "transpose" in operator_name(factor) or (operator_name(factor) == "convolution" and factor.args[6])
    return int((made if transposed else read) // shape_of(weight)[1])


def _linear_widths(factor: fx.Node, x: fx.Node, weight: fx.Node, rows: Any) -> Widths:
    given = operands(factor)
    on_the_left = operator_name(factor) in ("matmul", "mm", "mv") and given[0] is not x
    if on_the_left and len(shape_of(x)) > 1 and given[1] is x:
        return Widths(shape_of(x)[-2], shape_of(factor)[-2])
    return Widths(shape_of(x)[-1], shape_of(factor)[-1])


def _conv_widths(factor: fx.Node, x: fx.Node, weight: fx.Node, rows: Any) -> Widths:
    channels = 1 - len(shape_of(weight))
    return Widths(shape_of(x)[channels], shape_of(factor)[channels])


def _embedding_widths(factor: fx.Node, x: fx.Node, weight: fx.Node, rows: Any) -> Widths:
    return Widths(shape_of(weight)[0], shape_of(factor)[-1])


def _einsum_widths(factor: fx.Node, x: fx.Node, weight: fx.Node, rows: Any) -> Widths:
    if operator_name(factor) != "bmm":
        return (_equation_widths if operator_name(factor) == "einsum" else _tensordot_widths)(factor, x, weight, rows)
    many, read, made = shape_of(weight)
    expanded = not value_of(weight).stride(0)
    blocks = 1 if expanded or _are_rows(many, shape_of(factor)[1], rows) else many
    return Widths(blocks * read, blocks * made)


def _tensordot_widths(factor: fx.Node, x: fx.Node, weight: fx.Node, rows: Any) -> Widths:
    """Return the widths of a sum over some dimensions: those of x that are gone, those of the weight that are left."""
    spared = (len(shape_of(x)) + len(shape_of(factor)) - len(shape_of(weight))) // 2
    x_first = operands(factor)[0] is x
    made = shape_of(factor)[spared:] if x_first else shape_of(factor)[: len(shape_of(factor)) - spared]
    return Widths(math.prod(shape_of(weight)) // math.prod(made), math.prod(made))


def _equation_widths(factor: fx.Node, x: fx.Node, weight: fx.Node, rows: Any) -> Widths:
    """Return the widths of ``einsum("bim,inm->bin", x, w)``: the weight's letters that x, or the result, has."""
    equation = Equation.of(factor)
    weights = [node for node, _ in equation.terms if node is not x and node is not factor]
    in_weight, in_x, in_result = equation.letters(*weights), equation.letters(x), equation.letters(factor)
    blocks = in_weight & in_x & in_result
    apart = equation.size(in_result - in_weight) * math.prod(equation.leading)
    if _are_rows(equation.size(blocks), apart, rows):
        in_weight -= blocks
    return Widths(equation.size(in_weight & in_x), equation.size(in_weight & in_result))


def _are_rows(blocks: Any, rows_of_each: Any, rows: Any) -> bool:
    """Return whether blocks are counted among the rows of Δh, and are no part of its features."""
    return statically_known_true(blocks * rows_of_each == rows)


_WIDTHS: dict[str, Callable[[fx.Node, fx.Node, fx.Node, Any], Widths]] = {
    "linear": _linear_widths,
    "conv": _conv_widths,
    "embedding": _embedding_widths,
    "einsum": _einsum_widths,
}
