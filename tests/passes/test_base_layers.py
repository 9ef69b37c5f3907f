"""The layers that make h, and whether one of them is frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from skiplora_fx.passes.base_layers import base_layers, trained_layer
from skiplora_fx.passes.dataflow import Dataflow


def squares(count: int) -> list[Tensor]:
    return [torch.randn(4, 4) for _ in range(count)]


@pytest.mark.parametrize(
    ("function", "trained", "layers", "found"),
    [
        pytest.param(lambda x, v, w: x @ w, {1}, 1, True, id="a trained layer"),
        pytest.param(lambda x, v, w: x @ w, {0}, 1, False, id="a frozen layer"),
        pytest.param(lambda x, v, w: (x @ w).t().clone() * 2, {1}, 1, True, id="behind a view, a copy and a scale"),
        pytest.param(lambda x, v, w: x @ w + v[0], {0}, 1, False, id="a trained bias"),
        pytest.param(lambda x, v, w: x @ (w + v), {0}, 1, False, id="a weight that is frozen in part"),
        pytest.param(lambda x, v, w: x @ w + x @ v, {1}, 2, False, id="a sum with a frozen layer"),
        pytest.param(lambda x, v, w: x @ w + x @ v, {0, 1}, 2, True, id="a sum of trained layers"),
        pytest.param(lambda x, v, w: x @ w @ v, {0}, 1, True, id="only the last of two"),
        pytest.param(lambda x, v, w: (x @ w).relu(), {1}, 0, False, id="nothing behind what is not linear"),
        pytest.param(lambda x, v, w: x * 2, {1}, 0, False, id="the input itself"),
    ],
)
def test_the_layers_of(function: Callable[..., Any], trained: set[int], layers: int, found: bool) -> None:
    graph = make_fx(function)(*squares(3)).graph
    x, *weights = graph.find_nodes(op="placeholder")
    flow = Dataflow(graph, {x: None, **{weight: (weight,) for weight in weights}})
    (h,) = graph.output_node().all_input_nodes
    made_by = base_layers(flow, h, [x])
    assert len(made_by) == layers
    training = [weights[number] for number in trained]
    layer = trained_layer(flow, made_by, lambda roots: tuple(root for root in roots if root in training))
    assert (layer is not None) is found


def test_what_the_branch_reads_is_no_longer_the_layer() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        return (x @ w) @ w

    graph = make_fx(function)(*squares(2)).graph
    x, w = graph.find_nodes(op="placeholder")
    flow = Dataflow(graph, {x: None, w: (w,)})
    inner, outer = [node for node in graph.nodes if node.op == "call_function"]
    assert base_layers(flow, outer, [inner]) == (outer,)
    assert base_layers(flow, inner, [inner]) == ()
    assert base_layers(flow, inner, [x, inner]) == (inner,)  # as with DoRA, whose branch reads h beside the input
