"""Where an adapted layer reads its input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import fx

from ..site import Read
from .base_layers import behind_passes
from .dataflow import Dataflow


class LayerInputs(NamedTuple):
    """The places at which a branch reads its input, and at which the frozen layers beside it read the same."""

    branch: tuple[Read, ...]
    layers: tuple[Read, ...]


def layer_inputs(flow: Dataflow, h: fx.Node, nodes: Iterable[fx.Node], layers: Iterable[fx.Node]) -> LayerInputs:
    """Return where an adapted layer reads its input.

    In:
        The flow of a forward graph, h, the branch's nodes, and the layers that make h.
    Out:
        :class:`LayerInputs`. What a branch reads of h is no input of the layer, unless it reads nothing else. A frozen
        layer that reads something else than the branch is not what is adapted.
    """
    inside = set(nodes)
    reads = [
        Read(node, name)
        for node in flow.sorted(inside)
        for name, source in flow.named_reads(node)
        if flow.is_activation(source) and source not in inside
    ]
    beside = [read for read in reads if flow.resolve(*read) is not h]
    branch = tuple(beside or reads)
    inputs = {behind_passes(flow, flow.resolve(*read)) for read in branch}
    frozen = (
        Read(layer, name)
        for layer in layers
        for name, source in flow.named_reads(layer)
        if flow.is_activation(source) and behind_passes(flow, source) in inputs
    )
    return LayerInputs(branch, tuple(frozen))
