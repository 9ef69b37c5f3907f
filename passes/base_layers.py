"""The layers that make h."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from .dataflow import Dataflow, Trains
from .linear_operators import Role
from .widths import weight_of

_LINEAR = (Role.PASS, Role.SCALE, Role.SUM)


def base_layers(flow: Dataflow, h: fx.Node, inputs: Collection[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the factors that h is a sum of.

    In:
        The flow of a forward graph, h, and the activations that the branch beside it reads.
    Out:
        The first factor on each way backwards from h, the nearest first. A way ends at what the branch reads as well,
        as that is the layer's input and no longer the layer, and at what is not linear.
    """
    ends = {behind_passes(flow, node) for node in inputs if node is not h or len(inputs) == 1}
    layers: dict[fx.Node, None] = {}
    waiting, seen = [h], {h}
    while waiting:
        node = waiting.pop(0)
        if behind_passes(flow, node) in ends or not flow.is_activation(node):
            continue
        role = flow.role(node)
        if role is Role.FACTOR:
            layers[node] = None
        elif role in _LINEAR:
            waiting += [source for source in flow.activations(node) if source not in seen]
            seen.update(waiting)
    return tuple(layers)


def trained_layer(flow: Dataflow, layers: Collection[fx.Node], trains: Trains) -> fx.Node | None:
    """Return one of ``layers`` if none of them has a frozen weight: then h is no frozen path.

    One that is frozen is enough, as adapters that are chained on a layer train too. A bias that trains beside a frozen
    weight, and a weight that is frozen in part, leave a layer frozen.
    """
    if not layers or any(_has_frozen_weight(flow, layer, trains) for layer in layers):
        return None
    return next(iter(layers))


def _has_frozen_weight(flow: Dataflow, layer: fx.Node, trains: Trains) -> bool:
    weight = weight_of(flow, layer)
    roots = flow.roots(weight) if weight is not None else ()
    return not roots or trains(roots) != roots


def behind_passes(flow: Dataflow, node: fx.Node) -> fx.Node:
    """Return what ``node`` is a cast, a view, a dropout or another such passage of."""
    while flow.reads(node) and flow.role(node) is Role.PASS and len(flow.activations(node)) == 1:
        (node,) = flow.activations(node)
    return node
