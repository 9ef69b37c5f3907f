"""What the backward of a graph that runs by itself costs: as the compiled one would."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from ._torch_compat import Parts, compile_ahead, static_fake
from .passes import Pipeline
from .passes.copying import GraphCopy
from .passes.dataflow import value_of
from .passes.flops import Flops


def eager_costs(pipeline: Pipeline) -> Flops | None:
    """Count the backward of a gated graph, traced on fake tensors; nothing is computed.

    Autograd runs operator by operator what the compiled backward runs in regions, and leaves out the same.

    Args:
        pipeline: has gated a graph whose nodes know their values, and counts.

    Returns:
        FLOPs by decision; None if nothing in the graph can be differentiated.
    """
    assert pipeline.gated is not None
    gm = _flat(pipeline.gated.gm)
    inputs = [value_of(node) for node in gm.graph.find_nodes(op="placeholder")[:-1]]
    thresholds = static_fake(torch.zeros(len(pipeline.gated.sites)), inputs)

    def partitioned(joint: fx.Graph, cut: Callable[[], Parts]) -> None:
        pipeline.rewrite_joint(joint)
        pipeline.rewrite_backward(cut().backward)

    compile_ahead(gm, [*inputs, thresholds], partitioned)
    return pipeline.flops


def _flat(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a copy that takes its inputs one by one and returns all that it does in one tuple."""
    copy = GraphCopy.of(gm).gm
    output = copy.graph.output_node()
    output.args = (tuple(dict.fromkeys(output.all_input_nodes)),)
    copy.recompile()
    return copy
