"""How narrow a branch is, against how wide it could be."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import fx

from .dataflow import Dataflow, Roots, shape_of
from .equation import Equation
from .linear_operators import factor_kind, operator_name
from .widths import groups_of, weight_of, widths_of


class Bottleneck(NamedTuple):
    """A branch's rank r, and the larger of its ends; the branch is low-rank if r is below that."""

    rank: int
    wide: Any

    @property
    def is_low_rank(self) -> bool:
        return bool(self.rank < self.wide)


def bottleneck(flow: Dataflow, chain: Sequence[fx.Node], delta: fx.Node, layers: Collection[fx.Node]) -> Bottleneck:
    """Measure a branch of two factors or more.

    Args:
        flow: of the graph.
        chain: the factors, from the input to Δh.
        delta: the branch's output.
        layers: the layers that make h.
    """
    widths = [widths_of(flow, factor, delta) for factor in chain]
    merged = _merged_layers(flow, chain[-1], layers)
    rank = min(min(left.made, right.read) for left, right in pairwise(widths))
    return Bottleneck(
        int(rank // merged), max(_read(flow, chain[0], widths[0].read, layers), widths[-1].made // merged)
    )


def composed_bottleneck(flow: Dataflow, factor: fx.Node, trained: Roots) -> Bottleneck:
    """Measure a single factor whose weight is composed: its rank is the smallest dimension of what trains in it.

    A vector in it, as the diagonal between two matrices, has a dimension of one and tells nothing.
    """
    if has_several_weights(flow, factor):
        return _equation_bottleneck(flow, factor)
    sizes = [min(shape) for root in trained if (shape := shape_of(root))]
    return Bottleneck(int(min([size for size in sizes if size > 1] or sizes, default=0)), math.inf)


def has_several_weights(flow: Dataflow, factor: fx.Node) -> bool:
    """Return whether a factor is an einsum of an activation with several weights at once."""
    return operator_name(factor) == "einsum" and sum(len(shape_of(node)) > 1 for node in flow.static_reads(factor)) > 1


def _equation_bottleneck(flow: Dataflow, factor: fx.Node) -> Bottleneck:
    """Measure ``einsum("...i,ri,or->...o", x, a, b)``: what is between the weights is neither read nor made."""
    equation = Equation.of(factor)
    read, made = equation.letters(*flow.activations(factor)), equation.letters(factor)
    inner = equation.letters(*flow.static_reads(factor))
    wide = max(equation.size(inner & read), equation.size(inner & made))
    return Bottleneck(int(equation.size(inner - read - made)), wide)


def _read(flow: Dataflow, first: fx.Node, channels: Any, layers: Collection[fx.Node]) -> Any:
    """Return how wide the input is: beside a convolution the patch that one output is made of, of all channels."""
    weight = weight_of(flow, first)
    if factor_kind(first) != "conv" or weight is None or not any(factor_kind(layer) == "conv" for layer in layers):
        return channels
    return math.prod(shape_of(weight)[1:])


def _merged_layers(flow: Dataflow, last: fx.Node, layers: Collection[fx.Node]) -> int:
    """Return of how many layers in one the branch adapts each by itself.

    Groups at the end of a branch are those where h is made by layers without groups, such as a merged query, key and
    value; beside a convolution that has groups they are only that layer's own.
    """
    groups = groups_of(flow, last)
    return groups if layers and all(groups_of(flow, layer) == 1 for layer in layers) else 1
