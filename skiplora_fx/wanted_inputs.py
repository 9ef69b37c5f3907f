"""Inputs of a graph whose gradient is wanted: by whoever reads it, or by what computed them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from ._torch_compat import placeholder_source

WANTED = (
    "is no parameter and wants a gradient itself, so the backward goes down to it whatever is skipped. If that is by "
    "the hook that transformers and PEFT set with activation checkpointing, docs/explain.md says how to do without."
)
"""What is said of such an input, behind its name."""


class InputGradientWarning(UserWarning):
    """A graph with gated adapters has an input that wants a gradient: truncating lower layers saves nothing."""


def wanted_inputs(gm: fx.GraphModule, inputs: Sequence[Any]) -> tuple[str, ...]:
    """Return those that are no parameters and keep their gradient, as Python finds them.

    Args:
        gm: Dynamo's graph.
        inputs: what it was traced with, one for each placeholder.
    """
    nodes = gm.graph.find_nodes(op="placeholder")
    return tuple(
        placeholder_source(node) or node.name
        for node, value in zip(nodes, inputs, strict=True)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.requires_grad and value.is_leaf
    )


def carried_inputs(inputs: Sequence[Any]) -> tuple[int, ...]:
    """Return the positions of those that are no parameters and want a gradient, as other graphs may hand them on.

    Which of them were computed from what trains is known only when the graph runs: a layer whose input is a leaf may
    share its graph with one whose input is not.
    """
    return tuple(
        place
        for place, value in enumerate(inputs)
        if isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)
    )
