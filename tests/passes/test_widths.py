"""What a factor reads and makes, from which the rank follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from skiplora_fx.passes.dataflow import Dataflow
from skiplora_fx.passes.linear_operators import Role
from skiplora_fx.passes.widths import weight_of, widths_of


def widths(
    function: Callable[[Tensor, Tensor], Any], x: Tensor, weight: Tensor, traced: fx.GraphModule | None = None
) -> tuple[int, int]:
    graph = (traced or make_fx(function)(x, weight)).graph
    inputs = graph.find_nodes(op="placeholder")
    flow = Dataflow(graph, {inputs[0]: None, inputs[1]: (inputs[1],)})
    calls = [node for node in graph.nodes if node.op == "call_function" and flow.is_activation(node)]
    (factor,) = [node for node in calls if flow.role(node) is Role.FACTOR]
    assert weight_of(flow, factor) is not None
    (delta,) = graph.output_node().all_input_nodes
    return tuple(widths_of(flow, factor, delta))


def whole(function: Callable[..., Any], x: Tensor, weight: Tensor) -> fx.GraphModule:
    """Trace ``function`` without taking its operators apart."""
    gm = fx.symbolic_trace(function)
    FakeTensorProp(gm).propagate(x, weight)
    return gm


@pytest.mark.parametrize(
    ("function", "x", "weight", "expected"),
    [
        (F.linear, (3, 16), (4, 16), (16, 4)),
        (lambda x, w: x @ w, (2, 3, 16), (16, 4), (16, 4)),
        (lambda x, w: w @ x, (16, 3), (4, 16), (16, 4)),
        (F.conv1d, (2, 6, 9), (4, 6, 3), (6, 4)),
        (lambda x, w: F.conv1d(x, w, groups=2), (2, 8, 9), (6, 4, 1), (8, 6)),
        (lambda x, w: F.conv_transpose1d(x, w, groups=2), (2, 8, 9), (8, 3, 1), (8, 6)),
        (F.conv2d, (2, 6, 9, 9), (4, 6, 3, 3), (6, 4)),
        (F.conv2d, (6, 9, 9), (4, 6, 3, 3), (6, 4)),
        (torch.bmm, (2, 3, 8), (2, 8, 4), (8, 4)),  # two experts with rows of their own
        (lambda x, w: torch.bmm(x, w).transpose(0, 1).reshape(3, 8), (2, 3, 8), (2, 8, 4), (16, 8)),  # two blocks
        (lambda x, w: torch.bmm(x, w.expand(2, 8, 4)), (2, 3, 8), (1, 8, 4), (8, 4)),  # one, used twice
    ],
)
def test_widths(function: Any, x: tuple[int, ...], weight: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert widths(function, torch.randn(x), torch.randn(weight)) == expected


@pytest.mark.parametrize(
    ("function", "x", "weight", "expected"),
    [
        (lambda x, w: torch.einsum("bim,inm->bin", x, w), (3, 2, 8), (2, 4, 8), (8, 4)),  # as of two experts
        (lambda x, w: torch.einsum("bim,inm->bin", x, w).flatten(1), (3, 2, 8), (2, 4, 8), (16, 8)),
        (lambda x, w: torch.einsum("...i,ri->...r", x, w), (2, 3, 16), (4, 16), (16, 4)),
        (lambda x, w: torch.einsum("bi,ri", x, w), (3, 16), (4, 16), (16, 4)),
        (lambda x, w: torch.einsum("bi,ri->br", (x, w)), (3, 16), (4, 16), (16, 4)),
        (lambda x, w: torch.einsum("bi,ri,rj->bj", x, w, w), (3, 16), (4, 16), (16, 16)),
        (lambda x, w: torch.tensordot(x, w, dims=([2], [1])), (2, 3, 16), (4, 16), (16, 4)),
        (lambda x, w: torch.tensordot(w, x, dims=1), (4, 16), (4, 4), (4, 4)),
        (lambda x, w: torch.matmul(input=w, other=x), (16, 3), (4, 16), (16, 4)),
    ],
)
def test_widths_of_what_tracers_take_apart(
    function: Any, x: tuple[int, ...], weight: tuple[int, ...], expected: tuple[int, int]
) -> None:
    given = torch.randn(x), torch.randn(weight)
    assert widths(function, *given, whole(function, *given)) == expected


def test_an_embedding_reads_its_vocabulary() -> None:
    ids, weight = torch.randint(0, 20, (3,)), torch.randn(20, 4)
    assert widths(lambda ids, w: F.embedding(ids, w), ids, weight) == (20, 4)
